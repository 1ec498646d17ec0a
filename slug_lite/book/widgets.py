"""Things to play with in a live notebook (ipywidgets 7 and 8); a page on the web shows a still picture instead.

What an explorer can work out before it opens it does, so that it follows at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from html import escape
from itertools import zip_longest

import ipywidgets
import pandas as pd
import torch
from torch import Tensor

from ..edit import Edit
from ..gradients import Gradients
from ..models import Clip
from ..runtime.checks import unknown
from ..runtime.modes import gradient_free
from ..runtime.progress import bar
from ..runtime.stacks import add_delta, kept
from ..search import first_step, make_delta
from ..selection import pareto_front
from ..targets import fingerprint
from ..validation import Scorer, Validation, scorer_of
from .plots import COLORS, data_url

RELATIVE = (0.05, 0.1, 0.2, 0.4)  # lengths of edits, by those of the weights that they are added to


# ---- common to all explorers ----------------------------------------------------------------------------------------


def live() -> bool:
    """Is there a front end to play in? JupyterLab, Colab and their like take input from the reader.

    A run of nbclient, nbval or Jupyter Book, whose widgets would be dead in the page, says that it does not.
    """
    try:
        from IPython import get_ipython  # here: only notebooks have it
    except ImportError:
        return False
    parent = getattr(getattr(get_ipython(), "kernel", None), "get_parent", dict)()
    return bool(parent.get("content", {}).get("allow_stdin", False))


def html_table(rows: Sequence[tuple[str, str, str]]) -> str:
    """Rows of (key, label, text) as an HTML table; a cell's key is its data-key, by which tests find it."""
    cells = (
        f'<tr><td style="padding-right:1em">{escape(label)}</td><td data-key="{key}"><b>{escape(text)}</b></td></tr>'
        for key, label, text in rows
    )
    return f"<table>{''.join(cells)}</table>"


# ---- which layer? ---------------------------------------------------------------------------------------------------


