"""What "forgotten" and "kept" mean while a step is searched, and what an edit cannot change embedded once."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from .models import Clip
from .pairs import Pairs
from .runtime.checks import check_names, check_shown, check_validate
from .runtime.functions import FunctionScorer
from .runtime.modes import eval_mode, gradient_free
from .runtime.replay import FromLayer, Replay
from .runtime.zero_shot import embed_images, labels, retained, zero_shot_classifier

Score = Mapping[str, float]
ALIKE = 1e-5  # of the largest logit: a spread of the margin that is rounding, and no spread


@dataclass(frozen=True)
class Validation:
    """What to score while searching: pictures with their names, and the names to tell apart.

    pairs:     pictures of the concept and of everything else; .concepts says what each shows
    forget:    the concept, one of the names
    names:     for each kind the names that are told apart; templates: for each kind its caption templates
    split:     of which the pictures are, for the report

    A kind's retained accuracy leaves the forgotten concept's own pictures out. Raises ValueError for pairs without
    concepts or without the concept's pictures, and for names and templates that do not fit each other.
    """

    pairs: Pairs
    forget: str
    names: Mapping[str, Sequence[str]]
    templates: Mapping[str, Sequence[str]]
    split: str | None = None

    def __post_init__(self) -> None:
        check_names(self.forget, self.names, self.templates)
        check_shown(self.forget, self.pairs)

    def __call__(self, clip: Clip) -> dict[str, float]:
        """Score `clip` as it is: see `Scorer.forgetting` and `Scorer.retaining`."""
        return scorer_of(self, clip)()


class Scorer:
    """A `Validation` on one model, with everything embedded once, at the weights of that moment.

    `at` a layer it scores the model as it is at every call, running only what a change of that layer can reach, see
    `FromLayer`: what `Validation` would give, bit for bit, as long as nothing but this layer changes between calls.
    """

    def __init__(self, validation: Validation, clip: Clip) -> None:
        self.validation, self.clip = validation, clip
        self.kind = check_names(validation.forget, validation.names, validation.templates)
        shown = [validation.forget in concept for concept in validation.pairs.concepts or ()]
        groups = {"forget": [k for k, s in enumerate(shown) if s], "rest": [k for k, s in enumerate(shown) if not s]}
        pairs = {group: validation.pairs[rows] for group, rows in groups.items()}
        self.pixels = {group: clip.pixels(some) for group, some in pairs.items() if len(some)}
        self.labels = {kind: labels(pairs["rest"], names) for kind, names in validation.names.items()}
        self.kept: dict[str, Replay] = {}  # shared by all `at`: activations for the next, deeper layer to start from
        self.tail: FromLayer | None = None
        # the concept's pictures and all others apart, and the names of each kind: each can be asked for alone
        self.embedded = {part: self._embed(part) for part in (*self.pixels, *validation.names)}

    def at(self, layer: str) -> Scorer:
        """The same for a model in which nothing but `layer` changes from now on."""
        other = copy.copy(self)
        other.tail, other.vision = FromLayer(self.clip, layer, self.kept), self.clip.tower(layer) == "vision"
        return other

    def embed(self, part: str, keep: bool = True) -> Tensor:
        """Unit vectors of one part with the model as it is: pictures of "forget" or "rest", or the names of a kind.

        Without a layer, and for the other tower, they are those of the beginning. keep: see `FromLayer.run`.
        """
        if self.tail is None or (part in self.pixels) != self.vision:
            return self.embedded[part]
        return self.tail.run(part, partial(self._embed, part), keep)

    def _embed(self, part: str) -> Tensor:
        if part in self.pixels:
            return embed_images(self.clip, self.pixels[part])
        return zero_shot_classifier(self.clip, self.validation.names[part], self.validation.templates[part])

    @gradient_free
    def logits(self, images: Tensor, classifier: Tensor) -> Tensor:
        """Scaled cosines (pictures, names) of unit vectors (pictures, dim) and (names, dim), float32, on the CPU."""
        return (self.clip.logit_scale() * images @ classifier.T).float().cpu()

    def forgetting(self) -> dict[str, float]:
        """Is the concept still known? See `margin_scores`, over its pictures and the names of its kind."""
        own = self.validation.names[self.kind].index(self.validation.forget)
        return margin_scores(self.logits(self.embed("forget"), self.embed(self.kind)), own)

    def retaining(self, keep: bool = False) -> dict[str, float]:
        """Is everything else still known? See `retained`; nothing where there are no other pictures.

        Asked once a search, so that nothing is kept for a second time at this layer, unless keep=True.
        """
        if "rest" not in self.pixels:
            return {}
        images, classifiers = self.embed("rest", keep), {kind: self.embed(kind, keep) for kind in self.labels}
        return retained({
            kind: (self.logits(images[rows.to(images.device)], classifiers[kind]), own)
            for kind, (rows, own) in self.labels.items() if len(rows)
        })  # fmt: skip

    on_the_rest = retaining  # a function, which is asked everything at once, says more

    def __call__(self) -> dict[str, float]:
        return self.forgetting() | self.retaining(keep=True)


Validate = Validation | Scorer | FunctionScorer | Callable[[Clip], Score]


def scorer_of(validate: Validate, clip: Clip) -> Scorer | FunctionScorer:
    """The one door for all that says how a model is scored; scorers pass unchanged. ValueError for what does not."""
    if isinstance(validate, (Scorer, FunctionScorer)):
        return validate
    if isinstance(validate, Validation):
        with eval_mode(clip.model):
            return Scorer(validate, clip)
    check_validate(validate)
    return FunctionScorer(validate, clip)


def margin_scores(logits: Tensor, own: int) -> dict[str, float]:
    """Is the name at position `own` still given? From logits (pictures, names).

    "forget_accuracy" and, of more than five names, "forget_accuracy5": the shares of pictures for which it is the best
    name, or among the best five (FA@1, FA@5: section 4.1 of the paper); "margin", the mean over pictures of (best other
    name's score - own score), in logits; "standardized_margin", that mean in standard deviations over the pictures, 0
    for pictures that are all alike: a broken model's, or a single one, of which no spread is known.
    """
    others = [k for k in range(logits.shape[1]) if k != own]
    gap = logits[:, others].amax(1) - logits[:, own]
    mean, spread = gap.mean().item(), gap.std(correction=0).item()
    best, five, wide = 1.0, 1.0, -math.inf  # of a model that the step broke: that is not forgetting
    if math.isfinite(mean):
        above = (logits[:, others] > logits[:, own, None]).sum(1)  # names that fit better
        best, five = (gap <= 0).float().mean().item(), (above < 5).float().mean().item()
        wide = mean / spread if spread > ALIKE * logits.abs().max().item() else 0.0
    scores = {"forget_accuracy": best, "forget_accuracy5": five, "margin": mean, "standardized_margin": wide}
    return scores if len(others) >= 5 else {key: x for key, x in scores.items() if key != "forget_accuracy5"}
