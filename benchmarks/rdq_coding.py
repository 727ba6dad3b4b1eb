"""Entropy coders on the indices of quantized weights: bytes, speed, and a layer of a 1 B model.

    OMP_NUM_THREADS=1 python -m benchmarks.rdq_coding [--json FILE] [--rows 2048] [--layers 1] [--bits 2 3 4]

Times are CPU seconds of one thread, the best of several runs, so that a busy machine does not count.
constriction takes part where it is installed; the project does not need it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import lzma
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard

from rdq import coding, lanes_numpy
from rdq.coded import MAX_CODE, CodedMatrix, spreads
from rdq.container import open_container
from rdq.counting import magnitudes
from rdq.tables import Tables, entropy_bits, from_counts
from rdq.writing import Writer

LAYER = {"q": (2048, 2048), "k": (512, 2048), "v": (512, 2048), "o": (2048, 2048),
         "gate": (8192, 2048), "up": (8192, 2048), "down": (2048, 8192)}  # fmt: skip
"""Rows and columns of the matrices of a layer of Llama-3.2-1B."""
WEIGHTS_8B = 8.03e9


def gaussian(rows: int, columns: int, bits: float, seed: int = 0, vary: float = 0.0) -> CodedMatrix:
    """Indices of about `bits` bits each; vary: the spread, in nats, of the rows' and columns' deviations."""
    rng = np.random.default_rng(seed)
    deviation = 2**bits / np.sqrt(2 * np.pi * np.e)
    values = rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(deviation)
    if vary:
        values *= np.exp(vary * rng.standard_normal((rows, 1), dtype=np.float32))
        values *= np.exp(vary * rng.standard_normal((1, columns), dtype=np.float32))
    row, column = spreads(values)
    np.rint(values, out=values)
    codes = values.clip(-MAX_CODE, MAX_CODE).astype(np.int16)
    scale = [np.rint(rng.normal(128, 4, size)).astype(np.uint8) for size in (rows, columns)]
    return CodedMatrix(codes, *scale, row, column, 0.01, np.zeros((2, 4), np.float16), 8)


Coder = tuple[Callable[[], bytes], Callable[[bytes], Any]]


def coders(m: CodedMatrix, tables: Tables) -> Iterator[tuple[str, Coder]]:
    """Name, and how it encodes the indices and decodes what came out. Ours decode to bfloat16 weights."""
    plain = m.codes.astype(np.int8).tobytes()
    yield "rdq, numba", (lambda: coding.encode(m, tables), lambda data: coding.decode_weights(data, tables))
    yield (
        "rdq, numpy",
        (
            lambda: coding.encode(m, tables, module=lanes_numpy),
            lambda data: coding.decode_weights(data, tables, module=lanes_numpy),
        ),
    )
    for level in (1, 3, 19):
        yield (
            f"zstd -{level}",
            (
                lambda level=level: zstandard.ZstdCompressor(level).compress(plain),
                zstandard.ZstdDecompressor().decompress,
            ),
        )
    huffman = zlib.Z_HUFFMAN_ONLY

    def deflate() -> bytes:
        stream = zlib.compressobj(9, zlib.DEFLATED, 15, 9, huffman)
        return stream.compress(plain) + stream.flush()

    yield "deflate, Huffman only", (deflate, zlib.decompress)
    yield "xz -6", (lambda: lzma.compress(plain, preset=6), lzma.decompress)
    if importlib.util.find_spec("constriction"):
        yield "constriction ANS", _constriction(m.codes)


def _constriction(codes: np.ndarray) -> Coder:
    """One categorical model for all indices."""
    import constriction

    lowest = int(codes.min())
    symbols = codes.reshape(-1).astype(np.int32) - lowest
    share = np.bincount(symbols).astype(np.float64)
    model = constriction.stream.model.Categorical(share / share.sum(), perfect=False)

    def encode() -> bytes:
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(symbols, model)
        return bytes(coder.get_compressed().tobytes())

    def decode(data: bytes) -> Any:
        words = np.frombuffer(data, np.uint32)
        return constriction.stream.stack.AnsCoder(words).decode(model, symbols.size)

    return encode, decode


def timed(function: Callable[[], Any], runs: int = 3, enough: float = 2.0) -> tuple[Any, float]:
    """(what it returns, the least CPU seconds of up to `runs` runs, fewer once `enough` seconds are used)"""
    best, used = float("inf"), 0.0
    for _ in range(runs):
        start = time.process_time()
        result = function()
        seconds = time.process_time() - start
        best, used = min(best, seconds), used + seconds
        if used > enough:
            break
    return result, best


def compare(rows: int, bits: float) -> list[dict[str, Any]]:
    """One row for each coder, on a square matrix of one deviation."""
    m = gaussian(rows, rows, bits)
    counts = magnitudes(m)
    tables = from_counts(counts).pruned(counts)
    entropy = entropy_bits(counts) / 8
    out = []
    for name, (encode, decode) in coders(m, tables):
        data, encoding = timed(encode)
        _, decoding = timed(lambda data=data, decode=decode: decode(data))
        size = len(data) - (len(coding.parse(data).side) if name.startswith("rdq") else 0)
        if name.startswith("rdq"):
            size += len(tables.to_bytes())
        out.append({
            "coder": name, "bits": 8 * size / m.codes.size, "entropy_bits": 8 * entropy / m.codes.size,
            "over": size / entropy - 1, "encode": m.codes.size / encoding / 1e6,
            "decode": m.codes.size / decoding / 1e6,
        })  # fmt: skip
    return out


def layers(count: int, bits: float, folder: Path) -> dict[str, Any]:
    """Writes layers of Llama-3.2-1B's shape to a folder, reads them back in a process of its own."""
    start, largest = time.process_time(), 0
    counted, weights = 0.0, 0
    with Writer(folder) as writer:
        for layer in range(count):
            for name, (rows, columns) in LAYER.items():
                m = gaussian(rows, columns, bits, seed=layer, vary=0.2)
                begun = time.process_time()
                writer.add_matrix(f"{layer}.{name}", m)
                counted += time.process_time() - begun
                weights += m.codes.size
                largest = max(largest, m.codes.size)
        begun = time.process_time()
        written = writer.close()
        counted += time.process_time() - begun
    size = (folder / "model.safetensors").stat().st_size
    ideal = sum(w.ideal_bytes or 0 for w in written)
    read = subprocess.run(
        [sys.executable, "-m", "benchmarks.rdq_coding", "--read", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        "layers": count,
        "weights": weights,
        "largest": largest,
        "bytes": size,
        "bits": 8 * size / weights,
        "over_ideal": size / ideal - 1,
        "write_seconds": counted,
        "made_in_seconds": time.process_time() - start,
        "write_peak_bytes": resident("VmHWM"),
        **json.loads(read.stdout),
    }


def resident(which: str) -> int:
    """Bytes of memory of this process, by its name in /proc: VmRSS now, VmHWM at most so far."""
    status = Path("/proc/self/status").read_text().split()
    return 1024 * int(status[status.index(f"{which}:") + 1])


def read(folder: Path) -> dict[str, Any]:
    """Decodes all matrices of a folder to bfloat16 and keeps them, as a model does."""
    with open_container(folder) as container:
        names = list(container)
        container.read(names[1])  # what is loaded or compiled once
        before = resident("VmRSS")
        start, model = time.process_time(), []
        for name in names:
            model.append(container.read(name))
        seconds = time.process_time() - start
    return {
        "read_seconds": seconds, "read_peak_bytes": resident("VmHWM") - before,
        "model_bytes": sum(w.numel() * w.element_size() for w in model),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--bits", type=float, nargs="+", default=[2, 3, 4])
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.read:
        print(json.dumps(read(asked.read)))
        return
    found: dict[str, Any] = {"coders": {}, "layers": {}}
    print("| bits asked | coder | bits | over entropy | encode Mweights/s | decode Mweights/s |")
    print("|---:|---|---:|---:|---:|---:|")
    for bits in asked.bits:
        found["coders"][bits] = compare(asked.rows, bits)
        for r in found["coders"][bits]:
            print(f"| {bits:g} | {r['coder']} | {r['bits']:.4f} | {r['over']:+.2%} | {r['encode']:.1f} | "
                  f"{r['decode']:.1f} |", flush=True)  # fmt: skip
    for bits in asked.bits:
        with tempfile.TemporaryDirectory() as folder:
            r = found["layers"][bits] = layers(asked.layers, bits, Path(folder))
        print(described(bits, r), flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))


def described(bits: float, r: dict[str, Any]) -> str:
    """One line on a set of layers."""
    rate = r["weights"] / r["read_seconds"]
    mb = {key: r[key] / 1e6 for key in ("read_peak_bytes", "model_bytes", "write_peak_bytes")}
    parts = (
        f"{bits:g} bits: {r['weights'] / 1e6:.1f} M weights, {r['bits']:.4f} bits each in the file",
        f"{r['over_ideal']:+.2%} over ideal (with side vectors and header)",
        f"written at {r['weights'] / r['write_seconds'] / 1e6:.0f} Mweights per CPU second",
        f"read at {rate / 1e6:.0f}, so 8 B in {WEIGHTS_8B / rate:.0f} CPU seconds",
        f"reading peaked {mb['read_peak_bytes']:.0f} MB above the start",
        f"for {mb['model_bytes']:.0f} MB of weights, the largest matrix of {2 * r['largest'] / 1e6:.0f} MB",
        f"writing peaked at {mb['write_peak_bytes']:.0f} MB",
    )
    return "; ".join(parts)


if __name__ == "__main__":
    main()
