"""Captions as people have them: columns of tables, arrays, tuples; and what of them a model reads."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from torch import Tensor

from .broken import warn_one_colour

if TYPE_CHECKING:
    from ..models import Clip
    from ..pairs import Pairs


def as_captions(captions: Iterable[str]) -> list[str]:
    """A list of strings, in the order in which they are given: a Series is taken by position, not by its index.

    ValueError for a bare string, and for what is not a string, by its position.
    """
    wanted = "captions must be a list of strings, one for each image"
    if isinstance(captions, (str, bytes)) or not isinstance(captions, Iterable):
        raise ValueError(f"captions are {captions!r}; {wanted}")
    found = list(captions.tolist() if hasattr(captions, "tolist") else captions)
    bad = [k for k, caption in enumerate(found) if not isinstance(caption, str)]
    if bad:
        raise ValueError(f"caption {bad[0]} is {found[bad[0]]!r}, {len(bad)} of {len(found)} are no strings; {wanted}")
    return [str(caption) for caption in found]


@lru_cache(maxsize=1 << 14)
def fold(text: str) -> str:
    """A text as it is compared: without case, accents composed (NFC), runs of spaces, "_" and "-" as one space."""
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return re.sub(r"[\s_\-]+", " ", text).strip()


class Reader:
    """How much of a text a tokenizer reads: tokens: texts -> ids (n, context length)."""

    def __init__(self, tokens: Callable[[Sequence[str]], Tensor]) -> None:
        self.tokens = tokens
        nothing, much = tokens(["", "a " * 2 * tokens([""]).shape[1]])
        self.padding = nothing[-1]
        self.empty, self.most = self.used(nothing), self.used(much)
        self.length = lru_cache(maxsize=None)(lambda word: self.used(self.tokens([word])[0]) - self.empty)

    def used(self, row: Tensor) -> int:
        """How many tokens there are in a row before its padding."""
        said = (row != self.padding).nonzero()
        return int(said.max()) + 1 if len(said) else 0

    def too_long(self, text: str) -> bool:
        """Is a text cut? Its words are counted one by one, as a cut row does not say how much is missing."""
        return self.empty + sum(self.length(word) for word in text.split()) > self.most

    def cut(self, captions: Sequence[str]) -> list[str]:
        """The captions that are cut."""
        full = [
            caption for caption, row in zip(captions, self.tokens(captions), strict=True)
            if self.used(row) >= self.most
        ]  # fmt: skip
        return [caption for caption in full if self.too_long(caption)]


def check_read(clip: Clip, forgets: Sequence[Pairs], retain: Pairs) -> None:
    """ValueError where a caption to forget is cut before it has named its concept.

    Warnings count captions that are cut, and retain pictures of one colour (in forget sets they are refused before).
    """
    warn_one_colour(retain.images, "pictures of the retain set")
    reader, counts = Reader(clip.tokens), list[str]()
    for what, pairs in (*(("forget", some) for some in forgets), ("retain", retain)):
        cut = reader.cut(pairs.captions)
        names = set.intersection(*map(set, pairs.concepts)) if pairs.concepts and what == "forget" else set()
        lost = [caption for caption in cut if any(_falls_off(reader, caption, name) for name in names)]
        if lost:
            raise ValueError(
                f"{len(lost)} of {len(pairs)} forget captions name {' + '.join(sorted(names))} only behind what the "
                f"model reads, {reader.most} tokens; shorten them, for instance {lost[0][:200]!r}"
            )
        counts += [f"{len(cut)} of {len(pairs)} {what} captions"] if cut else []
    if counts:
        warnings.warn(f"longer than the {reader.most} tokens that are read, and cut: {', '.join(counts)}", stacklevel=3)


def _falls_off(reader: Reader, caption: str, name: str) -> bool:
    """Does the caption say the name, in whatever spelling, but not within what is read?"""
    ways = {fold(name), re.sub(r"[\s_\-]+", " ", unicodedata.normalize("NFC", name)).strip()}  # "ß" is folded to "ss"
    spelt = "|".join(re.escape(way).replace("\\ ", r"[\s_\-]+") for way in sorted(ways))
    text = unicodedata.normalize("NFC", caption)
    first = re.search(rf"(?<!\w)(?:{spelt})(?!\w)", text, re.IGNORECASE)
    return first is not None and reader.too_long(text[: first.end()])
