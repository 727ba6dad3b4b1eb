"""Choice of the codes of a column: a Viterbi search over all its rows for the least error plus code length.

Trellis-coded quantization (Marcellin and Fischer 1990) in the form of ITU-T H.266 (VVC), 8.7.3: two scalar
quantizers, Q0 with the even multiples of the step and Q1 with the odd ones and zero, and a state machine
driven by the parity of the codes that says which one holds for the next weight. With one state it is a plain
scalar quantizer, ``v = k``, chosen under the same objective.

Everything is float64 and integer arithmetic in a fixed order, so that a column gives the same codes on every
platform. numba compiles it where it is installed; without it the same code runs in Python, very slowly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdq.compiled import compiled

Array = NDArray[Any]

INFINITE = 1e300


def incoming(next_state: NDArray[Any], quantizer: NDArray[Any]) -> NDArray[np.int64]:
    """[states, 2, 2]: the two ways into each state, as (state before, branch = 2 * quantizer + parity)."""
    ways: list[list[tuple[int, int]]] = [[] for _ in range(len(next_state))]
    for state, following in enumerate(next_state):
        for parity, then in enumerate(following):
            ways[int(then)].append((state, 2 * int(quantizer[state]) + parity))
    return np.array(ways, np.int64)


@compiled
def _branches(
    z: float, weight: float, lengths: Array, delta: Array, kappa: float, best: Array, cost: Array
) -> None:
    """For every branch (quantizer, parity) the cheapest magnitude and its cost: of the two nearest to z."""
    magnitude = abs(z)
    last = lengths.shape[1] - 1
    for quantizer in range(2):
        middle = 0.5 * (magnitude + quantizer)
        for parity in range(2):
            m = parity + 2 * int(np.floor(0.5 * (middle - parity) + 0.5))
            m = max(m, parity)
            if m > last:
                m = last - (last - parity) % 2
            least = INFINITE
            chosen = m
            for candidate in (m, m - 2):
                if candidate < 0:
                    break
                value = 2.0 * candidate - (quantizer if candidate > 0 else 0)
                off = magnitude - (value - delta[quantizer, min(candidate, 3)])
                total = weight * off * off + kappa * lengths[quantizer, candidate]
                if total < least:
                    least = total
                    chosen = candidate
            best[2 * quantizer + parity] = chosen
            cost[2 * quantizer + parity] = least


@compiled
def trellis_column(
    z: Array,
    weights: Array,
    classes: Array,
    lengths: Array,
    delta: Array,
    kappa: float,
    ways: Array,
    codes: Array,
    chosen: Array,
    decisions: Array,
    start: int = 0,
) -> None:
    """Codes of one column, or of a part of its rows, under a trellis that is in the state ``start`` above.

    ``z`` [rows]: weights in steps. ``weights`` [rows]: what a squared error of one step costs. ``classes``
    [rows]. ``lengths`` [classes, 2, MAX_CODE + 1]: bits of a magnitude, sign included. ``ways``: see above.
    ``codes`` [rows] is written; ``chosen`` [rows, 4] and ``decisions`` [rows, states] are scratch.
    """
    rows, states = z.shape[0], ways.shape[0]
    before = np.full(states, INFINITE)
    before[start] = 0.0
    after = np.empty(states)
    best = np.empty(4, np.int64)
    cost = np.empty(4)
    for row in range(rows):
        _branches(z[row], weights[row], lengths[classes[row]], delta, kappa, best, cost)
        for branch in range(4):
            chosen[row, branch] = best[branch]
        least = INFINITE
        for state in range(states):
            first = before[ways[state, 0, 0]] + cost[ways[state, 0, 1]]
            second = before[ways[state, 1, 0]] + cost[ways[state, 1, 1]]
            take = second < first
            decisions[row, state] = take
            total = second if take else first
            after[state] = total
            least = min(least, total)
        for state in range(states):
            before[state] = after[state] - least
    state = 0
    for other in range(1, states):
        if before[other] < before[state]:
            state = other
    for row in range(rows - 1, -1, -1):
        way = ways[state, decisions[row, state]]
        m = chosen[row, way[1]]
        codes[row] = -m if z[row] < 0 else m
        state = way[0]


@compiled
def scalar_column(
    z: Array, weights: Array, classes: Array, lengths: Array, delta: Array, kappa: float, codes: Array
) -> None:
    """Codes of one column under the plain quantizer ``v = k``; arguments as in ``trellis_column``."""
    last = lengths.shape[2] - 1
    for row in range(z.shape[0]):
        magnitude = abs(z[row])
        m = min(int(np.floor(magnitude + 0.5)), last)
        least, chosen = INFINITE, m
        for candidate in (m, m - 1, 0):
            if candidate < 0:
                continue
            off = magnitude - (candidate - delta[0, min(candidate, 3)])
            total = weights[row] * off * off + kappa * lengths[classes[row], 0, candidate]
            if total < least:
                least = total
                chosen = candidate
        codes[row] = -chosen if z[row] < 0 else chosen


@compiled
def quantize_block(
    x: Array,
    factor: Array,
    row_step: Array,
    column_step: Array,
    row_weight: Array,
    column_weight: Array,
    row_class: Array,
    column_class: Array,
    lengths: Array,
    delta: Array,
    kappa: float,
    ways: Array,
    quantizer_of: Array,
    next_state: Array,
    codes: Array,
    errors: Array,
    counts: Array,
    shifts: Array,
    states: Array,
) -> None:
    """Quantize the columns of a block one after the other, each making up for the errors of those before.

    ``x`` [columns, rows] float64 (changed), ``factor`` [columns, columns]: the block of U with its rows
    divided by their diagonal. A weight of (row, column) is ``v * row_step[row] * column_step[column]``, a
    squared error of one step costs ``row_weight[row] * column_weight[column]``, and its class is the sum of
    ``row_class`` and ``column_class``, within the classes. Written are ``codes`` [columns, rows] int16 and
    ``errors`` [columns, rows]; ``counts`` and ``shifts`` are added to, see ``_reconstruct``. ``states``
    [columns] int64: those of the trellis before the first row, changed to those after the last.
    """
    columns, rows = x.shape
    z = np.empty(rows)
    weights = np.empty(rows)
    classes = np.empty(rows, np.int64)
    chosen = np.empty((rows, 4), np.int16)
    decisions = np.empty((rows, ways.shape[0]), np.uint8)
    last_class = lengths.shape[0] - 1
    for column in range(columns):
        for row in range(rows):
            z[row] = x[column, row] / (row_step[row] * column_step[column])
            weights[row] = row_weight[row] * column_weight[column]
            classes[row] = max(0, min(last_class, row_class[row] + column_class[column]))
        own = codes[column]
        if ways.shape[0] == 1:
            scalar_column(z, weights, classes, lengths, delta, kappa, own)
        else:
            trellis_column(
                z, weights, classes, lengths, delta, kappa, ways, own, chosen, decisions, states[column]
            )
        states[column] = _reconstruct(
            z, classes, delta, quantizer_of, next_state, own, weights, counts, shifts, states[column]
        )
        for row in range(rows):
            step = row_step[row] * column_step[column]
            errors[column, row] = x[column, row] - weights[row] * step
        for later in range(column + 1, columns):
            by = factor[column, later]
            for row in range(rows):
                x[later, row] -= by * errors[column, row]


@compiled
def _reconstruct(
    z: Array,
    classes: Array,
    delta: Array,
    quantizer_of: Array,
    next_state: Array,
    codes: Array,
    values: Array,
    counts: Array,
    shifts: Array,
    state: int,
) -> int:
    """What the codes of a column stand for, in steps, to ``values`` [rows]; the state after the last row.

    Added to are ``counts`` [classes, 2, MAX_CODE + 1] of magnitudes, and ``shifts`` [2, 4, 2]: the sum of how
    much nearer to zero than their points the weights of a quantizer and magnitude lie, and their number.
    """
    states = next_state.shape[0]
    for row in range(z.shape[0]):
        m = abs(codes[row])
        quantizer = quantizer_of[state]
        value = 1.0 * m
        if states > 1:
            value = 2.0 * m - (quantizer if m > 0 else 0)
            state = next_state[state, m & 1]
        counts[classes[row], quantizer, m] += 1
        if m > 0:
            shifts[quantizer, min(m, 3), 0] += value - abs(z[row])
            shifts[quantizer, min(m, 3), 1] += 1
        value -= delta[quantizer, min(m, 3)]
        values[row] = 0.0 if m == 0 else (-value if codes[row] < 0 else value)
    return state
