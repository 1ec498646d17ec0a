"""What the scripts that measure share: nothing is taken up that came from other code, weights or settings."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import slug_lite as slug
from slug_lite.book import results

TOOLS = Path(__file__).parents[1] / "tools"
sys.path.insert(0, str(TOOLS))

import measuring  # noqa: E402
from measuring import Measurement, Unit  # noqa: E402

SCRIPTS = sorted([*TOOLS.glob("measure_*.py"), TOOLS / "compare_searches.py"])
FILES = {
    "source": "pkg/search.py", "deep source": "pkg/room/one.py", "drawing": "pkg/assets/world/a.svg",
    "weights": "model/model.safetensors", "configuration": "model/config.json", "script": "tools/script.py",
    "script beside": "tools/beside.py", "script beside that": "tools/third.py",
}  # fmt: skip


class World:
    """A package, a model, a script with another beside it, a cache and a folder of results, all of them small."""

    def __init__(self, folder):
        self.folder, self.calls = folder, []
        for file in FILES.values():
            self.write(file, "x = 1\n")
        self.write("tools/script.py", '"""What it measures."""\nfrom beside import more\n')
        self.write("tools/beside.py", "import third\n")

    def write(self, file, text):
        (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / file).write_text(text)

    def measure(self, part, name):
        self.calls.append(name)
        return [{"part": part, "name": name, "value": 0.5}, {"part": f"more {part}", "name": name, "none": None}]

    def run(self, *words, settings=None, broken=(), units=(("a", 1), ("a", 2), ("b", 3))):
        """One sitting, with nothing in memory; what was measured in it."""

        def work(part, name):
            if name in broken:
                raise KeyboardInterrupt
            return self.measure(part, name)

        parts = {"a": ("a", "more a"), "b": ("b", "more b")}
        stated = {"seed": 0, "pictures": 4} | (settings or {})
        measurement = Measurement("some", self.folder / "tools/script.py", stated, (self.folder / "model",), parts)
        given = measuring.options(measurement.script, parts).parse_args(words)
        self.calls.clear()
        measuring.run(measurement, [Unit(key, lambda k=key: work(*k)) for key in units], given=given)
        return list(self.calls)

    def kept(self):
        return sorted((self.folder / "cache").rglob("*.json"))

    def results(self):
        return json.loads((self.folder / "results/some.json").read_text())


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "PACKAGE", tmp_path / "pkg")
    monkeypatch.setenv("SLUG_LITE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(results, "_FOLDER", tmp_path / "results")
    return World(tmp_path)


def test_results_say_where_they_come_from(world):
    assert world.run() == [1, 2, 3]
    about, rows = world.results()["about"], world.results()["rows"]
    assert {"seed", "date", "versions", "commit", "script", "pictures", "origin"} == set(about)
    assert about["script"] == "tools/script.py" and about["seed"] == 0 and about["pictures"] == 4
    assert {"python", "torch", "open_clip", "diffusers", "transformers"} == set(about["versions"])
    assert [(row["part"], row["name"]) for row in rows] == [
        ("a", 1), ("more a", 1), ("a", 2), ("more a", 2), ("b", 3), ("more b", 3),
    ]  # fmt: skip


def test_finished_units_are_taken_up(world):
    world.run()
    first = world.results()
    assert world.run() == [] and world.results() == first
    assert world.run("--fresh") == [1, 2, 3] and world.results() == first


@pytest.mark.parametrize("what", list(FILES))
def test_what_came_of_other_files_is_not_taken_up(world, what):
    with pytest.raises(SystemExit):
        world.run(broken={3})
    file = FILES[what]
    before = (world.folder / file).read_text()
    world.write(file, before + "y = 2\n")
    assert world.run() == [1, 2, 3]
    world.write(file, before)
    assert world.run() == [3]  # what was measured with the first is still there


def test_what_came_of_other_settings_or_versions_is_not_taken_up(world, monkeypatch):
    world.run()
    assert world.run(settings={"seed": 1}) == [1, 2, 3] and world.results()["about"]["seed"] == 1
    assert world.run() == []
    monkeypatch.setattr(results.torch, "__version__", "0.1")
    assert world.run() == [1, 2, 3]


def test_the_runner_is_one_of_the_sources(world):
    beside = [file.name for file in measuring.sources(world.folder / "tools/script.py")]
    assert set(beside) == {"script.py", "beside.py", "third.py", "measuring.py"}


@pytest.mark.parametrize(
    "damage",
    [lambda text: text[: len(text) // 2], lambda text: text.replace("0.5", "0.6"), lambda text: "[]", lambda text: ""],
    ids=["cut", "altered", "foreign", "empty"],
)
def test_a_damaged_file_is_measured_anew(world, damage):
    world.run()
    first, file = world.results(), world.kept()[1]
    file.write_text(damage(file.read_text()))
    assert len(world.run()) == 1 and world.results() == first and world.run() == []


def test_one_units_file_does_not_pass_for_another(world):
    world.run()
    files = world.kept()
    files[0].write_text(files[1].read_text())
    assert len(world.run()) == 1


def test_an_interrupt_keeps_what_is_finished_and_nothing_else(world):
    with pytest.raises(SystemExit, match=r"^stopped: 1 of 3 units are kept[^\n]*$"):
        world.run(broken={2})
    assert len(world.kept()) == 1 and not (world.folder / "results/some.json").exists()
    assert not list((world.folder / "cache").rglob("*.part"))
    assert world.run() == [2, 3]


def test_an_error_keeps_what_is_finished_as_well(world, monkeypatch):
    def fails(part, name):
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no memory"):
        own, calls = world.measure, []
        patch.setattr(world, "measure", lambda *k: calls.append(k) or (own if len(calls) == 1 else fails)(*k))
        world.run()
    assert world.run() == [2, 3]


@pytest.mark.parametrize("how", ["a file in its place", "no space"])
def test_a_cache_that_cannot_be_written_stops_nothing(world, monkeypatch, how):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    if how == "no space":
        monkeypatch.setattr(results.os, "replace", lambda a, b: full() if "measured" in str(b) else Path(a).rename(b))
    else:
        world.write("cache", "not a folder")
    with pytest.warns(UserWarning, match=r"not kept.*SLUG_LITE_CACHE") as said:
        assert world.run() == [1, 2, 3]
    assert len(said) == 1 and len(world.results()["rows"]) == 6
    with pytest.warns(UserWarning), pytest.raises(SystemExit, match="0 of 3 units are kept"):
        world.run(broken={3})


def test_rows_of_another_part_stay_if_they_are_of_the_same_settings_and_weights(world):
    world.run()
    whole = world.results()
    assert world.run("--only", "b", "--fresh") == [3]
    assert world.results()["rows"] == whole["rows"]  # in their order
    world.write("pkg/search.py", "x = 2\n")
    assert world.run("--only", "b") == [3]
    about = world.results()["about"]
    assert world.results()["rows"] == whole["rows"] and about["origin"]["code"] != whole["about"]["origin"]["code"]
    # which code the others are of is said, also once the file was written again
    world.write("pkg/search.py", "x = 3\n")
    world.run("--only", "b")
    assert world.results()["about"]["parts"]["a"]["origin"] == whole["about"]["origin"]
    assert {"date", "commit"} < set(world.results()["about"]["parts"]["a"])


@pytest.mark.parametrize("changed", ["settings", "weights"])
def test_rows_of_another_part_go_if_they_are_of_others(world, changed, capsys):
    world.run()
    if changed == "weights":
        world.write("model/model.safetensors", "other")
    assert world.run("--only", "b", settings={"seed": 1} if changed == "settings" else None) == [3]
    assert [row["part"] for row in world.results()["rows"]] == ["b", "more b"]
    assert "4 rows of 'a' are left out" in capsys.readouterr().out


def test_shards_write_the_results_when_all_are_measured(world, capsys):
    assert world.run("--shard", "0/2") == [1, 3] and not (world.folder / "results/some.json").exists()
    assert "2 of 3 units are measured" in capsys.readouterr().out
    world.run("--list")
    assert capsys.readouterr().out.splitlines() == ["measured a 1", "- a 2", "measured b 3"]
    assert world.run("--shard", "1/2") == [2] and len(world.results()["rows"]) == 6


def test_a_unit_without_rows_is_measured_too(world, monkeypatch):
    monkeypatch.setattr(world, "measure", lambda part, name: [])
    world.run()
    assert world.results()["rows"] == []


def test_a_changed_tree_is_said_but_not_for_results(tmp_path, monkeypatch):
    room = tmp_path / "slug_lite" / "book"
    (tmp_path / "slug_lite/assets/results").mkdir(parents=True)
    room.mkdir()
    (room / "results.py").write_text("x = 1\n")
    monkeypatch.setattr(results, "__file__", str(room / "results.py"))
    assert results.this_commit() == "unknown"  # no repository

    def git(*words):
        who = ["-c", "user.name=x", "-c", "user.email=x@x"]
        subprocess.run(["git", "-C", tmp_path, *who, *words], check=True, capture_output=True)

    git("init", "--quiet")
    assert results.this_commit() == "unknown"  # somebody else's repository
    git("add", ".")
    git("commit", "--quiet", "--message", "x")
    clean = results.this_commit()
    assert len(clean) == 40 and set(clean) <= set("0123456789abcdef")
    (tmp_path / "slug_lite/assets/results/some.json").write_text("{}")
    assert results.this_commit() == clean
    (room / "results.py").write_text("x = 2\n")
    assert results.this_commit() == f"{clean}, and uncommitted changes"


def test_results_cannot_be_saved_without_a_seed():
    with pytest.raises(TypeError, match="seed"):
        results.save_results("some", [], script="x")


def test_many_layers_are_searched_as_one_and_put_back(tiny):
    """Of the ablations: the step that makes every layer move together, and the model as it was."""
    from measure_ablations import search_together

    asked = []
    direction = {n: w.detach() for n, w in tiny.weights().items() if n in ("visual.proj", "text_projection")}
    before = {n: w.detach().clone() for n, w in tiny.weights().items()}

    def gone(clip):
        asked.append({n: (w - before[n]).norm() / before[n].norm() for n, w in clip.weights().items()})
        return {"forget_accuracy": 1.0 if len(asked) < 3 else 0.0}

    found, tries = search_together(tiny, gone, direction, 1.0, slug.StepSearch(rule="top1"))
    assert set(found) == set(direction) and tries == len(asked) > 3
    assert all(found[n].shape == before[n].shape for n in found)
    moved = asked[0]  # the first try is a tenth of the joint length, in each of these layers alike
    assert moved["visual.proj"] == pytest.approx(0.1, rel=1e-2) == moved["text_projection"]
    assert moved["logit_scale"] == 0
    assert all(torch.equal(w, before[n]) for n, w in tiny.weights().items())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.stem)
def test_every_script_that_measures_is_on_the_runner(script, monkeypatch, capsys):
    source = script.read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(script), run_name="__main__")
    out = capsys.readouterr().out
    assert "--fresh" in out and "--shard" in out and source.split('"""')[1].split("\n")[0] in out
    assert "gettempdir" not in source and "jsonl" not in source
