"""Coded matrices for the tests of rdq: every kind that could trip a coder."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from rdq.coded import MAX_CODE, CodedMatrix, spreads

KINDS = ("gaussian", "zero", "constant", "outliers", "heavy", "uniform", "columns")


def codes_of(kind: str, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """int16 [rows, columns] of one of KINDS."""
    gaussian = rng.normal(0, 10 ** rng.uniform(-1.5, 2), (rows, columns))
    values = {
        "gaussian": gaussian,
        "zero": np.zeros((rows, columns)),
        "constant": np.full((rows, columns), rng.integers(-MAX_CODE, MAX_CODE + 1)),
        "outliers": np.where(
            rng.random((rows, columns)) < 0.01, MAX_CODE * rng.choice([-1, 1]), gaussian / 50
        ),
        "heavy": rng.standard_cauchy((rows, columns)),
        "uniform": rng.integers(-MAX_CODE, MAX_CODE + 1, (rows, columns)),
        "columns": gaussian * np.exp(2 * rng.normal(size=(1, columns))),
    }[kind]
    return np.rint(values).clip(-MAX_CODE, MAX_CODE).astype(np.int16)


def matrix(
    kind: str, rows: int, columns: int, seed: int = 0, states: int = 8, *, suited: bool = True
) -> CodedMatrix:
    """One matrix; suited: its spreads are those of its indices, else at random."""
    rng = np.random.default_rng(seed)
    codes = codes_of(kind, rows, columns, rng)
    row, column = spreads(codes.astype(np.float32))
    if not suited:
        row, column = (
            rng.integers(0, 256, rows).astype(np.uint8),
            rng.integers(0, 256, columns).astype(np.uint8),
        )
    return CodedMatrix(
        codes,
        np.rint(rng.normal(128, rng.choice([0, 2, 30]), rows)).clip(0, 255).astype(np.uint8),
        np.rint(rng.normal(128, 4, columns)).clip(0, 255).astype(np.uint8),
        row,
        column,
        float(np.float32(10 ** rng.uniform(-6, 2))),
        rng.uniform(-0.3, 0.3, (2, 4)).astype(np.float16),
        states,
    )


@st.composite
def matrices(draw: st.DrawFn, longest: int = 80) -> CodedMatrix:
    """Any matrix of up to `longest` rows and columns, often of one."""
    side = st.one_of(st.just(1), st.integers(1, 9), st.integers(1, longest))
    return matrix(
        draw(st.sampled_from(KINDS)),
        draw(side),
        draw(side),
        draw(st.integers(0, 2**32 - 1)),
        draw(st.sampled_from((1, 4, 8))),
        suited=draw(st.booleans()),
    )


def same(one: CodedMatrix, other: CodedMatrix) -> bool:
    """Whether all fields are equal, bit for bit."""
    names = ("codes", "row_scale", "column_scale", "row_spread", "column_spread", "centroids")
    return (
        all(np.array_equal(getattr(one, n), getattr(other, n)) for n in names)
        and one.codes.dtype == other.codes.dtype
        and (np.float32(one.step), one.states) == (np.float32(other.step), other.states)
    )
