"""Gradients against plain autograd, the sign, and a model that is left as it was."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from small_clips import resnet

import slug_lite as slug
from slug_lite import Pairs, search
from slug_lite import gradients as G


def embedded(clip, pairs):
    return clip.model.encode_image(clip.pixels(pairs)), clip.model.encode_text(clip.tokens(pairs.captions))


def by_autograd(clip, pairs, loss):
    """The gradient of a loss over all pairs at once, in the most direct way."""
    x, y = (F.normalize(z, dim=-1) for z in embedded(clip, pairs))
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
    assert list(out.stats.index) == list(g_f) == list(out.forget) and out.stats.index.name == "layer"
    assert list(out.stats) == [
        "tower", "weight_norm", "forget_norm", "retain_norm", "importance", "alignment", "cosine",
    ]  # fmt: skip
    with torch.no_grad():
        x, y = (F.normalize(z, dim=-1) for z in embedded(tiny, forget))
        assert out.forget_loss == pytest.approx((1 - (x * y).sum(1)).mean().item(), rel=1e-5)
        x, y = (F.normalize(z, dim=-1) for z in embedded(tiny, retain))
        assert out.retain_loss == pytest.approx(contrastive(tiny)(x, y).item(), rel=1e-5)
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
    forget, retain = sets
    out = slug.one_shot_gradients(tiny, forget, retain)
    name = out.stats["importance"].idxmax()
    delta = search.make_delta(out.forget[name], 0.02 / out.stats.loc[name, "importance"])
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
    """Alone its loss would be zero, whatever the model: of 11 pairs in fives the last six are one batch."""
    forget, retain = sets
    found = slug.one_shot_gradients(tiny, forget, retain[:11], contrastive_batch=5)
    parts = [(5, retain[:5]), (6, retain[5:11])]
    losses = [n * slug.one_shot_gradients(tiny, forget, some).retain_loss for n, some in parts]
    assert found.retain_loss == pytest.approx(sum(losses) / 11, rel=1e-5)
    g = [by_autograd(tiny, some, contrastive(tiny)) for _, some in parts]
    for name in found.stats.index:
        by_hand = (5 * g[0][name] + 6 * g[1][name]) / 11
        assert found.stats.retain_norm[name] == pytest.approx(by_hand.norm().item(), rel=1e-3)


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
    tiny.model.visual.requires_grad_(False)
    assert set(slug.one_shot_gradients(tiny, *sets).stats.tower) == {"text"}
    tiny.model.requires_grad_(False)
    for rule in ({}, {"layers": lambda name, weight: False}):
        with pytest.raises(ValueError, match="no weight"):
            slug.one_shot_gradients(tiny, *sets, **rule)


class Stop(BaseException):
    pass


@pytest.mark.parametrize("fail", [None, RuntimeError, KeyboardInterrupt, Stop])
def test_the_model_is_left_as_it_was(tiny, sets, monkeypatch, fail):
    tiny.model.train()
    tiny.model.visual.eval()
    weights = tiny.weights()
    weights["visual.proj"].requires_grad_(False)
    weights["token_embedding.weight"].requires_grad_(False)
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


def test_gradients_are_taken_where_they_are_switched_off(tiny, sets):
    expected = slug.one_shot_gradients(tiny, *sets)
    with torch.no_grad():
        found = slug.one_shot_gradients(tiny, *sets)
    assert torch.equal(found.forget["visual.proj"], expected.forget["visual.proj"])


def test_bad_sets_are_refused(tiny, sets):
    forget, retain = sets
    world = slug.toonworld
    zorbo = world.pairs("Zorbo", n=6, size=32)
    for f, r, message in (
        (forget[:0], retain, "forget set has 0"),
        (forget[:1], retain, "forget set has 1"),
        (forget, retain[:1], "retain set has 1"),
        (forget, retain + forget, "retain pairs are about Ada Sunfield"),
        (world.pairs("Clay", n=4, size=32), world.pairs("dog", n=8, size=32), "about Clay"),
        (forget + zorbo[:4], retain + zorbo[4:], "about Zorbo"),
        (forget, Pairs(retain.images[:1], ["a photo of Ada Sunfield at sea"]) + retain, "1 retain pairs are about Ada"),
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


def test_statistics_that_are_not_finite_are_refused():
    for bad in ("weight_norm", "forget_norm", "retain_norm"):
        stats = pd.DataFrame({name: [1.0, 2.0] for name in ("weight_norm", "forget_norm", "retain_norm")})
        G.Gradients(stats, {}, 1.0, 1.0)
        stats.loc[1, bad] = float("inf")
        with pytest.raises(ValueError, match="not finite"):
            G.Gradients(stats, {}, 1.0, 1.0)
    for losses in ((float("nan"), 1.0), (1.0, float("inf"))):
        with pytest.raises(ValueError, match="not finite"):
            G.Gradients(stats[:1], {}, *losses)


def test_alignment_has_no_sign_and_cosine_has(tiny):
    """Where forgetting helps the retain loss most, the paper's measure is as large as where it hurts most."""
    weight = tiny.weights()["text_projection"].detach()
    g = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    g = 1e-3 * g
    with torch.no_grad():
        weight.mul_(0.1 / weight.norm())
    for factor, cosine in ((-0.5, -1.0), (3.0, 1.0), (0.0, 0.0)):
        (row,) = G.layer_stats(tiny, {"text_projection": g}, {"text_projection": factor * g}).itertuples()
        assert row.cosine == pytest.approx(cosine) and row.alignment == pytest.approx(abs(cosine))
        assert row.retain_norm == pytest.approx(abs(factor) * row.forget_norm)
        assert row.importance == pytest.approx((g.norm() / weight.norm()).item())


