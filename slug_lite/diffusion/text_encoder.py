"""CLIP's text tower as the text encoder of a pipeline: the same states, in transformers' form."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from ..models import Clip
from ..runtime.text_towers import to_transformers

if TYPE_CHECKING:
    from transformers import CLIPTextModel

_ACTIVATIONS = {("GELU", "none"): "gelu", ("GELU", "tanh"): "gelu_pytorch_tanh", ("QuickGELU", None): "quick_gelu"}


def text_encoder_from(clip: Clip, *, rounded: torch.dtype | None = None, skip: int = 0) -> CLIPTextModel:
    """A Clip's text tower, as it is now, as the transformers.CLIPTextModel that gives the same states for a caption.

    rounded: round the weights to this dtype first, as torch.float16. They keep the Clip's own dtype and device.
    skip: how many blocks to leave out at the end; 1 as in Stable Diffusion 2, whose last state is CLIP's last but one.
    Returns it in eval mode, with weights of its own. Its last_hidden_state, (n, context length, width), is that after
    the final norm, pooler_output that of the end token. ValueError for towers that CLIPTextModel cannot be: not
    causal, with weights or an activation of another kind, or pooling otherwise.
    """
    from transformers import CLIPTextModel

    text = {n: w.detach() for n, w in clip.weights().items() if clip.tower(n) == "text" and "text_projection" not in n}
    config = clip.model.config.text_config if clip.of_transformers else _text_config(clip)
    depth = config.num_hidden_layers
    if not 0 <= skip < depth:
        raise ValueError(f"skip={skip}; the text tower has {depth} blocks, and at least one must stay")
    model = CLIPTextModel(type(config).from_dict({**config.to_dict(), "num_hidden_layers": depth - skip}))
    inner = getattr(model, "text_model", model)  # transformers 4 has one more level
    weights = {name: w.to(rounded or w.dtype).to(w.dtype) for name, w in to_transformers(text).items()}
    kept = {name: w for name, w in weights.items() if not _block(name) >= depth - skip}
    inner.load_state_dict(kept, strict=True)
    return model.to(clip.device, next(iter(text.values())).dtype).eval()


def _block(name: str) -> int:
    """The number of the block that a weight of a CLIPTextModel is in, -1 outside of them."""
    found = re.match(r"encoder\.layers\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _text_config(clip: Clip) -> Any:
    """The CLIPTextConfig of open_clip's text tower, its own or a custom one."""
    from transformers import CLIPTextConfig

    tower = getattr(clip.model, "text", clip.model)
    if not hasattr(tower, "transformer") or not hasattr(tower, "token_embedding"):
        raise ValueError(f"the text tower is a {type(tower).__name__}, not one of CLIP's kind")
    pool, eos = getattr(tower, "text_pool_type", None) or tower.pool_type, getattr(tower, "text_eos_id", None)
    if tower.attn_mask is None or pool not in ("argmax", "eos"):
        raise ValueError(
            f"the text tower {'is not causal' if tower.attn_mask is None else f'pools by {pool!r}'}; "
            "a CLIPTextModel is causal and takes the state of the end token"
        )
    block, (vocabulary, width) = tower.transformer.resblocks[0], tower.token_embedding.weight.shape
    kind = (type(block.mlp.gelu).__name__, getattr(block.mlp.gelu, "approximate", None))
    if kind not in _ACTIVATIONS:
        raise ValueError(f"the text tower's activation is {block.mlp.gelu}; GELU or QuickGELU are known")
    # open_clip's argmax takes the highest token, which is the end token; transformers asks for its number
    end = getattr(clip.tokenizer, "eot_token_id", vocabulary - 1) if pool == "argmax" else eos or tower.eos_id
    return CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=block.mlp.c_fc.out_features,
        num_hidden_layers=len(tower.transformer.resblocks), num_attention_heads=block.attn.num_heads,
        max_position_embeddings=len(tower.positional_embedding), hidden_act=_ACTIVATIONS[kind],
        layer_norm_eps=tower.ln_final.eps, bos_token_id=end - 1, eos_token_id=end, pad_token_id=0,
    )  # fmt: skip
