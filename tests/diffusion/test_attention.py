"""Maps of cross-attention: what they add up to, whose words they are of, and that the pipeline stays as it was."""

import numpy as np
import pytest
import torch
from small_pipelines import same, state

import slug_lite as slug


def test_maps_are_shares_of_attention(pipe):
    before = state(pipe), {name: type(p) for name, p in pipe.unet.attn_processors.items()}
    maps = slug.attention_maps(pipe, "a portrait of Ada Sunfield", seed=4, steps=3)
    plain = pipe("a portrait of Ada Sunfield", num_inference_steps=3, generator=torch.Generator().manual_seed(4))
    assert abs(maps.image.astype(int) - np.asarray(plain.images[0]).astype(int)).max() <= 1
    assert maps.tokens[0] == "<|startoftext|>" and maps.tokens[-1] == "<|endoftext|>"
    assert maps.maps.shape == (len(maps.tokens), 8, 8) and (maps.maps > 0).all()
    assert (maps.maps.sum(0) < 1).all()  # the rest goes to the padding
    full = slug.attention_maps(pipe, " ".join(["cat"] * 40), steps=1)  # no padding is left
    assert len(full.tokens) == 24 and np.allclose(full.maps.sum(0), 1, atol=1e-5)
    after = state(pipe), {name: type(p) for name, p in pipe.unet.attn_processors.items()}
    assert same(before[0], after[0]) and before[1] == after[1]
    assert not [m for m in pipe.unet.modules() if "get_attention_scores" in vars(m)]


def test_a_token_that_is_heeded_alone_has_the_whole_map(pipe):
    layers = [m for name, m in pipe.unet.named_modules() if name.endswith("attn2")]
    encoder = pipe.text_encoder
    whole = encoder.forward

    def only_the_third(*args, **kwargs):  # of all hidden states the third alone is not nothing
        out = whole(*args, **kwargs)
        kept = torch.zeros_like(out.last_hidden_state)
        kept[:, 3] = out.last_hidden_state[:, 3]
        out.last_hidden_state = kept
        return out if kwargs.get("return_dict", True) else (kept, *out[1:])

    encoder.forward = only_the_third
    with torch.no_grad():
        for layer in layers:  # queries that are all alike, and keys that make the third score high
            layer.to_q.weight.zero_()
            layer.to_q.bias = torch.nn.Parameter(torch.ones(layer.to_q.out_features))
            state_three = whole(pipe.tokenizer("a b c d", return_tensors="pt").input_ids).last_hidden_state[0, 3]
            layer.to_k.weight.copy_(400 * state_three / state_three.square().sum() / layer.to_k.out_features)
            layer.scale = 1.0
    maps = slug.attention_maps(pipe, "a b c d", steps=1)
    assert np.allclose(maps.of("c"), 1, atol=1e-4) and maps.of("a").max() < 1e-4


def test_the_maps_are_of_the_pass_with_the_prompt(pipe):
    """At the first step, where both passes have seen nothing but the noise, without and with guidance alike."""
    with_guidance, without = (
        slug.attention_maps(pipe, "a portrait of Zorbo", seed=1, steps=1, guidance_scale=w) for w in (7.5, 1.0)
    )
    assert np.allclose(with_guidance.maps, without.maps, atol=1e-5)
    empty = slug.attention_maps(pipe, "of", seed=1, steps=1, guidance_scale=1.0)
    assert not np.allclose(with_guidance.maps[1], empty.maps[1], atol=1e-5)


def test_words_of_several_tokens(pipe):
    maps = slug.attention_maps(pipe, "a portrait of Ada Sunfield", steps=1)
    cats = slug.attention_maps(pipe, "a location of a cat and a cat", steps=1)
    own = [k for k, token in enumerate(cats.tokens) if token == "cat</w>"]
    assert len(own) == 2 and np.array_equal(cats.of("cat"), cats.maps[own].sum(0))
    assert np.allclose(cats.of("a cat"), cats.maps[[*own, *(k - 1 for k in own)]].sum(0))
    words = [token.replace("</w>", "") for token in maps.tokens]
    last = [k for k, word in enumerate(words) if word in "sunfield" and k > 3]
    assert len(last) > 1 and "".join(words[k] for k in last) == "sunfield"
    assert np.array_equal(maps.of("Sunfield"), maps.maps[last].sum(0))
    assert np.allclose(maps.of("Ada Sunfield"), maps.of("ada") + maps.of("sunfield"))
    assert np.array_equal(maps.of("portrait"), maps.maps[2])
    for words in ("Bruno", "", "field", "portrait Ada"):
        with pytest.raises(KeyError, match="does not say"):
            maps.of(words)


