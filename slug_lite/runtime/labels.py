"""Words that come with somebody else's file: what they may hold, and how they are shown."""

from __future__ import annotations

import re
import unicodedata

CONCEPT_LIMIT, NAME_LIMIT = 10_000, 300  # characters of what an edit forgets, and of a layer's name
_SHOWN = 120
_TAG = re.compile(r"<[a-zA-Z/!?][^<>]*>?")
_JOINERS = "\u200c\u200d"  # scripts and emoji are written with them; the other format characters turn or hide text


def shown(text: object, most: int = _SHOWN) -> str:
    """A text for a line of output: shortened, with escapes for what is no printable character."""
    text = str(text)
    whole = len(text) <= most
    letters = (c if c.isprintable() or c in _JOINERS else repr(c)[1:-1] for c in text[:most])
    return "".join(letters) + ("" if whole else f"… ({len(text):,} characters)")


def check_label(text: object, what: str, most: int = NAME_LIMIT) -> str:
    """The text. ValueError for one that is empty, long, or holds what can deceive: control characters, tags of HTML."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{what} is {shown(repr(text))}; a text is needed")
    if len(text) > most:
        raise ValueError(f"{what} has {len(text):,} characters, {shown(text, 40)!r}; at most {most:,} are allowed")
    for place, letter in enumerate(text):
        if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") and letter not in _JOINERS:
            raise ValueError(
                f"{what}, {shown(text)!r}, holds the control character {letter!a} at place {place}; a line of "
                "plain text is allowed"
            )
    if tag := _TAG.search(text):
        raise ValueError(f"{what}, {shown(text)!r}, holds {shown(tag[0])!r}, which reads as HTML; leave < and > out")
    return text
