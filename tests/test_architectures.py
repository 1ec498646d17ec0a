"""One adapter for all kinds of CLIP: gradients equal autograd's, scores equal full ones, edits go on and off."""

import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from small_clips import MAKERS, made, small_validation, vit

import slug_lite as slug
from slug_lite.validation import scorer_of


def vit_b_32():
    """ViT-B-32 as open_clip builds it, depth, patches, picture size and context its own, an eighth as wide."""
    torch.manual_seed(3)
    config = open_clip.get_model_config("ViT-B-32")
    config["embed_dim"] //= 8
    config["vision_cfg"] |= {"width": config["vision_cfg"]["width"] // 8, "head_width": 64 // 8}
    config["text_cfg"] |= {"width": config["text_cfg"]["width"] // 8}
    preprocess = open_clip.image_transform(224, is_train=False)
    return slug.Clip(open_clip.CLIP(**config).eval(), open_clip.get_tokenizer("ViT-B-32"), preprocess)


@pytest.fixture(params=MAKERS)
def clip(request, device):
    clip = made(request.param)
    clip.model.to(device)
    return clip


@pytest.fixture
def small():
    world = slug.toonworld
    return world.pairs("Ada Sunfield", n=5, size=32), world.retain(["Ada Sunfield"], n=11, size=32)


def plain(clip, pairs, loss):
    """A gradient by autograd, through the model's own functions alone."""
    model, x, y = clip.model, clip.pixels(pairs), clip.tokens(pairs.captions)
    if hasattr(model, "encode_image"):
        images, texts = model.encode_image(x), model.encode_text(y)
    else:
        images = model.visual_projection(model.vision_model(x).pooler_output)
        texts = model.text_projection(model.text_model(y).pooler_output)
    value = loss(F.normalize(images, dim=-1), F.normalize(texts, dim=-1))
    names = [n for n, w in clip.weights().items() if slug.editable(n, w)]
    found = torch.autograd.grad(value, [clip.weights()[n] for n in names], allow_unused=True)
    return {n: torch.zeros_like(clip.weights()[n]) if g is None else g for n, g in zip(names, found, strict=True)}


@pytest.mark.parametrize("batch_size", [4, 64])
def test_statistics_equal_autograd(clip, small, batch_size):
    compare_statistics(clip, *small, batch_size)


def test_statistics_equal_autograd_on_vit_b_32(device):
    """The real architecture with random weights: every layer, two sizes of micro-batches."""
    clip, (forget, retain) = vit_b_32(), _sets32()
    clip.model.to(device)
    assert sum(slug.editable(n, w) for n, w in clip.weights().items()) == 1 + 1 + 1 + 2 * 12 * 4
    for batch_size in (2, 64):
        compare_statistics(clip, forget[:3], retain[:5], batch_size)


@pytest.mark.parametrize("batch_size", [5, 64])
def test_statistics_equal_autograd_on_mini(mini, batch_size):
    world = slug.toonworld
    compare_statistics(mini, world.pairs("cat", n=12), world.retain(["cat"], n=32), batch_size)


def compare_statistics(clip, forget, retain, batch_size):
    scale = clip.model.logit_scale.exp().detach()

    def contrastive(x, y):
        own = torch.arange(len(x), device=x.device)
        if (bias := getattr(clip.model, "logit_bias", None)) is not None:
            pair = F.one_hot(own).float()
            return F.binary_cross_entropy_with_logits(scale * x @ y.T + bias.detach(), pair, reduction="sum") / len(x)
        return (F.cross_entropy(scale * x @ y.T, own) + F.cross_entropy(scale * y @ x.T, own)) / 2

    g_f = plain(clip, forget, lambda x, y: (1 - (x * y).sum(1)).mean())
    g_r = plain(clip, retain, contrastive)
    found = slug.one_shot_gradients(clip, forget, retain, batch_size=batch_size)
    assert set(found.stats.index) == set(g_f) and set(found.stats.tower) == {"vision", "text"}
    for name, row in found.stats.iterrows():
        # in double precision: float32 norms of matrices with millions of numbers are off by more than is asked for
        f, r, weight = (x.detach().double().flatten() for x in (g_f[name], g_r[name], clip.weights()[name]))
        if f.norm() == 0:
            continue
        assert row.importance == pytest.approx((f.norm() / weight.norm()).item(), rel=1e-4), name
        cosine = F.cosine_similarity(f, r, dim=0).item()
        assert row.cosine == pytest.approx(cosine, abs=1e-5), name


def test_what_may_be_chosen(clip):
    names = [n for n, w in clip.weights().items() if slug.editable(n, w)]
    named = [n for n in names if "patch_embedding" not in n]  # a convolution
    assert not [n for n in named if "bias" in n or "norm" in n or "ln_" in n or "embedding" in n or "logit" in n]
    towers = {clip.tower(n) for n in names}
    assert towers == {"vision", "text"}, names


def test_scores_from_the_middle_equal_full_ones(clip):
    validation = small_validation("Ada Sunfield", 4, 12)
    scorer = scorer_of(validation, clip)
    names = [n for n, w in clip.weights().items() if slug.editable(n, w)]
    for layer in (names[0], names[len(names) // 3], names[len(names) // 2], names[-2], names[-1]):
        score, weight = scorer.at(layer), clip.weights()[layer]
        original = weight.detach().clone()
        try:
            for seed in (1, 2):
                noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)).to(weight)
                with torch.no_grad():
                    weight.add_(0.3 * weight.std() * noise)
                assert score() == validation(clip), (layer, seed)
        finally:
            with torch.no_grad():
                weight.copy_(original)


def test_edits_go_on_and_off(clip, tmp_path):
    name = next(n for n in reversed(list(clip.weights())) if slug.editable(n, clip.weights()[n]))
    before = {n: w.detach().clone() for n, w in clip.weights().items()}
    edit = slug.Edit({name: torch.ones_like(before[name]).half()}, {name: 1.0}, "x", slug.fingerprint(clip))
    loaded = slug.Edit.load(edit.save(tmp_path / "edit.safetensors"))
    for target in (clip, clip.model):
        with loaded.on(target):
            assert torch.equal(clip.weights()[name], before[name] + 1)
        assert all(torch.equal(w, before[n]) for n, w in clip.weights().items())


def test_pictures_and_sizes(clip):
    size = clip.image_size
    assert clip.pixels([Image.new("RGB", (50, 40))]).shape == (1, 3, size, size)
    assert clip.image_features(clip.pixels([Image.new("RGB", (50, 40))])).norm().item() == pytest.approx(1, abs=1e-5)


def test_half_precision_weights(device):
    clip = vit()
    clip.model.to(device, torch.bfloat16)
    found = slug.one_shot_gradients(clip, *_sets32())
    wanted = slug.one_shot_gradients(made("vit"), *_sets32())
    assert found.forget["text_projection"].dtype == torch.bfloat16
    ratio = found.stats.importance / wanted.stats.importance
    assert ratio.between(0.9, 1.1).all()


def _sets32():
    world = slug.toonworld
    return world.pairs("Ada Sunfield", n=5, size=32), world.retain(["Ada Sunfield"], n=11, size=32)


def test_on_a_gpu():
    if not torch.cuda.is_available():  # asked here, where the stand-in is on
        pytest.skip("no GPU")
    clip = vit()
    clip.model.cuda()
    found, wanted = (slug.one_shot_gradients(c, *_sets32()) for c in (clip, made("vit")))
    assert (found.stats.importance - wanted.stats.importance).abs().max() < 1e-3
    kept = slug.one_shot_gradients(clip, *_sets32(), device="cpu")
    assert kept.forget["text_projection"].device.type == "cpu"


def test_siglips_retain_loss_is_its_own():
    """A model with a logit bias was trained by another loss than CLIP's: one_shot_gradients takes that one."""
    from open_clip.loss import SigLipLoss

    clip, retain = made("siglip"), slug.toonworld.retain(["Zorbo"], n=6, size=32)
    forget = slug.toonworld.pairs("Zorbo", n=3, size=32)
    images, texts = clip.image_features(clip.pixels(retain)), clip.text_features(clip.tokens(retain.captions))
    theirs = SigLipLoss()(images, texts, clip.logit_scale(), clip.model.logit_bias)
    assert slug.retain_loss(images, texts, clip.logit_scale(), clip.logit_bias()).item() == pytest.approx(theirs.item())
    layer = next(n for n, w in clip.weights().items() if slug.editable(n, w) and clip.tower(n) == "text")
    (wanted,) = torch.autograd.grad(theirs, clip.weights()[layer])
    for batch_size in (128, 4):  # at once, and from cached gradients
        found = slug.one_shot_gradients(clip, forget, retain, batch_size=batch_size, progress=False)
        assert found.retain_loss == pytest.approx(theirs.item(), rel=1e-5)
        assert found.stats.retain_norm[layer] == pytest.approx(wanted.norm().item(), rel=1e-3)
    assert made("vit").logit_bias() is None and made("transformers").logit_bias() is None
