"""Models for the tests: a tiny untrained CLIP made anew for each test, and mini CLIP, loaded once."""

import copy
import inspect
import os

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

from small_clips import TINY

import slug_lite as slug
from slug_lite.pretrain.clip import build_clip


@pytest.fixture(scope="session")
def _tiny():
    return build_clip(TINY, seed=1)


@pytest.fixture
def tiny(_tiny):
    return slug.Clip(copy.deepcopy(_tiny.model), _tiny.tokenizer, _tiny.preprocess)


@pytest.fixture(scope="session")
def _mini():
    return slug.load_clip("mini", device="cpu")


@pytest.fixture
def mini(_mini):
    """Mini CLIP, with a check that the test left it as it was."""
    before = {n: p.detach().clone() for n, p in _mini.weights().items()}
    yield _mini
    assert all(torch.equal(before[n], p) for n, p in _mini.weights().items()), "the test changed the shared model"


@pytest.fixture(scope="session")
def sets():
    """A small forget set and retain set, drawn at 32 pixels."""
    world = slug.toonworld
    return world.pairs("Ada Sunfield", n=6, size=32), world.retain(["Ada Sunfield"], n=20, size=32)


@pytest.fixture
def spy(monkeypatch):
    """spy(module, name): the function works as before, and the list returned takes its calls in, defaults included."""

    def watch(module, name):
        function, calls = getattr(module, name), []
        signature = inspect.signature(function)

        def watched(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            calls.append(dict(bound.arguments))
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, watched)
        return calls

    return watch
