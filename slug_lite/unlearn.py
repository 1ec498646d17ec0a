"""The whole method in one function (Cai, Tan, Asif, 2025, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from . import toonworld
from .edit import Edit, fingerprint
from .gradients import Gradients, one_shot_gradients
from .metrics import Validation
from .models import Clip
from .pairs import Pairs, unknown
from .progress import bar
from .search import Score, Search, make_delta, search_step
from .selection import pareto_front


class NothingForgets(RuntimeError):
    """No layer of the front could be made to forget within the evaluations allowed; .trace holds what was tried."""

    def __init__(self, message: str, trace: pd.DataFrame) -> None:
        super().__init__(message)
        self.trace = trace


def unlearn(
    clip: Clip, concept: str | Pairs, retain: Pairs | None = None, *, tower: str | None = None,
    validate: Validation | Callable[[Clip], Score] | None = None, n_forget: int = 48, n_retain: int = 512,
    batch_size: int = 128, evaluations: int = 10, rule: str = "margin", clearance: float = 4.0, seed: int = 0,
    progress: bool = True,
) -> Edit:  # fmt: skip
    """Find the edit that makes `clip` forget a concept; the model itself is left as it was.

    concept: a name of the mini world, which supplies all pictures, or a forget set of your own, together with a
        retain set and `validate`.
    tower: "vision" or "text" looks there alone. A pipeline of Stable Diffusion can take edits of "text".
    validate: a `Validation`, or any function of the model that returns a dict with "forget_accuracy" and
        "retain_accuracy".
    rule, clearance, evaluations: when to stop, see `search.forgotten` and `search_step`. Where no layer's margin
        gets as wide as asked, half of it is asked for.

    Of the layers on the Pareto front that can be made to forget, the one that keeps the best retained accuracy is
    taken. Raises KeyError for an unknown name or tower, ValueError for sets that do not fit, `NothingForgets` if
    no layer's step succeeds.
    """
    if tower not in (None, "vision", "text"):
        raise unknown(tower, ("vision", "text"), "tower")
    forget, retain, validate, label = _sets(clip, concept, retain, validate, n_forget, n_retain, seed)
    base = fingerprint(clip)
    gradients = one_shot_gradients(clip, forget, retain, batch_size=batch_size, progress=progress)
    front = [layer for layer in pareto_front(gradients.stats) if tower in (None, clip.tower(layer))]
    traces, layer = [], None
    for width in (clearance, clearance / 2) if rule == "margin" else (clearance,):
        found = search_layers(
            clip, gradients, front, validate, evaluations=evaluations, rule=rule, clearance=width, progress=progress
        )
        traces += [search.trace.assign(asked=width) for search in found.values()]
        layer = best_layer(found)
        if layer is not None:
            break
    trace = pd.concat(traces, ignore_index=True)
    if layer is None:
        best = trace.sort_values("forget_accuracy").iloc[0]
        raise NothingForgets(
            f"none of {len(front)} layers forgot {label!r} in {evaluations} evaluations each; nearest: {best['layer']} "
            f"at step {best['step']:.3g} with accuracy {best['forget_accuracy']:.0%}. Allow more evaluations, another "
            f"rule or clearance, or a larger forget set",
            trace,
        )
    step = float(found[layer].step)
    return Edit({layer: make_delta(gradients.forget[layer], step).cpu()}, {layer: step}, label, base, trace=trace)


def search_layers(
    clip: Clip, gradients: Gradients, layers: list[str], validate: Validation | Callable[[Clip], Score], *,
    evaluations: int = 10, rule: str = "margin", clearance: float = 4.0, progress: bool = True,
) -> dict[str, Search]:  # fmt: skip
    """The step search in each of `layers`, in eval mode; what their edits cannot change is embedded once."""
    modes = {module: module.training for module in clip.model.modules()}
    clip.model.eval()
    try:
        scorer = validate.prepare(clip) if isinstance(validate, Validation) else None
        found = {}
        for layer in bar(layers, desc="step search", show=progress):
            score = scorer.of_layer(layer) if scorer else lambda: validate(clip)
            found[layer] = search_step(
                clip, layer, gradients.forget[layer], score, evaluations=evaluations, rule=rule, clearance=clearance
            )
        return found
    finally:
        for module, training in modes.items():
            module.training = training


def best_layer(found: dict[str, Search]) -> str | None:
    """Of the layers whose step succeeded, the one that keeps the best retained accuracy; on ties the least loss."""
    able = {layer: search.score for layer, search in found.items() if search.score is not None}
    kept = {layer: (s.get("retain_accuracy", 0.0), -s.get("retain_loss", 0.0)) for layer, s in able.items()}
    return max(kept, key=kept.__getitem__, default=None)


def _sets(
    clip: Clip, concept: str | Pairs, retain: Pairs | None, validate: Validation | Callable[[Clip], Score] | None,
    n_forget: int, n_retain: int, seed: int,
) -> tuple[Pairs, Pairs, Validation | Callable[[Clip], Score], str]:  # fmt: skip
    if isinstance(concept, str):
        size = min(max(clip.image_size, 32), 256)
        forget = toonworld.pairs(concept, n_forget, seed, size=size)
        if retain is None:
            retain = toonworld.retain([concept], n_retain, seed, size=size)
        if validate is None:
            validate = Validation.of_world(concept, seed=seed, size=size)
        return forget, retain, validate, concept
    if not isinstance(concept, Pairs):
        raise ValueError(f"concept is a {type(concept).__name__}; give a name of the mini world or Pairs")
    if retain is None or validate is None:
        raise ValueError(
            "a forget set of your own needs a retain set and validate=, a slug_lite.Validation or a function"
        )
    shared = set.intersection(*map(set, concept.concepts)) if concept.concepts else set()
    return concept, retain, validate, " + ".join(sorted(shared)) or "the forget set"
