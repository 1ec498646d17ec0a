"""A pytest plugin for mutants: quick tests first, by the seconds that an earlier run took.

TEST_TIMES names a JSON file, test -> seconds (or mutmut's own, which holds them); with TEST_TIMES_WRITE=1 the run
writes it. Tests that are new to it come first.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

_taken: Counter[str] = Counter()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    try:
        times = json.loads(Path(os.environ["TEST_TIMES"]).read_text(encoding="utf-8"))
    except (KeyError, OSError, ValueError):
        return
    times = times.get("duration_by_test", times)
    # the first test that asks for a module's fixture pays for it, so that all who do count as slow as the slowest
    shared: dict[str, float] = {}
    for item in items:
        for name in _of_module(item):
            shared[name] = max(shared.get(name, 0.0), times.get(item.nodeid, 0.0))
    items.sort(key=lambda item: max([times.get(item.nodeid, 0.0), *(shared[name] for name in _of_module(item))]))


def _of_module(item: pytest.Item) -> list[str]:
    """The fixtures of a test that are made once a module."""
    found = getattr(item, "_fixtureinfo", None)
    return [name for name, made in found.name2fixturedefs.items() if made[-1].scope == "module"] if found else []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _taken[report.nodeid] += report.duration


def pytest_sessionfinish() -> None:
    if os.environ.get("TEST_TIMES_WRITE") == "1":
        Path(os.environ["TEST_TIMES"]).write_text(json.dumps(_taken), encoding="utf-8")
