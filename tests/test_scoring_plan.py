"""Plans of shared work: each prediction that is asked for is made once, from exactly the tokens before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runners._scoring.packed import Packed, pack
from runners._scoring.plan import Costs, Step, batch_length, plan, separate
from runners._scoring.queries import Answers, Picks, Queries, Query
from runners._scoring.trie import Trie

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=14)  # few tokens: much is shared
COSTS = st.builds(
    Costs,
    row_tokens=st.integers(1, 40),
    call=st.floats(0, 30),
    attention=st.floats(0, 0.1),
    copy=st.floats(0, 1),
)


@st.composite
def asked(draw: st.DrawFn) -> list[Query]:
    """Requests whose contexts and continuations repeat and begin alike."""
    starts = draw(st.lists(TOKENS, min_size=1, max_size=3))
    rows = []
    for _ in range(draw(st.integers(1, 12))):
        tokens = draw(st.sampled_from([[], *starts])) + draw(TOKENS)
        count = draw(st.integers(1, len(tokens)))
        rows.append(Query(tokens, draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))))
    return rows


def visible(packed: Packed, row: int) -> list[int]:
    """The tokens that the row at hand sees, as the mask of the engine has it."""
    return [packed.tokens[k] for k in range(row + 1) if row < packed.ends[k]]


def outputs(queries: Queries, step: Step) -> Iterator[tuple[list[list[int]], Picks]]:
    """For each pass: what each of its output rows has seen, and what is asked of it."""
    trie, chain = queries.trie, queries.trie.tokens[step.first][: step.end]
    picks = Picks([], [], [])
    for place in range(step.first, step.last):
        queries.add(picks, place, range(step.end - step.depth), step.depth)
    yield [chain[: at + 1] for at in range(step.depth, step.end)], picks
    for row in step.rows:
        packed, picks = pack(trie, row, step.end), Picks([], [], [])
        for place, path in zip(packed.places, packed.paths, strict=True):
            queries.add(picks, place, path, step.end)
        yield [chain + visible(packed, at) for at in range(len(packed.tokens))], picks


def predictions(queries: Queries, root: Step) -> list[list[tuple[list[int], int]]]:
    """(seen tokens, target) of every prediction, by query."""
    found: list[list[tuple[list[int], int]]] = [[] for _ in queries.all]
    for step in root.walk():
        for rows, picks in outputs(queries, step):
            for row, target, owner in zip(picks.rows, picks.targets, picks.owners, strict=True):
                found[owner].append((rows[row], target))
    return found


def expected(query: Query) -> list[tuple[list[int], int]]:
    start = len(query.tokens) - len(query.targets) + 1
    return [(query.tokens[: start + i], target) for i, target in enumerate(query.targets)]


def forwarded(trie: Trie, root: Step) -> int:
    rows = sum(len(pack(trie, row, step.end).tokens) for step in root.walk() for row in step.rows)
    return rows + sum(step.end - step.depth for step in root.walk())


@given(asked(), COSTS)
def test_each_prediction_is_made_once_after_its_own_tokens(rows: list[Query], costs: Costs) -> None:
    queries = Queries(rows)
    for root in (plan(queries.trie, costs), separate(queries.trie)):
        found = predictions(queries, root)
        assert [sorted(each, key=lambda seen: len(seen[0])) for each in found] == list(map(expected, rows))


@given(asked(), COSTS)
def test_no_plan_runs_more_tokens_than_the_texts_have_or_fewer_than_the_trie(
    rows: list[Query], costs: Costs
) -> None:
    trie = Trie([query.tokens for query in rows])
    found = forwarded(trie, plan(trie, costs))
    assert trie.size(0, len(trie)) <= found <= sum(map(len, trie.tokens)) == forwarded(trie, separate(trie))


@given(asked(), COSTS)
def test_only_single_sequences_pass_the_limit_of_a_row(rows: list[Query], costs: Costs) -> None:
    trie = Trie([query.tokens for query in rows])
    for step in plan(trie, costs).walk():
        for row in step.rows:
            assert len(row) == 1 or len(pack(trie, row, step.end).tokens) <= costs.row_tokens
            assert all(len(trie.tokens[place]) > step.end for place in row)  # the chain has all of the others


@given(asked())
def test_positions_are_depths_and_a_row_without_branches_says_so(rows: list[Query]) -> None:
    trie = Trie([query.tokens for query in rows])
    whole = pack(trie, range(len(trie)), 0)
    for place, path in zip(whole.places, whole.paths, strict=True):
        assert [whole.tokens[at] for at in path] == trie.tokens[place]
        assert [whole.positions[at] for at in path] == list(range(len(path)))
    chain = all(a == b[: len(a)] for a, b in pairwise(trie.tokens))
    assert whole.branches == (not chain)


@given(st.lists(TOKENS, min_size=1, max_size=12))
def test_neighbours_share_what_they_say_and_equal_sequences_are_one(sequences: list[list[int]]) -> None:
    trie = Trie(sequences)
    assert [trie.tokens[place] for place in trie.index] == sequences
    assert len({tuple(tokens) for tokens in trie.tokens}) == len(trie)
    beginnings = {tuple(tokens[:end]) for tokens in trie.tokens for end in range(1, len(tokens) + 1)}
    assert trie.size(0, len(trie)) == len(beginnings)
    for (left, right), shared in zip(pairwise(trie.tokens), trie.shared[1:], strict=True):
        assert left[:shared] == right[:shared]
        assert left[shared : shared + 1] != right[shared : shared + 1]


def test_the_prompt_of_a_subject_runs_once_and_each_document_with_its_choices_in_one_row() -> None:
    prompt = list(range(1000, 1400))
    documents = [[*prompt, *[n] * 30] for n in range(100)]
    trie = Trie([[*document, choice, choice] for document in documents for choice in range(2000, 2004)])
    root = plan(trie, Costs())
    (subject,) = root.children
    assert (subject.depth, subject.end) == (0, 400)
    assert not root.rows
    assert forwarded(trie, root) == 400 + 100 * (30 + 4 * 2) == trie.size(0, len(trie))


def test_a_forced_cut_falls_where_least_is_shared() -> None:
    documents = [[7, 7, 7, n, n, n] for n in (1, 2, 3)]
    trie = Trie([[*document, choice] for document in documents for choice in range(3)])
    for limit, rows in ((21, [9]), (20, [6, 3]), (15, [6, 3]), (14, [3, 3, 3])):
        root = plan(trie, Costs(row_tokens=limit, call=1e9, attention=0))
        assert [len(row) for row in root.rows] == rows


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=20),
    st.integers(0, 100),
    st.integers(1, 200),
    st.floats(0, 50),
)
def test_a_batch_keeps_its_limits(lengths: list[int], depth: int, tokens: int, call: float) -> None:
    lengths.sort(reverse=True)
    count = batch_length(lengths, depth, tokens, Costs(call=call, kept=0.5))
    assert 1 <= count <= len(lengths)
    assert count == 1 or count * (lengths[0] + 0.5 * depth) <= tokens
    assert sum(lengths[0] - length for length in lengths[:count]) <= call


def test_two_thousand_texts_each_one_token_longer_are_planned_without_recursion() -> None:
    trie = Trie([[0] * length for length in range(1, 2001)])
    assert forwarded(trie, plan(trie, Costs(row_tokens=5000, call=0, attention=0))) == 2000


def test_answers_are_sums_and_progress_counts_finished_queries() -> None:
    seen: list[tuple[int, int]] = []
    answers = Answers([Query([1, 2], [3, 4]), Query([1], [5])], lambda *counts: seen.append(counts))
    answers.add([0, 1], [-1.0, -0.5], [True, True])
    with pytest.raises(AssertionError):
        answers.result()
    answers.add([0], [-2.0], [False])
    assert answers.result() == [(-3.0, False), (-0.5, True)]
    assert seen == [(1, 2), (2, 2)]


def test_a_sequence_is_asked_by_every_query_that_has_it() -> None:
    rows: Sequence[Query] = [Query([1, 2], [3]), Query([1, 2], [4]), Query([1, 2], [8, 9])]
    picks = Picks([], [], [])
    Queries(rows).add(picks, 0, [10, 11], 0)
    assert list(zip(picks.rows, picks.targets, picks.owners, strict=True)) == [
        *[(11, 3, 0), (11, 4, 1)],
        *[(10, 8, 2), (11, 9, 2)],
    ]
