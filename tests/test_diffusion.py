"""Pipelines: the text tower in two libraries' terms, edits carried over, loading, and pictures that they draw."""

import copy
import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

import slug_lite as slug
from slug_lite import edit as E
from slug_lite.diffusion import picture_seed, text_encoder_from
from slug_lite.text_tower import to_open_clip, to_transformers

IN_PROJ = "transformer.resblocks.1.attn.in_proj_weight"
LAYERS = [
    "transformer.resblocks.0.attn.in_proj_weight", "transformer.resblocks.0.attn.in_proj_bias",
    "transformer.resblocks.1.attn.out_proj.weight", "transformer.resblocks.0.mlp.c_fc.weight",
    "transformer.resblocks.1.mlp.c_proj.weight", "transformer.resblocks.1.ln_1.weight", "ln_final.bias",
    "token_embedding.weight", "positional_embedding",
]  # fmt: skip
VISION = {"image_size": 32, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}


def build(maker=open_clip.CLIP, seed=3, tokenizer=True, **cfg):
    """A CLIP whose biases and norms are random too: zeros and ones would hide what is mixed up."""
    torch.manual_seed(seed)
    model = maker(embed_dim=16, vision_cfg=VISION, text_cfg={**TEXT, **cfg.pop("text", {})}, **cfg).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1 or "token_embedding" in name or "positional" in name:
                p.add_(0.3 * torch.randn_like(p))
    return slug.Clip(model, open_clip.SimpleTokenizer(context_length=24) if tokenizer else None, None)


@pytest.fixture(scope="module")
def _clip():
    return build()


@pytest.fixture
def clip(_clip):
    return slug.Clip(copy.deepcopy(_clip.model), _clip.tokenizer, None)


@pytest.fixture(scope="module")
def parts():
    """What a pipeline has besides its text encoder, tiny and random, for texts of width 32."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTokenizer

    torch.manual_seed(5)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, cross_attention_dim=32,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, sample_size=16, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    words = open_clip.SimpleTokenizer(context_length=24)
    vocabulary = {**words.encoder, "<|startoftext|>": 49406, "<|endoftext|>": 49407}
    del vocabulary["<start_of_text>"], vocabulary["<end_of_text>"]
    merges = sorted(words.bpe_ranks, key=words.bpe_ranks.get)
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token="!", model_max_length=24)
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    return {"unet": unet.eval(), "vae": vae.eval(), "tokenizer": tokenizer, "scheduler": scheduler}


def pipeline(parts, encoder, dtype=torch.float32):
    from diffusers import StableDiffusionPipeline

    models = {key: copy.deepcopy(part) for key, part in parts.items()}
    pipe = StableDiffusionPipeline(
        **models, text_encoder=encoder, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(dtype)


@pytest.fixture
def pipe(clip, parts):
    return pipeline(parts, text_encoder_from(clip))


def make(clip, layer=IN_PROJ, seed=0, size=0.3):
    weight, torch_seed = clip.weights()[layer], torch.Generator().manual_seed(seed)
    delta = size * torch.randn(weight.shape, generator=torch_seed)
    return slug.Edit({layer: delta.half()}, {layer: 1.5}, "Ada Sunfield", slug.fingerprint(clip))


def state(pipe):
    models = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return [t.clone() for model in models for t in model.state_dict().values()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@torch.no_grad()
def states(clip, tokens):
    """What every block of open_clip's text tower hands on, each after the final norm too, written out."""
    tower = getattr(clip.model, "text", clip.model)
    x, raw = tower.token_embedding(tokens) + tower.positional_embedding, []
    for block in tower.transformer.resblocks:
        x = block(x, attn_mask=tower.attn_mask)
        raw.append(x)
    return raw, [tower.ln_final(x) for x in raw]


def some_tokens(clip, vocabulary=49408):
    """Three captions of different lengths, as open_clip pads them."""
    tokens = torch.zeros(3, 24, dtype=torch.long)
    for row, length in enumerate((2, 9, 24)):
        tokens[row, :length] = torch.randint(1, vocabulary - 2, (length,), generator=torch.Generator().manual_seed(row))
        tokens[row, length - 1] = vocabulary - 1
    return tokens


