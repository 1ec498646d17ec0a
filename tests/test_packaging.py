"""The project's papers: pins, ranges that admit Colab, one address everywhere, nothing of one machine."""

import re
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
# Colab's own versions in August 2026
COLAB = {
    "torch": "2.11.0", "torchvision": "0.26.0", "diffusers": "0.39.0", "transformers": "5.15.0", "numpy": "2.1.3",
    "ipywidgets": "7.7.1", "pandas": "2.2.2", "pillow": "11.3.0", "matplotlib": "3.10.0", "tqdm": "4.67.1",
    "safetensors": "0.6.2",
}  # fmt: skip


def test_ranges_admit_colab():
    wanted = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}
    for name, version in COLAB.items():
        assert wanted[name].contains(Version(version)), f"{name} {version} of Colab is outside {wanted[name]}"


def test_requirements_pin_everything_for_every_supported_python():
    pins = [Requirement(p) for p in PINS]
    assert all(len(p.specifier) == 1 and next(iter(p.specifier)).operator == "==" for p in pins)
    assert not [p for p in PINS if "://" in p or p.startswith("-")]
    extras = [Requirement(r) for name in ("book", "test") for r in PROJECT["optional-dependencies"][name]]
    for need in [*map(Requirement, PROJECT["dependencies"]), *extras]:
        for python in ("3.11", "3.12", "3.13"):
            for system in ("linux", "darwin"):
                here = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": system,
                        "platform_machine": "arm64" if system == "darwin" else "x86_64", "extra": "",
                        "platform_system": system.title(), "implementation_name": "cpython",
                        "platform_python_implementation": "CPython", "os_name": "posix"}  # fmt: skip
                found = [
                    p for p in pins
                    if p.name.lower().replace("_", "-") == need.name.lower().replace("_", "-")
                    and (p.marker is None or p.marker.evaluate(here))
                ]  # fmt: skip
                assert len(found) == 1, f"{need.name} has {len(found)} pins on Python {python}, {system}"
                version = next(iter(found[0].specifier)).version
                assert need.specifier.contains(version), f"{need} is pinned to {version}"


def test_one_address():
    address = "github.com/slug-book/slug-lite"
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert config["repository"]["url"] == f"https://{address}"
    for file in ("README.md", "CITATION.cff", "notebooks/setup_cell.py", "pyproject.toml"):
        assert address.removeprefix("github.com/") in (ROOT / file).read_text(), file


def test_readme_opens_with_a_picture_and_names_the_commands():
    text = (ROOT / "README.md").read_text()
    picture = re.match(r"!\[(.{40,})\]\((\S+)\)", text)
    assert picture and (ROOT / picture.group(2)).is_file()
    assert "make book" in text and "make test" in text
    assert "colab.research.google.com/github/slug-book/slug-lite/blob/main/notebooks/00_" in text
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / link).exists(), link
    for folder in re.findall(r"^\| `(\w+)/` \|", text, re.M):
        assert (ROOT / folder).is_dir(), folder


def test_continuous_integration_runs_the_readmes_command():
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("make test")
    for name, command in (("test", "make test"), ("deploy", "make book")):
        jobs = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())["jobs"]
        steps = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
        assert any(step.startswith(command) for step in steps)


def test_every_drawing_ships_with_its_licence():
    world = resources.files("slug_lite") / "assets" / "world"
    attribution = (world / "ATTRIBUTION.md").read_text()
    for folder in (f for f in world.iterdir() if f.is_dir() and f.name != "licences"):
        assert f"`{folder.name}/`" in attribution
    for licence in re.findall(r"`(licences/[^`]+)`", attribution):
        assert (world / licence).read_text()


def test_the_wheel_holds_the_assets(tmp_path):
    import zipfile

    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        ROOT,
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for part in (
        "world/people.json",
        "world/clay/cat.svg",
        "world/ATTRIBUTION.md",
        "mini-clip/open_clip_model.safetensors",
    ):
        assert f"slug_lite/assets/{part}" in names


def test_nothing_of_one_machine():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for name in files:
        if Path(name).suffix in {".py", ".md", ".yml", ".toml", ".txt", ".cfg", ".ipynb", ".json", ".jsonl"}:
            text = (ROOT / name).read_text(encoding="utf-8")
            found = re.search(r"(?<![\w.])/(root|home|Users)/[a-z]", text)
            assert not found or name == "tests/test_packaging.py", f"{name}: {found}"
