"""Edits on pipelines and text encoders: as on the CLIP, on and off in any order, and on no other model."""

import copy

import numpy as np
import open_clip
import pytest
import torch
from small_pipelines import (
    IN_PROJ,
    LAYERS,
    TEXT,
    VISION,
    build,
    close,
    make,
    of_transformers,
    picture,
    pipeline,
    same,
    some_tokens,
    state,
    states,
)  # fmt: skip

import slug_lite as slug
from slug_lite.diffusion.text_encoder import text_encoder_from
from slug_lite.runtime.stacks import STACKS
from slug_lite.runtime.text_towers import to_transformers

# ---- edits carried over


@pytest.mark.parametrize("layer", LAYERS)
@torch.no_grad()
def test_an_edit_on_the_pipeline_equals_the_edit_on_the_clip(clip, pipe, layer):
    tokens, edit = some_tokens(clip), make(clip, layer)
    before, plain = state(pipe), pipe.text_encoder(tokens).last_hidden_state
    with edit.on(pipe) as inside, edit.on(clip):
        assert inside is pipe
        found, wanted = pipe.text_encoder(tokens).last_hidden_state, states(clip, tokens)[1][-1]
    assert close(found, wanted) and not close(found, plain, 1e-3)
    assert same(state(pipe), before) and len(STACKS) == 0


