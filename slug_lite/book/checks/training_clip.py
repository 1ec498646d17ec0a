"""Check of the appendix on training mini CLIP: which captions of a batch fit more than one of its pictures."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from ...pairs import Pairs
from ...world import toonworld
from .common import other_type, verdict


def _told(caption: str, concept: tuple[str, ...]) -> set[str]:
    """What of a picture its caption tells: a person or a character, and of a drawing what is named or described."""
    ways = {part: (part, toonworld.looks(part)) for part in concept}
    found = {part for part, own in ways.items() if any(re.search(rf"\b{re.escape(w)}\b", caption) for w in own)}
    return found if len(concept) > 1 and found else set(concept)


def _fits(pairs: Pairs) -> list[int]:
    """How many of the pictures each caption fits."""
    shown = [set(concept) for concept in pairs.concepts or ()]
    told = [_told(caption, tuple(c)) for caption, c in zip(pairs.captions, pairs.concepts or (), strict=True)]
    return [sum(own <= one for one in shown) for own in told]


@cache
def _drawn() -> Pairs:
    return toonworld.retain(n=160, seed=0)


def check_ex_batch(captions: Any, drawn: Any = None) -> str:
    """captions: how many of a batch's captions fit more than one of its pictures; drawn: the batch, if you drew one.

    Without it, an estimate for 160 pictures drawn at random is asked for, give or take a sixteenth of them.
    """
    if drawn is not None and not (isinstance(drawn, Pairs) and drawn.concepts):
        return f"drawn: {other_type(drawn, 'the pairs of the batch')}"
    pairs = _drawn() if drawn is None else drawn
    fits, alike = _fits(pairs), [tuple(concept) for concept in pairs.concepts]
    again = [alike.count(one) > 1 for one in alike]
    people = [twice and len(one) == 1 and one[0] in toonworld.PEOPLE for twice, one in zip(again, alike, strict=True)]
    right = sum(fit > 1 for fit in fits)
    also = f"of {len(fits)} captions; on average one fits {sum(fits) / len(fits):.1f} pictures"
    mistakes = {
        'captions of pictures that show the very same alone: "a dog" fits a dog in every style': sum(again),
        "people alone: characters, objects and styles appear more than once too": sum(people),
        "how many people and characters there are, not how many captions": len({a for a in alike if len(a) == 1}),
        "the captions that fit one picture alone": sum(fit == 1 for fit in fits),
        "all of them: a caption that names an object and a style fits one picture alone": len(fits),
        "a share, where a number of captions is asked for": right / len(fits),
        "how many pictures a caption fits, not how many captions": sum(fits) / len(fits),
        "pairs of a caption and a picture, not captions": sum(fits),
    }
    give = len(fits) / 16 if drawn is None else 1.5
    return verdict(captions, right, mistakes, wanted="a number of captions", rel=0.0, abs_=give, also=also)
