"""What a model knows: zero-shot accuracy, and the validation that decides when a concept is forgotten."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
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
    """One unit vector a name, (len(names), dim): the normalised mean over its prompts (Radford et al., 2021).

    templates: strings with one `{}` each. ValueError where a bare string is given for either, or nothing.
    """
    if isinstance(names, str) or isinstance(templates, str) or not len(names) or not len(templates):
        raise ValueError(f"names {names!r} and templates {templates!r} must be sequences of at least one string")
    prompts = clip.tokens([template.format(name) for name in names for template in templates])
    features = torch.cat([clip.text_features(part) for part in prompts.split(BATCH)])
    return F.normalize(features.unflatten(0, (len(names), len(templates))).mean(1), dim=-1)


@torch.no_grad()
def embed_images(clip: Clip, pixels: Tensor) -> Tensor:
    """Unit vectors (n, dim) of pictures (n, 3, S, S), in batches."""
    return torch.cat([clip.image_features(part) for part in pixels.split(BATCH)])


def interval(
    hits: Tensor | Sequence[float], *, level: float = 0.95, draws: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of a mean (Efron, 1979): percentiles of the means of `draws` samples drawn with replacement.

    hits: (n,) numbers, for accuracies 0 and 1. Where all are alike the interval has no width, which says more about
    the bootstrap than about the mean: of 0 hits in n, the rule of three allows 3 / n. ValueError for none.
    """
    values = torch.as_tensor(hits, dtype=torch.float64).flatten().cpu()
    if len(values) == 0:
        raise ValueError("no hits given: an interval needs at least one number")
    generator = torch.Generator().manual_seed(seed)
    means = values[torch.randint(len(values), (draws, len(values)), generator=generator)].mean(1)
    low, high = means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return low, high


def auc(members: Tensor | Sequence[float], others: Tensor | Sequence[float]) -> float:
    """The chance that a member scores higher than one of the others, ties counted half: the area under the ROC curve.

    0.5 where the scores tell nothing, 1 where every member is above all others (Hanley and McNeil, 1982). As a
    membership inference attack (Yeom et al., 2018): scores of pictures that a model was trained on, and of others.
    members, others: (m,) and (n,) finite numbers, m * n comparisons. ValueError for none, or for NaN.
    """
    up, down = (torch.as_tensor(scores, dtype=torch.float64).flatten().cpu() for scores in (members, others))
    if len(up) == 0 or len(down) == 0:
        raise ValueError(f"{len(up)} members and {len(down)} others given; each needs at least one score")
    if not (torch.isfinite(up).all() and torch.isfinite(down).all()):
        raise ValueError("scores are not finite: they cannot be put in order")
    gap = up[:, None] - down  # (m, n)
    return ((gap > 0).double() + (gap == 0).double() / 2).mean().item()


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
    pairs = toonworld.everything(n, seed, split, size=world_size(clip))
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


@torch.no_grad()
def recognised(clip: Clip, name: str, *, n: int = 48, seed: int = 0, split: str = "test", top: int = 1) -> Tensor:
    """Which of n fresh pictures of a concept of the mini world does the model name rightly? Bool (n,), on the CPU.

    Among the names of its kind, with the templates of the split; top: right if among the best `top` names. The mean
    is FA@top, the forget accuracy, once the concept is to be forgotten (Cai, Tan, Asif, 2025, section 4.1).
    Raises as `toonworld.pairs` does.
    """
    kind = toonworld.kind_of(name)
    names = toonworld.NAMES[kind]
    pictures = toonworld.pairs(name, n, seed, split, world_size(clip))
    classifier = zero_shot_classifier(clip, names, toonworld.templates(kind, split))
    scores = embed_images(clip, clip.pixels(pictures)) @ classifier.T
    return (scores.topk(top).indices == names.index(name)).any(1).cpu()


def lost(before: Mapping[str, Any], after: Mapping[str, Any], names: str | Sequence[str]) -> pd.Series:
    """Points of accuracy that each kind lost, all of its concepts but `names` counted, each alike.

    before, after: what `evaluate` returned. Index: kinds; values in points per hundred, negative for a gain.
    """
    tables = [scores["per_concept"].set_index("name") for scores in (before, after)]
    gone = [names] if isinstance(names, str) else list(names)
    change = 100 * (tables[0]["accuracy"] - tables[1]["accuracy"]).drop(gone, errors="ignore")
    return change.groupby(tables[0]["kind"].loc[change.index], sort=False).mean()


def world_size(clip: Clip) -> int:
    """How large to draw the mini world for a model, in pixels: as large as it looks at, within 32 to 256."""
    return min(max(clip.image_size, 32), 256)


