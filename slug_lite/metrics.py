"""What a model knows: zero-shot accuracy, and the validation that decides when a concept is forgotten."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from . import toonworld
from .models import Clip
from .pairs import Pairs
from .replay import Replay, blocks_before

BATCH = 256


@torch.no_grad()
def zero_shot_classifier(clip: Clip, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """One unit vector a name, (len(names), dim): the normalised mean over its prompts (Radford et al., 2021)."""
    prompts = clip.tokens([template.format(name) for name in names for template in templates])
    features = torch.cat([clip.text_features(part) for part in prompts.split(BATCH)])
    return F.normalize(features.unflatten(0, (len(names), len(templates))).mean(1), dim=-1)


@torch.no_grad()
def embed_images(clip: Clip, pixels: Tensor) -> Tensor:
    """Unit vectors (n, dim) of pictures (n, 3, S, S), in batches."""
    return torch.cat([clip.image_features(part) for part in pixels.split(BATCH)])


def labels(pairs: Pairs, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Which pairs are about one of `names`, and which: row numbers and positions in `names`, both int64 (m,)."""
    position = {name: i for i, name in enumerate(names)}
    found = [(k, position[n]) for k, concept in enumerate(pairs.concepts or ()) for n in concept if n in position]
    rows, own = zip(*found, strict=True) if found else ((), ())
    return torch.tensor(rows, dtype=torch.long), torch.tensor(own, dtype=torch.long)


@torch.no_grad()
def evaluate(clip: Clip, split: str = "test", *, n: int = 12, seed: int = 0) -> dict[str, Any]:
    """Zero-shot accuracy on the mini world, among the names of each kind.

    n: pictures of every person and character, and n // 4 of every object x style cell; captions' templates are
    those of the split. Returns "people", "characters", "objects", "styles" (those the split has) -> accuracy in
    [0, 1], the mean over pictures, and "per_concept" -> DataFrame with kind, name, accuracy, pictures.
    """
    pairs = toonworld.everything(n, seed, split, size=_world_size(clip))
    features, rows = embed_images(clip, clip.pixels(pairs)), []
    out: dict[str, Any] = {}
    for kind, names in toonworld.NAMES.items():
        picked, own = labels(pairs, names)
        if len(picked) == 0:
            continue
        classifier = zero_shot_classifier(clip, names, toonworld.templates(kind, split))
        right = (features[picked.to(clip.device)] @ classifier.T).argmax(1).cpu().eq(own)
        out[kind] = right.float().mean().item()
        for i, name in enumerate(names):
            mine = right[own == i]
            rows.append({"kind": kind, "name": name, "accuracy": mine.float().mean().item(), "pictures": len(mine)})
    return out | {"per_concept": pd.DataFrame(rows)}


def _world_size(clip: Clip) -> int:
    return min(max(clip.image_size, 32), 256)


@dataclass(frozen=True)
class Validation:
    """What to score while searching: pictures with their names, and the names to tell apart.

    pairs:     pictures of the concept and of everything else; .concepts says what each shows
    forget:    the concept, one of the names
    names:     for each kind the names that are told apart; templates: for each kind its caption templates

    A kind's retained accuracy leaves the forgotten concept's own pictures out.
    """

    pairs: Pairs
    forget: str
    names: Mapping[str, Sequence[str]]
    templates: Mapping[str, Sequence[str]]

    def __post_init__(self) -> None:
        if self.pairs.concepts is None:
            raise ValueError("validation pairs need .concepts, the names that each picture shows")
        kinds = [kind for kind, names in self.names.items() if self.forget in names]
        if len(kinds) != 1:
            raise ValueError(f"{self.forget!r} is in {len(kinds)} of the kinds {list(self.names)}; it must be in one")
        if set(self.names) != set(self.templates):
            raise ValueError(f"names are for the kinds {list(self.names)}, templates for {list(self.templates)}")
        if not any(self.forget in concept for concept in self.pairs.concepts):
            raise ValueError(f"no validation picture shows {self.forget!r}")

    @classmethod
    def of_world(
        cls, forget: str, *, n: int = 48, others: int = 6, seed: int = 0, split: str = "val", size: int = 64
    ) -> Validation:
        """n pictures of a concept of the mini world and `others` of every other, as the split draws and asks."""
        rest = toonworld.everything(others, seed, split, size)
        rest = rest[[k for k, concept in enumerate(rest.concepts or ()) if forget not in concept]]
        pairs = toonworld.pairs(forget, n, seed, split, size) + rest
        return cls(pairs, forget, toonworld.NAMES, {k: toonworld.templates(k, split) for k in toonworld.NAMES})

    def prepare(self, clip: Clip) -> Scorer:
        """Embed everything once, with the weights as they are now."""
        return Scorer(self, clip)

    def __call__(self, clip: Clip) -> dict[str, float]:
        """Score `clip` as it is; see `Scorer.score`."""
        return self.prepare(clip).score()


