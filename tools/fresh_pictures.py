"""What an edit leaves of concepts, and costs the others, on pictures that neither gradient nor search has seen."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pandas as pd
import torch
from torch import Tensor

import slug_lite as slug
from slug_lite.runtime.replay import Replay, blocks_before
from slug_lite.runtime.zero_shot import embed_images, labels
from slug_lite.world import evaluation

SEED, PICTURES, FRESH = 0, 48, 1000  # FRESH: added to the seed, for pictures that are no other's
world = slug.toonworld
EVERY = [name for names in world.NAMES.values() for name in names]


@cache
def clip() -> slug.Clip:
    """Mini CLIP, loaded when a unit first asks for it."""
    return slug.load_clip("mini", device="cpu")


class Report:
    """`slug.evaluate(clip)` on one set of pictures, drawn once; blocks before an edit are played back.

    others: pictures of every person and character, of a cell a quarter of it. seed: of the pictures.
    """

    def __init__(self, others: int = 12, seed: int = SEED + FRESH) -> None:
        self.pairs = world.evaluation_pairs(others, seed, "test")
        self.pixels, self.replays = clip().pixels(self.pairs), dict[int, Replay]()
        self.images = embed_images(clip(), self.pixels)  # of the untouched model
        self.before = self.scores(self.images)

    @torch.no_grad()
    def scores(self, images: Tensor) -> dict[str, pd.DataFrame]:
        rows = []
        for kind, names in world.NAMES.items():
            picked, own = labels(self.pairs, names)
            classifier = slug.zero_shot_classifier(clip(), names, world.templates(kind, "test"))
            right = (images[picked] @ classifier.T).argmax(1) == own
            rows += [(kind, name, right[own == i].float().mean().item()) for i, name in enumerate(names)]
        return {"per_concept": pd.DataFrame(rows, columns=["kind", "name", "accuracy"])}

    def embed(self, layers: Sequence[str]) -> Tensor:
        if all(clip().tower(layer) == "text" for layer in layers):
            return self.images
        blocks = blocks_before(clip(), layers[0]) if len(layers) == 1 else []
        replay = self.replays.setdefault(len(blocks), Replay(blocks))
        with replay.play() if replay.outputs else replay.record():
            return embed_images(clip(), self.pixels)

    def after(self, edit: slug.Edit) -> dict[str, pd.DataFrame]:
        with edit.on(clip()):
            return self.scores(self.embed(edit.layers))

    def row(self, edit: slug.Edit, names: list[str]) -> dict[str, object]:
        """left: of the one name, or of each; lost_KIND: points of accuracy."""
        with edit.on(clip()):
            left = [round(recognised(name), 4) for name in names]
        lost = evaluation.drop(self.before, self.after(edit), names)
        return {"left": left[0] if len(names) == 1 else left} | {f"lost_{k}": round(v, 3) for k, v in lost.items()}


report = cache(Report)  # one for all units


def recognised(name: str) -> float:
    """The share of its fresh pictures that the model names rightly."""
    return evaluation.recognised(clip(), name, n=PICTURES, seed=SEED + FRESH).float().mean().item()
