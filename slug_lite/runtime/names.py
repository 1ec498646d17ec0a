"""What the names of weights say, in open_clip's models and in transformers'."""

from __future__ import annotations

# How names of weights begin in open_clip's models (of its own and custom text towers) and in transformers.CLIPModel
_VISION = ("visual.", "vision_model.", "visual_projection.")
_TEXT = (
    "text.", "transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection", "text_model.",
)  # fmt: skip
# Parts of names of tensors that stand for positions, tokens or slots: not layers in the sense of the method
NOT_LAYERS = ("embedding", "pos_embed", "cls_token", "reg_token", "cls_emb", "latent", "logit_", "attn_pool.query")
STILL_LAYERS = ("patch_embedding",)  # transformers' name of the first convolution


def tower_of(name: str) -> str | None:
    """ "vision" or "text": the tower that a weight belongs to; None for what both share, as the logit scale."""
    if name.startswith(_VISION):
        return "vision"
    return "text" if name.startswith(_TEXT) else None


def is_slot(name: str) -> bool:
    """Does the tensor stand for positions, tokens or slots, so that it is no layer in the sense of the method?"""
    return any(part in name for part in NOT_LAYERS) and not any(part in name for part in STILL_LAYERS)
