"""The whole method (Cai, Tan, Asif, 2025, algorithm 1): one gradient each, a front, a step in each of its layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, singledispatch

import pandas as pd
from torch import Tensor

from .edit import Edit
from .gradients import Gradients, one_shot_gradients
from .models import Clip
from .pairs import Pairs
from .runtime.batches import Memory
from .runtime.checks import check_kinds, check_sets, check_tower, concept_of, forget_of, nothing_forgot
from .runtime.functions import ask_once
from .runtime.libraries import check_clip
from .runtime.reports import report_of, told
from .runtime.so_far import remark, telling
from .search import Found, StepSearch, by_preference, make_delta, search_layers
from .selection import pareto_fronts
from .targets import fingerprint
from .validation import Score, Scorer, Validate, Validation, scorer_of


@dataclass(frozen=True)
class Task:
    """One concept: its sets, how to score a model, its name; protect: sets to stay, asked for with several names."""

    forget: Pairs
    retain: Pairs
    validate: Validate
    concept: str
    protect: Sequence[Pairs] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "forget", forget_of(self.forget, self.validate, self.concept))


@singledispatch
def as_task(
    concept: object, clip: Clip, retain: Pairs | None = None, validate: Validate | None = None, seed: int = 0,
    without: Sequence[str] = (),
) -> Task:  # fmt: skip
    """Whatever says what to forget, as a `Task`; strings are registered by `world/tasks.py`, which knows the names.

    without: names of concepts that are to go as well, and so are neither retained nor scored.
    """
    if isinstance(concept, Task):
        return concept
    raise ValueError(f"concept is {concept!r}; give a name of the mini world, Pairs, or a Task")


@as_task.register
def _(
    concept: Pairs, clip: Clip, retain: Pairs | None = None, validate: Validate | None = None, seed: int = 0,
    without: Sequence[str] = (),
) -> Task:  # fmt: skip
    if retain is None or validate is None:
        raise ValueError(
            "a forget set of your own needs a retain set and validate=, a slug_lite.Validation or a function"
        )
    return Task(concept, retain, validate, concept_of(concept, validate))


def unlearn(
    clip: Clip, concept: str | Pairs | Task, retain: Pairs | None = None, *, tower: str | None = None,
    validate: Validate | None = None, search: StepSearch = StepSearch(), memory: Memory = Memory(), seed: int = 0,
) -> Edit:  # fmt: skip
    """Find the edit that makes `clip` forget a concept; the model itself is left as it was.

    concept: a name of the mini world, which supplies all pictures by `seed`; or a forget set of your own, together
        with a retain set and `validate`, a `Validation` or any function of the model that returns a dict with
        "forget_accuracy" and "retain_accuracy"; or a `Task`, which has all of these.
    tower: "vision" or "text" looks there alone. search: how step and layer are looked for. memory: against a shortage.

    Of the layers that can be made to forget, the one that keeps the best retained accuracy is taken, even where none
    keeps enough: a warning and `edit.report` say so. Raises KeyError for an unknown name or tower, ValueError for sets
    that do not fit, `NothingForgets` if no layer's step succeeds.
    """
    check_clip(clip)
    check_tower(tower)
    check_kinds(("search", search, StepSearch), ("memory", memory, Memory), seed=seed)
    task = as_task(concept, clip, retain, validate, seed)
    fronts_of = partial(candidate_fronts, search, tower)
    (gradients,) = gradients_of(clip, [task], fronts_of, memory)
    return told(best_edit(clip, task.concept, task.validate, gradients.forget, fronts_of(gradients.stats), search))


def candidate_fronts(
    search: StepSearch, tower: str | None, stats: pd.DataFrame, fits: Callable[[str], bool] = lambda layer: True
) -> list[list[str]]:
    """The fronts to look on, of the layers of a tower (None: both) that fit what the edit is for."""
    allowed = [layer for layer in stats.index if tower in (None, stats["tower"][layer]) and fits(layer)]
    return pareto_fronts(stats.loc[allowed], search.fronts, by=search.measure)


def gradients_of(
    clip: Clip, tasks: Sequence[Task], fronts_of: Callable[[pd.DataFrame], list[list[str]]], memory: Memory
) -> list[Gradients]:
    """The gradients of all tasks (the first one's retain set serves all), kept for the layers of the fronts alone."""
    for task in tasks:
        check_sets([task.forget], tasks[0].retain)
        ask_once(task.validate, clip, (Validation, Scorer))
    with remark("stopped while the gradients were taken: no layer was searched, nothing would have been returned"):
        # given a group of the layers, its fronts hold all that are on the fronts of the whole
        return one_shot_gradients(
            clip, [task.forget for task in tasks], tasks[0].retain, batch_size=memory.batch_size, passes=memory.passes,
            keep=lambda stats: [layer for front in fronts_of(stats) for layer in front],
        )  # fmt: skip


def best_edit(
    clip: Clip, concept: str, validate: Validate, directions: Mapping[str, Tensor], fronts: Sequence[Sequence[str]],
    search: StepSearch, before: Mapping[str, Score] | None = None,
) -> Edit:  # fmt: skip
    """The edit of the best layer: of the first front on which one keeps enough, else of all fronts.

    directions: for each layer what to step along. Where no layer's margin gets as wide as asked, half is asked for.
    before: by concept the scores of the untouched model, by `Scorer.on_the_rest`; None: no other edit is on.
    """
    scorer, traces = scorer_of(validate, clip), [pd.DataFrame()]
    untouched = scorer.on_the_rest() if before is None else before[concept]
    enough = untouched.get("retain_accuracy", 0.0) - search.max_accuracy_drop
    for asked in (search, replace(search, margin=search.margin / 2)):
        found: dict[str, Found] = {}
        for front in fronts:
            new = [layer for layer in front if layer not in found]
            with telling(found, concept, by_preference):
                found |= search_layers(clip, directions, new, scorer, asked)
            traces += [(t := found[layer].trace).assign(asked=asked.goal(t)) for layer in new]
            layer = next(iter(by_preference(found)), None)
            if layer is not None and found[layer].score.get("retain_accuracy", 0.0) >= enough:
                break
        trace = pd.concat(traces, ignore_index=True)
        if fronts and layer is not None:
            step = float(found[layer].step)
            delta = make_delta(directions[layer], step).cpu()
            report = report_of(concept, search, untouched, found[layer].score, validate)
            return Edit({layer: delta}, {layer: step}, concept, fingerprint(clip), trace=trace, report=report)
        if search.goal(trace) is None:
            break
    raise nothing_forgot(concept, search.evaluations, trace)