def test_weights_that_a_loss_does_not_reach_and_weights_of_zero_have_no_importance(tiny, sets):
    """No gradient is a gradient of zero, and nothing is divided by zero."""
    tiny.model.visual.register_parameter("idle", torch.nn.Parameter(torch.ones(2, 3)))
    with torch.no_grad():
        tiny.weights()["text_projection"].zero_()
    found = slug.one_shot_gradients(tiny, *sets, layers=lambda name, _: name in ("visual.idle", "text_projection"))
    idle, zero = found.stats.loc["visual.idle"], found.stats.loc["text_projection"]
    assert torch.equal(found.forget["visual.idle"], torch.zeros_like(tiny.weights()["visual.idle"]))
    assert idle.forget_norm == idle.retain_norm == idle.importance == idle.cosine == 0
    assert zero.weight_norm == zero.importance == 0 and zero.forget_norm > 0


@pytest.mark.parametrize(
    "settings", [{}, {"batch_size": 3}, {"batch_size": 4, "passes": 3}, {"batch_size": 3, "contrastive_batch": 8}]
)
def test_progress_ends_where_it_says(tiny, sets, monkeypatch, settings):
    bars, right = [], G.bar

    def watched(*args, **kwargs):
        bars.append({"of": kwargs["total"], "done": 0, "show": kwargs["show"]})
        made = right(*args, **kwargs)
        made.update = lambda n=1: bars[-1].update(done=bars[-1]["done"] + n)
        return made

    monkeypatch.setattr(G, "bar", watched)
    slug.one_shot_gradients(tiny, [sets[0], sets[0][:5]], sets[1], **settings)
    slug.one_shot_gradients(tiny, *sets, progress=False)
    assert all(one["of"] == one["done"] > 0 for one in bars) and [one["show"] for one in bars] == [True, False]


def test_no_more_than_a_micro_batch_and_a_group_of_layers_at_a_time(tiny, sets, spy, monkeypatch):
    groups, rows, right = spy(G, "only_gradients_of"), [], slug.Clip.image_features
    monkeypatch.setattr(slug.Clip, "image_features", lambda clip, x: rows.append(len(x)) or right(clip, x))
    slug.one_shot_gradients(tiny, *sets)
    assert len(groups) == 1 and max(rows) == 20  # all of them, where nothing is said
    groups.clear()
    rows.clear()
    found = slug.one_shot_gradients(tiny, *sets, batch_size=3, passes=4)
    assert max(rows) == 3 and len(groups) == 4
    assert sorted(name for one in groups for name in one["names"]) == sorted(found.stats.index)
    rows.clear()
    G.forget_gradients(tiny, [sets[0], sets[1][:5]], memory=slug.Memory(batch_size=4))
    assert rows == [4, 2, 4, 1]


def test_every_forget_set_is_checked(tiny, sets):
    forget, retain = sets
    zorbo = slug.toonworld.pairs("Zorbo", n=6, size=32)
    retain = retain[[k for k, names in enumerate(retain.concepts) if "Zorbo" not in names]]
    with pytest.raises(ValueError, match="3 retain pairs are about Zorbo"):
        slug.one_shot_gradients(tiny, [forget, zorbo[:3]], retain + zorbo[3:])
    with pytest.raises(ValueError, match="forget set has 1"):
        slug.one_shot_gradients(tiny, [forget, forget[:1]], retain)


def test_gradients_are_those_of_eval_mode():
    """Batch normalisation would look at the batch, and remember it."""
    trains, world = resnet(), slug.toonworld
    small = world.pairs("Ada Sunfield", n=3, size=32), world.retain(["Ada Sunfield"], n=5, size=32)
    wanted = slug.one_shot_gradients(trains, *small)
    trains.model.train()
    before = copy.deepcopy(trains.model.state_dict())
    found = slug.one_shot_gradients(trains, *small)
    assert found.stats.equals(wanted.stats) and found.retain_loss == wanted.retain_loss
    assert trains.model.training and all(torch.equal(t, before[n]) for n, t in trains.model.state_dict().items())


