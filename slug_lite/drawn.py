"""Validation by what a pipeline draws: does it still draw the concept, and does it still draw everything else?

CLIP may have forgotten a name, and the painter may still get something from the states that it hands over. So the
step for a pipeline is searched on pictures that the pipeline draws, as the official code does for UnlearnCanvas
(CSIPlab/SLUG, eval_uncanvas.py), here with more pictures and with a margin.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from . import toonworld
from .diffusion import check_draws, encoder_of, generated_pairs
from .metrics import embed_images, margin_scores, zero_shot_classifier
from .models import Clip
from .pairs import unknown
from .text_tower import carry

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@dataclass(frozen=True)
class DrawnValidation:
    """What to have drawn while searching, and among which names to look for the concept.

    pipe:    a StableDiffusionPipeline whose text encoder is the text tower of the CLIP that is searched
    forget:  the concept, one of `names`
    prompts: what to draw of it, in turns, `n` pictures in all
    others:  (prompt, name) of what must stay, one picture each
    names:   for each kind the names that are told apart; templates: for each kind its caption templates
    seed, steps, guidance_scale: see `generated_pairs`

    The pictures are named by the CLIP's vision tower and by its names as they were before any edit of the text tower.
    Raises ValueError for what draws no pictures, no prompts, and names that do not fit.
    """

    pipe: StableDiffusionPipeline
    forget: str
    prompts: Sequence[str]
    others: Sequence[tuple[str, str]]
    names: Mapping[str, Sequence[str]]
    templates: Mapping[str, Sequence[str]]
    n: int = 12
    seed: int = 0
    steps: int | None = 20
    guidance_scale: float | None = None

    def __post_init__(self) -> None:
        check_draws(self.pipe)
        if isinstance(self.prompts, str) or not self.prompts or self.n < 1:
            raise ValueError(f"prompts={self.prompts!r}, n={self.n}; give a sequence of texts, and draw one at least")
        if set(self.names) != set(self.templates):
            raise ValueError(f"names are for the kinds {list(self.names)}, templates for {list(self.templates)}")
        known = [name for names in self.names.values() for name in names]
        for name in (self.forget, *(name for _, name in self.others)):
            if name not in known:
                raise unknown(name, known, "name to draw")
            if known.count(name) > 1:
                raise ValueError(f"{name!r} is of {known.count(name)} kinds; it must be of one")

    @classmethod
    def of_world(
        cls, pipe: StableDiffusionPipeline, forget: str, *, n: int = 12, others: int = 24, seed: int = 0,
        split: str = "val", steps: int | None = 20, without: Sequence[str] = (),
    ) -> DrawnValidation:  # fmt: skip
        """n pictures of a concept of the mini world and one of `others` other names, as many of each kind.

        without: names that are not drawn, because they are to be forgotten too.
        """
        prompts = [template.format(forget) for template in toonworld.templates(toonworld.kind_of(forget), split)]
        generator = torch.Generator().manual_seed(seed)
        drawn = []
        for kind, names in toonworld.NAMES.items():
            left = [name for name in names if name not in (forget, *without)]
            for k in torch.randperm(len(left), generator=generator)[: others // len(toonworld.NAMES)].tolist():
                drawn.append((toonworld.templates(kind, split)[0].format(left[k]), left[k]))
        templates = {kind: toonworld.templates(kind, split) for kind in toonworld.NAMES}
        return cls(pipe, forget, prompts, drawn, toonworld.NAMES, templates, n, seed, steps)

    def prepare(self, clip: Clip) -> DrawnScorer:
        """Embed the names, with the weights as they are now."""
        return DrawnScorer(self, clip)

    def __call__(self, clip: Clip) -> dict[str, float]:
        """Score what is drawn with the CLIP's text tower as it is; its names are asked as they are too."""
        return self.prepare(clip).score()


class DrawnScorer:
    """A `DrawnValidation` on one CLIP, whose names were embedded at the weights of that moment."""

    def __init__(self, validation: DrawnValidation, clip: Clip) -> None:
        self.validation, self.clip = validation, clip
        self.classifiers = {
            kind: zero_shot_classifier(clip, names, validation.templates[kind])
            for kind, names in validation.names.items()
        }
        self.kind = next(kind for kind, names in validation.names.items() if validation.forget in names)

    def _logits(self, prompts: Sequence[str], n: int, kind: str, seed: int) -> Tensor:
        """How well what is drawn fits each name of a kind, (n, names), in logits, on the CPU."""
        own = self.validation
        with as_encoder(self.clip, own.pipe):
            drawn = generated_pairs(
                own.pipe, prompts, n, seed=seed, batch_size=n, steps=own.steps, guidance_scale=own.guidance_scale,
                progress=False,
            )  # fmt: skip
        images = embed_images(self.clip, self.clip.pixels(drawn))
        return (self.clip.logit_scale() * images @ self.classifiers[kind].T).float().cpu()

    def __call__(self) -> dict[str, float]:
        return self.score()

    @torch.no_grad()
    def forgetting(self) -> dict[str, float]:
        """Is the concept still drawn? "forget_accuracy", "margin" and "clearance" as `Scorer.forgetting` has them."""
        own = self.validation
        position = own.names[self.kind].index(own.forget)
        return margin_scores(self._logits(own.prompts, own.n, self.kind, own.seed), position)

    @torch.no_grad()
    def retaining(self) -> dict[str, float]:
        """Is everything else still drawn? Accuracies by kind, "retain_accuracy" and "retain_loss", as `Scorer` has."""
        own, accuracy, losses = self.validation, dict[str, float](), []
        for kind, names in own.names.items():
            asked = [(prompt, names.index(name)) for prompt, name in own.others if name in names]
            if not asked:
                continue
            logits = self._logits([prompt for prompt, _ in asked], len(asked), kind, own.seed)
            wanted = torch.tensor([position for _, position in asked])
            accuracy[kind] = logits.argmax(1).eq(wanted).float().mean().item()
            losses.append(F.cross_entropy(logits, wanted).item())
        if not losses:
            return {}
        mean = {"retain_accuracy": sum(accuracy.values()) / len(losses), "retain_loss": sum(losses) / len(losses)}
        return accuracy | mean

    def score(self) -> dict[str, float]:
        """All scores."""
        return self.forgetting() | self.retaining()


@contextmanager
@torch.no_grad()
def as_encoder(clip: Clip, pipe: StableDiffusionPipeline) -> Iterator[None]:
    """For the length of a with-block the pipeline reads with the CLIP's text tower as it is now, edits and all."""
    weights = dict(encoder_of(pipe).named_parameters())
    text = {n: w.detach() for n, w in clip.weights().items() if clip.tower(n) == "text" and "text_projection" not in n}
    carried = {name: w for name, w in carry(text, weights).items() if name in weights}
    kept = {name: weights[name].detach().clone() for name in carried}
    try:
        for name, value in carried.items():
            weights[name].copy_(value)
        yield
    finally:
        for name, value in kept.items():
            weights[name].copy_(value)
