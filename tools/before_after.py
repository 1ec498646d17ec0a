"""Draw book/_static/before_after.png, the picture that README and front page open with."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("agg")

import slug_lite as slug
from slug_lite.book import plots
from slug_lite.runtime.zero_shot import embed_images

OUT = Path(__file__).parents[1] / "book" / "_static" / "before_after.png"
NAME, COLUMNS = "Ada Sunfield", 6
world = slug.toonworld


def guesses(clip: slug.Clip, pictures: slug.Pairs) -> list[str]:
    classifier = slug.zero_shot_classifier(clip, world.PEOPLE, world.templates("people", "test"))
    found = (embed_images(clip, clip.pixels(pictures)) @ classifier.T).argmax(1)
    return [world.PEOPLE[i] for i in found]


def main() -> None:
    clip = slug.load_clip("mini", device="cpu")
    edit = slug.unlearn(clip, NAME)
    people = [p for p in world.PEOPLE if p != NAME][:COLUMNS]

    def draw(size: int) -> slug.Pairs:
        shown = world.pairs(NAME, n=COLUMNS, seed=3, split="test", size=size)
        for person in people:
            shown = shown + world.pairs(person, n=1, seed=3, split="test", size=size)
        return shown

    seen, large = draw(64), draw(192)
    before = guesses(clip, seen)
    with edit.on(clip):
        after = guesses(clip, seen)
    titles, colors = [], []
    for truth, was, now in zip((c[0] for c in seen.concepts), before, after, strict=True):
        titles.append(f"before: {was.split()[0]}\nafter: {now.split()[0] if now != NAME or truth == NAME else now}")
        colors.append("black" if was == now else plots.COLORS[1])
    figure = plots.gallery(large, titles, columns=COLUMNS, colors=colors, width=8)
    figure.suptitle(f"Who does CLIP see, before and after forgetting {NAME}?", fontsize=13)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUT, dpi=120)
    print(OUT, list(zip(before, after, strict=True)))


if __name__ == "__main__":
    main()
