"""Unlearning for a pipeline of Stable Diffusion: its text encoder is CLIP's text tower, so the edit is found on CLIP.

`algorithm.unlearn` in the text tower, with some things changed that are not in the paper. CLIP reads a prompt at its
end, a UNet reads every state of it. So CLIP's last block is left out, see `reaches_all`; steps go along g C^-1, which
leaves the states of other prompts alone, see `precondition`; they are `LONGER` than CLIP needs; and of the layers that
forget, that one is taken whose step shifts other prompts least. No picture is drawn: whether the pipeline has
forgotten is for the report.
"""

from __future__ import annotations

import math
import re
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
from ..runtime.broken import broken_weights, check_embedded
from ..runtime.checks import FREEZE, NothingForgets, check_fit, check_kinds, nothing_forgot
from ..runtime.libraries import check_clip, encoder_of
from ..runtime.modes import gradient_free
from ..runtime.reports import reported, told
from ..runtime.so_far import telling
from ..runtime.text_towers import translate_names
from ..search import DELTA_DTYPE, StepSearch, by_preference, make_delta, search_layers
from ..several import in_rounds, merge_all, protected, tasks_of
from ..targets import fingerprint, weights_of
from ..validation import Validate, scorer_of
from .drawing import check_draws, prompt_states
from .precondition import input_moments, precondition

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

SEARCH = StepSearch(rule="margin", margin=2.0)  # in standard deviations
LONGER = 2.25  # times the step that CLIP needs for this margin: looked for on eight concepts of the mini world
PROBED = 64  # of the prompts to preserve at most, every so many from the first: by their shift a layer is chosen


