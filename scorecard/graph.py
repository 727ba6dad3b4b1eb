"""Futures that begin when others are done: a pool of threads that is never blocked by waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any


class Graph:
    """Named futures over a pool of ``jobs`` threads. Add to it from one thread only."""

    def __init__(self, jobs: int) -> None:
        self._pool = ThreadPoolExecutor(jobs, thread_name_prefix="stage")
        self._futures: dict[str, Future[Any]] = {}
        self.closed = False

    def all(self) -> list[Future[Any]]:
        return list(self._futures.values())

    def once(self, name: str, make: Callable[[], Future[Any]]) -> Future[Any]:
        """The future called ``name``, made on first use."""
        if name not in self._futures:
            self._futures[name] = make()
        return self._futures[name]

    def after(self, needs: Iterable[Future[Any]], function: Callable[[], Any]) -> Future[Any]:
        """A future of ``function()`` that takes a thread only when all ``needs`` are done."""
        result: Future[Any] = Future()

        def go() -> None:
            try:
                self._pool.submit(_settle, result, function)
            except RuntimeError:  # the pool was shut down meanwhile
                result.set_exception(CancelledError())

        _when_all_done(list(needs), go)
        return result

    def close(self, stop: Callable[[], None]) -> None:
        """Drop what is queued first, so that no freed thread begins it; then ``stop`` what runs, and wait."""
        self.closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        stop()
        self._pool.shutdown(wait=True)


def _settle(result: Future[Any], function: Callable[[], Any]) -> None:
    try:
        result.set_result(function())
    except BaseException as error:  # noqa: BLE001 - handed to whoever waits for the future
        result.set_exception(error)


def _when_all_done(futures: list[Future[Any]], then: Callable[[], None]) -> None:
    """Call ``then`` once, after the last of ``futures``; at once when there is none."""
    left, guard = len(futures) + 1, threading.Lock()

    def one_less(_: Future[Any] | None = None) -> None:
        nonlocal left
        with guard:
            left -= 1
            done = left == 0
        if done:
            then()

    for future in futures:
        future.add_done_callback(one_less)
    one_less()
