"""CLIP's text tower as a pipeline's text encoder: the same states, whatever the tower's numbers."""

import open_clip
import pytest
import torch
from small_pipelines import LAYERS, TOWERS, build, close, make, some_tokens, states

import slug_lite as slug
from slug_lite.diffusion.text_encoder import text_encoder_from


@pytest.mark.parametrize("kind", TOWERS)
@torch.no_grad()
def test_the_text_encoder_gives_the_towers_states(kind):
    clip = build(**TOWERS[kind])
    encoder, tokens = text_encoder_from(clip), some_tokens(clip)
    raw, normed = states(clip, tokens)
    out = encoder(tokens, output_hidden_states=True)
    assert not encoder.training and close(out.last_hidden_state, normed[-1])
    assert close(out.hidden_states[-2], raw[-2])
    projection = getattr(clip.model, "text", clip.model).text_projection
    assert close(out.pooler_output @ projection, clip.model.encode_text(tokens))
    shorter = text_encoder_from(clip, skip=1)
    assert close(shorter(tokens).last_hidden_state, normed[-2])
    assert not close(shorter(tokens).last_hidden_state, normed[-1], 1e-2)


@torch.no_grad()
def test_the_activation_is_the_towers():
    tokens = some_tokens(None)
    gelu, quick = (text_encoder_from(build(**TOWERS[kind])) for kind in ("gelu", "quick gelu"))
    assert gelu.config.hidden_act == "gelu" and quick.config.hidden_act == "quick_gelu"
    assert not close(gelu(tokens).last_hidden_state, quick(tokens).last_hidden_state, 1e-4)  # else a mix-up is not seen


@torch.no_grad()
def test_rounded_weights_and_weights_of_its_own(clip):
    encoder = text_encoder_from(clip, rounded=torch.float16)
    before = {n: w.clone() for n, w in encoder.named_parameters()}
    name = "encoder.layers.0.mlp.fc1.weight"
    assert torch.equal(before[name], clip.weights()["transformer.resblocks.0.mlp.c_fc.weight"].half().float())
    for weight in clip.weights().values():
        weight.copy_(weight.half().float())
    assert close(encoder(some_tokens(clip)).last_hidden_state, states(clip, some_tokens(clip))[1][-1])
    for weight in clip.weights().values():
        weight.add_(1)
    assert all(torch.equal(before[n], w) for n, w in encoder.named_parameters())
    half = slug.Clip(clip.model.bfloat16(), clip.tokenizer, None)
    assert text_encoder_from(half).dtype == torch.bfloat16


@torch.no_grad()
def test_mini_clips_text_encoder(mini):
    """As mini Stable Diffusion holds it: in half precision, as mini CLIP ships; then the same states in fp32."""
    encoder = text_encoder_from(mini, rounded=torch.float16)
    tokens = mini.tokens(["", "a portrait of Ada Sunfield", "a person with red hair and round glasses"])
    out, (raw, normed) = encoder(tokens, output_hidden_states=True), states(mini, tokens)
    assert close(out.last_hidden_state, normed[-1]) and close(out.hidden_states[-2], raw[-2])
    with make(mini, LAYERS[2]).on(encoder.half()):
        pass


def test_an_edit_that_is_on_goes_with_the_conversion(clip):
    edit = make(clip, LAYERS[2])
    with edit.on(clip):
        encoder = text_encoder_from(clip)
    name = "encoder.layers.1.self_attn.out_proj.weight"
    assert torch.equal(dict(encoder.named_parameters())[name], clip.weights()[LAYERS[2]] + edit.delta)


def test_towers_that_no_text_encoder_can_be():
    for text, message in (
        ({"no_causal_mask": True}, "not causal"), ({"pool_type": "last"}, "pools by 'last'"),
        ({"ls_init_value": 0.1}, "ls_1"), ({"embed_cls": True}, "cls_emb"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            text_encoder_from(build(open_clip.CustomTextCLIP, text=text))
    clip = build()
    with pytest.raises(ValueError, match="skip=2"):
        text_encoder_from(clip, skip=2)
    clip.model.transformer.resblocks[0].mlp.gelu = torch.nn.ReLU()
    with pytest.raises(ValueError, match="ReLU"):
        text_encoder_from(clip)


@torch.no_grad()
def test_the_pipeline_reads_a_caption_as_the_clip_does(clip, pipe):
    captions = ["a portrait of Ada Sunfield", "a cat, in Clay's style"]
    with make(clip).on(clip), make(clip).on(pipe):
        wanted = states(clip, clip.tokens(captions))[1][-1]
        assert close(pipe.encode_prompt(captions, "cpu", 1, False)[0], wanted)
