"""How large a picture and how long a caption may be: beyond it one of them alone takes gigabytes, or seconds."""

from __future__ import annotations

from collections.abc import Iterable

PIXELS = 1 << 26  # 8192 x 8192, 200 MB once it is decoded
RATIO = 32  # of the longer side to the shorter, which is scaled to the model's: the longer one grows with it
LETTERS = 2_000  # CLIP reads 77 tokens; a word is put together from its letters in time that grows with their square


def check_size(size: tuple[int, int], which: str, kind: str | None = None) -> None:
    """ValueError for a picture of more pixels or longer than what is stated above, before it is decoded.

    kind: its format. One in PostScript is a program, which PIL hands to an interpreter: it is refused.
    """
    if kind == "EPS":
        raise ValueError(f"{which} is PostScript, a program that draws; give what it draws, as PNG")
    width, height = size
    if width * height > PIXELS:
        raise ValueError(f"{which} has {width} x {height} pixels; at most {PIXELS:,} are read, scale it down")
    if max(size) > RATIO * min(size):
        raise ValueError(f"{which} has {width} x {height} pixels; sides up to {RATIO} to 1 are read, crop it")


def cut(captions: Iterable[str]) -> list[str]:
    """Captions as a tokenizer gets them: of a long one the first `LETTERS` characters, runs of spaces as one."""
    return [" ".join(c[: 10 * LETTERS].split())[:LETTERS] if len(c) > LETTERS else c for c in captions]
