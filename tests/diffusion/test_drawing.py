"""Pictures that a pipeline draws, each from noise of its own, and what the UNet is told of a prompt."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_pipelines import close, make, states

import slug_lite as slug
from slug_lite.diffusion.drawing import picture_seed, prompt_states


def test_what_the_unet_is_told_of_prompts(clip, pipe):
    """The states of the text encoder as it is, one row a prompt, padded to the context length."""
    prompts = ("a portrait of Ada Sunfield", "a cat, in Clay's style", "a cat")
    told = prompt_states(pipe, prompts)
    assert told.shape == (3, 24, 32) and not told.requires_grad
    assert close(told, states(clip, clip.tokens(list(prompts)))[1][-1])
    with make(clip).on(pipe), make(clip).on(clip):
        edited = prompt_states(pipe, prompts)
        assert close(edited, states(clip, clip.tokens(list(prompts)))[1][-1]) and not close(edited, told, 1e-3)
    assert prompt_states(pipe.to(torch.float16), prompts[:1]).dtype == torch.float16


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
    assert calls[0].keys() == {"generator", "output_type"}
    assert calls[1]["num_inference_steps"] == 7 and calls[1]["guidance_scale"] == 3.0
    assert pipe._progress_bar_config == {"desc": "mine"}


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


# ---- broken pictures are never handed over


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_pictures_that_are_not_finite_are_an_error_with_the_reason(pipe, part):
    """They would come out black, all alike, and show nobody."""
    weight = list(getattr(pipe, part).parameters())[-1]
    with torch.no_grad():
        weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=rf"2 of 2 pictures are not finite.*pipeline's {part} are not finite"):
        slug.generated_pairs(pipe, "a cat", 2, steps=1)
    with pytest.raises(ValueError, match="not finite"):
        slug.attention_maps(pipe, "a cat", steps=1)


def test_half_precision_that_overflows_is_named(pipe, monkeypatch):
    nan = torch.full((1, 3, 16, 16), float("nan"))
    monkeypatch.setattr(pipe.vae, "decode", lambda latents, **_: (nan.expand(len(latents), -1, -1, -1),))
    with pytest.raises(ValueError, match="An edit that is on may be too large"):
        slug.generated_pairs(pipe, "a cat", 1, steps=1)
    monkeypatch.setattr(type(pipe.vae), "dtype", torch.float16)
    with pytest.raises(ValueError, match="vae in float16 may overflow: try float32 or bfloat16"):
        slug.generated_pairs(pipe, "a cat", 1, steps=1)


class Checker:
    """Draws noise; flags, and blackens, the pictures whose numbers, over all calls, are in `flags`."""

    def __init__(self, pipe, monkeypatch, flags=(), plain=()):
        self.flags, self.plain, self.seen = flags, plain, []
        monkeypatch.setattr(type(pipe), "__call__", self.draw)

    def draw(self, prompts, generator, **settings):
        assert settings["output_type"] == "np"
        images = np.stack([torch.rand(8, 8, 3, generator=one).numpy() for one in generator])
        numbers = range(len(self.seen), len(self.seen) + len(prompts))
        self.seen += [(text, one.initial_seed()) for text, one in zip(prompts, generator, strict=True)]
        for row, k in enumerate(numbers):
            if k in (*self.flags, *self.plain):
                images[row] = 0
        return SimpleNamespace(images=images, nsfw_content_detected=[k in self.flags for k in numbers])


def test_what_a_safety_checker_flags_is_drawn_anew_and_counted(pipe, monkeypatch):
    drawn = Checker(pipe, monkeypatch, flags=(1, 4), plain=(2,)).seen
    with pytest.warns(UserWarning, match=r"of 4 pictures: 2 flagged by the safety checker, 1 all of one colour"):
        pairs = slug.generated_pairs(pipe, ["a cat", "a dog"], 4)
    assert pairs.captions == ["a cat", "a dog"] * 2 and [text for text, _ in drawn[4:]] == ["a dog", "a cat", "a dog"]
    assert [seed for _, seed in drawn[:4]] == [picture_seed(0, k) for k in range(4)]
    assert [seed for _, seed in drawn[4:]] == [picture_seed(0, k, t) for k, t in ((1, 1), (2, 1), (1, 2))]
    assert len({seed for _, seed in drawn}) == len(drawn) and all(np.ptp(image) > 9 for image in pairs.images)
    Checker(pipe, monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slug.generated_pairs(pipe, "a cat", 4)


@pytest.mark.parametrize(("kind", "why"), [("flags", "flagged by the safety checker"), ("plain", "all of one colour")])
def test_pictures_that_are_broken_again_and_again_are_an_error(pipe, monkeypatch, kind, why):
    Checker(pipe, monkeypatch, **{kind: range(99)})
    with pytest.raises(ValueError, match=f"2 of 2 pictures are broken in each of 4 tries: {why}"):
        slug.generated_pairs(pipe, "a cat", 2)
    with pytest.raises(ValueError, match=f"the picture is broken: {why}"):
        slug.attention_maps(pipe, "a cat")
