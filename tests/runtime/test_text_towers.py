"""One text tower by the names of two libraries: there and back, and what tells towers apart."""

import open_clip
import pytest
import torch

import slug_lite as slug
from slug_lite.diffusion.text_encoder import text_encoder_from
from slug_lite.runtime.text_towers import (
    differences,
    open_clip_name,
    to_open_clip,
    to_transformers,
    tower_fingerprint,
    transformers_names,
    translate,
    translate_names,
)

VISION = {"image_size": 32, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16}
TEXT = {"context_length": 24, "vocab_size": 512, "width": 32, "heads": 2, "layers": 2}
TOWERS = {
    "gelu": {}, "quick gelu": {"quick_gelu": True}, "custom": {"maker": open_clip.CustomTextCLIP},
    "end of text": {"text": {"pool_type": "eos", "eos_id": 511}},
    "other numbers": {"text": {"norm_kwargs": {"eps": 1e-2}, "mlp_ratio": 2.0, "heads": 4}},
}  # fmt: skip
IN_PROJ = "transformer.resblocks.1.attn.in_proj_weight"
THERE = {  # open_clip's name -> transformers'
    "token_embedding.weight": ["embeddings.token_embedding.weight"],
    "positional_embedding": ["embeddings.position_embedding.weight"],
    "ln_final.weight": ["final_layer_norm.weight"], "ln_final.bias": ["final_layer_norm.bias"],
    "transformer.resblocks.0.ln_1.weight": ["encoder.layers.0.layer_norm1.weight"],
    "transformer.resblocks.11.ln_2.bias": ["encoder.layers.11.layer_norm2.bias"],
    "transformer.resblocks.1.attn.out_proj.weight": ["encoder.layers.1.self_attn.out_proj.weight"],
    "transformer.resblocks.1.mlp.c_fc.bias": ["encoder.layers.1.mlp.fc1.bias"],
    "transformer.resblocks.10.mlp.c_proj.weight": ["encoder.layers.10.mlp.fc2.weight"],
    IN_PROJ: [f"encoder.layers.1.self_attn.{letter}_proj.weight" for letter in "qkv"],
    IN_PROJ.replace("weight", "bias"): [f"encoder.layers.1.self_attn.{letter}_proj.bias" for letter in "qkv"],
}  # fmt: skip
FOREIGN = [
    "text_projection", "logit_scale", "visual.proj", "visual.transformer.resblocks.0.mlp.c_fc.weight",
    "transformer.resblocks.0.ls_1.gamma", "text.cls_emb", "vision_model.encoder.layers.0.mlp.fc1.weight",
    "encoder.layers.0.mlp.fc3.weight", "visual.ln_final.weight",
]  # fmt: skip


def build(maker=open_clip.CLIP, text=None, **cfg):
    """A CLIP whose biases and norms are random too: zeros and ones would hide what is mixed up."""
    torch.manual_seed(3)
    model = maker(embed_dim=16, vision_cfg=VISION, text_cfg=TEXT | (text or {}), **cfg).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return slug.Clip(model, None, None)


def tower(clip):
    """The weights of the text tower that a text encoder has, too."""
    return {
        n: w.detach().clone() for n, w in clip.weights().items() if clip.tower(n) == "text" and "projection" not in n
    }


@pytest.fixture(scope="module")
def text():
    return tower(build())


@pytest.mark.parametrize("kind", TOWERS)
def test_names_and_tensors_there_and_back(kind):
    clip = build(**TOWERS[kind])
    prefix = "text." if kind == "custom" else ""
    text, encoder = tower(clip), dict(text_encoder_from(clip).named_parameters())
    there = to_transformers(text)
    assert set(there) == set(encoder) and all(torch.equal(there[n], encoder[n]) for n in there)
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


def test_every_name_in_both_libraries():
    for ours, theirs in THERE.items():
        for prefix in ("", "text."):
            assert transformers_names(prefix + ours) == theirs
            assert [open_clip_name(name, prefix) for name in [ours, *theirs]] == [prefix + ours] * (1 + len(theirs))
        for name in theirs:
            assert transformers_names(name) == transformers_names(f"text_model.{name}") == [name]


@pytest.mark.parametrize("name", FOREIGN)
def test_what_no_text_encoder_has(name, text):
    for there in (text, to_transformers(text)):
        for ask in (
            lambda: transformers_names(name),
            lambda: open_clip_name(name),
            lambda: to_transformers({name: torch.ones(3)}),
            lambda there=there: translate_names(name, there),
            lambda there=there: translate({name: torch.ones(3)}, there),
        ):
            with pytest.raises(ValueError, match=f"does not have '{name}'"):
                ask()


def own_names(text, kind):
    """The names that models of several kinds have for the weights of a text tower, among those of other weights."""
    if kind.startswith("transformers"):
        prefix = "" if kind == "transformers" else "text_model."
        return {"text_projection.weight", "logit_scale", *(prefix + name for name in to_transformers(text))}
    prefix = "text." if kind == "open_clip's custom" else ""
    return {"logit_scale", "visual.proj", prefix + "text_projection", *(prefix + name for name in text)}


