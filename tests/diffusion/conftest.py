"""A small CLIP and a pipeline with its text encoder, made anew for each test; and a painter in place of a UNet."""

import copy

import numpy as np
import open_clip
import pytest
import torch
from small_pipelines import build, pipeline

import slug_lite as slug
from slug_lite.diffusion import generated
from slug_lite.diffusion.text_encoder import text_encoder_from

world = slug.toonworld


@pytest.fixture(scope="session")
def _clip():
    return build()


@pytest.fixture
def clip(_clip):
    return slug.Clip(copy.deepcopy(_clip.model), _clip.tokenizer, None)


@pytest.fixture(scope="session")
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


@pytest.fixture
def pipe(clip, parts):
    return pipeline(parts, text_encoder_from(clip))


@pytest.fixture(scope="session")
def mini_pipe(_mini, parts):
    """Mini CLIP's text encoder, with a UNet that is never asked."""
    return pipeline(parts, text_encoder_from(_mini))


@pytest.fixture
def painter(mini_pipe, mini, monkeypatch):
    """Draws renderings of what a prompt names, in place of `mini_pipe`.

    painter.knows(change): does he still know painter.names? painter.spoils(change): are all others lost? Both by how
    long the changes of the encoder's weights are. painter.asked: what he was asked for, with the changes.
    """
    original = {n: p.detach().clone() for n, p in mini_pipe.text_encoder.named_parameters()}
    every = [name for names in world.NAMES.values() for name in names]

    class Painter:
        knows = staticmethod(lambda change: True)
        spoils = staticmethod(lambda change: False)

    def draws(drawer, prompts, n, *, seed=0, batch_size=4, steps=None, guidance_scale=None, progress=True):
        assert drawer is mini_pipe and not progress
        weights = dict(mini_pipe.text_encoder.named_parameters())
        change = {k: (p - original[k]).norm().item() for k, p in weights.items() if not torch.equal(p, original[k])}
        Painter.asked.append((tuple(prompts), n, seed, steps, change))
        pictures = []
        for k in range(n):
            shown = next(name for name in sorted(every, key=len, reverse=True) if name in prompts[k % len(prompts)])
            lost = not Painter.knows(change) if shown in Painter.names else Painter.spoils(change)
            if lost:
                shown = "Hugo Duportal" if shown != "Hugo Duportal" else "Felix Moorhaven"
            cell = (shown,)
            if shown in world.OBJECTS:
                cell = next(c for c in world.cells("train") if c[0] == shown)
            elif shown in world.STYLES:
                cell = next(c for c in world.cells("train") if c[1] == shown)
            pictures.append(world.renderings(cell, 1, seed=seed + k, split="val")[0])
        return slug.Pairs(np.stack(pictures), [prompts[k % len(prompts)] for k in range(n)])

    Painter.asked, Painter.names = [], ("Ada Sunfield",)
    monkeypatch.setattr(generated, "generated_pairs", draws)
    yield Painter
    assert all(torch.equal(p, original[n]) for n, p in mini_pipe.text_encoder.named_parameters())
