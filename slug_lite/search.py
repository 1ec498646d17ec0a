"""How far? The step size of one layer (Cai, Tan, Asif, 2025, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from .models import Clip
from .runtime.bracket import Bracket
from .runtime.checks import unknown
from .runtime.modes import eval_mode
from .runtime.numbers import check_positive, check_real, check_whole
from .runtime.progress import bar
from .runtime.replay import blocks_before
from .runtime.so_far import skipped, telling
from .runtime.stacks import add_delta, kept
from .selection import MEASURES
from .validation import Score, Validate, scorer_of

DELTA_DTYPE = torch.float16  # of what is added to a weight, in memory as in a file
RULES = ("margin", "top1", "top5")


@dataclass(frozen=True)
class StepSearch:
    """How the step and its layer are looked for. The paper's own search is StepSearch(rule="top1", fronts=1).

    rule: when a concept is forgotten, by its validation pictures. "top1": none is recognised (the paper's FA@1 = 0);
        "top5": its name is among the best five for none (the released code's), and where scores have no
        "forget_accuracy5", as of no more than five names, as "margin"; "margin": none is recognised, and the mean
        margin to the best other name is `margin` standard deviations wide, where the scores say so
    evaluations: tries in a layer at most
    measure: of the front, "alignment" (the paper's |cos|) or "cosine" (signed), see `pareto_front`
    fronts, max_accuracy_drop: where every layer of the front costs more than this drop of retained accuracy, the front
        of the remaining layers is searched too, up to `fronts` in all. fronts=1 is the paper's

    KeyError for another rule or measure, ValueError for numbers that make no sense.
    """

    rule: str = "top5"
    margin: float = 4.0
    evaluations: int = 10
    measure: str = "alignment"
    fronts: int = 3
    max_accuracy_drop: float = 0.005

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise unknown(self.rule, RULES, "stopping rule")
        if self.measure not in MEASURES:
            raise unknown(self.measure, MEASURES, "measure")
        check_whole(evaluations=self.evaluations, fronts=self.fronts)
        check_real(max_accuracy_drop=self.max_accuracy_drop)
        check_positive(margin=self.margin)

    def forgotten(self, score: Score) -> bool:
        """Is the concept gone, by these validation scores?

        That no picture is recognised alone leaves room for luck: no hit in 48 still allows one in twenty.
        """
        key = "forget_accuracy5" if self.rule == "top5" and "forget_accuracy5" in score else "forget_accuracy"
        wide = score.get("standardized_margin", math.inf) >= (self.goal(score) or -math.inf)
        return score[key] == 0 and wide

    def goal(self, score: Score | pd.DataFrame) -> float | None:
        """The margin that is asked of such scores, in standard deviations; None where the rule asks for none."""
        few = self.rule == "top5" and "forget_accuracy5" not in score
        return self.margin if few or self.rule == "margin" else None


@dataclass(frozen=True)
class Found:
    """step: the smallest step found that forgets, None if none did; score: at that step; trace: a row an evaluation."""

    step: float | None
    score: Score | None
    trace: pd.DataFrame


def first_step(weight: Tensor, gradient: Tensor) -> float:
    """Where the search begins: a tenth of the weight's length, |theta| / |g_f| / 10. ValueError if it is nowhere."""
    length, size = gradient.float().norm().item(), weight.float().norm().item()
    if not 0 < min(length, size) <= max(length, size) < math.inf:  # NaN fails too
        raise ValueError(f"the forget gradient or the weight is zero or is not finite (lengths {length}, {size})")
    return size / length / 10


def make_delta(gradient: Tensor, step: float) -> Tensor:
    """lambda * g_f, shaped as it: up the forget loss, so the sign is plus. float16, as it is stored and applied."""
    return (step * gradient.detach()).to(DELTA_DTYPE)


def search_step(
    clip: Clip, layer: str, gradient: Tensor, validate: Validate, search: StepSearch = StepSearch()
) -> Found:
    """Look for the smallest step in `layer` that forgets.

    Doubles the step until the concept is gone; then halves the interval between the last failure and the last success,
    or follows the margin, where one is asked for, and stops early, see `Bracket`. Every try asks whether the concept
    is forgotten; what the rest keeps is asked at the chosen step alone. The weight is put back bit for bit, also on an
    interrupt.

    gradient: the direction, grad L_f of the layer, shaped as its weight. Raises KeyError for an unknown layer,
    ValueError for a gradient of another shape or of length zero, and for scores without "forget_accuracy".
    """
    if layer not in clip.weights():
        raise unknown(layer, clip.weights(), "layer")
    weight = clip.weights()[layer]
    if gradient.shape != weight.shape:
        raise ValueError(f"the gradient is {tuple(gradient.shape)}, the weight {layer!r} is {tuple(weight.shape)}")
    scorer, rows = scorer_of(validate, clip).at(layer), []
    with kept(clip.model, weight) as original, eval_mode(clip.model):
        step = try_steps(weight, gradient, scorer.forgetting, search, rows)
        if step is not None:
            weight.copy_(add_delta(original, make_delta(gradient, step)))
            best = next(row for row in rows if row["step"] == step)
            best |= scorer.retaining()
    trace = pd.DataFrame([{"layer": layer, "evaluation": k, **row} for k, row in enumerate(rows)])
    score = None if step is None else {key: value for key, value in best.items() if key not in ("step", "forgotten")}
    return Found(step, score, trace)


def try_steps(
    weight: Tensor, gradient: Tensor, probe: Callable[[], Score], search: StepSearch, rows: list[dict]
) -> float | None:
    """The shortest step found that forgets, None if none did; every try is put in place and gets a row."""
    original = weight.detach().clone()
    bracket = Bracket(first_step(original, gradient))
    while len(rows) < search.evaluations and not bracket.narrow:
        delta = make_delta(gradient, step := bracket.step)
        if not torch.isfinite(delta).all():
            break  # beyond half precision: no such edit could be stored
        weight.copy_(add_delta(original, delta))
        score = dict(probe())
        rows.append({"step": step, **score, "forgotten": (gone := search.forgotten(score))})
        bracket.goal = search.goal(score)
        bracket.add(gone, score.get("standardized_margin", math.nan))
    return bracket.found


def search_layers(
    clip: Clip, directions: Mapping[str, Tensor], layers: Sequence[str], validate: Validate,
    search: StepSearch = StepSearch(),
) -> dict[str, Found]:  # fmt: skip
    """The step search in each of `layers`, along its direction; what cannot change is embedded once."""
    scorer, found = scorer_of(validate, clip), dict[str, Found]()
    # from the front of a tower to its back, so that each starts from what the one before has kept
    ordered = sorted(layers, key=lambda layer: len(blocks_before(clip, layer)))
    with telling(found):
        for layer in bar(ordered, desc="step search"):
            lacking, asked = skipped(clip, layer, directions[layer]), (clip, layer, directions[layer], scorer, search)
            found[layer] = search_step(*asked) if lacking is None else Found(None, None, lacking)
    return {layer: found[layer] for layer in layers}


def by_preference(found: dict[str, Found]) -> list[str]:
    """The layers whose step succeeded, the one that keeps the best retained accuracy first; on ties the least loss."""
    able = {layer: one.score for layer, one in found.items() if one.score is not None}
    kept = {layer: (s.get("retain_accuracy", 0.0), -s.get("retain_loss", 0.0)) for layer, s in able.items()}
    return sorted(kept, key=kept.__getitem__, reverse=True)
