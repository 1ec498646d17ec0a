"""Modes for the length of a with-block: what holds inside, and that all is as it was afterwards."""

import pytest
import torch

from slug_lite.runtime.modes import eval_mode, only_gradients_of

LAYER, OTHER = "visual.proj", "text_projection"


def modes(clip):
    return [module.training for module in clip.model.modules()]


@pytest.fixture
def mixed(tiny):
    """The vision tower in train mode, the rest not; a frozen weight, and a gradient of somebody else's."""
    tiny.model.visual.train()
    tiny.weights()[OTHER].requires_grad_(False)
    tiny.weights()[LAYER].grad = torch.ones_like(tiny.weights()[LAYER])
    assert {*modes(tiny)} == {True, False}
    return tiny


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_eval_inside_and_every_modules_own_mode_afterwards(mixed, error):
    before = modes(mixed)
    try:
        with eval_mode(mixed.model):
            assert not any(modes(mixed))
            if error:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert modes(mixed) == before


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_inside_there_are_gradients_of_the_named_weights_alone(mixed, error):
    weights, before, kept = mixed.weights(), modes(mixed), mixed.weights()[LAYER].grad
    flags = {name: weight.requires_grad for name, weight in weights.items()}
    assert not flags[OTHER] and sum(flags.values()) == len(flags) - 1
    try:
        with torch.no_grad(), only_gradients_of(mixed, [OTHER, LAYER]) as chosen:
            assert list(chosen) == [OTHER, LAYER] and chosen[LAYER] is weights[LAYER] and not any(modes(mixed))
            assert {name for name, weight in weights.items() if weight.requires_grad} == {LAYER, OTHER}
            assert all(weight.grad is None for weight in weights.values())
            mixed.text_features(mixed.tokens(["a cat"])).sum().backward()  # though they are switched off around
            assert weights[OTHER].grad is not None
            if error:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert modes(mixed) == before and {n: w.requires_grad for n, w in weights.items()} == flags
    assert weights[LAYER].grad is kept and torch.equal(kept, torch.ones_like(kept))
    assert all(weight.grad is None for name, weight in weights.items() if name != LAYER)
