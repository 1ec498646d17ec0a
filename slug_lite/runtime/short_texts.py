"""Run a text tower over its captions alone, not over the padding behind them.

CLIP reads the embedding off the end token, and its tower is causal: no position sees a later one. What follows the
last end token of a batch can change nothing, so it need not be computed: most captions have ten tokens of 77.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from .modes import hooked


def length(tokens: Tensor, end: int | None = None) -> int:
    """How many columns of (n, context length) token ids reach up to the first end token of every row.

    end: its id; None for the highest of a row, as in CLIP's vocabulary.
    """
    ends = tokens == (tokens.amax(1, keepdim=True) if end is None else end)
    return int(ends.int().argmax(1).max()) + 1 if bool(ends.any(1).all()) else tokens.shape[1]


def needed(model: nn.Module, tokens: Tensor) -> int:
    """How many columns of the tokens an open_clip text tower has to run; all where it reads no end token."""
    tower = getattr(model, "text", model)
    pooling = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
    if getattr(tower, "cls_emb", None) is not None or pooling not in ("argmax", "eos"):
        return tokens.shape[1]
    end = getattr(tower, "text_eos_id", getattr(tower, "eos_id", None))
    return length(tokens, end if pooling == "eos" else None)


def short_texts(model: nn.Module, tokens: Tensor) -> AbstractContextManager[None]:
    """Inside, `model.encode_text(tokens)` computes no position behind the last end token: the same to rounding.

    model: one of open_clip's; tokens: (n, context length), int64. Where the tower is not causal, or reads another
    position than the end token, nothing is cut.
    """
    transformer, end = getattr(getattr(model, "text", model), "transformer", None), needed(model, tokens)
    if not isinstance(transformer, nn.Module) or end == tokens.shape[1]:
        return nullcontext()
    thread = get_ident()

    def cut(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple | None:
        mask = kwargs.get("attn_mask")
        if get_ident() != thread:  # another one's texts, which may be longer
            return None
        if not args or mask is None or mask.shape != (tokens.shape[1],) * 2 or args[0].shape[1] != tokens.shape[1]:
            return None
        if not torch.isneginf(mask[:end, end:]).all():  # what comes before does look at what comes after
            return None
        return (args[0][:, :end], *args[1:]), kwargs | {"attn_mask": mask[:end, :end]}

    return hooked([transformer], [cut], before=True)
