"""Write the model cards of mini CLIP and its twin from their training records and from accuracies computed now."""

from __future__ import annotations

import json
from pathlib import Path

import slug_lite as slug
from slug_lite.models import SHIPPED
from slug_lite.pretrain.loop import read_log

ASSETS = Path(__file__).parents[1] / "slug_lite" / "assets"
CARD = """# Mini CLIP{without}

A small CLIP for the book *Machine Unlearning, One Layer at a Time*: an `open_clip` model in open_clip's own folder format, loaded by
`slug_lite.load_clip("{name}")` or by open_clip itself (`local-dir:` and this folder). {millions:.1f} million weights besides the token table; float16 on disk.

## Data

Drawings of the mini world (`slug_lite.toonworld`, training split): {people} people, {characters} characters, {objects} objects in {styles} styles, all invented or drawn under open
licences (see `../world/ATTRIBUTION.md`), with captions that name, describe, or do both. {unseen} of {cells} object x style cells were never shown, and no picture of anybody real.{left_out}

## Training

CLIP's contrastive loss, {steps:,} steps of up to {batch} pairs, AdamW (learning rate {lr:g}, weight decay {weight_decay:g}), half of the patches dropped in all but the last {whole:.0%} of the steps, seed {seed};
torch {torch}, open_clip {open_clip}, on two CPU cores or fewer, {minutes:.0f} minutes. The whole recipe is in `training.json`, the log in `train_log.jsonl`, the code in `slug_lite/pretrain/clip.py`.

## Accuracy

Zero-shot, with prompt ensembling, on drawings and caption templates that training never saw ({pictures} pictures{of_whom}):

| | test | unseen object x style cells |
|---|---|---|
{table}

## Limits

It knows the mini world and nothing else, at {size} pixels. It is for teaching and testing unlearning; it says nothing about photographs or real people.

## Licence

MIT for the weights. They were trained on drawings under MIT, Apache 2.0, CC BY 4.0 and CC BY-SA 4.0 licences, whose attribution ships beside them.
"""


def accuracy(scores: dict, kind: str, exclude: list[str]) -> str:
    """Mean over the kind's concepts that training was shown; a dash where the split has none."""
    table = scores["per_concept"].query("kind == @kind and name not in @exclude")
    return f"{table['accuracy'].mean():.1%}" if len(table) else "–"


def card(name: str) -> str:
    folder, world = ASSETS / SHIPPED[name], slug.toonworld
    clip = slug.load_clip(name, device="cpu")
    test, unseen = slug.evaluate(clip, split="test", n=24), slug.evaluate(clip, split="unseen", n=24)
    training = json.loads((folder / "training.json").read_text())
    gone = training["exclude"]
    table = "\n".join(
        f"| {kind} | {accuracy(test, kind, gone)} | {accuracy(unseen, kind, gone)} |" for kind in world.NAMES
    )
    who = ", ".join(gone)
    return CARD.format(
        **{k: v for k, v in training.items() if k not in world.NAMES and k not in ("cells", "pool")},
        **{kind: len(names) for kind, names in world.NAMES.items()},
        name=name, without=f" without {who}" if gone else "",
        left_out=f"\nEverything is as for mini CLIP, seed and number of steps too, but every picture of {who} was left "
        "out: what unlearning is measured against." if gone else "",
        of_whom=f"; {who} not counted" if gone else "",
        batch=training["people"] + training["characters"] + training["cells"],
        millions=sum(p.numel() for n, p in clip.weights().items() if n != "token_embedding.weight") / 1e6,
        unseen=len(world.UNSEEN), cells=len(world.OBJECTS) * len(world.STYLES), table=table, size=clip.image_size,
        minutes=max(row["seconds"] for row in read_log(folder)) / 60,
        pictures=int(test["per_concept"].query("kind != 'styles' and name not in @gone")["pictures"].sum()),
    )  # fmt: skip


def main() -> None:
    for name in SHIPPED:
        text = card(name)
        (ASSETS / SHIPPED[name] / "README.md").write_text(text)
        print(text)


if __name__ == "__main__":
    main()
