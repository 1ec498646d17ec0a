"""Ten concepts: what every layer's gradients say, for three seeds, and what every layer can do; chapter 4 draws it.

python tools/measure_fronts.py            Ada Sunfield and nine others taken at random; about five minutes on two cores

A row is one layer of one concept at one seed of forget and retain set: importance and signed cosine. At seed 0 the
step is then searched in every layer, on the front or not, on few validation pictures (`small`), and the edit is looked
at on test pictures: relative (length of the edit by that of the weight; none: nothing forgot), left, kept and
loss (of the concept: accuracy; of the others: mean accuracy of the kinds, cross-entropy in nats); val_kept, val_loss.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

import slug_lite as slug
from slug_lite.book.results import save_results
from slug_lite.runtime.progress import silent
from slug_lite.runtime.stacks import add_delta
from slug_lite.search import make_delta, search_layers
from slug_lite.validation import Scorer, scorer_of

SEED, SEEDS, HOW_MANY = 0, (0, 1, 2), {"people": 3, "characters": 2, "objects": 3, "styles": 2}
world = slug.toonworld


def concepts() -> list[str]:
    """Ada and, drawn at random, so many others that each kind has HOW_MANY."""
    rng, out = np.random.default_rng(SEED), ["Ada Sunfield"]
    for kind, many in HOW_MANY.items():
        free = [name for name in world.NAMES[kind] if name not in out]
        out += [str(n) for n in rng.choice(free, many - (kind == "people"), replace=False)]
    return out


def small(name: str, n: int = 16, every: int = 6, split: str = "val") -> slug.Validation:
    """n pictures of the concept and one in `every` of the others that `toonworld.validation` would take."""
    whole = world.validation(name, n=n, split=split, seed=SEED)
    return replace(whole, pairs=whole.pairs[:n] + whole.pairs[n::every])


def significant(value: float) -> float:
    return float(f"{value:.4g}")


@torch.no_grad()
def on_test(clip: slug.Clip, scorer: Scorer, layer: str, delta: torch.Tensor) -> dict:
    """Scores on test pictures with the edit on."""
    weight, probe = clip.weights()[layer], scorer.at(layer)
    original = weight.detach().clone()
    try:
        weight.copy_(add_delta(original, delta))
        score = probe()
    finally:
        weight.copy_(original)
    return {"left": score["forget_accuracy"], "kept": score["retain_accuracy"], "loss": score["retain_loss"]}


def outcomes(clip: slug.Clip, name: str, gradients: slug.Gradients) -> dict[str, dict]:
    """For each layer of the model: how far to go in it, and what that does."""
    found = search_layers(clip, gradients.forget, list(gradients.stats.index), small(name))
    scorer, out = scorer_of(small(name, n=24, every=3, split="test"), clip), {}
    for layer, search in found.items():
        out[layer] = {"relative": None}
        if search.step is None:
            continue
        delta = make_delta(gradients.forget[layer], search.step)
        row = on_test(clip, scorer, layer, delta)
        row |= {"val_kept": search.score["retain_accuracy"], "val_loss": search.score["retain_loss"]}
        row["relative"] = (delta.float().norm() / clip.weights()[layer].norm()).item()
        out[layer] = {key: significant(value) for key, value in row.items()}
    return out


def main() -> None:
    clip, names, rows = slug.load_clip("mini", device="cpu"), concepts(), []
    for seed in SEEDS:
        retain = world.retain(names, seed=seed)
        sets = [world.pairs(name, seed=seed) for name in names]
        for name, gradients in zip(names, slug.one_shot_gradients(clip, sets, retain), strict=True):
            effect = outcomes(clip, name, gradients) if seed == SEED else {}
            for layer, row in gradients.stats.iterrows():
                numbers = {key: significant(row[key]) for key in ("importance", "cosine")}
                rows.append({"name": name, "seed": seed, "layer": layer, **numbers, **effect.get(layer, {})})
            print(seed, name, slug.pareto_front(gradients.stats), flush=True)
    print(save_results("fronts", rows, script="tools/measure_fronts.py", seed=SEED, seeds=list(SEEDS), concepts=names))


if __name__ == "__main__":
    with silent():
        main()
