"""Small CLIPs and pipelines with random weights, for the tests in this folder, and what to compare them by."""

import copy

import open_clip
import torch

import slug_lite as slug
from slug_lite.diffusion.text_encoder import text_encoder_from

IN_PROJ = "transformer.resblocks.1.attn.in_proj_weight"
LAYERS = [
    "transformer.resblocks.0.attn.in_proj_weight", "transformer.resblocks.0.attn.in_proj_bias",
    "transformer.resblocks.1.attn.out_proj.weight", "transformer.resblocks.0.mlp.c_fc.weight",
    "transformer.resblocks.1.mlp.c_proj.weight", "transformer.resblocks.1.ln_1.weight", "ln_final.bias",
    "token_embedding.weight", "positional_embedding",
]  # fmt: skip
PREPROCESS = open_clip.image_transform(32, is_train=False)
VISION = {"image_size": 32, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
TOWERS = {
    "gelu": {}, "quick gelu": {"quick_gelu": True}, "custom": {"maker": open_clip.CustomTextCLIP},
    "end of text": {"text": {"pool_type": "eos", "eos_id": 49407}},
    "other numbers": {"text": {"norm_kwargs": {"eps": 1e-2}, "mlp_ratio": 2.0, "heads": 4}},
}  # fmt: skip


def build(maker=open_clip.CLIP, seed=3, tokenizer=True, **cfg):
    """A CLIP whose biases and norms are random too: zeros and ones would hide what is mixed up."""
    torch.manual_seed(seed)
    model = maker(embed_dim=16, vision_cfg=VISION, text_cfg={**TEXT, **cfg.pop("text", {})}, **cfg).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1 or "token_embedding" in name or "positional" in name:
                p.add_(0.3 * torch.randn_like(p))
    return slug.Clip(model, open_clip.SimpleTokenizer(context_length=24) if tokenizer else None, PREPROCESS)


def pipeline(parts, encoder, dtype=torch.float32):
    """A StableDiffusionPipeline of copies of `parts` and a text encoder of its own."""
    from diffusers import StableDiffusionPipeline

    models = {key: copy.deepcopy(part) for key, part in parts.items()}
    pipe = StableDiffusionPipeline(
        **models, text_encoder=encoder, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(dtype)


def make(clip, layer=IN_PROJ, seed=0, size=0.3):
    """An edit of one layer with random numbers."""
    delta = size * torch.randn(clip.weights()[layer].shape, generator=torch.Generator().manual_seed(seed))
    return slug.Edit({layer: delta.half()}, {layer: 1.5}, "Ada Sunfield", slug.fingerprint(clip))


def state(pipe):
    """Copies of all tensors of all models of a pipeline, to be compared by `same`."""
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


def picture(pipe):
    """Two pictures that a pipeline draws: uint8 (2, height, width, 3)."""
    return slug.generated_pairs(pipe, "a cat", 2, steps=2).images
