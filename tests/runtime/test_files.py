"""Signed files: what is read is what was written, and whatever was changed since is noticed."""

import pytest
import torch
from safetensors.torch import save_file

from slug_lite.runtime.files import digest, read_signed, write_signed

HALF = ("F16", "BF16")
META = {"format": "mine 1", "concept": "Ada Sunfield"}
DTYPES = ("F16", "BF16")


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return {"a": torch.randn(4, 6).half(), "b": torch.randn(4, 6).half()}


def test_there_and_back(tensors, tmp_path):
    file = tmp_path / "edit.safetensors"
    write_signed(file, tensors | {"c": tensors["a"].T}, META)
    found, meta = read_signed(file, "mine 1", "edit", DTYPES)
    assert meta == META and all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in tensors.items())
    assert torch.equal(found["c"], tensors["a"].T) and list(tmp_path.iterdir()) == [file]
    with pytest.raises(ValueError, match=r"'a' in .* is F16; F32 is allowed"):
        read_signed(file, "mine 1", "edit", ["F32"])
    with pytest.raises(ValueError, match="its format is 'mine 1', not 'mine 2'"):
        read_signed(file, "mine 2", "edit", DTYPES)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {"a": t["b"], "b": t["a"]}, lambda t: {"a": t["a"], "c": t["b"]}, lambda t: {"a": t["a"]},
        lambda t: t | {"a": t["a"].reshape(6, 4)}, lambda t: t | {"a": t["a"].view(torch.bfloat16)},
        lambda t: t | {"a": t["a"] + 1},
    ],
    ids=["names exchanged", "another name", "one is missing", "another shape", "another dtype", "other numbers"],
)  # fmt: skip
def test_every_change_of_a_tensor_is_noticed(tensors, change, tmp_path):
    assert digest(change(tensors), META) != digest(tensors, META) == digest(dict(reversed(tensors.items())), META)
    file = tmp_path / "edit.safetensors"
    save_file({n: t.contiguous() for n, t in change(tensors).items()}, file, META | {"digest": digest(tensors, META)})
    with pytest.raises(ValueError, match="altered after it was saved"):
        read_signed(file, "mine 1", "edit", DTYPES)


def test_every_change_of_what_is_said_is_noticed(tensors):
    whole = digest(tensors, META)
    assert digest(tensors, dict(reversed(META.items()))) == whole
    assert whole not in (digest(tensors, META | {"concept": "Zorbo"}), digest(tensors, {"format": "mine 1"}))


def test_half_a_file_does_not_stay_behind_and_the_old_one_does(tensors, tmp_path, monkeypatch):
    file = tmp_path / "edit.safetensors"
    write_signed(file, tensors, META)

    def stop(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr("slug_lite.runtime.files.os.replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_signed(file, {"a": tensors["b"]}, META)
    assert list(tmp_path.iterdir()) == [file]
    assert set(read_signed(file, "mine 1", "edit", DTYPES)[0]) == {"a", "b"}
