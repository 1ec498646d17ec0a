"""Progress bars that know when to keep quiet."""

from __future__ import annotations

import os
from typing import Any

from tqdm.auto import tqdm


def quiet() -> bool:
    """Does the environment ask for no progress bars, by TQDM_DISABLE?"""
    return os.environ.get("TQDM_DISABLE", "").lower() not in ("", "0", "false")


def bar(*args: Any, show: bool = True, **kwargs: Any) -> tqdm:
    """`tqdm.auto.tqdm`, silent with show=False or where the environment says TQDM_DISABLE.

    tqdm's notebook bars do not look at that variable themselves, and would leave dead widgets in built pages.
    """
    return tqdm(*args, disable=quiet() or not show, **kwargs)
