"""The audit decodes rdq's payloads: what it compares is what the loader would use, and faults are named."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rdq_matrices import matrices, matrix
from safetensors_files import LINEARS, save

from rdq.coded import CodedMatrix, spreads
from rdq.container import open_container
from rdq.writing import Writer
from scorecard.audit import audit, numbers
from scorecard.audit.layouts import recognise
from scorecard.audit.parts import Parts
from scorecard.errors import ArtifactError
from scorecard.safetensors_header import read_header

WIDTH, VOCABULARY = 128, 160
EMBEDDING = "model.embed_tokens"
CLAIMS = {"runner": "rdq", "bits": 3}
Matrices = dict[str, CodedMatrix]


# -- the layout --------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(matrices(), st.integers(1, 4), st.booleans())
def test_the_values_are_those_that_are_loaded(m: CodedMatrix, stack: int, transposed: bool) -> None:
    stack = stack if m.shape[0] % stack == 0 else 1
    with tempfile.TemporaryDirectory() as scratch:
        with Writer(scratch) as writer:
            writer.add_matrix("layer.weight", m, stack=stack, transposed=transposed)
            writer.close()
        path = Path(scratch, "model.safetensors")
        with open_container(path) as container:
            loaded = container.read("layer.weight", torch.float32).flatten(0, -2).numpy()
        (tensor,) = read_header(path).tensors
        shape = (loaded.shape[0], loaded.shape[1])
        stored = recognise(Parts("layer", shape, {"weight_rdq": tensor}))
        assert stored is not None
        assert (stored.format, stored.bits, stored.group_size) == ("rdq", None, None)
        assert stored.read is not None
        rows = numbers.sample(shape[0], 40)
        grid = stored.read(rows)
        np.testing.assert_allclose(grid.weights(), loaded[rows], rtol=3e-7, atol=1e-30)
        assert np.isin(grid.levels, grid.table).all()
        other = recognise(Parts("layer", (shape[0] + 1, shape[1]), {"weight_rdq": tensor}))
        assert other is not None
        assert other.read is None


def test_a_payload_in_a_file_of_another_kind_is_not_read(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", {"layer.weight_rdq": ("U8", (64,))})
    (tensor,) = read_header(tmp_path / "model.safetensors").tensors
    assert recognise(Parts("layer", (8, 8), {"weight_rdq": tensor})) is None


# -- whole artifacts ---------------------------------------------------------------------------------


def weight(name: str) -> np.ndarray:
    """float32, its own for each name, exact in bfloat16."""
    random = np.random.default_rng(sum(name.encode()))
    values = random.normal(0, 0.05, (VOCABULARY if name == EMBEDDING else WIDTH, WIDTH)).astype(np.float32)
    return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)


def rounded(values: np.ndarray, steps_in_deviation: float = 3.0) -> CodedMatrix:
    """Plain scalar quantization."""
    step = np.float32(values.std() / steps_in_deviation)
    codes = np.rint(values / step).astype(np.int16)
    ones = [np.full(size, 128, np.uint8) for size in values.shape]
    centroids = np.zeros((2, 4), np.float16)
    return CodedMatrix(codes, *ones, *spreads(values / step), float(step), centroids, 1)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    names = (EMBEDDING, *LINEARS)
    tensors: dict[str, Any] = {}
    for name in names:
        halves = (weight(name).view(np.uint32) >> 16).astype("<u2")
        tensors[f"{name}.weight"] = ("BF16", halves.shape, halves.tobytes())
    save(tmp_path / "original" / "model.safetensors", tensors)
    return tmp_path / "original"


def artifact(folder: Path, change: Callable[[Matrices], Matrices] = lambda made: made) -> Path:
    made = change({name: rounded(weight(name)) for name in (EMBEDDING, *LINEARS)})
    with Writer(folder) as writer:
        for name, m in made.items():
            writer.add_matrix(f"{name}.weight", m)
        writer.close(config={})
    return folder


def test_a_good_artifact_is_seen_through(original: Path, tmp_path: Path) -> None:
    found = audit(artifact(tmp_path / "made"), original, CLAIMS)
    assert found["findings"] == []
    assert {row["module"] for row in found["layers"]} == {EMBEDDING, *LINEARS}
    for row in found["layers"]:
        assert row["format"] == "rdq"
        assert 0.05 < row["relative_error"] < 0.15  # a step of a third of the deviation: 1 / (3 √12)
        assert row["rounding_difference"] == 0


def test_errors_that_the_inputs_do_not_see_may_be_large(original: Path, tmp_path: Path) -> None:
    def drifted(made: Matrices) -> Matrices:
        values = weight(LINEARS[0])
        noise = np.random.default_rng(0).normal(0, 1.5 * values.std(), values.shape).astype(np.float32)
        return {**made, LINEARS[0]: rounded(values + noise)}

    found = audit(artifact(tmp_path / "made", drifted), original, CLAIMS)
    assert found["findings"] == []
    assert max(row["relative_error"] for row in found["layers"]) > 1.4


def swapped(made: Matrices) -> Matrices:
    return {**made, LINEARS[0]: made[LINEARS[1]], LINEARS[1]: made[LINEARS[0]]}


def scaled(made: Matrices) -> Matrices:
    m = made[LINEARS[0]]
    doubled = CodedMatrix(**{**vars(m), "row_scale": m.row_scale + np.uint8(16)})
    return {**made, LINEARS[0]: doubled}


def wide(made: Matrices) -> Matrices:
    return {name: rounded(weight(name), 30) for name in made}


def without(made: Matrices) -> Matrices:
    return {name: m for name, m in made.items() if name != LINEARS[0]}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (swapped, "and 1 more: decodes to other weights than the original's (relative error 1.4"),
        (scaled, f"{LINEARS[0]}: decodes to other weights than the original's (relative error 3.0"),
        (wide, "artifact: the body takes 7.0 bits per weight, 3 claimed"),
        (without, f"{LINEARS[0]}: missing; write every layer"),
    ],
)
def test_a_changed_artifact_is_told(
    original: Path, tmp_path: Path, change: Callable[[Matrices], Matrices], what: str
) -> None:
    found = audit(artifact(tmp_path / "made", change), original, CLAIMS)
    assert any(what in one["what"] for one in found["findings"]), found["findings"]
    assert any(one["level"] == "error" for one in found["findings"])


def test_a_damaged_payload_is_an_error(original: Path, tmp_path: Path) -> None:
    path = artifact(tmp_path / "made") / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"model\.safetensors: .*: damaged, its checksum does not fit"):
        audit(tmp_path / "made", original, CLAIMS)


def test_experts_in_one_tensor_are_one_layer(tmp_path: Path) -> None:
    m = matrix("gaussian", 4 * 32, 64, states=8)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    with Writer(tmp_path / "made") as writer:
        writer.add_matrix(name, m, stack=4, transposed=True)
        writer.close(config={})
    with open_container(tmp_path / "made") as container:
        loaded = container.read(name, torch.float32).numpy()
    assert loaded.shape == (4, 64, 32)
    save(tmp_path / "original" / "model.safetensors", {name: ("F32", loaded.shape, loaded.tobytes())})
    found = audit(tmp_path / "made", tmp_path / "original", CLAIMS)
    (row,) = found["layers"]
    assert (row["module"], row["format"]) == (name, "rdq")
    assert row["relative_error"] < 1e-6
