"""What names of weights say: which tower, and what is no layer because it stands for positions, tokens or slots."""

import pytest
from small_clips import MAKERS, made

from slug_lite.runtime.names import is_slot, tower_of

SLOTS = [
    "visual.class_embedding", "visual.positional_embedding", "token_embedding.weight", "text.positional_embedding",
    "visual.trunk.pos_embed", "visual.trunk.cls_token", "visual.trunk.reg_token", "text.cls_emb",
    "visual.trunk.attn_pool.latent", "visual.attn_pool.query", "logit_scale", "logit_bias",
    "vision_model.embeddings.class_embedding", "vision_model.embeddings.position_embedding.weight",
    "text_model.embeddings.token_embedding.weight",
]  # fmt: skip
LAYERS = [
    "visual.conv1.weight", "visual.proj", "visual.transformer.resblocks.0.attn.in_proj_weight",
    "visual.head.proj.weight", "visual.trunk.patch_embed.proj.weight", "visual.attnpool.c_proj.weight",
    "visual.trunk.attn_pool.kv.weight", "vision_model.embeddings.patch_embedding.weight", "visual_projection.weight",
]  # fmt: skip
TEXT = [
    "text_projection", "text_projection.weight", "text.text_projection", "transformer.resblocks.1.mlp.c_fc.weight",
    "text.transformer.resblocks.1.mlp.c_fc.weight", "text_model.encoder.layers.0.mlp.fc1.weight",
]  # fmt: skip


def test_slots_are_no_layers_and_everything_else_is():
    assert [name for name in SLOTS if not is_slot(name)] == [] == [name for name in LAYERS + TEXT if is_slot(name)]


def test_towers():
    assert {tower_of(name) for name in LAYERS} == {"vision"} and {tower_of(name) for name in TEXT} == {"text"}
    slots = {tower_of(name) for name in SLOTS if "logit" not in name}
    assert slots == {"vision", "text"} and tower_of("logit_scale") is tower_of("logit_bias") is None


@pytest.mark.parametrize("kind", MAKERS)
def test_every_weight_of_every_kind_of_clip_is_in_a_tower(kind):
    names = list(made(kind).weights())
    assert {name for name in names if tower_of(name) is None} <= {"logit_scale", "logit_bias"}
    assert {"vision", "text"} <= {tower_of(name) for name in names}
