"""Padding is not run, and nothing changes but the time."""

import open_clip
import pytest
import torch
import torch.nn.functional as F
from small_clips import MAKERS, TEXT, made, of_open_clip

import slug_lite as slug
from slug_lite.runtime.short_texts import length, needed, short_texts

CAPTIONS = ["a cat", "a portrait of Ada Sunfield", "a drawing of a person with red hair and round glasses"]


def whole(clip, tokens):
    """By the model's own functions, the padding included."""
    if clip.of_transformers:
        return F.normalize(clip.model.get_text_features(input_ids=tokens).pooler_output, dim=-1)
    return F.normalize(clip.model.encode_text(tokens), dim=-1)


def seen(clip, tokens):
    """Lengths of the sequences that the blocks of the text tower are given."""
    lengths = []
    block = next(m for n, m in clip.model.named_modules() if clip.tower(f"{n}.") == "text" and n.endswith(".0"))
    hook = block.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    try:
        out = clip.text_features(tokens)
    finally:
        hook.remove()
    return out, lengths


@pytest.mark.parametrize("name", MAKERS)
def test_texts_are_cut_where_the_tower_allows_it_and_embeddings_stay(name):
    clip = made(name)
    tokens = clip.tokens(CAPTIONS)
    with torch.enable_grad():
        out, lengths = seen(clip, tokens)
        plain = whole(clip, tokens)
        assert torch.allclose(out, plain, atol=1e-6)
        layer = "text_model.encoder.layers.0.mlp.fc1.weight" if clip.of_transformers else None
        layer = layer or next(n for n in clip.weights() if clip.tower(n) == "text" and n.endswith("0.mlp.c_fc.weight"))
        ours, theirs = (torch.autograd.grad(x[:, 0].sum(), clip.weights()[layer])[0] for x in (out, plain))
    assert torch.allclose(ours, theirs, atol=1e-6) and ours.abs().max() > 0
    assert lengths == [24 if name == "siglip" else length(tokens)]
    assert not clip.model._forward_pre_hooks and length(tokens) < 24


def test_length_counts_up_to_the_first_end_token():
    padded, full = torch.tensor([[7, 3, 9, 0, 0], [7, 9, 9, 9, 9]]), torch.tensor([[7, 1, 2, 3, 9]])
    assert length(padded) == 3 and length(full) == 5
    assert length(padded, end=3) == 5  # the second row has none: nothing is cut
    assert length(torch.tensor([[7, 2, 9, 0], [2, 7, 9, 0]]), end=2) == 2


def test_a_tower_that_looks_ahead_is_left_alone(tiny):
    tokens = tiny.tokens(CAPTIONS)
    assert needed(tiny.model, tokens) < 24
    with torch.no_grad():
        before = whole(tiny, tokens)
        tiny.model.attn_mask.zero_()  # every position sees every other
        ahead = whole(tiny, tokens)
        with short_texts(tiny.model, tokens):
            assert torch.equal(tiny.model.encode_text(tokens), tiny.model.encode_text(tokens))
        assert torch.equal(tiny.text_features(tokens), ahead) and not torch.allclose(ahead, before, atol=1e-4)


def test_the_hook_comes_off_after_an_error(tiny):
    tokens = tiny.tokens(CAPTIONS)
    with pytest.raises(RuntimeError, match="stop"), short_texts(tiny.model, tokens):
        raise RuntimeError("stop")
    assert not tiny.model.transformer._forward_pre_hooks
    assert isinstance(tiny, slug.Clip)


def test_a_token_of_its_own_for_the_whole_text_is_not_cut_off():
    """CoCa reads an extra token behind all others."""
    vision = {"image_size": 32, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16}
    text = {**TEXT, "embed_cls": True, "no_causal_mask": False}
    clip = of_open_clip(open_clip.CustomTextCLIP, 32, vision_cfg=vision, text_cfg=text)
    tokens = clip.tokens(CAPTIONS)
    with torch.no_grad():
        assert needed(clip.model, tokens) == 24
        assert torch.allclose(clip.text_features(tokens), whole(clip, tokens), atol=1e-6)
