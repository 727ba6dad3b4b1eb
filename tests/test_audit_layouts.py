"""What the audit's readers make of each layout is what was written, for any shape, width and group."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import audit_writers as writers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors_files import save

from scorecard.audit import numbers
from scorecard.audit.grid import Grid, Stored
from scorecard.audit.layouts import recognise
from scorecard.audit.parts import Parts
from scorecard.safetensors_header import read_header

quick = settings(max_examples=30, deadline=None)
draw_bits = st.sampled_from([2, 3, 4, 8])


@dataclass(frozen=True)
class Given:
    """A weight in the making. ``scale`` and ``zero`` are [out, groups]."""

    bits: int
    size: int
    codes: writers.Codes
    scale: writers.Array
    zero: writers.Codes

    def weight(self) -> writers.Array:
        """By the definition, in the arithmetic of the audit."""
        spread = [np.repeat(part, self.size, axis=1) for part in (self.zero, self.scale)]
        return (self.codes.astype(np.float32) - spread[0]).astype(np.float32) * spread[1]


@st.composite
def givens(draw: st.DrawFn, bits: Any = draw_bits) -> Given:
    width_of, groups, eights = draw(bits), draw(st.sampled_from([1, 2, 3])), draw(st.integers(1, 3))
    size, out = draw(st.sampled_from([32, 64])), 32 * eights
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    return Given(
        width_of,
        size,
        random.integers(0, 2**width_of, (out, size * groups)),
        np.exp2(random.integers(-8, 3, (out, groups))).astype(np.float32),
        random.integers(1, 2**width_of, (out, groups)),
    )


def read(parts: writers.Parts, shape: tuple[int, int], config: Any = None) -> tuple[Stored, Grid, Any]:
    """What is recognised, its grid on the sampled rows, and these rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save(path, {f"layer.{name}": spec for name, spec in parts.items()})
        tensors = {t.name.removeprefix("layer."): t for t in read_header(path).tensors}
        stored = recognise(Parts("layer", shape, tensors, config or {}))
        assert stored is not None
        assert stored.read is not None
        rows = numbers.sample(shape[0], 40)
        return stored, stored.read(rows), rows


def check(given: Given, parts: writers.Parts, form: str, *, config: Any = None) -> Stored:
    stored, grid, rows = read(parts, given.codes.shape, config)
    assert (stored.format, stored.bits, stored.group_size) == (form, given.bits, given.size)
    np.testing.assert_allclose(grid.weights(), given.weight()[rows], rtol=2e-6, atol=1e-7)
    return stored


@quick
@given(givens(), st.sampled_from(["gptq", "gptq_v2"]))
def test_gptq(given: Given, form: str) -> None:
    parts = writers.gptq(given.codes, given.scale, given.zero, given.bits)
    if form == "gptq_v2":
        stored = np.array([writers.words(column, given.bits) for column in given.zero.T])
        parts["qzeros"] = writers.whole(stored, "I32")
    check(given, parts, "gptq", config={"checkpoint_format": form})


@quick
@given(givens(st.sampled_from([2, 3, 4, 5, 6, 7])))
def test_gptq_in_planes(given: Given) -> None:
    parts = writers.gptq(given.codes, given.scale, given.zero, given.bits)
    lines = [writers.planes(row, given.bits) for row in given.codes]
    parts["qweight"] = writers.whole(np.array(lines).T, "I32")
    zeros = [writers.planes(column, given.bits) for column in given.zero.T]
    parts["qzeros"] = writers.whole(np.array(zeros), "I32")
    check(given, parts, "gptq", config={"checkpoint_format": "gptq_p"})