def unlearn_pipeline(
    pipe: StableDiffusionPipeline, clip: Clip, concept: str | Pairs | Task | Sequence[str | Task],
    retain: Pairs | None = None, *, validate: Validate | None = None, preserve: Sequence[str] | None = None,
    search: StepSearch = SEARCH, memory: Memory = Memory(), seed: int = 0,
) -> Edit:  # fmt: skip
    """Find the edit that makes a pipeline draw a concept, or several, no more; pipeline and CLIP are left as they were.

    pipe: a StableDiffusionPipeline whose text encoder is the text tower of `clip`.
    concept, retain, validate, search, memory, seed: as for `unlearn`; a list as for `unlearn_several`. Only layers that
        the pipeline has are looked at, those of all fronts at once, and none of CLIP's last block, see `reaches_all`.
        `search.max_accuracy_drop` is not asked for, and the margin is not halved.
    preserve: prompts whose states are to stay as they are. None: the captions of the retain set; (): none, then steps
        go along the gradient, as the paper's do (`LONGER` still), in the layer that keeps most by CLIP's word.

    `edit.report` says what CLIP scores with the edit on, and not what the pipeline draws.
    The trace has a column "shift": by how much of their length the states of the prompts to preserve are moved by the
    step that is taken in a layer. Raises as `unlearn` does, and ValueError for a pipeline of another kind or of
    another CLIP.
    """
    check_clip(clip)
    check_kinds(("search", search, StepSearch), ("memory", memory, Memory), seed=seed)
    check_pipeline_of(pipe, clip)
    if isinstance(preserve, str):
        raise ValueError(f"preserve={preserve!r}; give a sequence of texts, or ()")
    if isinstance(concept, Sequence) and not isinstance(concept, str):
        if retain is not None or validate is not None:
            raise ValueError("several concepts are given one by one, as Tasks; retain and validate are for one concept")
        tasks = tasks_of(concept, clip, seed)
    else:
        tasks = [as_task(concept, clip, retain, validate, seed)]
    prompts = list(dict.fromkeys(tasks[0].retain.captions if preserve is None else preserve))

    def fronts(stats: pd.DataFrame) -> list[list[str]]:  # the layers of all of them at once
        found = candidate_fronts(search, "text", stats, lambda n: has_layer(pipe, n) and reaches_all(clip, n))
        return [[layer for front in found for layer in front]] if found else []

    directions, tables = protected(clip, gradients_of(clip, tasks, fronts, memory), tasks[0].protect, memory)
    layers = list(dict.fromkeys(layer for own in directions for layer in own))
    moments = input_moments(pipe, prompts, layers) if prompts and layers else {}
    directions = [{n: precondition(g, moments[n]) if n in moments else g for n, g in own.items()} for own in directions]
    names, validates = [task.concept for task in tasks], {task.concept: task.validate for task in tasks}
    before = {name: scorer_of(validate, clip).on_the_rest() for name, validate in validates.items()}
    edits = in_rounds(
        [clip, pipe], validates, dict(zip(names, directions, strict=True)),
        dict(zip(names, map(fronts, tables), strict=True)), search,
        find=partial(least_shift, pipe, prompts[:: max(1, len(prompts) // PROBED)][:PROBED]),
    )  # fmt: skip
    return told(reported(merge_all(edits), clip, validates, before, search, scorer_of, drop=False))


def least_shift(
    pipe: StableDiffusionPipeline, prompts: Sequence[str], clip: Clip, concept: str, validate: Validate,
    directions: Mapping[str, Tensor], fronts: Sequence[Sequence[str]], search: StepSearch,
) -> Edit:  # fmt: skip
    """As `algorithm.best_edit`, but `LONGER`, and in the layer whose step shifts the states of prompts least."""
    layers = list(dict.fromkeys(layer for front in fronts for layer in front))
    with telling({}, concept, by_preference):
        found = search_layers(clip, directions, layers, validate, search)
    edits = {}
    for layer in by_preference(found):
        delta = make_delta(directions[layer], step := LONGER * float(found[layer].step)).cpu()
        if torch.isfinite(delta).all():
            edits[layer] = Edit({layer: delta}, {layer: step}, concept, fingerprint(clip))
    shifts = {layer: shift(pipe, edit, prompts) for layer, edit in edits.items()}
    broken = [layer for layer, moved in shifts.items() if not math.isfinite(moved)]
    for layer in broken:  # NaN is neither more nor less than others, and would be taken for the least
        del edits[layer]
    tables = [one.trace.assign(shift=shifts.get(layer, math.nan)) for layer, one in found.items()]
    trace = pd.concat([pd.DataFrame(), *tables], ignore_index=True)
    if not edits and broken:
        raise NothingForgets(f"every step that forgets {concept!r} breaks the text encoder: its states are NaN", trace)
    if not edits and by_preference(found):
        raise NothingForgets(f"CLIP forgets {concept!r}, but no step {LONGER} times as long fits half precision", trace)
    if not edits:
        raise nothing_forgot(concept, search.evaluations, trace)
    return replace(edits[min(edits, key=shifts.__getitem__)], trace=trace)


@gradient_free
def shift(pipe: StableDiffusionPipeline, edit: Edit, prompts: Sequence[str]) -> float:
    """By how much of its length an edit moves what the text encoder says of prompts, the mean over positions.

    ValueError where the text encoder's states are not finite without the edit.
    """
    if not prompts:
        return 0.0
    before = check_embedded(prompt_states(pipe, prompts).float().flatten(1), "prompts' states")
    before = before.unflatten(1, (-1, pipe.text_encoder.config.hidden_size))
    with edit.on(pipe, force=True):  # checked at the door
        after = prompt_states(pipe, prompts).float()
    return ((after - before).norm(dim=-1) / before.norm(dim=-1)).mean().item()


def reaches_all(clip: Clip, layer: str) -> bool:
    """Is a layer of the text tower in front of CLIP's last block?

    Of that block's output CLIP takes the end of the text alone. So a gradient in it says how to change the end, and
    nothing of the other positions, which a UNet reads as well.
    """

    def block(name: str) -> int:
        return int((re.search(r"\.(\d+)\.", name) or [0, -1])[1])

    return block(layer) < max(block(name) for name in clip.weights() if clip.tower(name) == "text")


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
    layers = [n for n in clip.weights() if clip.tower(n) == "text" and has_layer(pipe, n)]
    if not layers:
        raise ValueError("the pipeline's text encoder has no weight of this CLIP's text tower")
    check_usable(pipe, [n for n in layers if clip.weights()[n].requires_grad and reaches_all(clip, n)])
    nothing = torch.zeros_like(clip.weights()[layers[0]], dtype=DELTA_DTYPE)
    try:
        Edit({layers[0]: nothing}, {layers[0]: 0.0}, "nothing", fingerprint(clip)).check(pipe)
    except ValueError as error:
        reason = str(error).replace("the edit was made for the model", "the CLIP is").partition("; force=")[0]
        raise ValueError(f"the pipeline's text encoder is not this CLIP's text tower: {reason}") from error


def check_usable(pipe: StableDiffusionPipeline, layers: Sequence[str]) -> None:
    """ValueError for a text encoder whose weights are not finite, or are so kept that an edit of `layers` cannot be."""
    weights = weights_of(pipe)
    for name in dict.fromkeys(name for layer in layers for name in translate_names(layer, weights)):
        try:
            check_fit(name, name, weights, weights[name])
        except ValueError as error:
            raise ValueError(f"{error}{FREEZE}") from error
    if bad := broken_weights(encoder_of(pipe)):
        raise ValueError(f"weights of the pipeline's text encoder are not finite: {bad[0]!r}, {len(bad)} in all")
