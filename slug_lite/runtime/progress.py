"""Progress bars that know when to keep quiet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm

_SILENT = ContextVar("silent", default=False)


def quiet() -> bool:
    """Does the environment ask for no progress bars, by TQDM_DISABLE, or a `silent` block around?"""
    return _SILENT.get() or os.environ.get("TQDM_DISABLE", "").lower() not in ("", "0", "false")


@contextmanager
def silent() -> Iterator[None]:
    """Inside, nothing of this package draws a progress bar: for loops over many names."""
    token = _SILENT.set(True)
    try:
        yield
    finally:
        _SILENT.reset(token)


def bar(*args: Any, show: bool = True, **kwargs: Any) -> tqdm:
    """`tqdm.auto.tqdm`, silent with show=False, in a `silent` block, or where the environment says TQDM_DISABLE.

    tqdm's notebook bars do not look at that variable themselves, and would leave dead widgets in built pages.
    """
    return tqdm(*args, disable=quiet() or not show, **kwargs)
