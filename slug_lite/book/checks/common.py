"""What the checks of the exercises share: to read any answer without raising, and to name the mistake behind it.

A check works out the right value and what some typical mistakes give, and leaves the sentence to one of

    verdict(answer, right, {name of a mistake: what it gives, ...})   numbers, arrays, and dicts or tuples of them
    verdict_names(answer, right, {name of a mistake: names, ...})     some names out of many, in any order
    verdict_choice(answer, right, {a wrong choice: why, ...})         a word or a truth value
    attempt(function, *arguments)                                     the reader's function, called; never raises

Of several mistakes that give the answer, within the tolerance, the nearest is named, and of equally near ones the
first, so the most typical comes first; one that happens to give the right value is left out. A wrong sign and per cent
for a share are recognised without being listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

SIGN = "the wrong sign"
PER_CENT = "in per cent, where a share of 1 is asked for"
SHARE = "a share of 1, where per cent are asked for"


def short(value: Any) -> str:
    """An answer as it can stand in a sentence."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def other_type(answer: Any, wanted: str) -> str:
    """The sentence for an answer of another type."""
    kind = type(answer).__name__
    if answer is None:
        return f"give {wanted}; this is None: does your function return what it computes?"
    if callable(answer):
        return f"give {wanted}; this is a {kind}: call it first, and give what it returns"
    return f"give {wanted}; this is a {kind}: {short(answer)}"


def array(answer: Any) -> np.ndarray | None:
    """Numbers of any kind (also tensors, Series, lists, dict values) as an array of floats; None for anything else."""
    if isinstance(answer, str | bytes) or answer is None or callable(answer):
        return None
    try:
        if hasattr(answer, "detach"):
            answer = answer.detach().cpu().double().numpy()
        if isinstance(answer, Mapping):
            answer = list(answer.values())
        if isinstance(answer, list | tuple):
            answer = [one if (own := array(one)) is None else own for one in answer]
        return np.asarray(answer, dtype=float)
    except Exception:
        return None


def number(answer: Any) -> float | None:
    """One number as a float; None for anything else."""
    found = array(answer)
    return float(found.reshape(())) if found is not None and found.size == 1 else None


def near(right: Any, digits: int = 2) -> str:
    """What is right, roughly: enough to go on by, not to copy."""
    values = np.ravel(array(right))
    if len(values) > 6:
        return f"numbers from {values.min():.{digits}g} to {values.max():.{digits}g}"
    shown = [f"{value:.{digits}g}" if abs(value) < 100 else f"{value:.{digits}e}" for value in values]
    shown = [f"{float(one):.0f}" if "e+" in one and abs(float(one)) < 1e6 else one for one in shown]
    return shown[0] if len(shown) == 1 else f"({', '.join(shown)})"


def alike(found: np.ndarray, value: np.ndarray, rel: float, abs_: float) -> bool:
    """Are all numbers alike, each within `rel` of its size or `abs_`?"""
    return found.shape == value.shape and bool(np.allclose(found, value, rtol=rel, atol=abs_))


def asked_for(answer: Any, right: Any, wanted: str) -> np.ndarray | str:
    """The answer as numbers in the order of what is right, or the sentence that says why it is none."""
    if isinstance(right, Mapping) and isinstance(answer, Mapping):
        if set(answer) != set(right):
            return f"give {wanted} with the keys {short(list(right))}; yours are {short(list(answer))}"
        answer = [answer[key] for key in right]
    found, value = array(answer), array(right)
    if found is None:
        return other_type(answer, wanted)
    if value.size == 1 == found.size:
        found = found.reshape(value.shape)
    if found.shape != value.shape:
        turned = " (it is transposed)" if found.T.shape == value.shape else ""
        return f"give {wanted}, of shape {value.shape}; yours has the shape {found.shape}{turned}"
    if not np.isfinite(found).all():
        return f"give {wanted}; yours has something in it that is not a finite number: {short(answer)}"
    return found


