"""Ten concepts: what every layer's gradients say, for three seeds, and what every layer can do; chapter 4 draws it.

python tools/measure_fronts.py            Ada Sunfield and nine others taken at random; about five minutes on two cores

A row is one layer of one concept at one seed of forget and retain set: importance and signed cosine. At seed 0 the
step is then searched in every layer, on the front or not, on few validation pictures (`small`), and the edit is looked
at on test pictures: relative (length of the edit by that of the weight; none: nothing forgot), left, kept and
loss (of the concept: accuracy; of the others: mean accuracy of the kinds, cross-entropy in nats); val_kept, val_loss.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from fresh_pictures import SEED, clip, world
from measuring import Measurement, Unit, run

import slug_lite as slug
from slug_lite.search import make_delta, search_layers
from slug_lite.validation import scorer_of

SEEDS, HOW_MANY = (0, 1, 2), {"people": 3, "characters": 2, "objects": 3, "styles": 2}


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


def outcomes(name: str, gradients: slug.Gradients) -> dict[str, dict]:
    """For each layer of the model: how far to go in it, and what that does."""
    found = search_layers(clip(), gradients.forget, list(gradients.stats.index), small(name), slug.StepSearch("margin"))
    scorer, out = scorer_of(small(name, n=24, every=3, split="test"), clip()), {}
    for layer, search in found.items():
        out[layer] = {"relative": None}
        if search.step is None:
            continue
        delta = make_delta(gradients.forget[layer], search.step)
        with slug.Edit({layer: delta}, {layer: search.step}, name, slug.fingerprint(clip())).on(clip()):
            score = scorer.at(layer)()
        row = {"left": score["forget_accuracy"], "kept": score["retain_accuracy"], "loss": score["retain_loss"]}
        row |= {"val_kept": search.score["retain_accuracy"], "val_loss": search.score["retain_loss"]}
        row["relative"] = (delta.float().norm() / clip().weights()[layer].norm()).item()
        out[layer] = {key: significant(value) for key, value in row.items()}
    return out


@lru_cache(maxsize=1)
def gradients(seed: int) -> dict[str, slug.Gradients]:
    """Of all concepts, with one retain set."""
    names = concepts()
    sets, retain = [world.pairs(name, seed=seed) for name in names], world.retain(names, seed=seed)
    return dict(zip(names, slug.one_shot_gradients(clip(), sets, retain), strict=True))


def measure(seed: int, name: str) -> list[dict]:
    own, rows = gradients(seed)[name], []
    effect = outcomes(name, own) if seed == SEED else {}
    for layer, row in own.stats.iterrows():
        numbers = {key: significant(row[key]) for key in ("importance", "cosine")}
        rows.append({"name": name, "seed": seed, "layer": layer, **numbers, **effect.get(layer, {})})
    return rows


if __name__ == "__main__":
    settings = {"seed": SEED, "seeds": list(SEEDS), "concepts": concepts()}
    units = [Unit((seed, name), partial(measure, seed, name)) for seed in SEEDS for name in concepts()]
    run(Measurement("fronts", Path(__file__), settings), units)
