"""``--slow`` chooses the tests that take minutes."""

from __future__ import annotations

import os

import pytest
import setuptools  # noqa: F401 - before a test imports the standard library's distutils: it takes its place

# Before torch is imported, here and in every process that a test starts. Threads of several workers on few
# cores wait for each other most of the time, and with more of them sums may add up in another order.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: choose it with --slow"))
