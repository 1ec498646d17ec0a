"""The scripts around the trainings: where one begins, what is left to do, and what a model card says of a count."""

import json
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import measure_mini_sd  # noqa: E402
import ship_mini_sd  # noqa: E402
import train_mini_sd  # noqa: E402


def assets(folder, training):
    """An assets folder with little in its files."""
    for name in ("vae", "unet"):
        (folder / "mini-sd" / name).mkdir(parents=True)
        (folder / "mini-sd" / name / "config.json").write_text(name)
        (folder / "mini-sd" / f"{name}_log.jsonl").write_text('{"step": 50}\n{"step": 100}\n')
    (folder / "mini-sd" / "training.json").write_text(json.dumps(training))
    (folder / "mini-judge").mkdir()
    return folder


def test_a_training_begins_with_what_is_trained(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    assert not train_mini_sd.done(run, 100)
    train_mini_sd.begin(run, assets(tmp_path / "assets", {"vae": {}, "unet": {}}))
    assert [(run / name / "config.json").read_text() for name in ("vae", "unet")] == ["vae", "unet"]
    assert (run / "judge").is_dir() and not list(run.glob("guidance*"))
    assert train_mini_sd.done(run, 100) and not train_mini_sd.done(run, 101)


def test_guidance_is_not_distilled_twice(tmp_path):
    """A student's student would draw best with 7.5 x 7.5 / 3.2."""
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(SystemExit, match="already"):
        train_mini_sd.begin(run, assets(tmp_path / "assets", {"vae": {}, "unet": {}, "guidance": {}}))
    assert list(run.iterdir()) == []


def test_counts_of_all_numbers_of_steps_are_written_and_shown(tmp_path, capsys):
    kinds = {kind: len(asked) for kind, asked in measure_mini_sd.prompts().items()}
    rows = [{"psnr": 30.5}]
    for steps, most in ((50, 1.0), (20, 0.5)):
        for kind, n in kinds.items():
            rows.append({"kind": kind, "steps": steps, "seconds": 1.0, "rates": [most] * (n - 1) + [0.25]})
    about = {"script": "x.py", "seed": 0, "guidance": 7.5, "commit": "c"}
    file = measure_mini_sd.write("", rows, folder=tmp_path, name="other", steps=[50, 20], seeds=[4, 8], **about)
    assert file == tmp_path / "other.json"
    measured = json.loads(file.read_text())
    (fewer,) = measured["also"]
    assert [(count["steps"], count["seeds"]) for count in (measured, fewer)] == [(50, 4), (20, 8)]
    assert (measured["psnr"], measured["guidance"]) == (30.5, 7.5)
    assert measured["people"] == pytest.approx(1 - 0.75 / 24, abs=1e-4) and measured["least"]["people"] == 0.25
    assert fewer["people"] == pytest.approx(0.5 - 0.25 / 24, abs=1e-4)
    head, line, *body = ship_mini_sd.table([measured, fewer]).splitlines()
    assert head == "| | 50 steps, 4 seeds | least | 20 steps, 8 seeds | least |" and line.count("---") == 5
    assert [row.split(" | ")[0] for row in body] == [f"| {kind}" for kind in kinds]
    assert body[0] == "| people | 96.9% | 25.0% | 49.0% | 25.0% |"


def test_weights_are_those_of_the_stage_that_was_measured(tmp_path):
    for part in ("vae", "unet", "guidance", "judge"):
        name = "model.safetensors" if part == "judge" else "diffusion_pytorch_model.safetensors"
        (tmp_path / part).mkdir()
        (tmp_path / part / name).write_text(part)
    last, teacher = (measure_mini_sd.digests(tmp_path, tmp_path / "judge", *unet) for unet in ((), ("unet",)))
    assert last["unet"] != teacher["unet"] and {**last, "unet": 0} == {**teacher, "unet": 0}
    assert set(last) == {"vae", "unet", "judge"}
