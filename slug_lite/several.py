"""Several concepts (Cai, Tan, Asif, 2025, section 3.4): one gradient each, at the original weights, one edit each.

What plain steps cost the rest adds up. So the gradients of what is to stay may be projected out of them, see
`runtime.linear.project_out`; that is not part of the paper's method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import pandas as pd
from torch import Tensor

from .algorithm import Task, as_task, best_edit, candidate_fronts, gradients_of
from .edit import Edit, merge
from .gradients import Gradients, forget_gradients
from .models import Clip
from .pairs import Pairs
from .runtime.batches import Memory
from .runtime.checks import check_kinds, check_protect, check_tower, names_of
from .runtime.libraries import check_clip
from .runtime.linear import protect_layers
from .runtime.reports import reported, told
from .runtime.so_far import remark
from .runtime.undo import together
from .search import StepSearch
from .validation import Validate, scorer_of


def tasks_of(concepts: Sequence[str | Task], clip: Clip, seed: int = 0) -> list[Task]:
    """A task for each concept, with one retain set for all. ValueError for none, for a bare string, and for twins."""
    names, tasks = names_of(concepts, Task), list[Task]()
    for k, one in enumerate(concepts):
        others, retain = [name for name in names if name != names[k]], tasks[0].retain if tasks else None
        tasks.append(as_task(one, clip, retain, None, seed, others))
    return tasks


def unlearn_several(
    clip: Clip, concepts: Sequence[str | Task], *, tower: str | None = None, protect: Sequence[Pairs] | None = None,
    search: StepSearch = StepSearch("margin"), memory: Memory = Memory(), seed: int = 0,
) -> Edit:  # fmt: skip
    """Find one merged edit that makes `clip` forget several concepts; the model itself is left as it was.

    Each concept gets its own layer and step, along a direction taken at the original weights; steps are looked for
    with the others' edits on, in two rounds. All of them together may cost `search.max_accuracy_drop`.

    concepts: names of the mini world, or `Task`s, which share the first one's retain set. Others: as for `unlearn`.
    search: by the margin, with which lists were measured; other names that go leave fewer to be the best five.
    protect: sets of pairs, one for each concept that is to stay, whose gradients are projected out of every step.
        None: what the first task says, for a name every other of the world; () steps along whole gradients, as the
        paper does. As many gradients as it has sets are held at a time, of as many layers as `memory.protected` bytes
        allow (one at least, then on the CPU), and of no more than a `memory.passes`-th of those searched.
    """
    check_clip(clip)
    check_tower(tower)
    check_kinds(("search", search, StepSearch), ("memory", memory, Memory), seed=seed)
    tasks = tasks_of(concepts, clip, seed)
    protect = tasks[0].protect if protect is None else protect
    check_protect([task.forget for task in tasks], protect)
    fronts_of = partial(candidate_fronts, search, tower)
    directions, tables = protected(clip, gradients_of(clip, tasks, fronts_of, memory), protect, memory)
    names, validates = [task.concept for task in tasks], {task.concept: task.validate for task in tasks}
    alone = len(tasks) == 1  # then the search itself knows what there was before, and what has come of it
    before = None if alone else {name: scorer_of(check, clip).on_the_rest() for name, check in validates.items()}
    edits = in_rounds(
        [clip], validates, dict(zip(names, directions, strict=True)),
        dict(zip(names, map(fronts_of, tables), strict=True)), search, find=partial(best_edit, before=before),
    )  # fmt: skip
    edit = merge_all(edits)
    return told(edit if alone else reported(edit, clip, validates, before, search, scorer_of))


def protected(
    clip: Clip, gradients: Sequence[Gradients], protect: Sequence[Pairs], memory: Memory
) -> tuple[list[dict[str, Tensor]], list[pd.DataFrame]]:
    """Each concept's directions and statistics, in the layers where something is left, see `protect_layers`."""
    directions, tables = [one.forget for one in gradients], [one.stats for one in gradients]
    if not protect:
        return directions, tables
    layers = list(dict.fromkeys(layer for own in directions for layer in own))
    directions = protect_layers(
        directions, lambda group: forget_gradients(clip, protect, layers=lambda n, _: n in group, memory=memory),
        memory.protect(clip.weights(), layers, len(protect)),
    )  # fmt: skip
    return directions, [table[table.index.isin(list(own))] for table, own in zip(tables, directions, strict=True)]


def in_rounds(
    targets: Sequence[object], validates: Mapping[str, Validate], directions: Mapping[str, Mapping[str, Tensor]],
    fronts: Mapping[str, Sequence[Sequence[str]]], search: StepSearch, rounds: int = 2,
    find: Callable[..., Edit] = best_edit,
) -> dict[str, Edit]:  # fmt: skip
    """For each concept an edit, looked for while the others' edits are on all `targets`, the first of which is a Clip.

    In later rounds the others are complete, and the layer found before is tried first. One concept needs one round.
    Of the accuracy that may drop each edit that is on has an equal share. find: looks for one edit, as `best_edit`.
    """
    edits: dict[str, Edit] = {}
    traces: list[pd.DataFrame] = []
    for number in range(rounds if len(validates) > 1 else 1):
        for name, validate in validates.items():
            before, others = [edits[name].layers] if name in edits else [], [e for n, e in edits.items() if n != name]
            share = replace(search, max_accuracy_drop=search.max_accuracy_drop * (len(others) + 1) / len(validates))
            on = [merge(others).on(target) for target in targets] if others else []
            with together(on), remark(f"stopped in round {number} of {rounds}, counted from 0", edits):
                edits[name] = find(targets[0], name, validate, directions[name], [*before, *fronts[name]], share)
            traces.append(edits[name].trace.assign(concept=name, round=number))
    trace = pd.concat(traces, ignore_index=True)
    return {name: replace(edit, trace=trace[trace["concept"] == name]) for name, edit in edits.items()}


def merge_all(edits: Mapping[str, Edit]) -> Edit:
    """The sum of edits of several concepts, with the searches of all of them in their order; one keeps its report."""
    every = list(edits.values())
    report = every[0].report if len(every) == 1 else None
    return replace(merge(every), trace=pd.concat([e.trace for e in every]).sort_index(), report=report)
