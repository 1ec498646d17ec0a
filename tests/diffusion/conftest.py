"""A small CLIP and a pipeline with its text encoder, made anew for each test."""

import copy
from pathlib import Path

import pytest
import torch
from small_pipelines import build, pipeline

import slug_lite as slug
from slug_lite.diffusion.text_encoder import text_encoder_from


@pytest.fixture(scope="session")
def _clip():
    return build()


@pytest.fixture
def clip(_clip):
    return slug.Clip(copy.deepcopy(_clip.model), _clip.tokenizer, _clip.preprocess)


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
    # as every version of transformers reads them
    files = Path(slug.__file__).parent / "assets" / "mini-sd" / "tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(files, model_max_length=24)
    assert tokenizer.pad_token == "!"
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    return {"unet": unet.eval(), "vae": vae.eval(), "tokenizer": tokenizer, "scheduler": scheduler}


@pytest.fixture
def pipe(clip, parts):
    return pipeline(parts, text_encoder_from(clip))


@pytest.fixture(scope="session")
def mini_pipe(_mini, parts):
    """Mini CLIP's text encoder, with a UNet that is never asked."""
    return pipeline(parts, text_encoder_from(_mini))
