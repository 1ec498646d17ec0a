"""A tower run from the middle: what is skipped, that it comes back, and what the next layer starts from."""

import pytest
import torch
from small_clips import small_validation

from slug_lite.runtime import replay, zero_shot
from slug_lite.validation import scorer_of


@pytest.fixture
def small():
    return small_validation("Ada Sunfield")


@pytest.fixture(autouse=True)
def several_batches(monkeypatch):
    """Of pictures and of prompts, as there are with more of them."""
    monkeypatch.setattr(zero_shot, "BATCH", 20)


def test_blocks_that_are_skipped(tiny):
    vision, text = tiny.model.visual.transformer.resblocks, tiny.model.transformer.resblocks
    for layer, blocks in (
        ("visual.conv1.weight", []),
        ("visual.transformer.resblocks.0.attn.in_proj_weight", []),
        ("visual.transformer.resblocks.1.attn.in_proj_weight", list(vision)[:1]),
        ("visual.proj", list(vision)),
        ("text_projection", list(text)),
    ):
        assert replay.blocks_before(tiny, layer) == blocks, layer


def test_skipped_blocks_come_back_after_an_interrupt(tiny, small, monkeypatch):
    """In the second of three batches."""
    monkeypatch.setattr(zero_shot, "BATCH", 3)
    fresh, score = (scorer_of(small, tiny).at("visual.proj") for _ in range(2))
    score()
    calls = []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    hook = tiny.model.visual.ln_post.register_forward_hook(interrupt)
    for stopped in (fresh, score):  # while it is kept, while it is played back
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            stopped()
        assert not any("forward" in module.__dict__ for module in tiny.model.modules())
    hook.remove()
    assert fresh() == score() == small(tiny)  # half of a run is not taken for a whole one


def test_a_forward_of_ones_own_comes_back(tiny, small):
    block = tiny.model.visual.transformer.resblocks[0]
    own = block.forward = lambda *args, **kwargs: type(block).forward(block, *args, **kwargs)
    score = scorer_of(small, tiny).at("visual.proj")
    assert score() == score() and block.forward is own


def test_a_deeper_layer_starts_from_what_the_last_one_kept(tiny, small, monkeypatch):
    """What everything else keeps, asked once a layer: blocks before the layer run once for all layers."""
    scorer, runs = scorer_of(small, tiny), []
    vision, text = tiny.model.visual.transformer.resblocks, tiny.model.transformer.resblocks

    def count(module, args):
        if "forward" not in vars(module):  # it is run, not played back
            runs.append(module)

    for block in (*vision, *text):
        block.register_forward_pre_hook(count)
    for blocks, layers in (
        (vision, ["visual.conv1.weight", "visual.transformer.resblocks.1.mlp.c_fc.weight", "visual.proj"]),
        (text, ["transformer.resblocks.1.attn.out_proj.weight", "text_projection"]),
    ):
        counts = []
        for layer in layers:
            weight = tiny.weights()[layer]
            before = weight.detach().clone()
            with torch.no_grad():
                weight.add_(0.3 * torch.randn_like(weight))
                fresh = scorer_of(small, tiny).retaining()
                runs.clear()
                assert scorer.at(layer).retaining() == fresh  # bit for bit
                weight.copy_(before)
            counts.append([sum(run is block for run in runs) for block in blocks])
        assert counts[0][0] > 1 and counts[-1][0] == 0 and counts[-1][1] > 1
    for layer in ("visual.proj", "visual.conv1.weight", "transformer.resblocks.0.mlp.c_fc.weight"):
        weight = tiny.weights()[layer]  # shallower than what has been kept, which does not lie before it
        before = weight.detach().clone()
        with torch.no_grad():
            weight.add_(0.3 * torch.randn_like(weight))
            assert scorer.at(layer).retaining() == scorer_of(small, tiny).retaining(), layer
            weight.copy_(before)
    sizes, kept = [], scorer.kept
    hook = vision[-1].register_forward_hook(lambda module, args, output: sizes.append(output.nbytes))
    scorer_of(small, tiny).at("visual.proj").retaining()
    hook.remove()
    for most, parts in ((sum(sizes), {"rest"}), (max(sizes), set()), (10, set())):  # all batches together count
        kept.clear()
        monkeypatch.setattr(replay, "KEPT", most)
        scorer.at("visual.proj").retaining()
        assert set(kept) == parts
