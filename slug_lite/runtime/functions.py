"""Functions of other people behind the names that this package asks by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .modes import eval_mode

# What a search decides by; the margins may be infinite, none may be NaN
_SHARES = ("forget_accuracy", "forget_accuracy5", "retain_accuracy", "retain_loss")
_MARGINS = ("margin", "standardized_margin")


@dataclass(frozen=True)
class FunctionScorer:
    """Any function of the model as a `validation.Scorer`: asked everything at once in eval mode, nothing kept."""

    function: Callable[[Any], Mapping[str, float]]
    clip: Any

    def at(self, layer: str) -> FunctionScorer:
        return self

    def __call__(self) -> dict[str, Any]:
        """All that the function says of the model. ValueError for what is no dict of numbers, for one without
        "forget_accuracy", and for numbers to decide by that are not finite."""
        with eval_mode(self.clip.model):
            score = checked(self.function(self.clip))
        if broken := not_finite(score):
            raise ValueError(f"the validation returned {broken[0]}={score[broken[0]]}; a finite number is needed")
        return score

    def forgetting(self) -> dict[str, Any]:
        """The same of a model in which a step is tried: one that it breaks has not forgotten."""
        with eval_mode(self.clip.model):
            score = checked(self.function(self.clip))
        known = score.keys() & {"forget_accuracy", "forget_accuracy5"}
        return score | dict.fromkeys(known, 1.0) if not_finite(score) else score

    def retaining(self) -> dict[str, float]:
        """Nothing more."""
        return {}

    on_the_rest = __call__


def ask_once(validate: object, clip: Any, known: tuple[type, ...]) -> None:
    """ValueError for a function that returns no scores of the untouched model: before anything is worked out.

    known: what is no function of other people, and needs no asking.
    """
    if not isinstance(validate, (FunctionScorer, *known)):
        FunctionScorer(validate, clip)()


def checked(score: object) -> dict[str, Any]:
    """What a function returned, the numbers to decide by as floats. ValueError for anything else."""
    if not isinstance(score, Mapping):
        raise ValueError(f"the validation returned a {type(score).__name__}; a dict with 'forget_accuracy' is needed")
    score = dict(score)
    if "forget_accuracy" not in score:
        raise ValueError(f"the validation returned {sorted(map(str, score))}; 'forget_accuracy' must be among them")
    for name in (*_SHARES, *_MARGINS):
        if name in score:
            kind = type(score[name]).__name__
            try:
                score[name] = float(None if isinstance(score[name], (str, bytes)) else score[name])
            except (TypeError, ValueError, RuntimeError) as error:  # torch's, for tensors of several numbers
                raise ValueError(f"the validation returned a {kind} as {name!r}; a number is needed") from error
    return score


def not_finite(score: Mapping[str, Any]) -> list[str]:
    """The names of what is no number to decide by."""
    bad = [name for name in _SHARES if not math.isfinite(score.get(name, 0.0))]
    return bad + [name for name in _MARGINS if math.isnan(score.get(name, 0.0))]
