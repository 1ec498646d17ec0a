"""Progress bars that know when to keep quiet."""

from __future__ import annotations

import os
from contextvars import ContextVar
from functools import partial
from typing import Any

from tqdm.auto import tqdm

from .undo import Undo, undone

_SILENT = ContextVar("silent", default=False)


def quiet() -> bool:
    """Does the environment ask for no progress bars, by TQDM_DISABLE, or a `silent` block around?"""
    return _SILENT.get() or os.environ.get("TQDM_DISABLE", "").lower() not in ("", "0", "false")


@undone
def silent(undo: Undo) -> None:
    """Inside, nothing of this package draws a progress bar: for loops over many names."""
    undo[object()] = partial(_SILENT.set, _SILENT.get())
    _SILENT.set(True)


def bar(*args: Any, show: bool = True, **kwargs: Any) -> tqdm:
    """`tqdm.auto.tqdm`, silent with show=False, in a `silent` block, or where the environment says TQDM_DISABLE.

    tqdm's notebook bars do not look at that variable themselves, and would leave dead widgets in built pages.
    """
    return tqdm(*args, disable=quiet() or not show, **kwargs)