@gradient_free
def layer_effects(
    clip: Clip, gradients: Gradients, validation: Validation, *, relative: Sequence[float] = RELATIVE,
    layers: Sequence[str] | None = None, progress: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """What a step of a given length does in each layer, by itself.

    relative: lengths of lambda * g_f, by that of the layer's weight. layers: those of `gradients`, None for all.
    One row for each (layer, relative), which are its index: step (lambda) and the scores of `Validation`. A length
    of 0 is always there: the model as it is. Layers without a forget gradient are left out; the model is left as it
    was. KeyError for an unknown layer.
    """
    scorer, rows = scorer_of(validation, clip), {}
    for layer in bar(list(gradients.forget if layers is None else layers), desc="effects", show=progress):
        if layer not in gradients.forget:
            raise unknown(layer, gradients.forget, "layer")
        gradient, weight = gradients.forget[layer], clip.weights()[layer]
        if gradients.stats.loc[layer, "forget_norm"] == 0:
            continue
        probe = scorer.at(layer)
        rows[layer, 0.0] = {"step": 0.0, **scorer()}
        with kept(clip.model, weight) as original:
            for length in relative:
                step = 10 * first_step(original, gradient) * length
                weight.copy_(add_delta(original, make_delta(gradient, step)))
                rows[layer, float(length)] = {"step": step, **probe()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["layer", "relative"])


def layer_explorer(
    clip: Clip, gradients: Gradients, effects: pd.DataFrame | None = None, *, validation: Validation | None = None,
    select: str = "alignment",
) -> ipywidgets.VBox:  # fmt: skip
    """Pick a layer, see what its gradients say and what a step in it does.

    effects: of `layer_effects`; where there is none it is worked out first, from `validation`, in about a minute for
    mini CLIP. select: the measure of the front, see `pareto_front`.
    Children: a dropdown of layers, a slider of relative lengths, and an HTML box. ValueError without both.
    """
    if effects is None:
        if validation is None:
            raise ValueError("layer_explorer needs effects=, the table of layer_effects, or validation= to make it")
        effects = layer_effects(clip, gradients, validation)
    front, stats = pareto_front(gradients.stats, by=select), gradients.stats
    layers = [*front, *(layer for layer in stats.index if layer not in front)]
    layers = [layer for layer in layers if layer in effects.index.get_level_values("layer")]
    lengths = sorted(set(effects.index.get_level_values("relative")))
    wide = {"layout": ipywidgets.Layout(width="100%", max_width="560px"), "style": {"description_width": "6em"}}
    pick = ipywidgets.Dropdown(
        options=[(f"{layer}{'  (front)' * (layer in front)}", layer) for layer in layers], description="layer", **wide
    )
    slide = ipywidgets.SelectionSlider(
        options=[(f"{length:.0%}", length) for length in lengths], value=lengths[len(lengths) // 2],
        description="step", **wide,
    )  # fmt: skip
    box = ipywidgets.HTML()

    def update(change: object = None) -> None:
        layer = pick.value
        facts = _facts(clip, stats, layer, layer in front)
        facts += _effect(effects.loc[layer, 0.0], effects.loc[layer, slide.value])
        box.value = _picture(stats, front, layer, select) + html_table(facts)

    pick.observe(update, names="value")
    slide.observe(update, names="value")
    update()
    return ipywidgets.VBox([pick, slide, box])


def _facts(clip: Clip, stats: pd.DataFrame, layer: str, on_front: bool) -> list[tuple[str, str, str]]:
    row, weight = stats.loc[layer], clip.weights()[layer]
    tower = stats[stats["tower"] == row["tower"]]
    rank = int((tower["importance"] > row["importance"]).sum()) + 1
    return [
        ("shape", "shape", " × ".join(map(str, weight.shape))),
        ("importance", "importance", f"{row['importance']:.4g} (number {rank} of {len(tower)} in its tower)"),
        ("alignment", "alignment", f"{row['alignment']:.4f}"),
        ("cosine", "signed cosine", f"{row['cosine']:+.4f}"),
        ("front", "on the front", "yes" if on_front else "no"),
    ]


def _effect(before: Mapping[str, float], after: Mapping[str, float]) -> list[tuple[str, str, str]]:
    rows = [("step", "step λ", f"{after['step']:.4g}")]
    shown = {"forget_accuracy": "concept recognised", "retain_accuracy": "the others recognised"}
    rows += [(key, label, f"{after[key]:.1%} (before: {before[key]:.1%})") for key, label in shown.items()]
    return [*rows, ("margin", "margin in logits", f"{after['margin']:+.2f} (before: {before['margin']:+.2f})")]


def _picture(stats: pd.DataFrame, front: list[str], layer: str, by: str, width: int = 360, height: int = 190) -> str:
    """The layer's tower as SVG: importance (log) over `by`, front members filled, the layer itself ringed."""
    row = stats.loc[layer]
    tower = stats[(stats["tower"] == row["tower"]) & (stats["importance"] > 0)]
    low, high = (math.log10(tower["importance"].agg(end)) for end in ("min", "max"))
    left, right = min(tower[by].min(), 0.0), max(tower[by].max(), 1e-9)
    dots = []
    for name, other in tower.iterrows():
        x = 30 + (width - 50) * (other[by] - left) / (right - left)
        y = height - 30 - (height - 50) * (math.log10(other["importance"]) - low) / max(high - low, 1e-9)
        ring = f'stroke="{COLORS[1]}" stroke-width="4"' if name == layer else f'stroke="{COLORS[0]}"'
        fill = COLORS[0] if name in front else "white"
        dots.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="{7 if name == layer else 4}" fill="{fill}" {ring}/>')
    said = escape(f"{layer}: importance {row['importance']:.3g}, {by} {row[by]:.3f}")
    text = 'font-family="sans-serif" font-size="12" fill="black"'
    x, y, upright = width / 2, height / 2, f"rotate(-90 14 {height / 2})"
    return "".join([
        f'<svg role="img" aria-label="{said}" viewBox="0 0 {width} {height}" width="{width}" style="background:white">',
        f'<text x="30" y="14" {text}>{row["tower"]} tower; filled: the front</text>',
        f'<text x="{x}" y="{height - 6}" text-anchor="middle" {text}>{by}, {left:.2f} to {right:.2f}</text>',
        f'<text x="14" y="{y}" text-anchor="middle" transform="{upright}" {text}>importance (log)</text>',
        f'<path d="M24 20V{height - 24}H{width - 10}" stroke="black" fill="none"/>{"".join(dots)}</svg>',
    ])  # fmt: skip


# ---- how far? -------------------------------------------------------------------------------------------------------


def thinned(validation: Validation, others: int) -> Validation:
    """The same validation with at most `others` pictures of the rest, taken at random (seed 0), the concept's first."""
    shown = [validation.forget in concept for concept in validation.pairs.concepts or ()]
    rest = [k for k, own in enumerate(shown) if not own]
    some = torch.randperm(len(rest), generator=torch.Generator().manual_seed(0))[:others].tolist()
    return replace(
        validation, pairs=validation.pairs[[k for k, own in enumerate(shown) if own] + sorted(rest[i] for i in some)]
    )


@gradient_free
def step_explorer(
    clip: Clip, change: Edit | tuple[str, Tensor], validation: Validation, *, reach: float = 20.0, pictures: int = 6,
    others: int = 96,
) -> ipywidgets.VBox:  # fmt: skip
    """Move the step of one layer; accuracies, margin and the names that the model gives some pictures follow.

    change: an `Edit` of one layer, at whose step the slider begins, or (layer, gradient): it begins at 0 then.
    reach: how far the slider goes, in first steps of the search (|theta| / |g_f| / 10); a tenth of it the other way.
    pictures: how many of the concept's are shown, and how many others. others: at most so many pictures of the rest
    are scored, so that steps in early layers answer at once too.
    Children: the slider and an HTML box. While it is in use nothing but this layer may change; every look leaves the
    model as it was. KeyError for an unknown layer; ValueError for an edit of several layers, for a gradient of
    another shape, and for one of length zero.
    """
    layer, gradient = change if isinstance(change, tuple) else (change.layer, change.delta.float() / change.step)
    if layer not in clip.weights():
        raise unknown(layer, clip.weights(), "layer")
    weight = clip.weights()[layer]
    if gradient.shape != weight.shape:
        raise ValueError(f"the gradient is {tuple(gradient.shape)}, the weight {layer!r} is {tuple(weight.shape)}")
    unit, base, validation = first_step(weight, gradient), fingerprint(clip), thinned(validation, others)
    scorer, concepts = scorer_of(validation, clip), validation.pairs.concepts or []
    part, own = scorer.at(layer), sum(validation.forget in concept for concept in concepts)
    before, spots = scorer(), [("forget", k, scorer.kind) for k in range(own)[:pictures]]
    spots += [("rest", k, kind) for k, kind in _spread(scorer, pictures).items()]
    rows = [k if group == "forget" else own + k for group, k, _ in spots]
    urls = [data_url(image.resize((64, 64))) for image in validation.pairs[rows].pil()]
    shown = [concepts[k] for k in rows]
    begin = 0.0 if isinstance(change, tuple) else round(4 * change.step / unit) / 4
    slide = ipywidgets.FloatSlider(
        value=begin, min=-reach / 10, max=max(reach, begin), step=0.25, description="first steps",
        continuous_update=False, layout=ipywidgets.Layout(width="100%", max_width="560px"),
        style={"description_width": "6em"},
    )  # fmt: skip
    box = ipywidgets.HTML()

    @gradient_free
    def update(event: object = None) -> None:
        step = slide.value * unit
        with Edit({layer: make_delta(gradient, step).cpu()}, {layer: step}, "", base).on(clip, force=True):
            now = copy(scorer)  # scored by what is embedded here, once
            now.embedded = {name: part.embed(name) for name in scorer.embedded}
        score, seen = now(), now.embedded
        asked = validation.names
        called = [asked[kind][int((seen[kind] @ seen[group][k]).argmax())] for group, k, kind in spots]
        strip = list(zip(urls, called, shown, strict=True))
        box.value = html_table(_scores(step, slide.value, score, before)) + _strip(strip)

    slide.observe(update, names="value")
    update()
    return ipywidgets.VBox([slide, box])


def _spread(scorer: Scorer, count: int) -> dict[int, str]:
    """Up to `count` pictures of the rest, of every kind in turn (seed 0): their places among the rest, their kinds."""
    draw = torch.Generator().manual_seed(0)
    rows = [rows[torch.randperm(len(rows), generator=draw)].tolist() for rows, _ in scorer.labels.values()]
    turns = [(k, kind) for some in zip_longest(*rows) for k, kind in zip(some, scorer.labels, strict=True)]
    places: dict[int, str] = {}
    for k, kind in turns:
        if k is not None and len(places) < count:
            places.setdefault(k, kind)
    return dict(sorted(places.items()))


def _scores(
    step: float, steps: float, after: Mapping[str, float], before: Mapping[str, float]
) -> list[tuple[str, str, str]]:
    rows = [("step", "step λ", f"{step:.4g}"), ("relative", "change, by the weight's length", f"{abs(steps) / 10:.1%}")]
    words = {"forget_accuracy": "concept recognised", "retain_accuracy": "the others recognised",
             "margin": "margin in logits", "standardized_margin": "margin in standard deviations"}  # fmt: skip
    for key in (key for key in after if key not in ("retain_loss", "forget_accuracy5")):
        form = "+.2f" if key in ("margin", "standardized_margin") else ".1%"
        rows.append((key, words.get(key, f"{key} recognised"), f"{after[key]:{form}} (before: {before[key]:{form}})"))
    return rows


def _strip(pictures: Sequence[tuple[str, str, tuple[str, ...]]]) -> str:
    """Pictures in rows, each over the name it is called: bold where that is right, crossed out where not."""
    cells = []
    for url, name, concept in pictures:
        mark, said = ("b" if name in concept else "s"), escape(name)
        alt = f"{escape(' in '.join(concept))}, called {said}"
        text = f'<img src="{url}" width="64" alt="{alt}"><br><{mark}>{said}</{mark}>'
        cells.append(f'<div style="width:72px">{text}</div>')
    return f'<div style="display:flex;flex-wrap:wrap;gap:6px;font-size:12px">{"".join(cells)}</div>'
