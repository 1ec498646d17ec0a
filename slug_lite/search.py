"""How far? The step size of one layer (Cai, Tan, Asif, 2025, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from .edit import DELTA_DTYPE, add_delta
from .models import Clip
from .pairs import unknown

Score = Mapping[str, float]


class NothingForgets(RuntimeError):
    """No layer looked at could be made to forget within the evaluations allowed; .trace holds what was tried."""

    def __init__(self, message: str, trace: pd.DataFrame) -> None:
        super().__init__(message)
        self.trace = trace


def check_rule(rule: str, evaluations: int = 1) -> None:
    """KeyError for another rule than "margin" and "paper", ValueError for fewer evaluations than one."""
    if rule not in ("margin", "paper"):
        raise unknown(rule, ("margin", "paper"), "stopping rule")
    if evaluations < 1:
        raise ValueError(f"evaluations={evaluations}; at least 1 is needed")


def forgotten(score: Score, rule: str = "margin", clearance: float = 4.0) -> bool:
    """Is the concept gone, by these validation scores?

    rule "paper": no validation picture is recognised. That alone leaves room for luck: no hit in 48 pictures still
    allows one in twenty. Rule "margin" asks, too, that the mean margin to the best other name be `clearance`
    standard deviations wide, where the scores say so.
    """
    check_rule(rule)
    gone = score["forget_accuracy"] == 0
    return gone if rule == "paper" else gone and score.get("clearance", float("inf")) >= clearance


@dataclass(frozen=True)
class Search:
    """step: the smallest step found that forgets, None if none did; score: at that step; trace: every evaluation."""

    step: float | None
    score: Score | None
    trace: pd.DataFrame


def first_step(weight: Tensor, gradient: Tensor) -> float:
    """Where the search begins: a tenth of the weight's length, |theta| / |g_f| / 10. ValueError if either is zero."""
    length, size = gradient.float().norm().item(), weight.float().norm().item()
    if length == 0 or size == 0:
        raise ValueError(f"the forget gradient or the weight is zero (lengths {length}, {size}): no step to begin with")
    return size / length / 10


def make_delta(gradient: Tensor, step: float) -> Tensor:
    """lambda * g_f, shaped as it: up the forget loss, so the sign is plus. float16, as it is stored and applied."""
    return (step * gradient.detach()).to(DELTA_DTYPE)


def next_step(
    step: float, short: tuple[float, float] | None, enough: tuple[float, float] | None, clearance: float | None
) -> float:
    """The step to try after `step`.

    short, enough: the longest step that failed and the shortest that succeeded, each with its clearance; None before
    there is one. Doubles until one succeeds. Then the interval is halved, as in the paper; or, with a clearance to be
    reached, cut where the straight line through both ends reaches it (regula falsi), a twentieth off either end.
    """
    if enough is None:
        return 2 * step
    low, at_low = short or (0.0, -math.inf)
    high, at_high = enough
    share = 0.5
    if clearance is not None and math.isfinite(at_low) and math.isfinite(at_high) and at_low < clearance < at_high:
        share = min(max((clearance - at_low) / (at_high - at_low), 0.05), 0.95)
    return low + share * (high - low)


def _nearer(end: tuple[float, float] | None, clearance: float) -> tuple[float, float] | None:
    """An end that stayed twice in a row, its clearance moved half-way to the one to be reached.

    So the line leans over and the next cut falls on the other side (the Illinois rule: Dowell and Jarratt, 1971).
    """
    return end and (end[0], (end[1] + clearance) / 2)


@torch.no_grad()
def search_step(
    clip: Clip, layer: str, gradient: Tensor, score: Callable[[], Score], *, evaluations: int = 10,
    rule: str = "margin", clearance: float = 4.0, precision: float = 0.03, whole: bool = False,
    start: float | None = None,
) -> Search:  # fmt: skip
    """Look for the smallest step in `layer` that forgets, in at most `evaluations` tries.

    rule "paper": doubles the step until the concept is gone, then halves the interval between the last failure and
    the last success, `evaluations` tries in all. rule "margin": doubles as well, then follows the clearance, see
    `next_step`, and stops once the interval is no wider than `precision` of the step: fewer tries for a step as short.
    score() is called with the step in place. A `metrics.LayerScorer` is asked at every try whether the
    concept is forgotten, and what the rest keeps at the chosen step alone; whole=True asks everything every time.
    The steps are the same. start: where to begin, and the shortest step to take; None begins with `first_step` and
    may end below. The weight is put back bit for bit, also on an interrupt.

    gradient: grad L_f of the layer, shaped as its weight. Returns a `Search`, whose trace has one row an evaluation:
    layer, evaluation, step, what the score returned, forgotten. Raises KeyError for an unknown layer or rule,
    ValueError for a gradient of another shape or of length zero, and for scores without "forget_accuracy".
    """
    check_rule(rule, evaluations)
    if layer not in clip.weights():
        raise unknown(layer, clip.weights(), "layer")
    weight = clip.weights()[layer]
    if gradient.shape != weight.shape:
        raise ValueError(f"the gradient is {tuple(gradient.shape)}, the weight {layer!r} is {tuple(weight.shape)}")
    if start is not None and not 0 < start < math.inf:
        raise ValueError(f"start={start}; a step to begin with is positive")
    original, step = weight.detach().clone(), first_step(weight, gradient) if start is None else start
    short, enough, best = None, None, None
    probe = score if whole else getattr(score, "forgetting", score)
    rows: list[dict] = []
    try:
        for k in range(evaluations):
            delta = make_delta(gradient, step)
            if not torch.isfinite(delta).all():
                break  # beyond half precision: no such edit could be stored
            weight.copy_(add_delta(original, delta))
            result = dict(probe())
            if "forget_accuracy" not in result:
                raise ValueError(f"the validation returned {sorted(result)}; 'forget_accuracy' must be among them")
            gone = forgotten(result, rule, clearance)
            rows.append({"layer": layer, "evaluation": k, "step": step, **result, "forgotten": gone})
            tried = (step, result.get("clearance", math.nan))
            again = len(rows) > 1 and gone == rows[-2]["forgotten"]
            if gone:
                enough, best, short = tried, result, _nearer(short, clearance) if again else short
            else:
                short, enough = tried, _nearer(enough, clearance) if again else enough
            if enough and step == start:
                break
            if rule == "margin" and enough and short and enough[0] - short[0] <= precision * enough[0]:
                break
            step = next_step(step, short, enough, clearance if rule == "margin" else None)
        if enough is not None and probe is not score:
            weight.copy_(add_delta(original, make_delta(gradient, enough[0])))
            best |= score.retaining()
            next(row for row in rows if row["step"] == enough[0]).update(best)
    finally:
        weight.copy_(original)
    return Search(enough and enough[0], best, pd.DataFrame(rows))