@quick
@given(givens(), st.integers(0, 99))
def test_gptq_with_groups_in_the_order_of_activations(given: Given, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(np.arange(given.codes.shape[1]) // given.size)
    parts = writers.gptq(given.codes, given.scale, given.zero, given.bits, order)
    _, grid, rows = read(parts, given.codes.shape)
    weight = (given.codes - given.zero[:, order]) * given.scale[:, order]
    np.testing.assert_array_equal(grid.weights(), weight[rows].astype(np.float32))


@quick
@given(givens(st.just(4)))
def test_awq(given: Given) -> None:
    check(given, writers.awq(given.codes, given.scale, given.zero), "awq-gemm")


@quick
@given(givens(st.integers(1, 8)), st.booleans())
def test_pack_quantized(given: Given, symmetric: bool) -> None:
    if symmetric:
        given.zero[:] = 2 ** (given.bits - 1)
    zero = None if symmetric else given.zero
    parts = writers.pack_quantized(given.codes, given.scale, zero, given.bits)
    assert check(given, parts, "compressed-tensors pack-quantized").symmetric is symmetric


@quick
@given(givens(st.integers(2, 8)), st.booleans())
def test_rtn(given: Given, symmetric: bool) -> None:
    if symmetric:
        given.zero[:] = 2 ** (given.bits - 1)
    parts = writers.rtn(given.codes, given.scale, None if symmetric else given.zero, given.bits)
    assert check(given, parts, "rtn").symmetric is symmetric


@quick
@given(
    givens(st.just(8)),
    st.sampled_from(
        [
            ("weight", "SCB", "bitsandbytes int8"),
            ("_weight_qdata", "_weight_scale", "torchao"),
            ("weight._data", "weight._scale", "quanto"),
            ("weight", "weight_quantizer._scale", "modelopt int8"),
            ("weight", "weight_scale", "compressed-tensors int-quantized"),
        ]
    ),
)
def test_int8(given: Given, names: tuple[str, str, str]) -> None:
    codes, scale = given.codes - 128, given.scale
    if names[1] == "SCB":
        scale = scale[:, :1]
    one = Given(8, codes.shape[1] // scale.shape[1], codes, scale, np.zeros(scale.shape, np.int64))
    assert check(one, writers.int8(codes, scale, names[:2]), names[2]).symmetric


@quick
@given(givens(st.just(4)), st.sampled_from([32, 64]), st.booleans())
def test_bitsandbytes_4bit(given: Given, block: int, as_bfloat16: bool) -> None:
    count = given.codes.size // block
    absmax = np.linspace(0.5, 2, count, dtype=np.float32)
    parts = writers.bitsandbytes(given.codes, absmax, block)
    if as_bfloat16:  # quant_storage: the same bytes under another type
        data = parts["weight"][2]  # type: ignore[misc]
        parts["weight"] = ("BF16", (len(data) // 2, 1), data)
    stored, grid, rows = read(parts, given.codes.shape)
    levels = np.array(writers.NF4, np.float32)[given.codes]
    weight = levels.reshape(-1, block) * absmax[:, None]
    np.testing.assert_array_equal(grid.weights(), weight.reshape(given.codes.shape)[rows])
    assert (stored.format, stored.bits, stored.group_size) == ("bitsandbytes nf4", 4, block)


def test_bitsandbytes_with_quantized_scales() -> None:
    """absmax = nested_quant_map[code] * nested_absmax + offset, a scale for every 2 codes here."""
    codes = np.arange(64 * 64).reshape(64, 64) % 16
    parts = writers.bitsandbytes(codes, np.ones(64, np.float32), 64)
    state = b'{"blocksize": 64, "nested_blocksize": 2, "nested_offset": 0.5}'
    outer, inner = np.linspace(1, 2, 32, dtype=np.float32), np.linspace(0, 1, 256, dtype=np.float32)
    parts |= {
        "weight.absmax": writers.whole(np.arange(64), "U8"),
        "weight.nested_absmax": writers.f32(outer),
        "weight.nested_quant_map": writers.f32(inner),
        "weight.quant_state.bitsandbytes__nf4": writers.whole(np.frombuffer(state, np.uint8), "U8"),
    }
    _, grid, rows = read(parts, (64, 64))
    absmax = inner[:64] * outer[np.arange(64) // 2] + np.float32(0.5)
    weight = np.array(writers.NF4, np.float32)[codes] * absmax[:, None]
    np.testing.assert_allclose(grid.weights(), weight[rows], rtol=1e-6)


E4M3 = [  # by the definition: sign, 4 bits of exponent with bias 7, 3 of mantissa; only S.1111.111 is NaN
    (-1 if b & 128 else 1)
    * (2.0 ** ((b >> 3 & 15) - 7) * (1 + (b & 7) / 8) if b >> 3 & 15 else 2.0**-6 * (b & 7) / 8)
    for b in range(256)
]
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]


@quick
@given(givens(st.just(8)))
def test_fp8(given: Given) -> None:
    codes = np.where(given.codes % 128 == 127, 0, given.codes)
    stored, grid, rows = read(writers.fp8(codes, given.scale), codes.shape)
    weight = np.array(E4M3, np.float32)[codes] * np.repeat(given.scale, given.size, axis=1)
    np.testing.assert_array_equal(grid.weights(), weight[rows])
    assert (stored.format, stored.group_size) == ("fp8", given.size)


@quick
@given(givens(st.just(4)), st.sampled_from([None, 0.25, 96.0]))
def test_nvfp4_and_mxfp4(given: Given, outer: float | None) -> None:
    random = np.random.default_rng(0)
    codes = random.integers(1, 127, given.scale.shape)
    parts = writers.fp4(given.codes, codes, outer)
    stored, grid, rows = read(parts, given.codes.shape)
    scale = 2.0 ** (codes - 127.0) if outer is None else np.array(E4M3)[codes] / outer
    weight = np.array(E2M1)[given.codes] * np.repeat(scale, given.size, axis=1)
    np.testing.assert_allclose(grid.weights(), weight[rows], rtol=1e-6)
    assert stored.format == ("mxfp4" if outer is None else "nvfp4")
    assert stored.group_size == given.size


@quick
@given(givens(st.integers(1, 7)), st.booleans())
def test_torchao_packed(given: Given, symmetric: bool) -> None:
    half = 2 ** (given.bits - 1)
    parts = writers.rtn(given.codes, given.scale, None, given.bits)
    packed = {"_weight_packed": parts["qweight"], "_weight_scale": parts["scales"]}
    if symmetric:
        given.zero[:] = half
    else:
        packed["_weight_zero_point"] = writers.whole(given.zero - half, "I8")
    assert check(given, packed, "torchao").symmetric is symmetric


def test_nvfp4_with_scales_in_tiles() -> None:
    """torchao cuts [out, groups] into 128 x 4, and puts the four 32 x 4 of each side by side."""
    random = np.random.default_rng(0)
    codes, scale = random.integers(0, 16, (256, 128)), random.integers(1, 127, (256, 8))
    tiles = scale.reshape(2, 4, 32, 2, 4).transpose(0, 3, 2, 1, 4)
    parts = writers.fp4(codes, tiles.reshape(64, 32), 1.0)
    parts = {
        "_weight_qdata": parts["weight_packed"],
        "_weight_scale": parts["weight_scale"],
        "_weight_per_tensor_scale": ("F32", (), np.float32(0.5).tobytes()),
    }
    stored, grid, rows = read(parts, codes.shape)
    weight = np.array(E2M1)[codes] * np.repeat(np.array(E4M3)[scale], 16, axis=1) * 0.5
    np.testing.assert_allclose(grid.weights(), weight[rows], rtol=1e-6)
    assert (stored.format, stored.group_size) == ("nvfp4", 16)


def flat(part: writers.Array) -> writers.Array:
    return part.reshape(-1).astype(np.float32)


@quick
@given(givens(st.sampled_from([1, 2, 3, 4, 8])))
def test_hqq(given: Given) -> None:
    check(given, writers.hqq(given.codes, flat(given.scale), flat(given.zero), given.bits, given.size), "hqq")


def test_hqq_with_groups_along_the_columns() -> None:
    codes = np.random.default_rng(0).integers(0, 16, (64, 32))
    groups = codes.size // 64
    scale, zero = np.linspace(1, 2, groups, dtype=np.float32), np.arange(groups, dtype=np.float32)
    lines = codes.reshape(64, groups)
    parts = {
        "W_q": writers.whole((lines[:32] << 4) | lines[32:], "U8"),
        "scale": writers.f32(scale.reshape(1, -1)),
        "zero": writers.f32(zero.reshape(1, -1)),
    }
    settings = {"nbits": 4, "axis": 0, "group_size": 64}
    _, grid, rows = read(parts, codes.shape, {"quant_config": {"weight_quant_params": settings}})
    np.testing.assert_allclose(grid.weights(), ((lines - zero) * scale).reshape(codes.shape)[rows], rtol=1e-6)


@quick
@given(givens(st.sampled_from([2, 4])))
def test_quanto(given: Given) -> None:
    shift = flat(given.zero * given.scale)
    check(given, writers.quanto(given.codes, flat(given.scale), shift, given.bits, given.size), "quanto")


@quick
@given(givens(st.just(4)))
def test_modelopt_int4(given: Given) -> None:
    given.zero[:] = 8
    check(given, writers.modelopt_int4(given.codes, flat(given.scale)), "modelopt int4")


@pytest.mark.parametrize("part", ["qweight", "scales", "qzeros"])
def test_a_layout_without_one_of_its_parts_is_not_guessed(part: str) -> None:
    codes, scale, zero = writers.rounded(np.ones((32, 64), np.float32), 4, 32)
    parts = writers.awq(codes, scale, zero)
    del parts[part]
    with pytest.raises(AssertionError):
        read(parts, (32, 64))


@quick
@given(givens(st.just(4)), st.sampled_from([0.0, 0.2, 0.4]))
def test_the_level_that_rounding_gives_is_told_from_the_next(given: Given, off: float) -> None:
    inner = np.clip(given.codes, 1, 14)
    _, grid, _ = read(writers.rtn(inner, given.scale, given.zero, 4), inner.shape)
    exact = grid.weights() + off * grid.scale
    assert not grid.clearly_not_rounded(exact).any()
    assert grid.clearly_not_rounded(exact - grid.scale).all()


@quick
@given(st.sampled_from([4, 8]), st.integers(0, 99))
def test_rounding_in_bfloat16_is_rounding(bits: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    weight, half = random.normal(0, 1, (64, 64)).astype(np.float32), 2 ** (bits - 1)
    scale = (np.abs(weight).max(1, keepdims=True) / half).astype(np.float32)
    quotient = (weight / scale).view(np.uint32) + np.uint32(0x8000)  # to the nearest with 8 bits of mantissa
    rough = (quotient & np.uint32(0xFFFF0000)).view(np.float32)
    codes = np.clip(np.rint(rough), -half, half - 1).astype(np.int64) + half
    _, grid, rows = read(writers.rtn(codes, scale, None, bits), codes.shape)
    assert not grid.clearly_not_rounded(weight[rows]).any()
    assert bits == 4 or (codes - half != np.rint(weight / scale)).any()
