"""Small untrained CLIPs of every kind that the package knows, and validations of few pictures, for the tests."""

import functools
from dataclasses import replace

import open_clip
import torch

import slug_lite as slug

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}


def of_open_clip(maker, size, **cfg):
    torch.manual_seed(3)
    model = maker(embed_dim=cfg.pop("embed_dim", 24), **cfg)
    preprocess = open_clip.image_transform(size, is_train=False)
    return slug.Clip(model.eval(), open_clip.SimpleTokenizer(context_length=24), preprocess)


def vit():
    vision = {"image_size": 32, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16}
    return of_open_clip(open_clip.CLIP, 32, vision_cfg=vision, text_cfg=TEXT)


def resnet():
    vision = {"image_size": 64, "layers": [1, 1, 2, 1], "width": 8, "head_width": 32}
    return of_open_clip(open_clip.CLIP, 64, vision_cfg=vision, text_cfg=TEXT)


def custom_text():
    vision = {"image_size": 32, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16}
    return of_open_clip(open_clip.CustomTextCLIP, 32, vision_cfg=vision, text_cfg=TEXT)


def siglip():
    """timm's vision tower with attention pooling, a text tower without causal mask, a logit bias."""
    vision = {"image_size": 160, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"}
    text = {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    return of_open_clip(
        open_clip.CustomTextCLIP, 160, embed_dim=96, vision_cfg=vision, text_cfg=text, init_logit_bias=-10.0
    )


class Processor:
    """The two parts of a CLIPProcessor that are used, made of open_clip's, so that nothing is downloaded."""

    def tokenizer(self, captions, *, padding, max_length, truncation, return_tensors):
        ids = open_clip.SimpleTokenizer(context_length=max_length)(captions)
        return type("Encoded", (), {"input_ids": ids})()

    def image_processor(self, image, return_tensors):
        pixels = open_clip.image_transform(32, is_train=False)(image)
        return type("Pictures", (), {"pixel_values": [pixels]})()


def transformers():
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(3)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**shape, "max_position_embeddings": 24, "eos_token_id": 49407},
        vision_config={**shape, "image_size": 32, "patch_size": 8}, projection_dim=24,
    )  # fmt: skip
    return slug.Clip.from_transformers(CLIPModel(config), Processor())


MAKERS = {"vit": vit, "resnet": resnet, "custom text": custom_text, "siglip": siglip, "transformers": transformers}


@functools.cache
def made(name):
    return MAKERS[name]()


def small_validation(name, n=8, rest=40, size=32, without=()):
    """The mini world's, with n pictures of the concept and about `rest` of the others, some of every kind."""
    whole = slug.toonworld.validation(name, n=n, others=1, size=size, without=without)
    step = max(1, (len(whole.pairs) - n) // rest)
    return replace(whole, pairs=whole.pairs[[*range(n), *range(n, len(whole.pairs), step)]])
