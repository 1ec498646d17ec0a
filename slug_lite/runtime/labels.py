"""Words that come with somebody else's file: what they may hold, and how they are shown."""

from __future__ import annotations

import re
import unicodedata

CONCEPT_LIMIT, NAME_LIMIT = 10_000, 300  # characters of what an edit forgets, and of a layer's name
_SHOWN = 120
_TAG = re.compile(r"<[a-zA-Z/!?][^<>]*>?")
# A word in angle brackets, as textual inversion has for what it learns ("<cat-toy>"): without attributes, and of a name
# that is no element's, it does nothing in a page, even where somebody forgets to escape it.
_WORD = re.compile(r"<([a-zA-Z][a-zA-Z0-9_-]*)>")
_ELEMENTS = """
    a abbr acronym address annotation-xml applet area article aside audio b base basefont bdi bdo bgsound big
    blink blockquote body br button canvas caption center cite code col colgroup command content data datalist
    dd del details dfn dialog dir div dl dt element em embed fencedframe fieldset figcaption figure font footer
    form frame frameset h1 h2 h3 h4 h5 h6 head header hgroup hr html i iframe image img input ins isindex kbd
    keygen label legend li link listing main map mark marquee math menu menuitem meta meter multicol nav nextid
    nobr noembed noframes noscript object ol optgroup option output p param picture plaintext portal pre
    progress q rb rbc rp rt rtc ruby s samp script search section select selectedcontent shadow slot small
    source spacer span strike strong style sub summary sup svg table tbody td template textarea tfoot th thead
    time title tr track tt u ul var video wbr xmp
"""
_JOINERS = "\u200c\u200d"  # scripts and emoji are written with them; the other format characters turn or hide text


def shown(text: object, most: int = _SHOWN) -> str:
    """A text for a line of output: shortened, with escapes for what is no printable character."""
    text = str(text)
    whole = len(text) <= most
    letters = (c if c.isprintable() or c in _JOINERS else repr(c)[1:-1] for c in text[:most])
    return "".join(letters) + ("" if whole else f"… ({len(text):,} characters)")


def check_label(text: object, what: str, most: int = NAME_LIMIT) -> str:
    """The text. ValueError for one that is empty, long, or holds what can deceive: control characters, tags of HTML.

    A word in angle brackets that is no element of HTML may be in it.
    """
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
    for tag in _TAG.findall(text):
        word = _WORD.fullmatch(tag)
        if word is None or word[1].lower() in _ELEMENTS.split():
            raise ValueError(f"{what}, {shown(text)!r}, holds {shown(tag)!r}, which reads as HTML; leave < and > out")
    return text