def test_an_error_leaves_the_pipeline_as_it_was(pipe, monkeypatch):
    processors = {name: type(p) for name, p in pipe.unet.attn_processors.items()}
    monkeypatch.setattr(pipe.vae, "decode", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        slug.attention_maps(pipe, "a cat", steps=1)
    assert {name: type(p) for name, p in pipe.unet.attn_processors.items()} == processors
    assert not [m for m in pipe.unet.modules() if "get_attention_scores" in vars(m)]


def test_bad_requests(pipe, clip):
    with pytest.raises(ValueError, match="drawn by a StableDiffusionPipeline"):
        slug.attention_maps(clip, "a cat")
    for prompt in ("", ["a cat"]):
        with pytest.raises(ValueError, match="prompt is"):
            slug.attention_maps(pipe, prompt)


def test_words_of_any_script_are_found(pipe):
    """The tokenizer spells in bytes: an accented letter is two signs of its vocabulary."""
    maps = slug.attention_maps(pipe, "a photo of Beyonc\u00e9 in \u6771\u4eac, 1999 o'clock", steps=1)
    for words in ("Beyonc\u00e9", "BEYONCE\u0301", "\u6771\u4eac", "1999", "o'clock", "Beyonc\u00e9 in \u6771\u4eac,"):
        assert maps.of(words).shape == (8, 8), words
    starts = [k for k, token in enumerate(maps.tokens) if token.startswith("beyonc")]
    assert len(starts) == 1 and (maps.of("Beyonc\u00e9") >= maps.maps[starts[0]]).all()
    with pytest.raises(KeyError, match=r"does not say .*Beyonce.*beyonc\u00e9 in"):
        maps.of("Beyonce")


@pytest.mark.parametrize(
    "words", ["x\u00b2", "\u0939\u093f\u0928\u094d\u0926\u0940", "\u00bd", "don't", "a_b", "!!", "x\u00b2 cat"]
)
def test_words_are_taken_apart_as_the_tokenizer_does(pipe, words):
    maps = slug.attention_maps(pipe, f"a dog in {words}", steps=1)
    assert np.allclose(maps.of(words), maps.maps[4:-1].sum(0))
    with pytest.raises(KeyError, match=r"it says .a dog in"):
        maps.of("Bruno")


def test_a_token_of_textual_inversion_is_a_word(pipe):
    pipe.tokenizer.add_tokens(["<my-cat>"])
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))
    maps = slug.attention_maps(pipe, "a <my-cat> dog on the sofa", steps=1)
    assert maps.tokens[2] == "<my-cat>"
    for words, rows in (("<my-cat>", [2]), ("dog", [3]), ("a", [1]), ("a <my-cat>", [1, 2]), ("<my-cat> dog", [2, 3])):
        assert np.allclose(maps.of(words), maps.maps[rows].sum(0)), words
    for words in ("cat", "my", "<my-cat> on"):
        with pytest.raises(KeyError, match="it says 'a <my-cat> dog on the sofa'"):
            maps.of(words)


def test_a_token_of_textual_inversion_with_several_vectors_has_them_all(pipe):
    pipe.tokenizer.add_tokens(["<my-cat>", "<my-cat>_1"])
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))
    maps = slug.attention_maps(pipe, "a <my-cat> dog", steps=1)
    assert maps.tokens[1:-1] == ["a</w>", "<my-cat>", "<my-cat>_1", "dog</w>"]
    assert np.allclose(maps.of("<my-cat>"), maps.maps[2:4].sum(0)) and np.allclose(maps.of("dog"), maps.maps[4])