@pytest.mark.parametrize("shape", ["Stable Diffusion 1.5", "Stable Diffusion 2.1"])
@torch.no_grad()
def test_full_width(shape, parts):
    """ViT-L/14's and ViT-H/14's text tower at full width, with few blocks and words; the latter without its last."""
    second = shape.endswith("2.1")
    width, heads, layers = (1024, 16, 3) if second else (768, 12, 2)
    text = {"vocab_size": 500, "width": width, "heads": heads, "layers": layers}
    clip = build(text=text, quick_gelu=not second, tokenizer=False)
    tokens = some_tokens(clip, 500)
    pipe = pipeline(parts, text_encoder_from(clip, skip=int(second)))
    assert pipe.text_encoder.config.hidden_act == ("gelu" if second else "quick_gelu")
    before, plain = state(pipe), pipe.text_encoder(tokens).last_hidden_state
    for layer in LAYERS[:5]:
        edit = make(clip, layer, size=0.02)
        with edit.on(pipe), edit.on(clip):
            raw, normed = states(clip, tokens)
            out = pipe.text_encoder(tokens, output_hidden_states=True)
        assert close(out.last_hidden_state, normed[-2 if second else -1]), layer
        assert close(out.hidden_states[-2], raw[-3 if second else -2]), layer
        assert not close(out.last_hidden_state, plain, 1e-3), layer
    if second:
        for layer in ("transformer.resblocks.2.mlp.c_fc.weight", "transformer.resblocks.2.attn.in_proj_weight"):
            for force in (False, True):
                with (
                    pytest.raises(ValueError, match=rf"{layer}.*blocks are 0 to 1"),
                    make(clip, layer).on(pipe, force=force),
                ):
                    pass
    assert same(state(pipe), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_pipelines(clip, parts, dtype):
    pipe = pipeline(parts, text_encoder_from(clip), dtype)
    edit, before = make(clip, LAYERS[2]), state(pipe)
    weight = pipe.text_encoder.get_parameter("encoder.layers.1.self_attn.out_proj.weight")
    wanted = weight.detach() + edit.delta.to(dtype)
    with edit.on(pipe):
        assert weight.dtype == dtype and torch.equal(weight, wanted) and pipe.text_encoder.dtype == dtype
        images = slug.generated_pairs(pipe, "a cat", 1, steps=1).images
    assert images.shape == (1, 16, 16, 3) and same(state(pipe), before)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_edits_nest_and_come_off_in_any_order(clip, pipe, order):
    """Two of the same fused tensor, one of another; the sums are those of the CLIP at every moment."""
    before = state(pipe)
    edits = [make(clip, seed=1), make(clip, seed=2), make(clip, LAYERS[2], seed=3)]
    contexts = [[edit.on(target) for target in (clip, pipe)] for edit in edits]
    for context in (c for pair in contexts for c in pair):
        context.__enter__()
    for k in order:
        for context in contexts[k]:
            context.__exit__(None, None, None)
        text = {n: w for n, w in clip.weights().items() if clip.tower(n) == "text" and n != "text_projection"}
        assert all(
            torch.equal(w, pipe.text_encoder.get_parameter(name)) for name, w in to_transformers(text).items()
        ), k
    assert same(state(pipe), before) and len(STACKS) == 0


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_everything_is_restored_after_an_exception(clip, pipe, error):
    weights = dict(pipe.text_encoder.named_parameters())
    kept = weights["encoder.layers.1.self_attn.k_proj.weight"]
    kept.grad = torch.ones_like(kept)
    pipe.unet.conv_in.weight.requires_grad_(False)
    before = state(pipe)
    with pytest.raises(error), make(clip).on(pipe):
        pipe.unet.train()
        pipe.text_encoder.train()
        pipe.unet.conv_in.weight.requires_grad_(True)
        pipe.text_encoder(some_tokens(clip)).last_hidden_state.sum().backward()
        with torch.no_grad():
            kept.mul_(2)
        raise error("stopped")
    assert same(state(pipe), before) and len(STACKS) == 0
    assert not pipe.unet.training and not pipe.text_encoder.training and not pipe.unet.conv_in.weight.requires_grad
    assert torch.equal(kept.grad, torch.ones_like(kept))
    assert all(w.grad is None for w in weights.values() if w is not kept)


def test_an_interrupt_between_queries_and_keys_leaves_nothing_behind(clip, pipe, monkeypatch):
    edit, before, calls = make(clip), state(pipe), []

    def interrupted(weight, delta):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return weight + delta

    monkeypatch.setattr("slug_lite.runtime.stacks.add_delta", interrupted)
    with pytest.raises(KeyboardInterrupt), edit.on(pipe):
        pass
    assert len(calls) >= 2 and same(state(pipe), before) and len(STACKS) == 0


def test_apply_and_revert(clip, pipe):
    edit, before = make(clip), state(pipe)
    edit.apply(pipe)
    value = pipe.text_encoder.get_parameter("encoder.layers.1.self_attn.v_proj.weight")
    assert torch.equal(value, clip.weights()[IN_PROJ][64:] + edit.delta[64:])
    with pytest.raises(ValueError, match="differ in block 1;"):
        edit.apply(pipe)  # the model is another one now
    edit.revert(pipe)
    for a, b in zip(state(pipe), before, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_merged_low_rank_and_saved_edits(clip, pipe, tmp_path):
    low = make(clip).low_rank(2)
    merged = slug.merge([make(clip), make(clip, LAYERS[2]), make(clip, LAYERS[3])])
    for edit in (low, merged):
        again = slug.Edit.load(edit.save(tmp_path / "edit.safetensors"))
        assert again.base == edit.base
        with again.on(pipe):
            one = state(pipe)
        with edit.on(pipe):
            assert same(state(pipe), one)


def test_the_text_encoder_alone_takes_edits_too(clip, pipe):
    before = state(pipe)
    with make(clip).on(pipe.text_encoder):
        assert not same(state(pipe), before)
    assert same(state(pipe), before)


@torch.no_grad()
def test_edits_found_in_one_library_go_on_in_the_other(clip, pipe):
    other, tokens = of_transformers(clip), some_tokens(clip)
    assert close(text_encoder_from(other)(tokens).last_hidden_state, pipe.text_encoder(tokens).last_hidden_state)
    name = "text_model.encoder.layers.0.self_attn.k_proj.weight"
    found, expected = make(other, name), clip.weights()["transformer.resblocks.0.attn.in_proj_weight"].clone()
    expected[32:64] += found.delta.float()
    with found.on(pipe), found.on(other), found.on(clip):
        assert torch.equal(clip.weights()["transformer.resblocks.0.attn.in_proj_weight"], expected)
        wanted = states(clip, tokens)[1][-1]
        assert close(pipe.text_encoder(tokens).last_hidden_state, wanted)
        assert close(other.model.text_model(tokens).last_hidden_state, wanted)
    with make(clip).on(other), make(clip).on(clip):
        assert close(other.model.text_model(tokens).last_hidden_state, states(clip, tokens)[1][-1])
    two = slug.merge([make(other, name), make(other, name.replace("k_proj", "v_proj"))])
    with two.on(clip):
        changed = clip.weights()["transformer.resblocks.0.attn.in_proj_weight"] - pipe_weights(pipe)
        assert changed[:32].abs().max() == 0 and changed[32:64].abs().max() > 0 and changed[64:].abs().max() > 0
    with (
        pytest.raises(ValueError, match=r"vision_model.*does not have"),
        make(other, "vision_model.encoder.layers.0.mlp.fc1.weight").on(clip),
    ):
        pass


def pipe_weights(pipe):
    return torch.cat([pipe.text_encoder.get_parameter(f"encoder.layers.0.self_attn.{x}_proj.weight") for x in "qkv"])


@torch.no_grad()
def test_an_edit_of_a_custom_text_tower(parts):
    clip = build(open_clip.CustomTextCLIP)
    pipe, tokens, edit = pipeline(parts, text_encoder_from(clip)), some_tokens(clip), make(clip, "text." + IN_PROJ)
    with edit.on(pipe), edit.on(clip):
        assert close(pipe.text_encoder(tokens).last_hidden_state, states(clip, tokens)[1][-1])
    found = make(of_transformers(clip), "text_model.encoder.layers.0.mlp.fc2.weight")
    with found.on(pipe), found.on(clip):
        assert close(pipe.text_encoder(tokens).last_hidden_state, states(clip, tokens)[1][-1])


# ---- which text tower is it?


def test_the_fingerprint_survives_names_and_precisions(clip, parts):
    base = slug.fingerprint(clip)
    half = slug.Clip(copy.deepcopy(clip.model).half(), clip.tokenizer, None)
    other = slug.Clip(open_clip.CustomTextCLIP(16, VISION, TEXT), None, None)
    other.model.text.load_state_dict(
        {n: w for n, w in clip.model.state_dict().items() if not n.startswith(("visual", "logit"))}
    )
    text = base.partition("-")[2]
    assert len(base) == 24 + 1 + 12 * 3
    for same_text in (half, other, of_transformers(clip)):
        assert slug.fingerprint(same_text).partition("-")[2] == text
    assert slug.fingerprint(other).partition("-")[0] != base.partition("-")[0]
    edit = make(clip)
    twice = text_encoder_from(clip, rounded=torch.float16).bfloat16()
    for encoder in (text_encoder_from(half), text_encoder_from(half).float(), twice, text_encoder_from(clip, skip=0)):
        with edit.on(pipeline(parts, encoder, encoder.dtype)):
            pass
    with edit.on(clip):
        assert slug.fingerprint(clip) == base


@pytest.mark.parametrize(
    "layer, part",
    [(LAYERS[1], "block 0"), (LAYERS[2], "block 1"), ("ln_final.bias", "final norm"), (LAYERS[7], "embeddings")],
)
def test_another_text_tower_is_refused_unless_told(clip, pipe, layer, part):
    edit = make(clip)
    make(clip, layer, seed=9).apply(pipe)
    before = state(pipe)
    with pytest.raises(ValueError, match=rf"text tower is not this one.*{part}.*force=True"), edit.on(pipe):
        pass
    with pytest.raises(ValueError, match="text tower is not this one"):
        edit.apply(pipe)
    assert same(state(pipe), before)
    with edit.on(pipe, force=True):
        assert not same(state(pipe), before)
    assert same(state(pipe), before)


def test_edits_that_do_not_say_which_text_tower(clip, pipe, tmp_path):
    """Files of before there were pipelines: on the CLIP as ever, on a pipeline only when told."""
    new = make(clip)
    old = slug.Edit(new.deltas, new.steps, "x", new.base.partition("-")[0])
    old = slug.Edit.load(old.save(tmp_path / "old.safetensors"))
    with old.on(clip):
        pass
    with pytest.raises(ValueError, match="does not say which"), old.on(pipe):
        pass
    before = state(pipe)
    with old.on(pipe, force=True):
        assert not same(state(pipe), before)
    assert slug.merge([old, new]).base == slug.merge([new, old]).base == new.base


# ---- what no edit goes on


def wrong_targets(pipe, clip):
    from diffusers import DDPMPipeline, StableDiffusionImg2ImgPipeline, StableDiffusionXLPipeline
    from transformers import CLIPTextModelWithProjection

    encoder, config = pipe.text_encoder, pipe.text_encoder.config
    shared = {"vae": pipe.vae, "unet": pipe.unet, "tokenizer": pipe.tokenizer, "scheduler": pipe.scheduler}
    yield (
        "StableDiffusionXLPipeline",
        StableDiffusionXLPipeline(
            **shared,
            text_encoder=encoder,
            text_encoder_2=CLIPTextModelWithProjection(config),
            tokenizer_2=pipe.tokenizer,
        ),
    )
    yield "DDPMPipeline", DDPMPipeline(unet=pipe.unet, scheduler=pipe.scheduler)
    yield (
        "Img2Img",
        StableDiffusionImg2ImgPipeline(
            **shared, text_encoder=encoder, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        ),
    )
    for message, text_encoder in (
        ("has no text_encoder", None), ("CLIPTextModelWithProjection", CLIPTextModelWithProjection(config)),
    ):  # fmt: skip
        yield message, pipeline(shared, text_encoder)
    yield "goes on a Clip", torch.nn.Linear(2, 2)
    yield "goes on a Clip", pipe.unet


def test_wrong_pipelines(clip, pipe):
    edit, before = make(clip), state(pipe)
    targets = list(wrong_targets(pipe, clip))
    assert len(targets) == 7
    for message, target in targets:
        for force in (False, True):
            with pytest.raises(ValueError, match=message), edit.on(target, force=force):
                pass
            with pytest.raises(ValueError, match=message):
                edit.apply(target, force=force)
        with pytest.raises(ValueError, match=message):
            edit.revert(target)
    assert same(state(pipe), before)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "layer", ["visual.proj", "visual.transformer.resblocks.0.mlp.c_fc.weight", "text_projection", "logit_scale"]
)
def test_layers_that_a_pipeline_does_not_have(clip, pipe, layer, force):
    before = state(pipe)
    both = slug.merge([make(clip), make(clip, layer)])
    for edit in (make(clip, layer), both):
        with pytest.raises(ValueError, match=rf"does not have '{layer}'.*freeze"), edit.on(pipe, force=force):
            pass
        with pytest.raises(ValueError, match=rf"does not have '{layer}'"):
            edit.apply(pipe, force=force)
    assert same(state(pipe), before) and len(STACKS) == 0


def test_other_shapes_and_kinds_of_weights(clip, parts):
    wide = build(text={"width": 48, "heads": 3})
    pipe = pipeline(parts, text_encoder_from(wide))
    before = state(pipe)
    with pytest.raises(ValueError, match=r"q_proj.weight' is \(32, 32\), the model's is \(48, 48\)"):
        make(clip).apply(pipe, force=True)
    assert same(state(pipe), before)
    edit = make(clip)
    for change, message in ((lambda w: w.to(torch.int8), "int8"), (lambda w: w.to("meta"), "meta device")):
        pipe = pipeline(parts, text_encoder_from(clip))
        layer = pipe.text_encoder.encoder.layers[1].self_attn.k_proj
        layer.weight = torch.nn.Parameter(change(layer.weight.detach()), requires_grad=False)
        with pytest.raises(ValueError, match=message), edit.on(pipe, force=True):
            pass


def test_unlearn_says_what_a_pipeline_needs(pipe):
    for target in (pipe, pipe.text_encoder):
        for unlearn, concept in ((slug.unlearn, "Ada Sunfield"), (slug.unlearn_several, ["Ada Sunfield", "Zorbo"])):
            with pytest.raises(ValueError, match=r"no vision tower.*unlearn_pipeline\(pipe, clip.*generated_pairs"):
                unlearn(target, concept, tower="text")


def test_pictures_show_the_edit(clip, pipe):
    plain = picture(pipe)
    with make(clip).on(pipe):
        assert not np.array_equal(picture(pipe), plain)
    assert np.array_equal(picture(pipe), plain)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(clip, pipe):
    pipe, edit = pipe.to("cuda"), make(clip)
    before = state(pipe)
    with edit.on(pipe):
        assert pipe.text_encoder.device.type == "cuda" and not same(state(pipe), before)
    assert same(state(pipe), before)