def close(a, b, tolerance=1e-5):
    return (a - b).abs().max().item() <= tolerance


TOWERS = {
    "gelu": {}, "quick gelu": {"quick_gelu": True}, "custom": {"maker": open_clip.CustomTextCLIP},
    "end of text": {"text": {"pool_type": "eos", "eos_id": 49407}},
    "other numbers": {"text": {"norm_kwargs": {"eps": 1e-2}, "mlp_ratio": 2.0, "heads": 4}},
}  # fmt: skip


# ---- the same tower in both libraries


@pytest.mark.parametrize("kind", TOWERS)
def test_names_and_tensors_there_and_back(kind):
    clip = build(**TOWERS[kind])
    prefix = "text." if kind == "custom" else ""
    text = {n: w for n, w in clip.weights().items() if clip.tower(n) == "text" and "projection" not in n}
    there = to_transformers(text)
    assert set(there) == set(dict(text_encoder_from(clip).named_parameters()))
    width = clip.weights()[prefix + "token_embedding.weight"].shape[1]
    q, k, v = (there[f"encoder.layers.1.self_attn.{letter}_proj.weight"] for letter in "qkv")
    assert q.shape == k.shape == v.shape == (width, width)
    assert torch.equal(torch.cat([q, k, v]), clip.weights()[prefix + IN_PROJ])
    back = to_open_clip(there, prefix)
    assert back.keys() == text.keys() and all(torch.equal(back[n], text[n]) for n in text)
    older = to_transformers({f"text_model.{n}": w for n, w in there.items()})
    assert older.keys() == there.keys()
    alone = to_open_clip({"text_model.encoder.layers.1.self_attn.k_proj.weight": k})
    assert torch.equal(alone[IN_PROJ], torch.cat([torch.zeros_like(q), k, torch.zeros_like(v)]))


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
    assert same(state(pipe), before) and len(E._STACKS) == 0


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
    assert same(state(pipe), before) and len(E._STACKS) == 0


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
    assert same(state(pipe), before) and len(E._STACKS) == 0
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

    monkeypatch.setattr("slug_lite.edit.add_delta", interrupted)
    with pytest.raises(KeyboardInterrupt), edit.on(pipe):
        pass
    assert len(calls) >= 2 and same(state(pipe), before) and len(E._STACKS) == 0


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


def of_transformers(clip):
    """A transformers.CLIPModel with the CLIP's text tower, and names of its own."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(4)
    encoder = text_encoder_from(clip)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=encoder.config.to_dict(), vision_config={**vision, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )  # fmt: skip
    model = CLIPModel(config)
    model.text_model.load_state_dict(encoder.state_dict())
    return slug.Clip.from_transformers(model, None)


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
    assert len(base) == 16 + 1 + 4 * 3
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
        yield message, pipeline({k: v for k, v in shared.items()}, text_encoder)
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
    assert same(state(pipe), before) and len(E._STACKS) == 0


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
        with pytest.raises(ValueError, match=r"no vision tower.*tower=\"text\".*generated_pairs"):
            slug.unlearn(target, "Ada Sunfield", tower="text")


# ---- loading


@pytest.fixture(scope="module")
def _saved(_clip, parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    pipeline(parts, text_encoder_from(_clip, rounded=torch.float16), torch.float16).save_pretrained(folder)
    return folder


@pytest.fixture
def saved(_saved, tmp_path):
    shutil.copytree(_saved, tmp_path / "pipe")
    return tmp_path / "pipe"


def picture(pipe):
    return slug.generated_pairs(pipe, "a cat", 2, steps=2).images


def hub_cache(folder, cache, name="someone/tiny-sd"):
    """The layout of the hub's cache: refs/main names a snapshot, whose files are links into blobs."""
    repo, commit = cache / f"models--{name.replace('/', '--')}", "0" * 40
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    for k, file in enumerate(sorted(f for f in folder.rglob("*") if f.is_file())):
        link, blob = repo / "snapshots" / commit / file.relative_to(folder), repo / "blobs" / str(k)
        for place in (link, blob):
            place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link.symlink_to(blob)
    return name


