"""``--slow`` chooses the tests that take minutes; ``-n`` deals out whole files, those with backends first."""

from __future__ import annotations

import os
from typing import Any

import pytest
import setuptools  # noqa: F401 - before a test imports the standard library's distutils: it takes its place

# Before torch is imported, here and in every process that a test starts. Threads of several workers on few
# cores wait for each other most of the time, and with more of them sums may add up in another order.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: choose it with --slow"))
    # Long files first: what is left for the end is small, and no worker waits for the other.
    long = {item.path for item in items if item.get_closest_marker("backend")}
    items.sort(key=lambda item: item.path not in long)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files stay whole under ``-n``: what a file makes for its tests is made once, not in each worker."""
    from xdist.scheduler import LoadFileScheduling

    if config.getoption("dist") != "load":  # something else was asked for
        return None
    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.fixture(scope="session")
def box() -> None:
    """For tests that run code of strangers: skips them where nothing isolates it."""
    from scorecard import sandbox

    if why := sandbox.why_not():
        pytest.skip(f"no box here: {why}")