def verdict(
    answer: Any, right: Any, mistakes: Mapping[str, Any], *, wanted: str = "a number", rel: float = 0.01,
    abs_: float = 1e-6, also: str = "",
) -> str:  # fmt: skip
    """A sentence on an answer in numbers: right, or which of the mistakes gives it, and what the right value is near.

    `right` and what the mistakes give are numbers, arrays, or tuples or dicts of numbers, of one shape. `wanted` names
    what to give, `also` is added to the sentence where the answer is right. A tolerance is relative, or absolute where
    the right value is small.
    """
    found, value = asked_for(answer, right, wanted), array(right)
    if isinstance(found, str):
        return found
    if alike(found, value, rel, abs_):
        return f"right: {near(right, 3)}{f'; {also}' if also else ''}"
    factors = {SIGN: -1.0, PER_CENT: 100.0, SHARE: 0.01}
    given = {name: array(one) for name, one in mistakes.items()}
    suspects = given | {name: factor * value for name, factor in factors.items()}
    suspects |= {f"{name}, and {SIGN}": -one for name, one in given.items()}
    given = {k: v for k, v in suspects.items() if alike(found, v, rel, abs_) and not alike(v, value, rel, abs_)}
    if given:
        name = min(given, key=lambda name: np.abs(found - given[name]).max())
        return f"{name}; the right value is near {near(right)}"
    good = np.isclose(found, value, rtol=rel, atol=abs_)
    part = f" ({int(good.sum())} of {good.size} numbers are right)" if good.size > 1 and good.any() else ""
    return f"wrong, in a way not on the list{part}; the right value is near {near(right)}, yours is {near(found)}"


def names_of(answer: Any) -> set[str] | None:
    """A collection of names as a set; None for anything else."""
    if isinstance(answer, str | bytes | Mapping) or not isinstance(answer, Iterable):
        return None
    try:
        found = set(answer)
    except Exception:
        return None
    return found if all(isinstance(name, str) for name in found) else None


def verdict_names(
    answer: Any, right: Iterable[str], mistakes: Mapping[str, Iterable[str]], *, wanted: str = "a list of names",
    also: str = "",
) -> str:  # fmt: skip
    """A sentence on names that were to be found, in any order."""
    found, right = names_of(answer), set(right)
    if found is None:
        return other_type(answer, wanted)
    if found == right:
        return f"right: {len(right)} names{f'; {also}' if also else ''}"
    for name, suspect in mistakes.items():
        if found == set(suspect):
            return f"{name}; the right answer has {len(right)} names, yours {len(found)}"
    extra, missing = sorted(found - right), sorted(right - found)
    parts = [f"{len(extra)} too many, such as {extra[0]}"] if extra else []
    parts += [f"{len(missing)} missing, such as {missing[0]}"] if missing else []
    return f"wrong, in a way not on the list: {' and '.join(parts)}; the right answer has {len(right)} names"


def verdict_choice(answer: Any, right: str | bool, wrong: Mapping[Any, str], *, also: str = "") -> str:
    """A sentence on a word or a truth value; `wrong` says of each other choice which mistake leads there."""
    choices = [right, *wrong]
    given = answer.strip().lower() if isinstance(answer, str) else answer
    if isinstance(given, np.bool_):
        given = bool(given)
    for choice in choices:
        if type(given) is type(choice) and given == choice:
            return f"right: {choice}{f'; {also}' if also else ''}" if choice == right else wrong[choice]
    listed = sorted(choices, key=str)  # not the right one first
    return other_type(answer, f"one of {', '.join(repr(choice) for choice in listed)}")


def attempt(function: Any, *arguments: Any, wanted: str = "a function") -> tuple[Any, str]:
    """What the reader's function returns, and "", or None and the sentence that says why it returns nothing."""
    if not callable(function):
        return None, f"give {wanted}, not what it returns; this is a {type(function).__name__}: {short(function)}"
    try:
        return function(*arguments), ""
    except Exception as error:
        return None, f"your function stops with {type(error).__name__}: {short(str(error))}"