def test_saved_and_reloaded(clip, parts, saved, tmp_path, monkeypatch):
    wanted = pipeline(parts, text_encoder_from(clip)).to(torch.float16).to(torch.float32)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    name, edit = hub_cache(saved, tmp_path / "cache"), make(clip)
    plain, at = picture(wanted), "encoder.layers.1.self_attn.q_proj.weight"
    with edit.on(wanted):
        edited, weight = picture(wanted), wanted.text_encoder.get_parameter(at).clone()
    assert not np.array_equal(plain, edited)
    for source in (saved, str(saved), name):
        pipe = slug.load_diffusion(source, device="cpu")
        models = (pipe.unet, pipe.vae, pipe.text_encoder)
        assert {m.dtype for m in models} == {torch.float32} and not any(m.training for m in models)
        assert pipe.tokenizer("a cat", padding="max_length").input_ids[-1] == 0 and pipe.safety_checker is None
        assert np.array_equal(picture(pipe), plain)
        with edit.on(pipe):
            assert torch.equal(pipe.text_encoder.get_parameter(at), weight) and np.array_equal(picture(pipe), edited)
        assert np.array_equal(picture(pipe), plain)
    half = slug.load_diffusion(saved, device="cpu", dtype=torch.bfloat16)
    assert {m.dtype for m in (half.unet, half.vae, half.text_encoder)} == {torch.bfloat16}
    with edit.on(half):
        pass


