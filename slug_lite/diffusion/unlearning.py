"""Unlearning for a pipeline of Stable Diffusion: its text encoder is CLIP's text tower, so the edit is found on CLIP.

Two things differ from `algorithm.unlearn`, and neither is in the paper. Steps go along g C^-1, which leaves the
prompts of everything else alone, see `precondition`. And the step that CLIP needs is tried on what the pipeline draws,
and made longer until it draws the concept no more, see `generated.search_on_generated`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from ..algorithm import Task, as_task, candidate_fronts, gradients_of
from ..edit import Edit
from ..models import Clip
from ..pairs import Pairs
from ..runtime.batches import Memory
from ..runtime.checks import NothingForgets, nothing_forgot
from ..runtime.text_towers import translate_names
from ..search import DELTA_DTYPE, StepSearch, by_preference, make_delta, search_layers
from ..several import in_rounds, merge_all, protected, tasks_of
from ..targets import fingerprint, weights_of
from ..validation import Validate
from .drawing import check_draws
from .generated import MARGIN, GeneratedScorer, GeneratedValidation, search_on_generated
from .precondition import input_moments, precondition

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

SEARCH = StepSearch(margin=MARGIN)


def unlearn_pipeline(
    pipe: StableDiffusionPipeline | GeneratedValidation, clip: Clip, concept: str | Pairs | Task | Sequence[str | Task],
    retain: Pairs | None = None, *, validate: Validate | None = None, search: StepSearch = SEARCH,
    memory: Memory = Memory(), seed: int = 0,
) -> Edit:  # fmt: skip
    """Find the edit that makes a pipeline draw a concept, or several, no more; pipeline and CLIP are left as they were.

    pipe: a StableDiffusionPipeline whose text encoder is the text tower of `clip`; or a `GeneratedValidation`, which
        says what it is to draw while searching, and which prompts are to be preserved. That is needed for a forget set
        of your own; for names of the mini world it is `GeneratedValidation.of_world`.
    concept, retain, validate, search, memory, seed: as for `unlearn`; a list as for `unlearn_several`. Only layers that
        the pipeline has are looked at, those of all fronts at once; `search.evaluations` tries a layer, on CLIP and
        then on pictures. That layer is taken after which the retained accuracy of the other pictures, a mean over
        kinds, has fallen by no more than `search.max_accuracy_drop` and one picture's part.

    Raises as `unlearn` does, and ValueError for a pipeline of another kind, of another CLIP, or that draws the concept
    in none of its pictures.
    """
    given = pipe if isinstance(pipe, GeneratedValidation) else None
    pipe = given.pipe if given else pipe
    check_pipeline_of(pipe, clip)
    if isinstance(concept, Sequence) and not isinstance(concept, str):
        tasks = tasks_of(concept, clip, seed)
    else:
        tasks = [as_task(concept, clip, retain, validate, seed)]
    validations = _validations(pipe, tasks, given, seed)

    def fronts(stats: pd.DataFrame) -> list[list[str]]:  # the layers of all of them at once
        found = candidate_fronts(search, "text", stats, partial(has_layer, pipe))
        return [[layer for front in found for layer in front]] if found else []

    gradients = gradients_of(clip, tasks, fronts, memory)
    directions, tables = protected(clip, gradients, tasks[0].protect, memory)
    directions = [
        _preconditioned(pipe, own, validations[task.concept].preserve)
        for own, task in zip(directions, tasks, strict=True)
    ]
    names = [task.concept for task in tasks]
    find = partial(on_generated, {name: validations[name].prepare(clip, must_know=True) for name in names})
    edits = in_rounds(
        [clip, pipe], {task.concept: task.validate for task in tasks}, dict(zip(names, directions, strict=True)),
        dict(zip(names, map(fronts, tables), strict=True)), search, find=find,
    )  # fmt: skip
    return merge_all(edits)


def _validations(
    pipe: StableDiffusionPipeline, tasks: Sequence[Task], given: GeneratedValidation | None, seed: int
) -> dict[str, GeneratedValidation]:
    """What to draw for each task. ValueError where it is another concept, or has to be given."""
    names, found = [task.concept for task in tasks], {}
    if given and len(tasks) > 1:
        raise ValueError("several names are validated one by one; a validation can be given for one concept only")
    for name in names:
        own = given
        if own is None:
            others = [other for other in names if other != name]
            try:
                own = GeneratedValidation.of_world(pipe, name, seed=seed, without=others)
            except KeyError as error:
                raise ValueError(
                    "a forget set of your own needs a GeneratedValidation in place of the pipeline: what to have drawn"
                ) from error
        if own.forget not in name.split(" + ") and name != "the forget set":
            raise ValueError(f"{name!r} is to be forgotten, the drawn validation asks for {own.forget!r}")
        found[name] = own
    return found


def _preconditioned(
    pipe: StableDiffusionPipeline, directions: Mapping[str, Tensor], preserve: Sequence[str]
) -> dict[str, Tensor]:
    """Directions of a concept's layers, turned so that they leave the prompts to preserve alone."""
    moments = input_moments(pipe, preserve, list(directions)) if preserve else {}
    return {layer: precondition(g, moments[layer]) if layer in moments else g for layer, g in directions.items()}


