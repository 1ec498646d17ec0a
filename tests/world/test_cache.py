"""Where drawings cannot be kept the world is drawn all the same, and it is said once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import slug_lite
from slug_lite.world import sprites

CODE = """
import os, sys, warnings
{before}
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as said:
    import slug_lite
    from slug_lite.world import sprites
    pictures = [sprites.sprites(name, "test", size) for name in ("banana", "Zorbo") for size in (16, 24)]
said = [str(one.message) for one in said if "SLUG_LITE_CACHE" in str(one.message)]
assert all(one.any() for one in pictures)
print(len(said), *said)
"""


def drawn(before="", **environment):
    """What a process says that draws with such an environment; None takes a variable out."""
    given = {**os.environ, "PYTHONPATH": str(Path(slug_lite.__file__).parents[1]), "SLUG_LITE_CACHE": None}
    given |= environment
    given = {name: value for name, value in given.items() if value is not None}
    done = subprocess.run([sys.executable, "-c", CODE.format(before=before)], env=given, capture_output=True, text=True,
                          timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def draws(monkeypatch):
    """As `drawn`, in this process: with nothing in memory, and nothing said yet."""
    monkeypatch.setattr(sprites, "_SAID", [], raising=False)
    sprites.sprites.cache_clear()
    yield lambda: [sprites.sprites("banana", "test", size).any() for size in (16, 24)]
    sprites.sprites.cache_clear()


def test_the_tilde_of_the_variable_is_the_home(draws, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SLUG_LITE_CACHE", "~/x")
    monkeypatch.chdir(tmp_path)
    assert all(draws()) and len(list((tmp_path / "home/x").rglob("*.npz"))) == 2
    assert not (tmp_path / "~").exists()


def test_no_home_and_a_user_without_a_name():
    out = drawn("import pwd; pwd.getpwuid = lambda uid: {}[uid]", HOME=None, XDG_CACHE_HOME=None)
    assert out.startswith("1 drawings are not kept") and "home" in out


def test_a_file_or_a_pipe_where_the_folder_should_be(draws, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    for name in ("file", "pipe"):
        sprites.sprites.cache_clear()
        sprites._SAID.clear()
        monkeypatch.setenv("SLUG_LITE_CACHE", str(tmp_path / name))
        with pytest.warns(UserWarning, match=r"not kept.*SLUG_LITE_CACHE") as said:
            assert all(draws())
        assert len(said) == 1


def test_a_pipe_where_a_file_should_be_is_not_waited_for(draws, monkeypatch, tmp_path):
    monkeypatch.setenv("SLUG_LITE_CACHE", str(tmp_path))
    assert all(draws())
    for file in list(tmp_path.rglob("*.npz")):
        file.unlink()
        os.mkfifo(file)
    code = f"os.environ['SLUG_LITE_CACHE'] = {str(tmp_path)!r}"
    assert drawn(code).startswith("0")


@pytest.mark.parametrize("where", ["mkstemp", "savez_compressed"])
def test_a_full_or_read_only_disk(draws, monkeypatch, tmp_path, where):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("SLUG_LITE_CACHE", str(tmp_path))
    monkeypatch.setattr(sprites.tempfile if where == "mkstemp" else sprites.np, where, full)
    with pytest.warns(UserWarning, match="No space left") as said:
        assert all(draws())
    assert len(said) == 1 and not [f for f in tmp_path.rglob("*") if f.is_file()]
