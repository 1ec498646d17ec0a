"""Numbers at the door: whole ones that count something, and real ones that are compared with others."""

from __future__ import annotations

import math
from numbers import Integral, Real


def check_whole(least: int = 1, **given: object) -> None:
    """ValueError for what is no whole number, or below `least`: check_whole(rank=rank)."""
    for name, value in given.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value!r}; a whole number is needed, at least {least}")


def check_real(least: float = 0.0, **given: object) -> None:
    """ValueError for what is no finite number, or below `least`."""
    for name, value in given.items():
        if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value) or value < least:
            raise ValueError(f"{name}={value!r}; a number is needed, at least {least:g}")


def check_positive(**given: object) -> None:
    """ValueError for what is no finite number above zero."""
    check_real(**given)
    for name, value in given.items():
        if value == 0:
            raise ValueError(f"{name}=0; a positive number is needed")