def test_several_forget_sets_share_one_retain_gradient(tiny, sets):
    forget, retain = sets
    other = slug.toonworld.pairs("Dario Lindqvist", n=5, size=32)
    retain = retain[[i for i, c in enumerate(retain.concepts) if "Dario Lindqvist" not in c]]
    both = slug.one_shot_gradients(tiny, [forget, other], retain)
    for one, some in zip(both, (forget, other), strict=True):
        alone = slug.one_shot_gradients(tiny, some, retain)
        assert alone.stats.equals(one.stats) and alone.forget_loss == one.forget_loss
        assert all(torch.equal(alone.forget[n], one.forget[n]) for n in alone.forget)


def test_gradients_kept_in_half_precision(tiny, sets):
    wanted = slug.one_shot_gradients(tiny, *sets)
    found = slug.one_shot_gradients(tiny, *sets, device="cpu", dtype=torch.bfloat16)
    assert {g.dtype for g in found.forget.values()} == {torch.bfloat16}
    assert np.allclose(found.stats.importance, wanted.stats.importance, rtol=1e-2)
    assert np.allclose(found.stats.cosine, wanted.stats.cosine, atol=1e-2)
    assert all(p.dtype == torch.float32 and p.grad is None for p in tiny.weights().values())


@pytest.mark.parametrize("passes", [2, 5, 1000])
def test_group_by_group_gives_the_same(tiny, sets, passes):
    whole = slug.one_shot_gradients(tiny, *sets)
    found = slug.one_shot_gradients(tiny, *sets, passes=passes)
    assert list(found.stats.index) == list(whole.stats.index) == list(found.forget)
    for column in ("importance", "retain_norm", "cosine"):
        assert np.allclose(found.stats[column], whole.stats[column], rtol=1e-4, atol=1e-5), column
    assert found.retain_loss == pytest.approx(whole.retain_loss, rel=1e-6)


@pytest.mark.parametrize("passes", [1, 3])
def test_kept_are_the_layers_that_are_asked_for(tiny, sets, passes):
    whole = slug.one_shot_gradients(tiny, *sets)
    found = slug.one_shot_gradients(tiny, *sets, passes=passes, keep=slug.pareto_front)
    front = slug.pareto_front(whole.stats)
    assert set(front) <= set(found.forget) < set(whole.forget) and len(found.stats) == len(whole.stats)
    assert all(torch.allclose(found.forget[n], whole.forget[n], rtol=1e-3, atol=1e-6) for n in front)


def test_forget_gradients_are_those_of_one_shot_gradients(tiny, sets):
    forget, retain = sets
    whole = slug.one_shot_gradients(tiny, forget, retain).forget
    before = {n: p.detach().clone() for n, p in tiny.weights().items()}
    two = G.forget_gradients(tiny, [forget, retain], memory=slug.Memory(batch_size=4))
    assert len(two) == 2 and set(two[0]) == set(whole)
    assert all(torch.allclose(two[0][n], g, atol=1e-6) for n, g in whole.items())
    assert not torch.allclose(two[1]["text_projection"], two[0]["text_projection"], atol=1e-4)
    assert all(torch.equal(before[n], p) and p.grad is None for n, p in tiny.weights().items())
    with pytest.raises(ValueError, match="set 1 of 2 has no pairs"):
        G.forget_gradients(tiny, [forget, forget[:0]])


def test_sets_of_nothing_and_layers_of_nothing_are_refused(tiny, sets):
    forget, retain = sets
    with pytest.raises(ValueError, match="no forget set"):
        slug.one_shot_gradients(tiny, [], retain)
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size={size}"):
            G.forget_gradients(tiny, [forget], memory=slug.Memory(batch_size=size))
    with pytest.raises(ValueError, match="no weight"):
        G.forget_gradients(tiny, [forget], layers=lambda name, weight: False)
    with torch.no_grad():
        tiny.weights()["text_projection"].fill_(float("nan"))
    with pytest.raises(ValueError, match="set 0 of 1 is not finite"):
        G.forget_gradients(tiny, [forget])


def test_the_first_convolution_may_be_chosen_by_either_name_and_slots_may_not():
    weight = torch.nn.Parameter(torch.zeros(4, 3, 2, 2))
    assert slug.editable("visual.conv1.weight", weight)
    assert slug.editable("vision_model.embeddings.patch_embedding.weight", weight)
    for name in ("text_model.embeddings.token_embedding.weight", "visual.attn_pool.query", "positional_embedding"):
        assert not slug.editable(name, weight), name
