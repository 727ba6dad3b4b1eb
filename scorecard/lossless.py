"""How small the original gets without losing a bit: the size of the ``lossless`` reference row.

The bytes of each number are split into planes (of a bf16 number: sign and exponent, then the rest), and each
plane of the model is one zstd stream. Exponents repeat and shrink, mantissas hardly do; mixed, neither
would. Byte planes are what HDF5 and Blosc call the shuffle filter.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scorecard.safetensors_header import BITS, read_header

if TYPE_CHECKING:
    import zstandard

#: Level 19 takes about 0.2 CPU seconds per million numbers; level 1 a fiftieth of that, for 2 % more bytes.
LEVEL, LEVEL_LARGE, LARGE_BYTES = 19, 1, 256 * 2**20
#: Weights do not repeat over long distances: zstd's usual 8 MiB window saves no byte more, and costs 85 MB.
_SEARCH = {"window_log": 18, "chain_log": 16, "hash_log": 16}


def lossless_bytes(folder: Path, level: int | None = None) -> int:
    """Bytes of the model in `folder` with its safetensors split into byte planes and compressed by zstd.

    Headers and all other files count as they are; names that begin with a dot are left out. Memory stays
    below about 100 MB whatever the model's size. `level` is zstd's; by default 19, or 1 when there are more
    than 256 MiB of weights. The same files give the same number. Raises ArtifactError for a broken file.
    """
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    weights = sorted(path for path in files if path.suffix == ".safetensors")
    total = sum(path.stat().st_size for path in files if path.suffix != ".safetensors")
    if level is None:
        level = LEVEL if sum(path.stat().st_size for path in weights) <= LARGE_BYTES else LEVEL_LARGE
    planes = _Planes(level)
    for path in weights:
        header = read_header(path)
        total += header.size_bytes
        for tensor in header.tensors:
            for chunk in tensor.chunks():
                planes.add(chunk, max(1, BITS.get(tensor.dtype, 8) // 8))
    return total + planes.finish()


class _Planes:
    """One running zstd stream per (bytes of a number, place of the byte in it); keeps only their lengths."""

    def __init__(self, level: int) -> None:
        self._level = level
        self._streams: dict[tuple[int, int], zstandard.ZstdCompressionObj] = {}
        self._bytes = 0

    def add(self, data: bytes, item_bytes: int) -> None:
        for place in range(item_bytes):
            self._bytes += len(self._stream(item_bytes, place).compress(data[place::item_bytes]))

    def finish(self) -> int:
        self._bytes += sum(len(stream.flush()) for stream in self._streams.values())
        self._streams.clear()
        return self._bytes

    def _stream(self, item_bytes: int, place: int) -> zstandard.ZstdCompressionObj:
        import zstandard

        if (item_bytes, place) not in self._streams:
            parameters = zstandard.ZstdCompressionParameters.from_level(self._level, **_SEARCH)
            compressor = zstandard.ZstdCompressor(compression_params=parameters)
            self._streams[item_bytes, place] = compressor.compressobj()
        return self._streams[item_bytes, place]
