"""What an edit was asked for, and what it reached: the best of the bad is not handed over in silence."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from .labels import shown

if TYPE_CHECKING:
    from ..edit import Edit
    from ..models import Clip
    from ..search import StepSearch

Score = Mapping[str, float]
Told = TypeVar("Told", bound="Edit")


@dataclass(frozen=True)
class Report:
    """concept: what was to be forgotten
    asked for: rule, evaluations; margin, in standard deviations (None: the rule asks for none); max_accuracy_drop, how
        much retained accuracy may fall (None: that was not asked for)
    reached, with the edit on: forget_accuracy, standardized_margin (None: not known), forgotten, by rule and margin;
        retained_before, retained_after: accuracy on all else, before the edit and with it (None: not known)
    split: on which pictures of the mini world, None for ones of your own
    parts: of several concepts, a report each, with all edits on; the numbers above are then the worst of them
    """

    concept: str
    rule: str
    evaluations: int
    margin: float | None
    max_accuracy_drop: float | None
    forget_accuracy: float
    standardized_margin: float | None
    forgotten: bool
    retained_before: float | None
    retained_after: float | None
    split: str | None = None
    parts: tuple[Report, ...] = ()

    @property
    def all_reached(self) -> bool:
        """Was all reached that was asked for, as far as it was measured? See `not_known`."""
        return not self.missed

    @property
    def missed(self) -> list[str]:
        """What was not reached, in words."""
        if self.parts:
            return [f"{shown(part.concept)}: {what}" for part in self.parts for what in part.missed]
        found = []
        known = self.margin is not None and self.standardized_margin is not None
        if not self.forgotten and known and not self.standardized_margin >= self.margin:  # NaN too
            found.append(
                f"a margin of {self.standardized_margin:.2g} standard deviations where {self.margin:g} were asked for"
            )
        elif not self.forgotten and self.rule == "top5" and self.forget_accuracy == 0:
            found.append("not forgotten by the rule 'top5': its name is among the best five for some pictures")
        elif not self.forgotten:
            found.append(f"not forgotten by the rule {self.rule!r}, forget accuracy {self.forget_accuracy:.1%}")
        if self._dropped:
            found.append(
                f"retained accuracy {self.retained_before:.2%} -> {self.retained_after:.2%}, where a drop of "
                f"{100 * self.max_accuracy_drop:.2g} points was allowed"
            )
        return found

    @property
    def not_known(self) -> list[str]:
        """What was asked for and nobody measured, in words: neither reached nor missed."""
        if self.parts:
            return [f"{shown(part.concept)}: {what}" for part in self.parts for what in part.not_known]
        if self.max_accuracy_drop is None or None not in (self.retained_before, self.retained_after):
            return []
        return [
            f"retained accuracy, which was to drop by {100 * self.max_accuracy_drop:.2g} points at most (validate "
            "gave no 'retain_accuracy', or shows only the concept's own pictures)"
        ]

    @property
    def _dropped(self) -> bool:
        if None in (self.max_accuracy_drop, self.retained_before, self.retained_after):
            return False
        return self.retained_after < self.retained_before - self.max_accuracy_drop


def report_of(
    concept: str, search: StepSearch, before: Score, after: Score, validate: object, drop: bool = True
) -> Report:
    """What a search asked for, and the scores of the model before the edit and with it.

    drop: was `search.max_accuracy_drop` asked for? validate: what gave the scores, which knows the split.
    """
    after = {"forget_accuracy": math.nan, **after}
    return Report(
        concept, search.rule, search.evaluations, search.goal(after),
        search.max_accuracy_drop if drop else None, after["forget_accuracy"], after.get("standardized_margin"),
        search.forgotten(after), before.get("retain_accuracy"), after.get("retain_accuracy"),
        getattr(getattr(validate, "validation", validate), "split", None),
    )  # fmt: skip


def together(parts: Sequence[Report]) -> Report:
    """One report of several concepts: the worst of each number; that of a single concept is its own."""
    if len(parts) == 1:
        return parts[0]
    first, margins = parts[0], [p.standardized_margin for p in parts if p.standardized_margin is not None]
    known = [p for p in parts if p.retained_before is not None and p.retained_after is not None]
    worst = max(known, key=lambda p: p.retained_before - p.retained_after, default=first)
    return Report(
        " + ".join(p.concept for p in parts), first.rule, first.evaluations, first.margin, first.max_accuracy_drop,
        max(p.forget_accuracy for p in parts), min(margins, default=None), all(p.forgotten for p in parts),
        worst.retained_before, worst.retained_after, first.split, tuple(parts),
    )  # fmt: skip


def reported(
    edit: Told, clip: Clip, validates: Mapping[str, Any], before: Mapping[str, Score], search: StepSearch,
    scorer_of: Callable[[Any, Clip], Any], drop: bool = True,
) -> Told:  # fmt: skip
    """The edit with a report of each concept, scored with all of it on.

    before: scores of the untouched model. scorer_of: as in `validation`. drop: see `report_of`.
    """
    after = {}
    with edit.on(clip):  # a scorer that is there already has embedded what was before
        for name, validate in validates.items():
            scorer = scorer_of(getattr(validate, "validation", validate), clip)
            after[name] = {**scorer.forgetting(), **scorer.retaining()}  # which a broken model does not stop
    parts = [report_of(name, search, before[name], after[name], v, drop) for name, v in validates.items()]
    return replace(edit, report=together(parts))


def shortfall(report: Any) -> str:
    """For `repr`: what was not reached, and where that was measured, and what is not known; "" for no report."""
    if report is None:
        return ""
    split = f" on the split {report.split!r}" if report.split else ""
    missed = f"; NOT REACHED{split}: {'; '.join(report.missed)}" if report.missed else ""
    return missed + (f"; NOT KNOWN: {'; '.join(report.not_known)}" if report.not_known else "")


def told(edit: Told) -> Told:
    """The edit itself, with a warning where not all was reached. To be called where a user's own call ends."""
    if edit.report is not None and edit.report.missed:
        warnings.warn(f"{shown(edit.concept)}{shortfall(edit.report)}. See edit.report", stacklevel=3)
    return edit