def on_generated(
    scorers: Mapping[str, GeneratedScorer], clip: Clip, concept: str, validate: Validate,
    directions: Mapping[str, Tensor], fronts: Sequence[Sequence[str]], search: StepSearch,
) -> Edit:  # fmt: skip
    """As `algorithm.best_edit`, with the last word left to what the pipeline draws."""
    scorer, traces = scorers[concept], []
    enough = scorer.retaining().get("retain_accuracy", 0.0) - search.max_accuracy_drop
    if scorer.validation.others:
        enough -= 1 / len(scorer.validation.others)
    for margin in (search.margin, search.margin / 2)[: 2 if search.rule == "margin" else 1]:
        found, by_clip = {}, False
        for front in fronts:
            more = search_layers(clip, directions, front, validate, replace(search, margin=margin))
            traces += [one.trace.assign(asked=margin, by="CLIP") for one in more.values()]
            begin = {layer: one.step for layer, one in more.items() if one.step is not None}
            by_clip |= bool(begin)
            more = search_on_generated(directions, begin, scorer, enough, search)
            traces += [one.trace.assign(asked=MARGIN, by="pictures") for one in more.values()]
            found |= more
            best = next(iter(by_preference(found)), None)
            if best is not None and found[best].score.get("retain_accuracy", 0.0) >= enough:
                break
        trace = pd.concat([pd.DataFrame(), *traces], ignore_index=True)
        if fronts and best is not None:
            step = float(found[best].step)
            delta = make_delta(directions[best], step).cpu()
            return Edit({best: delta}, {best: step}, concept, fingerprint(clip), trace=trace)
        if by_clip:  # CLIP forgot, the painter did not: shorter steps will not do better
            drawn = trace[trace["by"] == "pictures"]
            error = nothing_forgot(concept, search.evaluations, drawn)
            raise NothingForgets(f"the pipeline still draws it: {error}", drawn)
    raise nothing_forgot(concept, search.evaluations, trace)


def has_layer(target: object, layer: str) -> bool:
    """Does a target have this weight of a CLIP, under whatever name?"""
    weights = weights_of(target)
    try:
        return layer in weights or set(translate_names(layer, weights)) <= set(weights)
    except ValueError:
        return False


def check_pipeline_of(pipe: StableDiffusionPipeline, clip: Clip) -> None:
    """ValueError for what draws no pictures, and for a pipeline whose text encoder is not this CLIP's text tower."""
    check_draws(pipe)
    layer = next((n for n in clip.weights() if clip.tower(n) == "text" and has_layer(pipe, n)), None)
    if layer is None:
        raise ValueError("the pipeline's text encoder has no weight of this CLIP's text tower")
    nothing = torch.zeros_like(clip.weights()[layer], dtype=DELTA_DTYPE)
    try:
        Edit({layer: nothing}, {layer: 0.0}, "nothing", fingerprint(clip)).check(pipe)
    except ValueError as error:
        reason = str(error).replace("the edit was made for the model", "the CLIP is").partition("; force=")[0]
        raise ValueError(f"the pipeline's text encoder is not this CLIP's text tower: {reason}") from error
