"""Functions of other people behind the names that this package asks by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .modes import eval_mode


@dataclass(frozen=True)
class FunctionScorer:
    """Any function of the model as a `validation.Scorer`: asked everything at once in eval mode, nothing kept."""

    function: Callable[[Any], Mapping[str, float]]
    clip: Any

    def at(self, layer: str) -> FunctionScorer:
        return self

    def forgetting(self) -> dict[str, float]:
        """All that the function says. ValueError where "forget_accuracy" is not among it."""
        with eval_mode(self.clip.model):
            score = dict(self.function(self.clip))
        if "forget_accuracy" not in score:
            raise ValueError(f"the validation returned {sorted(score)}; 'forget_accuracy' must be among them")
        return score

    def retaining(self) -> dict[str, float]:
        """Nothing more."""
        return {}

    __call__ = forgetting
