"""Futures that wait for others without holding a thread."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, Future

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scorecard.graph import Graph


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(0, 30), max_size=4), min_size=1, max_size=25), st.integers(1, 3))
def test_everything_runs_once_and_after_what_it_needs(needs: list[list[int]], jobs: int) -> None:
    graph, order = Graph(jobs), []
    nodes: list[Future[None]] = []
    for i, before in enumerate(needs):
        wanted = [nodes[n] for n in before if n < i]
        nodes.append(graph.after(wanted, lambda i=i: order.append(i)))
    for node in nodes:
        node.result(timeout=10)
    graph.close(lambda: None)
    assert sorted(order) == list(range(len(needs)))
    assert all(order.index(n) < order.index(i) for i, before in enumerate(needs) for n in before if n < i)


def test_a_chain_longer_than_the_pool_does_not_block() -> None:
    graph = Graph(1)
    node = graph.after([], lambda: 0)
    for _ in range(50):
        node = graph.after([node], lambda before=node: before.result() + 1)
    assert node.result(timeout=10) == 50
    graph.close(lambda: None)


def test_an_error_reaches_whoever_waits() -> None:
    graph = Graph(1)
    node = graph.after([], lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        node.result(timeout=10)
    graph.close(lambda: None)


def test_closing_begins_nothing_that_is_queued() -> None:
    graph, release, begun = Graph(1), threading.Event(), []
    first = graph.after([], release.wait)
    later = [graph.after([first], lambda: begun.append(1)) for _ in range(3)]
    queued = graph.after([], lambda: begun.append(2))
    time.sleep(0.05)
    graph.close(release.set)
    assert begun == []
    assert not queued.done()
    for node in later:
        with pytest.raises(CancelledError):
            node.result(timeout=10)


def test_a_name_is_made_once() -> None:
    graph = Graph(1)
    assert graph.once("a", Future) is graph.once("a", Future)
    assert graph.once("b", Future) is not graph.once("a", Future)
    assert len(graph.all()) == 2
