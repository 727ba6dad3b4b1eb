"""Peak memory and time of each stage of rdq, on a made-up model with layers of Llama-3.2-1B's shape.

    OMP_NUM_THREADS=1 python -m benchmarks.rdq_memory FOLDER [--layers 4] [--model embedded/tiny-llama]

Each stage runs in a process of its own and prints a line: wall seconds, CPU seconds, peak resident bytes
(of which those before its work began: Python and its libraries). ``FOLDER`` gets the model and the files.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.rdq_coding import gaussian
from rdq.coding import encode
from rdq.compress import Compressor, Options
from rdq.importance import settings_of
from rdq.matrices import matrices, read, stored
from rdq.modeling import load
from rdq.quantize import Settings, prepare, quantize
from rdq.statistics import Statistics
from rdq.tables import Tables
from rdq.writing import Writer

SEQUENCES, LENGTH = 5, 256  # the last one is not calibrated on
STEP = 1.5e-4


def make(folder: Path, layers: int) -> None:
    """Random weights with spreads such as trained ones have: rows and columns of unlike size."""
    config = LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=2048,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            rows, columns = (torch.randn(n, generator=generator).mul(0.3).exp() for n in parameter.shape)
            parameter.data.normal_(0, 0.02, generator=generator).mul_(rows[:, None]).mul_(columns)
    model.save_pretrained(folder)


def statistics(folder: Path, offload: Path | bool) -> Compressor:
    tokens = torch.randint(10**9, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(1))
    vocabulary = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    return Compressor(
        folder, Options(calibration=(tokens % vocabulary).tolist(), damping=0.01, offload=offload)
    )


def divergence(folder: Path, scratch: Path, compressed: Path) -> None:
    """Statistics of no text, so that what is seen is the divergence."""
    made = Compressor(
        folder, Options(mode="data-free", calibration=[list(range(LENGTH))] * 2, offload=scratch)
    )
    made.divergence(compressed)


def quantized(folder: Path) -> None:
    """The matrices of the first block, quantized with statistics of made-up inputs, then coded."""
    model, tensors = LlamaForCausalLM.from_pretrained(folder, dtype="auto"), stored(folder)
    found = [m for m in matrices(model, tensors) if ".layers.0." in m.name]
    del model
    times = dict.fromkeys(("prepare", "quantize", "encode"), 0.0)
    weights = 0
    for matrix in found:
        x = torch.randn(matrix.columns, matrix.columns)
        known = Statistics(x @ x.T / matrix.columns, np.ones(matrix.rows))
        settings, weight = settings_of(matrix, Settings()), read(tensors[matrix.name], matrix.name)
        prepared = timed(times, "prepare", lambda: prepare(known, settings))  # noqa: B023 - called at once
        c = 0.6 * float(weight.float().std()) / (prepared.row.mean() / prepared.innovation.mean())
        out = timed(times, "quantize", lambda: quantize(weight, prepared, c, settings))  # noqa: B023
        timed(times, "encode", lambda: encode(out.coded, Tables.gaussian()))  # noqa: B023
        weights += matrix.rows * matrix.columns
        print(f"  {matrix.name}: {8 * out.predicted_bytes / weight.numel():.2f} bits", flush=True)
    for name, seconds in times.items():
        print(f"  {name}: {seconds:.1f} CPU s for {weights / 1e6:.1f} M weights", flush=True)


def timed(times: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    start = time.process_time()
    result = work()
    times[name] += time.process_time() - start
    return result


def write(folder: Path, out: Path) -> None:
    """A compressed folder of the model's shapes, with indices of Gaussians of about 3 bits."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype="auto")
    tensors = stored(folder)
    found = {m.name: m for m in matrices(model, tensors)}
    with Writer(out, tables=Tables.gaussian()) as writer:
        for name in tensors:
            if name in found:
                m = gaussian(found[name].rows, found[name].columns, 3.0)
                writer.add_matrix(name, m)
            else:
                writer.add_plain(name, model.get_parameter(name).data)
        writer.close(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def stages(arguments: argparse.Namespace) -> dict[str, Callable[[], object]]:
    work, model = arguments.folder, arguments.model or arguments.folder / "model"
    (work / "scratch").mkdir(parents=True, exist_ok=True)
    made = work / "compressed"
    return {
        "model": lambda: make(model, arguments.layers),
        "statistics, in memory": lambda: statistics(model, False),
        "statistics, by block": lambda: statistics(model, work / "scratch"),
        "one block quantized": lambda: quantized(model),
        "written": lambda: write(model, made),
        "divergence, by block": lambda: divergence(model, work / "scratch", made),
        "rdq.load": lambda: load(made),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, help="this one instead of a made-up one")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--stage", action="append", help="only these")
    arguments = parser.parse_args()
    todo = stages(arguments)
    for name in arguments.stage or todo:
        if arguments.stage is None or len(arguments.stage) > 1:
            subprocess.run([sys.executable, "-m", "benchmarks.rdq_memory", *sys.argv[1:2],
                            *(["--model", str(arguments.model)] if arguments.model else []),
                            "--layers", str(arguments.layers), "--stage", name], check=True)  # fmt: skip
            continue
        before, wall, cpu = peak(), time.perf_counter(), time.process_time()
        todo[name]()
        print(
            f"{name}: {time.perf_counter() - wall:.1f} s, {time.process_time() - cpu:.1f} CPU s, "
            f"{peak() / 1e6:.0f} MB ({before / 1e6:.0f} MB before)",
            flush=True,
        )


def peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
