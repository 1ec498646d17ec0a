"""Models for the tests: a tiny untrained CLIP made anew for each test, and mini CLIP, loaded once."""

import copy
import inspect
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "device"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

from small_clips import TINY
from stand_in import stand_in

import slug_lite as slug
from slug_lite.pretrain.clip import build_clip


def pytest_addoption(parser):
    parser.addoption("--stand-in", action="store_true", help="models lie on a stand-in for a GPU, see tests/device")


def pytest_configure(config):
    config.addinivalue_line("markers", "cpu_only(why): is skipped on the stand-in for a GPU")


def pytest_collection_modifyitems(config, items):
    for item in items if config.getoption("--stand-in") else ():
        if (mark := item.get_closest_marker("cpu_only")) is not None:
            item.add_marker(pytest.mark.skip(reason=f"on the CPU only: {mark.args[0]}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session):
    with stand_in() if session.config.getoption("--stand-in") else nullcontext():
        return (yield)


@pytest.fixture(scope="session")
def device(request):
    """Where models lie."""
    return torch.device("cuda" if request.config.getoption("--stand-in") else "cpu")


@pytest.fixture(scope="session")
def _tiny(device):
    clip = build_clip(TINY, seed=1)
    clip.model.to(device)
    return clip


@pytest.fixture
def tiny(_tiny):
    return slug.Clip(copy.deepcopy(_tiny.model), _tiny.tokenizer, _tiny.preprocess)


@pytest.fixture(scope="session")
def _mini(device):
    return slug.load_clip("mini", device=device)


@pytest.fixture
def mini(_mini):
    """Mini CLIP, with a check that the test left it as it was."""
    before = {n: p.detach().clone() for n, p in _mini.weights().items()}
    yield _mini
    assert all(torch.equal(before[n], p) for n, p in _mini.weights().items()), "the test changed the shared model"


@pytest.fixture(scope="session")
def mini_scores(_mini):
    """What mini CLIP scores as it is, to be held against `evaluate(n=6)` with an edit on."""
    return slug.evaluate(_mini, n=6)


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


@pytest.fixture
def canary(tmp_path):
    """A file that hostile code writes; it must not be there in the end."""
    file = tmp_path / "canary"
    yield file
    assert not file.exists(), "somebody else's code was run"