def test_a_pickle_beside_safetensors_is_not_opened(saved):
    (saved / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04pickled")
    (saved / "text_encoder" / "pytorch_model.bin").write_bytes(b"\x80\x04pickled")
    slug.load_diffusion(saved, device="cpu")


def test_names_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(KeyError, match="did you mean 'mini'"):
        slug.load_diffusion("mimi")
    with pytest.raises(FileNotFoundError, match=r"someone/tiny-sd.*no folder here.*hub's cache"):
        slug.load_diffusion("someone/tiny-sd")
    for folder in ("/no/such/folder", "./pipe", tmp_path / "pipe"):
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            slug.load_diffusion(folder)
    monkeypatch.setitem(slug.diffusion.SHIPPED_PIPELINES, "mini", "not-there-yet")
    with pytest.raises(FileNotFoundError, match="not-there-yet"):
        slug.load_diffusion("mini")
    with pytest.raises(ValueError, match=r"dtype is torch\.int8"):
        slug.load_diffusion(tmp_path, dtype=torch.int8)
    with pytest.raises(RuntimeError, match="foo"):
        slug.load_diffusion(tmp_path, device="foo")


@pytest.mark.parametrize("part, error", [("unet", FileNotFoundError), ("text_encoder", FileNotFoundError)])
def test_missing_parts(saved, part, error):
    for file in (saved / part).glob("*.safetensors"):
        file.unlink()
    with pytest.raises(error, match=f"{part}.*no weights"):
        slug.load_diffusion(saved)
    torch.save({}, saved / part / "pytorch_model.bin")
    with pytest.raises(ValueError, match=f"{part}.*pickled weights only"):
        slug.load_diffusion(saved)
    shutil.rmtree(saved / part)
    with pytest.raises(error, match=f"has no {part}"):
        slug.load_diffusion(saved)


def test_indices_of_other_things(saved):
    index = saved / "model_index.json"
    content = json.loads(index.read_text())
    for text, message in (
        ("not json", "no pipeline's index"), ("[]", "no pipeline's index"), ("{}", "no pipeline's index"),
        (json.dumps({**content, "_class_name": "StableDiffusionXLPipeline"}), "holds a StableDiffusionXLPipeline"),
    ):  # fmt: skip
        index.write_text(text)
        with pytest.raises(ValueError, match=message):
            slug.load_diffusion(saved)
    index.unlink()
    with pytest.raises(FileNotFoundError, match=r"no model_index\.json"):
        slug.load_diffusion(saved)


def test_damaged_weights(saved):
    """Where a file lacks a tensor the libraries would make up a random one, and only warn."""
    for part in ("unet", "text_encoder"):
        file = next((saved / part).glob("*.safetensors"))
        whole, tensors = file.read_bytes(), {n: t.clone() for n, t in load_file(file).items()}
        for content in (whole[:-100], b"", b"\x80\x04pickled"):
            file.write_bytes(content)
            with pytest.raises(ValueError, match=f"{part}.*truncated or no safetensors"):
                slug.load_diffusion(saved, device="cpu")
        lost = sorted(tensors)[3]
        save_file({n: t for n, t in tensors.items() if n != lost}, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=rf"{part}.*lack '{lost}', 1 tensors"):
            slug.load_diffusion(saved, device="cpu")
        save_file({**tensors, lost: torch.zeros(3, 5, 7)}, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match="cannot be loaded"):
            slug.load_diffusion(saved, device="cpu")
        file.write_bytes(whole)
    slug.load_diffusion(saved, device="cpu")


# ---- pictures that the pipeline draws


def test_generated_pairs(pipe):
    pairs = slug.generated_pairs(pipe, ["a cat", "a dog"], 5, steps=2, batch_size=2)
    assert pairs.images.shape == (5, 16, 16, 3) and pairs.images.dtype == np.uint8
    assert pairs.captions == ["a cat", "a dog", "a cat", "a dog", "a cat"] and pairs.concepts is None
    again = slug.generated_pairs(pipe, ["a cat", "a dog"], 5, steps=2, batch_size=2)
    assert np.array_equal(again.images, pairs.images)
    other = slug.generated_pairs(pipe, ["a cat", "a dog"], 3, steps=2, batch_size=5).images.astype(int)
    assert abs(other - pairs.images[:3]).max() <= 1  # kernels round a batch of another size otherwise
    first, second = (slug.generated_pairs(pipe, "a cat", 4, steps=2, seed=k).images.astype(int) for k in (0, 1))
    both = [*first, *second]  # seeds that follow each other share no picture
    assert all(abs(a - b).max() > 1 for k, a in enumerate(both) for b in both[:k])
    alone = pipe(
        "a dog", num_inference_steps=2, generator=torch.Generator().manual_seed(picture_seed(0, 1))
    ).images[0]  # fmt: skip
    assert abs(np.asarray(alone).astype(int) - pairs.images[1]).max() <= 1


def test_the_pipelines_own_defaults_and_settings(pipe, monkeypatch):
    calls, own = [], type(pipe).__call__

    def watched(self, *args, **kwargs):
        calls.append(kwargs)
        assert self._progress_bar_config["disable"]
        return own(self, *args, **{**kwargs, "num_inference_steps": 1})

    monkeypatch.setattr(type(pipe), "__call__", watched)
    pipe.set_progress_bar_config(desc="mine")
    slug.generated_pairs(pipe, "a cat", 1)
    slug.generated_pairs(pipe, "a cat", 1, steps=7, guidance_scale=3.0)
    assert calls[0].keys() == {"generator"}
    assert calls[1]["num_inference_steps"] == 7 and calls[1]["guidance_scale"] == 3.0
    assert pipe._progress_bar_config == {"desc": "mine"}


def test_pictures_show_the_edit(clip, pipe):
    plain = picture(pipe)
    with make(clip).on(pipe):
        assert not np.array_equal(picture(pipe), plain)
    assert np.array_equal(picture(pipe), plain)


def test_bad_requests(clip, pipe):
    for prompt, settings, message in (
        ("a cat", {"n": 0}, "n=0"), ("a cat", {"n": 1, "batch_size": 0}, "batch_size=0"),
        ("a cat", {"n": 1, "steps": 0}, "steps=0"), ([], {"n": 1}, "prompt is"), ("", {"n": 1}, "prompt is"),
        (["a cat", 3], {"n": 1}, "prompt is"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            slug.generated_pairs(pipe, prompt, **settings)
    for drawer in (clip, pipe.text_encoder):
        with pytest.raises(ValueError, match="drawn by a StableDiffusionPipeline"):
            slug.generated_pairs(drawer, "a cat", 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(clip, pipe):
    pipe, edit = pipe.to("cuda"), make(clip)
    before = state(pipe)
    with edit.on(pipe):
        assert pipe.text_encoder.device.type == "cuda" and not same(state(pipe), before)
    assert same(state(pipe), before)