@dataclass(frozen=True)
class Validation:
    """What to score while searching: pictures with their names, and the names to tell apart.

    pairs:     pictures of the concept and of everything else; .concepts says what each shows
    forget:    the concept, one of the names
    names:     for each kind the names that are told apart; templates: for each kind its caption templates

    A kind's retained accuracy leaves the forgotten concept's own pictures out. Raises ValueError for pairs without
    concepts or without the concept's pictures, and for names and templates that do not fit each other.
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
        few = [kind for kind, names in self.names.items() if len(names) < 2]
        if few:
            raise ValueError(f"of the kinds {few} there are fewer than two names; nothing can be told apart")
        bare = [kind for kind, some in self.templates.items() if isinstance(some, str) or not some]
        if bare:
            raise ValueError(f"the kinds {bare} need a sequence of at least one template each")
        if set(self.names) != set(self.templates):
            raise ValueError(f"names are for the kinds {list(self.names)}, templates for {list(self.templates)}")
        if not any(self.forget in concept for concept in self.pairs.concepts):
            raise ValueError(f"no validation picture shows {self.forget!r}")

    @classmethod
    def of_world(
        cls, forget: str, *, n: int = 48, others: int = 6, seed: int = 0, split: str = "val", size: int = 64,
        without: Sequence[str] = (),
    ) -> Validation:  # fmt: skip
        """n pictures of a concept of the mini world and `others` of every other, as the split draws and asks.

        without: names whose pictures are left out, because they are to be forgotten too.
        """
        rest, gone = toonworld.everything(others, seed, split, size), {forget, *without}
        rest = rest[[k for k, concept in enumerate(rest.concepts or ()) if not gone & set(concept)]]
        pairs = toonworld.pairs(forget, n, seed, split, size) + rest
        return cls(pairs, forget, toonworld.NAMES, {k: toonworld.templates(k, split) for k in toonworld.NAMES})

    def prepare(self, clip: Clip) -> Scorer:
        """Embed everything once, with the weights as they are now."""
        return Scorer(self, clip)

    def __call__(self, clip: Clip) -> dict[str, float]:
        """Score `clip` as it is: see `Scorer.forgetting` and `Scorer.retaining`."""
        return self.prepare(clip).score()


class Scorer:
    """A `Validation` on one model, with everything embedded once, at the weights of that moment.

    The concept's own pictures and all others are embedded apart, and the names of one kind apart from those of
    another: whether the concept is forgotten can then be asked alone, at a fraction of the cost.
    """

    def __init__(self, validation: Validation, clip: Clip) -> None:
        self.validation, self.clip = validation, clip
        self.kind = next(kind for kind, names in validation.names.items() if validation.forget in names)
        shown = [validation.forget in concept for concept in validation.pairs.concepts or ()]
        groups = {"forget": [k for k, s in enumerate(shown) if s], "rest": [k for k, s in enumerate(shown) if not s]}
        pairs = {group: validation.pairs[rows] for group, rows in groups.items()}
        self.pixels = {group: clip.pixels(some) for group, some in pairs.items() if len(some)}
        self.labels = {kind: labels(pairs["rest"], names) for kind, names in validation.names.items()}
        self.images = {group: self.embed(group) for group in self.pixels}
        self.classifiers = {kind: self.embed(kind) for kind in validation.names}
        self.kept: dict[str, Replay] = {}  # of what is asked once a layer: for the next, deeper layer to start from

    def embed(self, part: str) -> Tensor:
        """Unit vectors of one part with the model as it is: pictures of "forget" or "rest", or the names of a kind."""
        if part in self.pixels:
            return embed_images(self.clip, self.pixels[part])
        return zero_shot_classifier(self.clip, self.validation.names[part], self.validation.templates[part])

    def of_layer(self, layer: str) -> LayerScorer:
        """Scores after a change of `layer`, running only what such a change can reach."""
        return LayerScorer(self, layer)

    @torch.no_grad()
    def forgetting(self, images: Tensor | None = None, classifier: Tensor | None = None) -> dict[str, float]:
        """Is the concept still known? From embeddings: those given, else those of the moment this scorer was made.

        images: unit vectors (n, dim) of the concept's pictures; classifier: (names of its kind, dim).
        "forget_accuracy" in [0, 1]; "margin", the mean over pictures of (best other name's score - own score), in
        logits; "clearance", that mean in standard deviations over the pictures.
        """
        images = self.images["forget"] if images is None else images
        classifier = self.classifiers[self.kind] if classifier is None else classifier
        logits = (self.clip.logit_scale() * images @ classifier.T).float().cpu()
        own = self.validation.names[self.kind].index(self.validation.forget)
        return margin_scores(logits, own)

    @torch.no_grad()
    def retaining(
        self, images: Tensor | None = None, classifiers: Mapping[str, Tensor] | None = None
    ) -> dict[str, float]:
        """Is everything else still known? images: unit vectors (n, dim) of all other pictures; classifiers: by kind.

        For each kind its accuracy in [0, 1]; "retain_accuracy", the mean over kinds; "retain_loss", the mean over
        kinds of the cross-entropy of the right name, in nats: it tells apart what accuracies of 100 % do not.
        """
        images = self.images.get("rest") if images is None else images
        classifiers = self.classifiers if classifiers is None else classifiers
        if images is None:
            return {}
        scale = self.clip.logit_scale()
        return retained({
            kind: ((scale * images[rows.to(images.device)] @ classifiers[kind].T).float().cpu(), own)
            for kind, (rows, own) in self.labels.items() if len(rows)
        })  # fmt: skip

    def score(self) -> dict[str, float]:
        """All scores of the moment when this scorer was made."""
        return self.forgetting() | self.retaining()


KEPT = 1 << 30  # bytes of activations of each part that may be kept from one layer's search for the next


class LayerScorer:
    """Scores the model after changes of one layer, running only what such a change can reach.

    The other tower's embeddings are those of the scorer. In the layer's own tower the first call keeps the activations
    before the layer, which no change of it can touch, and later ones start from there: every call gives what
    `Validation` would give, bit for bit, for less. Nothing but this layer may change between the calls.
    """

    def __init__(self, scorer: Scorer, layer: str) -> None:
        self.scorer, self.vision = scorer, scorer.clip.tower(layer) == "vision"
        blocks = blocks_before(scorer.clip, layer)
        self.replays = {part: Replay(blocks) for part in (scorer.pixels if self.vision else scorer.validation.names)}

    def _embed(self, part: str, keep: bool = True) -> Tensor:
        replay = self.replays[part]
        if replay.outputs:
            with replay.play():
                return self.scorer.embed(part)
        if not keep:  # not for this layer again, but the next may lie behind it
            replay = Replay(replay.blocks, KEPT)
        start = self.scorer.kept.get(part)
        with start.play() if start is not None and start.begins(replay) else nullcontext(), replay.record():
            out = self.scorer.embed(part)
        if not keep and replay.outputs:
            self.scorer.kept[part] = replay
        return out

    def forgetting(self) -> dict[str, float]:
        """Is the concept still known? See `Scorer.forgetting`."""
        if self.vision:
            return self.scorer.forgetting(images=self._embed("forget"))
        return self.scorer.forgetting(classifier=self._embed(self.scorer.kind))

    def retaining(self, keep: bool = False) -> dict[str, float]:
        """Is everything else still known? See `Scorer.retaining`.

        Asked once a search, so that nothing is kept for a second time, unless keep=True; but the next search, in a
        layer behind this one, starts from what this one has seen.
        """
        if not self.vision:
            return self.scorer.retaining(classifiers={kind: self._embed(kind, keep) for kind in self.replays})
        return self.scorer.retaining(images=self._embed("rest", keep)) if "rest" in self.replays else {}

    def __call__(self) -> dict[str, float]:
        return self.forgetting() | self.retaining(keep=True)


def retained(answers: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Accuracies and loss of everything else, see `Scorer.retaining`; nothing where nothing was asked.

    answers: by kind the logits (pictures, names) and the positions of the right names (pictures,).
    """
    if not answers:
        return {}
    accuracy = {kind: logits.argmax(1).eq(own).float().mean().item() for kind, (logits, own) in answers.items()}
    loss = [F.cross_entropy(logits, own).item() for logits, own in answers.values()]
    return accuracy | {"retain_accuracy": sum(accuracy.values()) / len(loss), "retain_loss": sum(loss) / len(loss)}


def margin_scores(logits: Tensor, own: int) -> dict[str, float]:
    """Accuracy, margin and clearance of the name `own`, see `Scorer.forgetting`, from logits (pictures, names)."""
    others = [k for k in range(logits.shape[1]) if k != own]
    gap = logits[:, others].amax(1) - logits[:, own]
    mean, spread = gap.mean().item(), gap.std(correction=0).item()
    if not math.isfinite(mean):  # the step broke the model: that is not forgetting
        return {"forget_accuracy": 1.0, "margin": mean, "clearance": -math.inf}
    clearance = mean / spread if spread > 0 else math.copysign(math.inf, mean) if mean else 0.0
    return {"forget_accuracy": (gap <= 0).float().mean().item(), "margin": mean, "clearance": clearance}
