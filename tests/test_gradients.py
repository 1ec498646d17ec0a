"""Gradients against plain autograd, the sign, and a model that is left as it was."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import slug_lite as slug
from slug_lite import gradients as G
from slug_lite.pairs import Pairs


def by_autograd(clip, pairs, loss):
    """The gradient of a loss over all pairs at once, in the most direct way."""
    x = F.normalize(clip.model.encode_image(clip.pixels(pairs)), dim=-1)
    y = F.normalize(clip.model.encode_text(clip.tokens(pairs.captions)), dim=-1)
    names, weights = zip(*[(n, w) for n, w in clip.weights().items() if slug.editable(n, w)], strict=True)
    return dict(zip(names, torch.autograd.grad(loss(x, y), weights), strict=True))


def contrastive(clip):
    def loss(x, y):
        logits = clip.model.logit_scale.exp().detach() * x @ y.T
        rows = torch.log_softmax(logits, 1).diagonal().mean()
        return -(rows + torch.log_softmax(logits, 0).diagonal().mean()) / 2

    return loss


@pytest.mark.parametrize("batch_size", [3, 7, 128])
def test_equal_to_plain_autograd_whatever_the_batch_size(tiny, sets, batch_size):
    forget, retain = sets
    out = slug.one_shot_gradients(tiny, forget, retain, batch_size=batch_size)
    g_f = by_autograd(tiny, forget, lambda x, y: (1 - (x * y).sum(1)).mean())
    g_r = by_autograd(tiny, retain, contrastive(tiny))
    assert list(out.stats.index) == list(g_f) == list(out.forget)
    for name, row in out.stats.iterrows():
        torch.testing.assert_close(out.forget[name], g_f[name], rtol=1e-3, atol=1e-6)
        weight = tiny.weights()[name]
        assert row.importance == pytest.approx((g_f[name].norm() / weight.norm()).item(), rel=1e-4)
        assert row.retain_norm == pytest.approx(g_r[name].norm().item(), rel=1e-4)
        cosine = F.cosine_similarity(g_f[name].flatten(), g_r[name].flatten(), 0).item()
        assert row.cosine == pytest.approx(cosine, abs=1e-5) and row.alignment == abs(row.cosine)
        assert row.tower == ("vision" if name.startswith("visual") else "text")


def test_gradient_caching_is_exact_in_double_precision(tiny, sets):
    tiny.model.double()
    one, many = (slug.one_shot_gradients(tiny, *sets, batch_size=b) for b in (64, 3))
    for column in ("importance", "retain_norm", "cosine"):
        assert np.allclose(one.stats[column], many.stats[column], rtol=1e-9, atol=1e-9)
    for name in one.forget:
        assert (one.forget[name] - many.forget[name]).norm() <= 1e-9 * one.forget[name].norm()


def test_the_sign_is_an_ascent(tiny, sets):
    """The pinned sign: +grad L_f raises the forget loss, and the step that is stored goes that way."""
    from slug_lite.search import make_delta

    forget, retain = sets
    out = slug.one_shot_gradients(tiny, forget, retain)
    name = out.stats["importance"].idxmax()
    delta = make_delta(out.forget[name], 0.02 / out.stats.loc[name, "importance"])
    with torch.no_grad():
        tiny.weights()[name].add_(delta)
    assert slug.one_shot_gradients(tiny, forget, retain).forget_loss > out.forget_loss + 1e-4


def test_contrastive_batches_are_averaged(tiny, sets):
    forget, retain = sets
    halves = [slug.one_shot_gradients(tiny, forget, retain[rows]) for rows in (slice(0, 10), slice(10, 20))]
    both = slug.one_shot_gradients(tiny, forget, retain, contrastive_batch=10)
    assert both.retain_loss == pytest.approx(np.mean([h.retain_loss for h in halves]), rel=1e-5)
    whole = slug.one_shot_gradients(tiny, forget, retain)
    assert abs(both.retain_loss - whole.retain_loss) > 0.1  # log B: the batch size matters
    g = [by_autograd(tiny, retain[rows], contrastive(tiny)) for rows in (slice(0, 10), slice(10, 20))]
    for name in both.stats.index:
        assert both.stats.retain_norm[name] == pytest.approx(((g[0][name] + g[1][name]) / 2).norm().item(), rel=1e-3)


def test_a_lone_last_pair_joins_the_batch_before(tiny, sets):
    forget, retain = sets
    assert np.isfinite(slug.one_shot_gradients(tiny, forget, retain[:11], contrastive_batch=5).retain_loss)


def test_forget_pairs_count_equally_in_uneven_batches(tiny, sets):
    forget, retain = sets
    whole, uneven = (slug.one_shot_gradients(tiny, forget, retain, batch_size=b) for b in (6, 4))
    assert uneven.forget_loss == pytest.approx(whole.forget_loss, rel=1e-5)


def test_only_layers_are_listed_and_the_rule_can_be_changed(tiny, sets):
    names = slug.one_shot_gradients(tiny, *sets).stats.index
    for part in ("bias", "ln_", "embedding", "logit_scale"):
        assert not [n for n in names if part in n]
    assert {"visual.conv1.weight", "visual.proj", "text_projection"} <= set(names)
    mine = slug.one_shot_gradients(tiny, *sets, layers=lambda name, weight: name.endswith("in_proj_weight"))
    assert len(mine.stats) == 4
    with pytest.raises(ValueError, match="no weight"):
        slug.one_shot_gradients(tiny, *sets, layers=lambda name, weight: False)


class Stop(BaseException):
    pass


@pytest.mark.parametrize("fail", [None, RuntimeError, KeyboardInterrupt, Stop])
def test_the_model_is_left_as_it_was(tiny, sets, monkeypatch, fail):
    tiny.model.train()
    tiny.model.visual.eval()
    weights = tiny.weights()
    weights["visual.proj"].requires_grad_(False)
    kept = torch.ones_like(weights["text_projection"])
    weights["text_projection"].grad = kept
    state = {n: (p.detach().clone(), p.requires_grad) for n, p in weights.items()}
    modes = [m.training for m in tiny.model.modules()]
    random = torch.get_rng_state()
    if fail:
        calls = iter([None, fail("stopped")])

        def failing(*args):
            if (error := next(calls, None)) is not None:
                raise error
            return slug.losses.retain_loss(*args)

        monkeypatch.setattr(G, "retain_loss", failing)
        with pytest.raises(fail):
            slug.one_shot_gradients(tiny, *sets, contrastive_batch=5)
    else:
        slug.one_shot_gradients(tiny, *sets)
    assert all(torch.equal(p, state[n][0]) and p.requires_grad == state[n][1] for n, p in weights.items())
    assert weights["text_projection"].grad is kept and torch.equal(kept, torch.ones_like(kept))
    assert all(p.grad is None for n, p in weights.items() if n != "text_projection")
    assert [m.training for m in tiny.model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)


def test_bad_sets_are_refused(tiny, sets):
    forget, retain = sets
    world = slug.toonworld
    for f, r, message in (
        (forget[:0], retain, "forget set has 0"),
        (forget[:1], retain, "forget set has 1"),
        (forget, retain[:1], "retain set has 1"),
        (forget, retain + forget, "retain pairs are about Ada Sunfield"),
        (world.pairs("Clay", n=4, size=32), world.pairs("dog", n=8, size=32), "about Clay"),
        (Pairs(forget.images, ["a"] * 6), Pairs(retain.images, ["a"] * 20), "share captions, for instance 'a'"),
    ):
        with pytest.raises(ValueError, match=message):
            slug.one_shot_gradients(tiny, f, r)
    with pytest.raises(ValueError, match="batch_size=0"):
        slug.one_shot_gradients(tiny, forget, retain, batch_size=0)


def test_losses_that_are_not_finite_are_refused(tiny, sets):
    with torch.no_grad():
        tiny.weights()["visual.proj"][0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        slug.one_shot_gradients(tiny, *sets)
