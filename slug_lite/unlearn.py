"""The whole method in one function (Cai, Tan, Asif, 2025, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
from torch import Tensor

from . import toonworld
from .bystanders import gentle, input_moments
from .diffusion import check_clip, has_layer
from .drawn import PAINTED, DrawnScorer, DrawnValidation, check_tower, lengthen
from .edit import Edit, fingerprint, merge
from .gradients import Gradients, check_apart, forget_gradients, groups, one_shot_gradients
from .metrics import Scorer, Validation, world_size
from .models import Clip, eval_mode
from .pairs import Pairs, unknown
from .progress import bar
from .replay import blocks_before
from .search import NothingForgets, Score, Search, check_rule, make_delta, search_step
from .selection import pareto_front
from .several import keep_off

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def unlearn(
    clip: Clip, concept: str | Sequence[str] | Pairs, retain: Pairs | None = None, *, tower: str | None = None,
    pipe: StableDiffusionPipeline | DrawnValidation | None = None,
    validate: Validation | Callable[[Clip], Score] | None = None, n_forget: int = 48, n_retain: int = 512,
    batch_size: int = 128, evaluations: int = 10, rule: str = "margin", clearance: float | None = None,
    select: str = "alignment", fronts: int = 3, tolerance: float = 0.005, spare: Sequence[Pairs] | None = None,
    passes: int = 1, seed: int = 0, progress: bool = True,
) -> Edit:  # fmt: skip
    """Find the edit that makes `clip` forget a concept, or several; the model itself is left as it was.

    concept: a name of the mini world, or several, which supplies all pictures; or a forget set of your own, together
        with a retain set and `validate`.
    tower: "vision" or "text" looks there alone.
    pipe: a pipeline of Stable Diffusion whose text encoder is the text tower of `clip`. Only layers that it has are
        looked at, and steps in them are turned so that they leave the prompts of everything else alone, those that
        the validation says to `hold`, see `bystanders.gentle`. In those that CLIP forgets by, the step is tried on
        the pipeline's own pictures, and where they still show the concept it is made longer, in up to `evaluations`
        tries a layer, those first that move what the pipeline is told of everything else least, see
        `drawn.lengthen`; the first is taken after which the retained accuracy of its other pictures, a mean over
        kinds, has fallen by no more than `tolerance` and one picture's share. Give a `DrawnValidation` to say what to
        have drawn, as is needed for a forget set of your own.
    validate: a `Validation`, or any function of the model that returns a dict with "forget_accuracy" and
        "retain_accuracy"; with several names there is none to give.
    rule, clearance, evaluations: when to stop, see `search.forgotten` and `search_step`. A clearance of None is 4,
        or 2 where a pipeline's pictures are asked as well. Where no layer's margin gets as wide as asked, half of it
        is asked for.
    select: the measure of the front, "alignment" (the paper's |cos|) or "cosine" (signed), see `pareto_front`.

    fronts, tolerance: where every layer of the front costs more than `tolerance` of retained accuracy, the front of
        the remaining layers is searched too, up to `fronts` in all; for a pipeline all of them at once. fronts=1 is
        the paper's.
    spare: sets of pairs, one for each concept that steps are to keep off, see `several.keep_off`. None: none for one
        concept, with several names all other names of the world, see `toonworld.others`.
        () steps along whole gradients, as the paper does. Where steps are turned for a pipeline, that comes after,
        and they keep off `spare` only nearly.
    batch_size, passes: against a shortage of memory, see `one_shot_gradients`. With `spare`, as many gradients as it
        has sets are held at a time, of a `passes`-th of the layers searched; for a pipeline, of each layer searched a
        square matrix of its inputs in float64.

    Of the layers that can be made to forget, the one that keeps the best retained accuracy is taken. Of several names
    each gets its own layer and step, with all gradients taken at the original weights (section 3.4 of the paper);
    steps are looked for with the others' edits on, and the result is one merged edit. What plain steps cost the rest
    adds up, and more than that where several of one kind go; hence `spare`.
    Raises KeyError for an unknown name, tower, rule or measure, ValueError for sets that do not fit, `NothingForgets`
    if no layer's step succeeds.
    """
    check_clip(clip)
    if tower not in (None, "vision", "text"):
        raise unknown(tower, ("vision", "text"), "tower")
    if select not in ("alignment", "cosine"):
        raise unknown(select, ("alignment", "cosine"), "measure")
    check_rule(rule, evaluations)
    drawer = pipe.pipe if isinstance(pipe, DrawnValidation) else pipe
    if drawer is not None:
        tower = check_tower(clip, drawer, tower)
    tasks, retain = _tasks(clip, concept, retain, validate, n_forget, n_retain, seed, pipe)
    base = fingerprint(clip)
    if clearance is None:
        clearance = CLEARANCE if drawer is None else CLEARANCE / 2
    if fronts < 1:
        raise ValueError(f"fronts={fronts}; at least 1 is needed")
    if spare is None:
        names, size = [task.label for task in tasks], world_size(clip)
        spare = toonworld.others(names, SPARED, seed, size=size) if len(tasks) > 1 else ()
    if isinstance(spare, Pairs):
        raise ValueError("spare is one Pairs; give a list of them, one for each concept to keep off")
    for task in tasks:
        for some in spare:
            check_apart(task.forget, some, "spare")

    def ranked(stats: pd.DataFrame) -> list[list[str]]:
        open_to = [n for n in stats.index if drawer is None or has_layer(drawer, n)]
        stats = stats.loc[open_to]
        peeled = _peel(stats[stats["tower"].isin([tower] if tower else ["vision", "text"])], select, fronts)
        return peeled if drawer is None or not peeled else [[layer for front in peeled for layer in front]]

    def on_fronts(stats: pd.DataFrame) -> list[str]:
        # given a group of the layers, these hold all that are on the fronts of the whole
        return [layer for front in ranked(stats) for layer in front]

    gradients = one_shot_gradients(
        clip, [task.forget for task in tasks], retain, batch_size=batch_size, passes=passes, keep=on_fronts,
        progress=progress,
    )  # fmt: skip
    gradients = _keep_off(clip, gradients, spare, batch_size, passes, progress)
    if drawer is not None:
        gradients = [_gentle(one, task.drawn) for one, task in zip(gradients, tasks, strict=True)]
    settings = {"evaluations": evaluations, "rule": rule, "clearance": clearance, "progress": progress}
    painters = [task.drawn and task.drawn.prepare(clip, must_know=True) for task in tasks]
    edits: dict[int, Edit] = {}
    traces: list[pd.DataFrame] = []
    for turn in range(2 if len(tasks) > 1 else 1):  # the second time in the company of all, first the layer found
        for k, task in enumerate(tasks):
            order, before = ranked(gradients[k].stats), [edits[k].layers] if k in edits else []
            company = [edit for i, edit in edits.items() if i != k]
            with ExitStack() as stack:
                for target in (clip, drawer):
                    if company and target is not None:
                        stack.enter_context(merge(company).on(target))
                edits[k] = _best_edit(
                    clip, gradients[k], [*before, *order], tolerance, task, base, settings, painters[k]
                )
            traces.append(edits[k].trace.assign(concept=task.label, turn=turn))
    if len(tasks) == 1:
        return edits[0]
    return replace(merge([edits[k] for k in range(len(tasks))]), trace=pd.concat(traces, ignore_index=True))


CLEARANCE = 4.0  # in standard deviations, see `search.forgotten`
SPARED = 16  # pictures for the gradient of each name that steps keep off


def _keep_off(
    clip: Clip, all_gradients: list[Gradients], spare: Sequence[Pairs], batch_size: int, passes: int, progress: bool
) -> list[Gradients]:
    """The gradients without their parts in the span of those of `spare`; the statistics stay those of the whole.

    A layer in which nothing is left of a concept's gradient is taken out for that concept.
    """
    if not spare:
        return all_gradients
    rests: list[dict] = [{} for _ in all_gradients]
    layers = list(dict.fromkeys(layer for one in all_gradients for layer in one.forget))
    for group in groups(clip.weights(), layers, passes):
        kept = forget_gradients(
            clip, spare, layers=lambda n, _, group=group: n in group, batch_size=batch_size, progress=progress
        )
        for layer in group:
            others = [one.pop(layer) for one in kept]
            having = [k for k, one in enumerate(all_gradients) if layer in one.forget]
            for k, part in zip(having, _rests([all_gradients[k].forget[layer] for k in having], others), strict=True):
                if part is not None:
                    rests[k][layer] = part
    return [
        replace(one, forget=rest, stats=one.stats.loc[[n for n in one.stats.index if n in rest]])
        for one, rest in zip(all_gradients, rests, strict=True)
    ]


def _gentle(gradients: Gradients, drawn: DrawnValidation) -> Gradients:
    """The gradients, turned so that steps leave the prompts alone that are to be held; statistics stay as they are."""
    if not drawn.hold:
        return gradients
    moments = input_moments(drawn.pipe, drawn.hold, list(gradients.forget))
    return replace(
        gradients, forget={n: gentle(g, moments[n]) if n in moments else g for n, g in gradients.forget.items()}
    )


def _rests(gradients: list[Tensor], others: list[Tensor]) -> list[Tensor | None]:
    """`keep_off`, with None where nothing is left."""
    try:
        return list(keep_off(gradients, others))
    except ValueError:
        if len(gradients) == 1:
            return [None]
        return [_rests([gradient], others)[0] for gradient in gradients]


@dataclass(frozen=True)
class Task:
    """One concept: its forget set, how to score it, what to call it."""

    forget: Pairs
    validate: Validation | Callable[[Clip], Score]
    label: str
    drawn: DrawnValidation | None = None


def _peel(stats: pd.DataFrame, select: str, fronts: int) -> list[list[str]]:
    """The Pareto front, the front of what remains without it, and so on; empty ones left out."""
    out = []
    for _ in range(fronts):
        out.append(pareto_front(stats, by=select))
        stats = stats.drop(index=out[-1])
    return [front for front in out if front]


def _best_edit(
    clip: Clip, gradients: Gradients, fronts: list[list[str]], tolerance: float, task: Task, base: str, settings: dict,
    painter: DrawnScorer | None = None,
) -> Edit:  # fmt: skip
    """The edit of the best layer, with half the clearance where no layer reaches the whole."""
    if not fronts:
        raise NothingForgets(f"the forget loss of {task.label!r} does not reach any layer looked at", pd.DataFrame())
    with eval_mode(clip.model):
        validate = task.validate.prepare(clip) if isinstance(task.validate, Validation) else task.validate
        untouched = validate.score() if isinstance(validate, Scorer) else validate(clip)
    enough = (painter.retaining() if painter else untouched).get("retain_accuracy", 0.0) - tolerance
    if painter and painter.validation.others:
        enough -= 1 / len(painter.validation.others)
    traces = []
    for width in (settings["clearance"], settings["clearance"] / 2)[: 2 if settings["rule"] == "margin" else 1]:
        found: dict[str, Search] = {}
        by_clip = False
        for front in fronts:
            more = search_layers(clip, gradients, front, validate, **{**settings, "clearance": width})
            by_clip |= best_layer(more) is not None
            traces += [search.trace.assign(asked=width) for search in more.values()]
            if painter:
                traces = [trace.assign(by="CLIP") if "by" not in trace else trace for trace in traces]
                begin = {layer: search.step for layer, search in more.items() if search.step is not None}
                more = lengthen(gradients.forget, begin, painter, enough, settings)
                traces += [search.trace.assign(asked=PAINTED, by="pictures") for search in more.values()]
            found |= more
            layer = best_layer(found)
            if layer is not None and found[layer].score.get("retain_accuracy", 0.0) >= enough:
                break
        if layer is not None:
            step = float(found[layer].step)
            delta = make_delta(gradients.forget[layer], step).cpu()
            return Edit({layer: delta}, {layer: step}, task.label, base, trace=pd.concat(traces, ignore_index=True))
        if by_clip:
            break  # CLIP forgot, the painter did not: shorter steps will not do better
    trace = pd.concat(traces, ignore_index=True)
    message = f"none of {trace['layer'].nunique() if len(trace) else 0} layers forgot {task.label!r} "
    message += f"in {settings['evaluations']} evaluations each"
    if len(trace):
        if painter and (trace["by"] == "pictures").any():
            trace, message = trace[trace["by"] == "pictures"], f"{message}; the pipeline still draws it"
        near = trace.sort_values("forget_accuracy", kind="stable").iloc[0]
        clear = f", clearance {near['clearance']:.2g}" if "clearance" in trace else ""
        message += f"; nearest: {near['layer']} at step {near['step']:.3g}, "
        message += f"accuracy {near['forget_accuracy']:.0%}{clear}"
    raise NothingForgets(message + ". Allow more evaluations, another rule or clearance, or a larger forget set", trace)


def search_layers(
    clip: Clip, gradients: Gradients, layers: list[str], validate: Validation | Scorer | Callable[[Clip], Score], *,
    evaluations: int = 10, rule: str = "margin", clearance: float = 4.0, progress: bool = True,
) -> dict[str, Search]:  # fmt: skip
    """The step search in each of `layers`, in eval mode; what their edits cannot change is embedded once.

    validate: as for `unlearn`, or a `Validation` that was prepared already.
    """
    found = {}
    with eval_mode(clip.model):
        if isinstance(validate, Validation):
            validate = validate.prepare(clip)
        # from the front of a tower to its back, so that each starts from what the one before has kept
        ordered = sorted(layers, key=lambda layer: len(blocks_before(clip, layer)))
        for layer in bar(ordered, desc="step search", show=progress):
            score = validate.of_layer(layer) if isinstance(validate, Scorer) else partial(validate, clip)
            found[layer] = search_step(
                clip, layer, gradients.forget[layer], score, evaluations=evaluations, rule=rule, clearance=clearance
            )
    return {layer: found[layer] for layer in layers}


def by_preference(found: dict[str, Search]) -> list[str]:
    """The layers whose step succeeded, the one that keeps the best retained accuracy first; on ties the least loss."""
    able = {layer: search.score for layer, search in found.items() if search.score is not None}
    kept = {layer: (s.get("retain_accuracy", 0.0), -s.get("retain_loss", 0.0)) for layer, s in able.items()}
    return sorted(kept, key=kept.__getitem__, reverse=True)


def best_layer(found: dict[str, Search]) -> str | None:
    """The first of `by_preference`, None where no layer's step succeeded."""
    return next(iter(by_preference(found)), None)


def _tasks(
    clip: Clip, concept: str | Sequence[str] | Pairs, retain: Pairs | None,
    validate: Validation | Callable[[Clip], Score] | None, n_forget: int, n_retain: int, seed: int,
    pipe: StableDiffusionPipeline | DrawnValidation | None = None,
) -> tuple[list[Task], Pairs]:  # fmt: skip
    if validate is not None and not isinstance(validate, Validation) and not callable(validate):
        raise ValueError(f"validate is a {type(validate).__name__}; give a slug_lite.Validation or a function")
    if isinstance(concept, Pairs):
        if retain is None or validate is None:
            raise ValueError(
                "a forget set of your own needs a retain set and validate=, a slug_lite.Validation or a function"
            )
        if pipe is not None and not isinstance(pipe, DrawnValidation):
            raise ValueError("a forget set of your own needs a slug_lite.DrawnValidation as pipe=: what to have drawn")
        shared = set.intersection(*map(set, concept.concepts)) if concept.concepts else set()
        if shared and isinstance(validate, Validation) and validate.forget not in shared:
            shown = ", ".join(sorted(shared))
            raise ValueError(f"the forget set shows {shown}, the validation asks for {validate.forget}")
        if shared and pipe is not None and pipe.forget not in shared:
            shown = ", ".join(sorted(shared))
            raise ValueError(f"the forget set shows {shown}, the drawn validation asks for {pipe.forget}")
        return [Task(concept, validate, " + ".join(sorted(shared)) or "the forget set", pipe)], retain
    names = [concept] if isinstance(concept, str) else concept
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"concept is {concept!r}; give a name of the mini world, a list of names, or Pairs")
    if len(set(names)) < len(names):
        raise ValueError(f"concept names something twice: {', '.join(names)}")
    if (validate is not None or isinstance(pipe, DrawnValidation)) and len(names) > 1:
        raise ValueError("several names are validated one by one; a validation can be given for one concept only")
    size = world_size(clip)
    tasks = []
    for name in names:
        others = [other for other in names if other != name]
        scored = validate or Validation.of_world(name, seed=seed, size=size, without=others)
        if isinstance(scored, Validation) and scored.forget != name:
            raise ValueError(f"{name!r} is to be forgotten, the validation asks for {scored.forget!r}")
        drawn = pipe if isinstance(pipe, DrawnValidation) or pipe is None else (
            DrawnValidation.of_world(pipe, name, seed=seed, without=others)
        )  # fmt: skip
        if drawn is not None and drawn.forget != name:
            raise ValueError(f"{name!r} is to be forgotten, the drawn validation asks for {drawn.forget!r}")
        tasks.append(Task(toonworld.pairs(name, n_forget, seed, size=size), scored, name, drawn))
    if retain is None:
        retain = toonworld.retain(names, n_retain, seed, size=size)
    return tasks, retain
