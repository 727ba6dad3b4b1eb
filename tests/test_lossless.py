"""The size of the losslessly compressed original."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from scorecard.errors import ArtifactError
from scorecard.lossless import lossless_bytes


def bf16(values: np.ndarray) -> np.ndarray:
    """The upper halves of float32 numbers; numpy has no bfloat16, and byte planes need only its width."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def write(folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def header_bytes(folder: Path) -> int:
    return 8 + int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")


def test_gaussian_weights_shrink_by_a_third(tmp_path: Path) -> None:
    """bf16 Gaussians hold about 10.6 bits each; zstd without planes reaches far less."""
    values = bf16(np.random.default_rng(0).normal(0, 0.02, 200_000))
    folder = write(tmp_path, {"w": values})
    size = lossless_bytes(folder) - header_bytes(folder) - 2
    assert 10.4 < 8 * size / values.size < 11.2
    assert size < 0.95 * len(zstandard.ZstdCompressor(level=19).compress(values.tobytes()))


def test_agrees_with_compressing_the_planes_at_once(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    tensors = {"a": bf16(generator.normal(size=(300, 50))), "b": bf16(generator.normal(size=999))}
    folder = write(tmp_path, tensors)
    data = (folder / "model.safetensors").read_bytes()[header_bytes(folder) :]
    at_once = sum(len(zstandard.ZstdCompressor(level=19).compress(data[place::2])) for place in range(2))
    assert lossless_bytes(folder) == pytest.approx(at_once + header_bytes(folder) + 2, rel=0.002)


DTYPES = st.sampled_from(
    [np.uint8, np.int8, np.float16, np.uint16, np.float32, np.int32, np.float64, np.int64]
)


@given(st.lists(st.tuples(DTYPES, st.integers(0, 40)), max_size=4))
@settings(max_examples=25, deadline=None)
def test_any_types_count_every_byte_once(tmp_path_factory: pytest.TempPathFactory, made: list) -> None:
    """Random bytes do not shrink: the size is that of the files and a few bytes for each stream."""
    folder = tmp_path_factory.mktemp("model")
    generator = np.random.default_rng(2)
    tensors = {
        f"t{i}": generator.integers(0, 256, count * np.dtype(dtype).itemsize, dtype=np.uint8).view(dtype)
        for i, (dtype, count) in enumerate(made)
    }
    write(folder, tensors)
    files = sum(path.stat().st_size for path in folder.iterdir())
    assert abs(lossless_bytes(folder) - files) <= 16 * (1 + 2 + 4 + 8)


def test_same_files_same_number_and_hidden_files_do_not_count(tmp_path: Path) -> None:
    folder = write(tmp_path, {"w": bf16(np.random.default_rng(3).normal(size=5000))})
    first = lossless_bytes(folder)
    (folder / ".manifest.json").write_text("x" * 1000)
    assert lossless_bytes(folder) == first
    (folder / "tokenizer.json").write_text("x" * 1000)
    assert lossless_bytes(folder) == first + 1000
    assert lossless_bytes(folder, level=1) > lossless_bytes(folder)


def test_broken_file(tmp_path: Path) -> None:
    folder = write(tmp_path, {"w": np.ones(100, np.float32)})
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        lossless_bytes(folder)
