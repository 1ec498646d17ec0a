"""Gradients against plain autograd, the sign, and a model that is left as it was."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from safetensors.torch import load_file

import slug_lite as slug
from slug_lite import gradients as G
from slug_lite.pairs import Pairs
from slug_lite.pretrain import build_clip


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
    cell = world.everything(8, size=32)
    cats = [i for i, names in enumerate(cell.concepts) if "cat" in names]
    clay = Pairs(cell[cats[:2]].images, ["one", "two"], [("cat", "Clay")] * 2)
    G.check_sets(clay, Pairs(cell.images[:4], list("abcd"), [("cat", "Papercut"), ("dog", "Clay")] * 2))
    with pytest.raises(ValueError, match="2 retain pairs are about Clay in cat"):
        G.check_sets(clay, Pairs(cell.images[:4], list("abcd"), [("cat", "Clay"), ("dog", "Clay")] * 2))
    with pytest.raises(ValueError, match="batch_size=0"):
        slug.one_shot_gradients(tiny, forget, retain, batch_size=0)


def test_losses_that_are_not_finite_are_refused(tiny, sets):
    with torch.no_grad():
        tiny.weights()["visual.proj"][0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        slug.one_shot_gradients(tiny, *sets)


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


def test_groups_are_of_like_size_and_hold_everything(tiny):
    names = [n for n, w in tiny.weights().items() if slug.editable(n, w)]
    groups = G.groups(tiny.weights(), names, 3)
    assert [n for group in groups for n in group] == names and len(groups) == 3
    sizes = [sum(tiny.weights()[n].numel() for n in group) for group in groups]
    assert max(sizes) <= 2 * sum(sizes) / 3


def test_inner_products_in_pieces():
    a, b = torch.randn(3, 1000), torch.randn(3, 1000)
    assert G.inner(a, b, piece=7) == pytest.approx((a.double() * b.double()).sum().item(), rel=1e-12)


WORKER = """
import sys
import torch.distributed as dist
from safetensors.torch import save_file
import slug_lite as slug
from slug_lite.pretrain import build_clip

sys.path.insert(0, sys.argv[1])
from conftest import TINY

dist.init_process_group("gloo")
clip, world = build_clip(TINY, seed=1), slug.toonworld
forget, retain = world.pairs("Ada Sunfield", n=7, size=32), world.retain(["Ada Sunfield"], n=21, size=32)
found = slug.one_shot_gradients(clip, forget, retain, batch_size=4, progress=False)
found.stats.to_json(f"{sys.argv[2]}/stats-{dist.get_rank()}.json")
save_file(found.forget, f"{sys.argv[2]}/forget-{dist.get_rank()}.safetensors")
dist.destroy_process_group()
"""


def test_two_processes_find_what_one_finds(tmp_path):
    """Each takes its share, an odd one here; the contrastive loss is over the pairs of both."""
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d",
               "--rdzv-endpoint=localhost:0", tmp_path / "worker.py", Path(__file__).parent, tmp_path]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    world, clip = slug.toonworld, build_clip(TINY, seed=1)
    one = slug.one_shot_gradients(
        clip, world.pairs("Ada Sunfield", n=7, size=32), world.retain(["Ada Sunfield"], n=21, size=32)
    )
    for rank in range(2):
        stats = pd.read_json(tmp_path / f"stats-{rank}.json")
        for column in ("importance", "retain_norm", "cosine"):
            assert np.allclose(stats[column], one.stats[column], rtol=1e-5, atol=1e-5), column
        for name, gradient in load_file(tmp_path / f"forget-{rank}.safetensors").items():
            torch.testing.assert_close(gradient, one.forget[name], rtol=1e-4, atol=1e-6)


def test_sets_of_nothing_and_layers_of_nothing_are_refused(tiny, sets):
    forget, retain = sets
    with pytest.raises(ValueError, match="no forget set"):
        slug.one_shot_gradients(tiny, [], retain)
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size={size}"):
            G.forget_gradients(tiny, [forget], batch_size=size)
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
