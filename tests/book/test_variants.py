"""Gradients batch by batch: means when zeroed, running sums when not, and the shipped comparison of both."""

import pytest
import torch

import slug_lite as slug
from slug_lite.book import variants
from slug_lite.book.results import load_results
from slug_lite.losses import retain_loss

NAME = "Ada Sunfield"
LAYER = "visual.proj"


@pytest.fixture(scope="module")
def some():
    """Five forget pairs (a last batch of one) and eight to keep."""
    world = slug.toonworld
    return world.pairs(NAME, n=5), world.retain([NAME], n=8)


def close(a, b):
    return torch.allclose(a, b, rtol=1e-3, atol=1e-7)


def test_one_batch_is_the_gradient_of_the_book(tiny, some):
    whole = slug.one_shot_gradients(tiny, *some)
    ours, left = variants.batch_gradients(tiny, [some[0]], variants.forgetting)
    assert all(close(ours[n], whole.forget[n]) and close(left[n], ours[n]) for n in whole.forget)


def test_zeroed_batches_are_averaged_and_running_sums_count_the_first_batch_most(tiny, some):
    batches = variants.in_batches(some[0], 2)
    assert [len(b) for b in batches] == [2, 2, 1]
    each = [variants.batch_gradients(tiny, [b], variants.forgetting)[0][LAYER] for b in batches]
    mean, last = variants.batch_gradients(tiny, batches, variants.forgetting)
    assert close(mean[LAYER], sum(each) / 3) and close(last[LAYER], each[-1])
    sums, left = variants.batch_gradients(tiny, batches, variants.forgetting, zero=False)
    assert close(sums[LAYER], each[0] + 2 / 3 * each[1] + 1 / 3 * each[2]) and close(left[LAYER], sum(each))
    assert not close(sums[LAYER], mean[LAYER])


def test_what_is_left_counts_once_and_only_where_nothing_is_zeroed(tiny, some):
    batches, left = variants.in_batches(some[1], 4), {n: torch.ones_like(w) for n, w in tiny.weights().items()}
    clean, _ = variants.batch_gradients(tiny, batches, retain_loss, zero=False)
    mixed, _ = variants.batch_gradients(tiny, batches, retain_loss, zero=False, left=left)
    assert close(mixed[LAYER] - clean[LAYER], torch.ones_like(clean[LAYER]))
    zeroed, _ = variants.batch_gradients(tiny, batches, retain_loss, left=left)
    assert close(zeroed[LAYER], variants.batch_gradients(tiny, batches, retain_loss)[0][LAYER])


def test_the_notebook_starts_the_retain_gradient_from_the_forget_gradient(tiny, some):
    forget, retain = some
    g_f, g_r = variants.as_the_notebook(tiny, forget, retain, NAME, batch=4)
    again, left = variants.batch_gradients(
        tiny, variants.in_batches(variants.renamed(forget, NAME), 4), variants.forgetting, zero=False
    )
    alone, _ = variants.batch_gradients(
        tiny, variants.in_batches(variants.renamed(retain, NAME), 4), retain_loss, zero=False
    )
    assert close(g_f[LAYER], again[LAYER]) and close(g_r[LAYER], left[LAYER] + alone[LAYER])
    f, r = variants.as_the_script(tiny, forget, retain, batch=4)
    assert not close(f[LAYER], g_f[LAYER]) and not close(r[LAYER], g_r[LAYER])


def test_the_model_is_left_as_it_was(tiny, some):
    before = {n: (w.detach().clone(), w.requires_grad, w.grad) for n, w in tiny.weights().items()}
    variants.as_the_notebook(tiny, *some, NAME, batch=4)
    for name, weight in tiny.weights().items():
        values, flag, grad = before[name]
        assert torch.equal(weight, values) and weight.requires_grad == flag and weight.grad is grad


def test_captions_are_replaced_and_pictures_kept(some):
    named = variants.renamed(some[1], NAME)
    assert set(named.captions) == {NAME} and (named.images == some[1].images).all()


def test_bad_input_is_named(tiny, some):
    with pytest.raises(ValueError, match="no batches"):
        variants.batch_gradients(tiny, [], variants.forgetting)
    with pytest.raises(ValueError, match="size=0"):
        variants.in_batches(some[0], 0)


def test_names_alone_let_norms_in_and_embeddings_not(tiny):
    let_in = {name for name, weight in tiny.weights().items() if variants.by_name(name, weight)}
    assert {"ln_final.weight", "visual.proj", "text_projection"} <= let_in
    assert not any(word in name for name in let_in for word in ("bias", "embedding", "logit_scale"))
    assert {name for name, weight in tiny.weights().items() if slug.editable(name, weight)} < let_in


def test_the_shipped_comparison_is_whole():
    rows, about = load_results("variants")
    assert {"script", "seed", "date", "versions", "pictures"} <= set(about)
    assert rows.name.nunique() >= 8 and (rows.groupby("name").way.nunique() == rows.way.nunique()).all()
    assert {"paper", "released", "ours", "descent", "top5", "notebook_up", "notebook_down"} <= set(rows.way)
    assert len(rows) == rows.name.nunique() * rows.way.nunique() and (rows.common <= rows.front).all()
    paper = rows[rows.way == "paper"]
    assert (paper.common == paper.front).all() and paper.layer.notna().all()
    assert rows[rows.layer.isna()].left.isna().all() and rows[rows.layer.notna()].left.between(0, 1).all()