@pytest.mark.parametrize("kind", ["open_clip", "open_clip's custom", "transformers", "transformers 4"])
def test_names_in_another_models_terms(text, kind):
    """Each name that any model has for a weight becomes the model's own: all are among them, and all are reached."""
    wanted = own_names(text, kind)
    for source in ("open_clip", "open_clip's custom", "transformers", "transformers 4"):
        reached = set()
        for name in own_names(text, source):
            if "projection" in name or name in ("logit_scale", "visual.proj"):
                continue
            found = translate_names(name, wanted)
            fused = ".in_proj_" in name and kind.startswith("transformers")
            assert len(found) == len(set(found)) == (3 if fused else 1) and set(found) <= wanted, name
            assert set(translate({name: torch.randn(6, 2)}, wanted)) == set(found)
            reached |= set(found)
        assert reached == {n for n in wanted if "projection" not in n and n not in ("logit_scale", "visual.proj")}
    names = [f"{'text_model.' * (kind == 'transformers 4')}encoder.layers.1.self_attn.{x}_proj.weight" for x in "qkv"]
    fused = [("text." * kind.endswith("custom")) + IN_PROJ]
    assert translate_names(IN_PROJ, wanted) == (names if kind.startswith("transformers") else fused)


def test_deltas_in_another_models_terms(text):
    delta = torch.randn(96, 32)
    parts = translate({IN_PROJ: delta}, own_names(text, "transformers 4"))
    assert list(parts) == [f"text_model.encoder.layers.1.self_attn.{letter}_proj.weight" for letter in "qkv"]
    assert torch.equal(torch.cat(list(parts.values())), delta)
    back = translate(parts, own_names(text, "open_clip's custom"))
    assert list(back) == [f"text.{IN_PROJ}"] and torch.equal(back[f"text.{IN_PROJ}"], delta)


# ---- which tower is it?


def test_the_fingerprint_has_twelve_digits_for_each_block_and_twelve_for_the_rest(text):
    whole = tower_fingerprint(text)
    assert len(whole) == 12 * 3 and set(whole) <= set("0123456789abcdef")
    assert tower_fingerprint(to_transformers(text)) == whole == tower_fingerprint(dict(reversed(text.items())))
    for change in ("text.", "text_model."):
        renamed = text if change == "text." else to_transformers(text)
        assert tower_fingerprint({change + name: w for name, w in renamed.items()}) == whole
    shorter = {name: w for name, w in text.items() if "resblocks.1." not in name}
    assert tower_fingerprint(shorter) == whole[:24]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_fingerprint_survives_rounding(text, dtype):
    rounded = tower_fingerprint({name: w.to(dtype) for name, w in text.items()})
    assert tower_fingerprint({name: w.to(dtype).float() for name, w in text.items()}) == rounded
    assert differences(rounded, tower_fingerprint(text)) == []


@pytest.mark.parametrize(
    "name, part",
    [
        (IN_PROJ, "block 1"), ("transformer.resblocks.0.mlp.c_fc.bias", "block 0"),
        ("transformer.resblocks.0.ln_2.weight", "block 0"), ("ln_final.weight", "embeddings or final norm"),
        ("positional_embedding", "embeddings or final norm"), ("token_embedding.weight", "embeddings or final norm"),
    ],
)  # fmt: skip
def test_the_fingerprint_tells_where_towers_differ(text, name, part):
    whole = tower_fingerprint(text)
    assert differences(whole, whole) == []
    for other in (-text[name], torch.cat([text[name], text[name]]), 1.3 * text[name] + 0.1):
        assert differences(tower_fingerprint(text | {name: other}), whole) == [part]
    shorter = {n: w for n, w in text.items() if "resblocks.1." not in n}
    assert differences(tower_fingerprint(shorter), whole) == []  # blocks left out at the end do not count


def test_two_weights_of_a_block_that_are_scaled_in_opposite_ways_are_noticed(text):
    """As a norm's gain and the next one's, which many ways of fusing weights leave; of every pair in a block."""
    whole = tower_fingerprint(text)
    names = [name for name, w in text.items() if "resblocks.0." in name and w.abs().max() > 0.1]
    assert len(names) >= 4
    passed = [
        (a, b) for a in names for b in names if a != b
        and not differences(tower_fingerprint(text | {a: 1.1 * text[a], b: text[b] / 1.1}), whole)
    ]  # fmt: skip
    assert passed == []


def test_weights_that_change_places_are_noticed(text):
    """Two biases of a shape in a block, and the same weights in each other's block."""
    a, b = "transformer.resblocks.0.ln_1.bias", "transformer.resblocks.0.ln_2.bias"
    whole = tower_fingerprint(text)
    assert differences(tower_fingerprint(text | {a: text[b], b: text[a]}), whole) == ["block 0"]
    blocks = {name.replace("resblocks.0.", "x").replace("resblocks.1.", "resblocks.0.").replace("x", "resblocks.1."): w
              for name, w in text.items()}  # fmt: skip
    assert tower_fingerprint(blocks) == whole[:12] + whole[24:] + whole[12:24]
    assert tower_fingerprint({a: text[a]}) != tower_fingerprint({b: text[a]})


def test_the_same_numbers_in_another_shape_are_noticed(text):
    name = "transformer.resblocks.0.mlp.c_fc.weight"
    turned = text | {name: text[name].reshape(text[name].shape[::-1])}
    assert differences(tower_fingerprint(turned), tower_fingerprint(text)) == ["block 0"]


def test_the_fingerprint_of_a_large_tensor_takes_evenly_spaced_values(text):
    """4,096 of the token embedding's 16,384 values: the first and the last are among them."""
    whole, name = tower_fingerprint(text), "token_embedding.weight"
    assert text[name].numel() > 2 * 4096
    signs = []
    for place in (0, 1, -2, -1):
        other = text[name].clone()
        other.view(-1)[place] *= -1
        signs.append(tower_fingerprint(text | {name: other}) != whole)
    assert signs == [True, False, False, True]


def test_the_fingerprint_of_another_kind_of_tower():
    with pytest.raises(ValueError, match=r"does not have 'encoder\.block\.0\.weight'"):
        tower_fingerprint({"encoder.block.0.weight": torch.ones(2, 2)})
