"""When does the search stop, and on how many fronts? The published rules beside the margin, on one half of the world.

python tools/measure_rules.py development     36 concepts; about forty minutes on one core; goes on where it stopped
python tools/measure_rules.py report          the other half, measured once, after the choice was made on the first

The rules: "top-1", none of the validation pictures is recognised, the paper's; "top-5 of its kind" and "top-5 of all",
the name is among the best five for none, among those of its kind or among all 72, the released code's (which asks among
some ten thousand names of people); "margin", none is recognised and the mean margin is four standard deviations wide.
Each on the first front alone, as published, and on up to three where every layer of the front costs too much.

Gradients are taken once for all of a concept's rows, and no try is scored twice. Both halves have forget set, retain
set and validation pictures of their own seed, and are reported on pictures of a third and captions of the split "test".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

import torch
from fresh_pictures import EVERY, Report, clip, world
from measuring import Measurement, Unit, options, run

import slug_lite as slug
from slug_lite.algorithm import best_edit, candidate_fronts
from slug_lite.runtime.zero_shot import embed_images
from slug_lite.validation import Scorer, Validation, margin_scores
from slug_lite.world import evaluation
from slug_lite.world.tasks import task

HALVES = {"development": world.DEVELOPMENT, "report": world.REPORT}
SEEDS = {"development": 20, "report": 30}  # of forget set, retain set and validation
PICTURED = {"development": 2020, "report": 3030}  # of the pictures that are reported on
PICTURES = 96
RULES = {"top-1": "top1", "top-5 of its kind": "top5", "top-5 of all": "top5", "margin": "margin"}
FRONTS = (1, 3)


class Remembering(Scorer):
    """A scorer that has scored every try once: what a layer's weight gave is kept by the weight's bytes.

    everywhere: "forget_accuracy5" is among the names of all kinds, and not of the concept's own.
    """

    def __init__(self, validation: Validation, clip: slug.Clip) -> None:
        super().__init__(validation, clip)
        self.layer, self.everywhere, self.known = None, False, dict[tuple, dict[str, float]]()

    def at(self, layer: str) -> Remembering:
        other = super().at(layer)
        other.layer = layer
        return other

    def asked(self, what: str, score: Callable[[], dict[str, float]]) -> dict[str, float]:
        weight = b"" if self.layer is None else self.clip.weights()[self.layer].detach().numpy().tobytes()
        key = (what, self.layer, hashlib.sha256(weight).hexdigest())
        if key not in self.known:
            self.known[key] = score()
        return self.known[key]

    def forgetting(self) -> dict[str, float]:
        scores = self.asked("forget", self.both)
        return scores | ({"forget_accuracy5": scores["all5"]} if self.everywhere else {})

    def both(self) -> dict[str, float]:
        """The scores among its kind, and as "all5" FA@5 among the names of all kinds."""
        names = self.validation.names
        before = sum(len(names[kind]) for kind in list(names)[: list(names).index(self.kind)])
        every = self.logits(self.embed("forget"), torch.cat([self.embed(kind) for kind in names]))
        among = margin_scores(every, before + names[self.kind].index(self.validation.forget))
        return super().forgetting() | {"all5": among["forget_accuracy5"]}

    def retaining(self, keep: bool = False) -> dict[str, float]:
        return self.asked("retain", lambda: super(Remembering, self).retaining(True))

    on_the_rest = retaining


@cache
def report(half: str) -> Report:
    return Report(seed=PICTURED[half])


@torch.no_grad()
def known(name: str, half: str) -> dict[str, float]:
    """Shares of fresh pictures: left, named rightly; top5 and all5, the name among the best five of kind and of all."""
    pictures = clip().pixels(world.pairs(name, PICTURES, PICTURED[half], "test"))
    words = [slug.zero_shot_classifier(clip(), names, world.templates(k, "test")) for k, names in world.NAMES.items()]
    logits = clip().logit_scale() * embed_images(clip(), pictures) @ torch.cat(words).T
    kind = [EVERY.index(one) for one in world.NAMES[world.kind_of(name)]]
    own, among = margin_scores(logits[:, kind], kind.index(EVERY.index(name))), margin_scores(logits, EVERY.index(name))
    return {
        "left": round(own["forget_accuracy"], 4), "top5": round(own["forget_accuracy5"], 4),
        "all5": round(among["forget_accuracy5"], 4),
    }  # fmt: skip


def forget(name: str, half: str) -> list[dict]:
    """The rows of one concept: each rule, on one front and on up to three."""
    asked, rows = task(name, seed=SEEDS[half]), []
    gradients, scorer = slug.one_shot_gradients(clip(), asked.forget, asked.retain), Remembering(asked.validate, clip())
    for rule, by in RULES.items():
        scorer.everywhere = rule == "top-5 of all"
        for fronts in FRONTS:
            search = slug.StepSearch(rule=by, fronts=fronts)
            about = {"name": name, "kind": world.kind_of(name), "rule": rule, "fronts": fronts}
            layers = candidate_fronts(search, None, gradients.stats)
            try:
                edit = best_edit(clip(), name, scorer, gradients.forget, layers, search)
            except slug.NothingForgets as error:
                rows.append(about | {"layer": None, "evaluations": len(error.trace)})
                continue
            with edit.on(clip()):
                left = known(name, half)
            lost = evaluation.drop(report(half).before, report(half).after(edit), name)
            weight = clip().weights()[edit.layer]
            rows.append(about | left | {f"lost_{k}": round(v, 3) for k, v in lost.items()} | {
                "layer": edit.layer, "step": round(edit.step, 5),
                "relative": round((edit.delta.float().norm() / weight.norm()).item(), 4),
                "evaluations": len(edit.trace), "fulfilled": edit.report.all_reached,
            })  # fmt: skip
    return rows


def main() -> None:
    parser = options(Path(__file__))
    parser.add_argument("half", choices=list(HALVES))
    given = parser.parse_args()
    half = given.half
    settings = {
        "half": half, "seed": SEEDS[half], "pictured": PICTURED[half], "pictures": PICTURES,
        "default": asdict(slug.StepSearch()),  # the choice, as it stands in the commit that is stated
    }  # fmt: skip
    units = [Unit((name,), partial(forget, name, half)) for names in HALVES[half].values() for name in names]
    run(Measurement(f"rules_{half}", Path(__file__), settings), units, given=given)


if __name__ == "__main__":
    main()