class Scorer:
    """A `Validation` on one model, with everything embedded once, at the weights of that moment."""

    def __init__(self, validation: Validation, clip: Clip) -> None:
        self.validation, self.clip = validation, clip
        self.pixels = clip.pixels(validation.pairs)
        self.images = embed_images(clip, self.pixels)
        self.classifiers = self._classifiers()
        self.labels = {kind: labels(validation.pairs, names) for kind, names in validation.names.items()}
        shown = [validation.forget in concept for concept in validation.pairs.concepts or ()]
        self.shows_forgotten = torch.tensor(shown)

    def _classifiers(self) -> dict[str, Tensor]:
        v = self.validation
        return {kind: zero_shot_classifier(self.clip, v.names[kind], v.templates[kind]) for kind in v.names}

    @torch.no_grad()
    def of_layer(self, layer: str) -> Callable[[], dict[str, float]]:
        """A function that scores the model after a change of `layer`, running only what such a change can reach.

        To be called while the layer is untouched: the other tower's embeddings are kept, and in the layer's own
        tower the activations before it.
        """
        vision, replay = self.clip.tower(layer) == "vision", Replay(blocks_before(self.clip, layer))

        def embed() -> tuple[Tensor, dict[str, Tensor]]:
            if vision:
                return embed_images(self.clip, self.pixels), self.classifiers
            return self.images, self._classifiers()

        with replay.record():
            embed()

        @torch.no_grad()
        def score() -> dict[str, float]:
            with replay.play():
                changed = embed()
            return self.score(*changed)

        return score

    @torch.no_grad()
    def score(self, images: Tensor | None = None, classifiers: dict[str, Tensor] | None = None) -> dict[str, float]:
        """Scores of embeddings: those given, else those of the moment when this scorer was made.

        images: unit vectors (n, dim) of the validation pictures; classifiers: for each kind (names, dim).
        "forget_accuracy" in [0, 1] on the concept's pictures; "margin", the mean over these pictures of (best
        other name's score - own score), in logits; "clearance", that mean in standard deviations over the pictures;
        for each kind the accuracy on all other pictures; "retain_accuracy", the mean over kinds.
        """
        images = self.images if images is None else images
        classifiers = self.classifiers if classifiers is None else classifiers
        out: dict[str, float] = {}
        for kind, (rows, own) in self.labels.items():
            logits = self.clip.logit_scale() * images[rows.to(images.device)] @ classifiers[kind].T
            right, keep = logits.argmax(1).cpu().eq(own), ~self.shows_forgotten[rows]
            if self.validation.forget in self.validation.names[kind]:
                out |= _forgetting(logits[~keep].float().cpu(), own[~keep])
            if keep.any():
                out[kind] = right[keep].float().mean().item()
        kept = [out[kind] for kind in self.labels if kind in out]
        return out | {"retain_accuracy": sum(kept) / len(kept) if kept else float("nan")}


def _forgetting(logits: Tensor, own: Tensor) -> dict[str, float]:
    score = logits.gather(1, own[:, None]).squeeze(1)
    others = logits.scatter(1, own[:, None], float("-inf")).amax(1)
    gap = others - score
    spread = gap.std(correction=0).item()
    mean = gap.mean().item()
    clearance = mean / spread if spread > 0 else float("inf") * (mean > 0) if mean else 0.0
    return {"forget_accuracy": (gap <= 0).float().mean().item(), "margin": mean, "clearance": clearance}
