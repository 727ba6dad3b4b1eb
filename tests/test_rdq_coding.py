"""The entropy coder of rdq: exact, as short as its tables allow, and never wrong about damaged data."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rdq_matrices import KINDS, matrices, matrix, same

from rdq import coding, lanes, lanes_numpy, side
from rdq.coded import CLASSES, MAX_CODE, CodedMatrix, classes, dequantize, quantizers, spreads
from rdq.compiled import COMPILED
from rdq.counting import magnitudes
from rdq.errors import RdqError
from rdq.tables import Tables, entropy_bits, fit, from_counts, ideal_bits

QUIET = settings(deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)


def round_trip(m: CodedMatrix, tables: Tables) -> None:
    """All comes back, the weights are those of `dequantize`, and the size is within its bound."""
    payload = coding.encode(m, tables)
    assert same(coding.decode(payload, tables), m)
    assert torch.equal(coding.decode_weights(payload, tables, torch.float32), torch.from_numpy(dequantize(m)))
    ideal = ideal_bits(magnitudes(m), tables) / 8
    assert len(payload) - len(coding.parse(payload).side) <= 1.01 * ideal + 64


@settings(QUIET, max_examples=100)
@given(matrices(), st.booleans())
def test_any_matrix_comes_back(m: CodedMatrix, own: bool) -> None:
    round_trip(m, fit([m]) if own else Tables.gaussian())


@pytest.mark.slow
@settings(QUIET, max_examples=10_000)
@given(matrices(), st.booleans())
def test_ten_thousand_matrices_come_back(m: CodedMatrix, own: bool) -> None:
    round_trip(m, fit([m]) if own else Tables.gaussian())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 257), (257, 1), (23, 129)])
def test_both_kinds_of_kernels_write_and_read_the_same(kind: str, rows: int, columns: int) -> None:
    m = matrix(kind, rows, columns, seed=rows + columns)
    for tables in (Tables.gaussian(), fit([m])):
        payload = coding.encode(m, tables)
        assert coding.encode(m, tables, module=lanes_numpy) == payload
        assert same(coding.decode(payload, tables, module=lanes_numpy), m)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            expected = torch.from_numpy(dequantize(m)).to(dtype)
            for module in (None, lanes_numpy):
                weights = coding.decode_weights(payload, tables, dtype, module=module)
                assert torch.equal(weights.nan_to_num(), expected.nan_to_num())


def test_panels_and_threads_do_not_change_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    m = matrix("heavy", 90, 77)
    tables = fit([m])
    monkeypatch.setattr(lanes, "PANEL_COLUMNS", 10)
    monkeypatch.setattr(lanes, "PANEL_INDICES", 500)
    payload = coding.encode(m, tables)
    assert len(coding.parse(payload).words) == 7
    assert coding.encode(m, tables, threads=2) == payload
    assert coding.encode(m, tables, module=lanes_numpy, threads=2) == payload
    monkeypatch.undo()
    for threads in (1, 2):
        assert same(coding.decode(payload, tables, threads=threads), m)


@pytest.mark.skipif(not COMPILED, reason="there is nothing to compare: numba is not here")
@pytest.mark.backend  # a process that imports torch
def test_without_numba_the_bytes_are_the_same() -> None:
    program = (
        "import sys, zlib; sys.path.insert(0, 'tests'); from rdq_matrices import matrix, same\n"
        "from rdq import coding, compiled; from rdq.tables import fit\n"
        "m = matrix('outliers', 40, 50); t = fit([m]); p = coding.encode(m, t)\n"
        "assert not compiled.COMPILED and same(coding.decode(p, t), m); print(zlib.crc32(p))"
    )
    root = Path(__file__).parents[1]
    environment = {**os.environ, "RDQ_NUMBA": "0", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True
    )
    m = matrix("outliers", 40, 50)
    assert done.stdout.strip() == str(zlib.crc32(coding.encode(m, fit([m])))), done.stderr


def test_a_large_matrix_is_near_its_entropy() -> None:
    """Within 0.5 % of the empirical entropy by class and quantizer; tables count, side vectors do not."""
    rng = np.random.default_rng(0)
    for deviation in (0.5, 2.0, 8.0):
        values = rng.normal(0, deviation, (1024, 512)) * np.exp(0.5 * rng.normal(size=(1, 512)))
        codes = np.rint(values).clip(-MAX_CODE, MAX_CODE).astype(np.int16)
        m = dataclasses.replace(matrix("zero", 1024, 512), codes=codes)
        row, column = spreads(values)
        m = dataclasses.replace(m, row_spread=row, column_spread=column)
        counts = magnitudes(m)
        tables = from_counts(counts).pruned(counts)
        payload = coding.encode(m, tables)
        stored = len(payload) - len(coding.parse(payload).side) + len(tables.to_bytes())
        assert stored <= 1.005 * entropy_bits(counts) / 8


def test_what_no_table_holds_is_escaped_not_clipped() -> None:
    m = matrix("zero", 50, 60)
    codes = m.codes.copy()
    codes[[0, 7, 49], [0, 33, 59]] = MAX_CODE, -MAX_CODE, 128
    for unsuited in (fit([m]), from_counts(np.zeros((CLASSES, 2, MAX_CODE + 1), np.int64))):
        round_trip(dataclasses.replace(m, codes=codes), unsuited)


def small_payload() -> tuple[bytes, Tables]:
    m = matrix("heavy", 12, 9)
    tables = fit([m])
    return coding.encode(m, tables), tables


def test_every_changed_byte_is_noticed() -> None:
    payload, tables = small_payload()
    for place in range(len(payload)):
        for flip in (1, 0x80, 0xFF):
            damaged = bytearray(payload)
            damaged[place] ^= flip
            with pytest.raises(RdqError, match=r"^there: "):
                coding.decode(damaged, tables, where="there")


def test_every_cut_is_noticed() -> None:
    payload, tables = small_payload()
    for cut in (*(payload[:length] for length in range(len(payload))), payload + b"\0"):
        with pytest.raises(RdqError, match=r"^there: "):
            coding.decode_weights(cut, tables, where="there")


def resealed(payload: bytes, place: int, value: int) -> bytes:
    """The payload with another byte and a checksum that fits: what no accident makes, but a person may."""
    changed = bytearray(payload[:-4])
    changed[place] = value
    return bytes(changed) + zlib.crc32(changed).to_bytes(4, "little")


@pytest.mark.parametrize("module", [coding.kernels(), lanes_numpy])
def test_forged_payloads_are_errors_or_matrices_never_crashes(module: Any) -> None:
    payload, tables = small_payload()
    refused, header = 0, coding.parse(payload)
    places = range(header.end, len(payload) - 4)
    for place in places:
        for value in (0, 255):
            try:
                coding.decode(resealed(payload, place, value), tables, module=module)
            except RdqError:
                refused += 1
    assert refused > len(places)


def test_other_tables_are_refused() -> None:
    payload, _ = small_payload()
    with pytest.raises(RdqError, match="other tables"):
        coding.decode(payload, Tables.gaussian())


def test_a_later_version_is_named() -> None:
    payload, tables = small_payload()
    with pytest.raises(RdqError, match="version 2 of the format, this reads 1"):
        coding.decode(payload[:3] + b"\x02" + payload[4:], tables)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step", float("nan")),
        ("step", float("inf")),
        ("step", 0.0),
        ("step", -1.0),
        ("states", 2),
        ("centroids", np.full((2, 4), np.nan, np.float16)),
        ("centroids", np.full((2, 4), np.inf, np.float16)),
        ("centroids", np.zeros((2, 3), np.float16)),
        ("codes", np.full((3, 4), MAX_CODE + 1, np.int16)),
        ("codes", np.full((3, 4), -(2**15), np.int16)),
        ("codes", np.zeros((3, 4), np.float32)),
        ("codes", np.zeros((0, 4), np.int16)),
        ("row_scale", np.zeros(4, np.uint8)),
        ("column_spread", np.zeros(4, np.int64)),
    ],
)
def test_what_no_file_could_hold_is_refused(field: str, value: object) -> None:
    with pytest.raises(RdqError, match=r"^coded matrix: "):
        dataclasses.replace(matrix("gaussian", 3, 4), **{field: value})


def test_stacked_and_transposed_weights_have_their_own_shape() -> None:
    m = matrix("gaussian", 12, 5)
    tables = fit([m])
    plain = coding.decode_weights(coding.encode(m, tables), tables)
    stacked = coding.decode_weights(coding.encode(m, tables, stack=3), tables)
    turned = coding.decode_weights(coding.encode(m, tables, stack=3, transposed=True), tables)
    assert torch.equal(stacked, plain.reshape(3, 4, 5))
    assert torch.equal(turned, stacked.transpose(1, 2))
    assert turned.is_contiguous()
    with pytest.raises(RdqError, match="12 rows are not those of 5 matrices"):
        coding.encode(m, tables, stack=5)


counts_of_a_table = st.lists(st.tuples(st.integers(0, MAX_CODE), st.integers(1, 10**9)), max_size=40)


@settings(QUIET, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, CLASSES - 1), st.integers(0, 1), counts_of_a_table), max_size=4))
def test_any_counts_make_tables_that_come_back(seen: list[tuple[int, int, list[tuple[int, int]]]]) -> None:
    counts = np.zeros((CLASSES, 2, MAX_CODE + 1), np.int64)
    for kind, quantizer, pairs in seen:
        for k, count in pairs:
            counts[kind, quantizer, k] += count
    tables = from_counts(counts)
    for made in (tables, tables.pruned(counts)):
        assert np.array_equal(Tables.from_bytes(made.to_bytes()).frequencies, made.frequencies)
    kraft = np.exp2(-tables.lengths().astype(np.float64)).sum(-1)
    assert (kraft <= 1.0001).all()


def test_damaged_tables_are_an_error() -> None:
    data = Tables.gaussian().to_bytes()
    for place in range(len(data)):
        with pytest.raises(RdqError, match=r"^tables: "):
            Tables.from_bytes(data[:place])


vectors = st.integers(1, 60).flatmap(lambda n: st.lists(st.integers(0, 255), min_size=n, max_size=n))


@settings(QUIET, max_examples=150)
@given(st.data())
def test_side_vectors_come_back(data: st.DataObject) -> None:
    rows, columns = data.draw(vectors), data.draw(vectors)
    shuffled = [data.draw(st.permutations(v)) for v in (rows, columns)]
    four = [np.array(v, np.uint8) for v in (rows, columns, *shuffled)]
    packed = side.pack(*four)
    for one, other in zip(four, side.unpack(packed, len(rows), len(columns)), strict=True):
        assert np.array_equal(one, other)


def test_side_vectors_of_one_value_take_hardly_any_bytes() -> None:
    flat = np.full(4096, 128, np.uint8)
    assert len(side.pack(flat, flat, flat, flat)) < 60


@pytest.mark.parametrize("states", [1, 4, 8])
def test_the_trellis_runs_down_each_column(states: int) -> None:
    """By hand, index by index, from the tables of the standard."""
    next_state = {1: [(0, 0)], 4: [(0, 2), (2, 0), (1, 3), (3, 1)],
                  8: [(0, 2), (5, 7), (1, 3), (6, 4), (2, 0), (4, 6), (3, 1), (7, 5)]}[states]  # fmt: skip
    m = matrix("gaussian", 40, 6, states=states)
    weights, found = dequantize(m), quantizers(m)
    for column in range(6):
        state = 0
        for row in range(40):
            k = int(m.codes[row, column])
            quantizer = {1: 0, 4: state // 2, 8: state % 2}[states]
            assert found[row, column] == quantizer
            v = k if states == 1 else 2 * k - (quantizer and (k > 0) - (k < 0))
            u = v - ((k > 0) - (k < 0)) * float(m.centroids[quantizer, min(abs(k), 3)])
            scale = 2.0 ** ((int(m.row_scale[row]) + int(m.column_scale[column]) - 256) / 8)
            assert weights[row, column] == pytest.approx(u * m.step * scale, rel=1e-6)
            state = next_state[state][k & 1]


def test_classes_follow_the_deviation() -> None:
    """Within an eighth of an octave or two, whatever rows and columns share."""
    rng = np.random.default_rng(0)
    row, column = np.exp2(rng.uniform(-2, 2, (300, 1))), np.exp2(rng.uniform(-1, 1, (1, 400)))
    values = rng.normal(size=(300, 400)) * row * column
    m = matrix("zero", 300, 400)
    row_spread, column_spread = spreads(values)
    m = dataclasses.replace(m, row_spread=row_spread, column_spread=column_spread)
    expected = 20 + 4 * np.log2(row * column)
    assert np.abs(classes(m) - expected).max() <= 2
    assert np.abs(classes(m) - expected).mean() < 0.5
