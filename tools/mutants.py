"""Is every small mistake in the package noticed by the tests of the room that it is made in?

python tools/mutants.py hand [ROOM ...]      the mistakes of tests/mutants.toml, each in a copy of the package
python tools/mutants.py mutmut [ROOM ...]    those that mutmut makes in rooms of the trunk; goes on where it stopped

ROOM: how the names of rooms begin, as "losses" or "runtime/"; none for all of them. Both say how long they took, and
leave what they found in _build/mutants. The first fails where fewer than 95 of 100 mistakes are noticed, the second
where one passes that tests/mutants_left.toml does not list.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tests" / "mutants.toml"
LEFT = ROOT / "tests" / "mutants_left.toml"  # what mutmut makes and no test notices, with the reasons
WORK = ROOT / "_build" / "mutants"
TRUNK = (
    "pairs", "models", "losses", "gradients", "selection", "validation", "search", "targets", "edit", "algorithm",
    "several",
)  # fmt: skip
ENOUGH = 0.95  # of the hand-made mistakes are to be noticed
# what the package leans on, imported once; the package itself is imported anew for each mistake
PRELOAD = ["torch", "torchvision", "open_clip", "transformers", "pandas", "matplotlib.pyplot", "pytest", "resvg_py"]
PYTEST = ["-x", "-q", "-o", "addopts=", "-p", "no:nbval", "-p", "no:cacheprovider", "-p", "fast_first"]


@dataclass(frozen=True)
class Mutant:
    """One mistake: in a room's file the text `old` becomes `new`; kind: what sort of mistake; why: in words.

    tests: the files that must notice it; left: why none does, where it is known to pass.
    """

    room: str
    kind: str
    why: str
    old: str
    new: str
    tests: tuple[str, ...]
    left: str = ""

    @property
    def file(self) -> str:
        return f"slug_lite/{self.room}.py"

    def applied(self, source: str) -> str:
        """The file with the mistake in it. ValueError unless the old text is there exactly once, and is not the new."""
        if source.count(self.old) != 1 or self.old == self.new:
            raise ValueError(f"{self.file}: {self.why!r} does not apply: {source.count(self.old)} times {self.old!r}")
        return source.replace(self.old, self.new)


def read_list(file: Path = LIST) -> tuple[list[Mutant], dict[str, list[str]]]:
    """The hand-made mistakes, and the test files of rooms that have other ones than tests/test_ROOM.py."""
    found = tomllib.loads(file.read_text(encoding="utf-8"))
    own = found["tests"]
    for one in found["mutant"]:
        one["tests"] = tuple(one.get("tests", tests_of(one["room"], own)))
    return [Mutant(**one) for one in found["mutant"]], own


def tests_of(room: str, own: dict[str, list[str]]) -> list[str]:
    wing, _, name = room.rpartition("/")
    return own.get(room, [f"tests/{wing}/test_{name}.py" if wing else f"tests/test_{name}.py"])


def copy_house(folder: Path) -> dict[str, bytes]:
    """Package and tests as they are now, in `folder`; what lies there and is as it should be is not touched.

    Returns what was copied, by name. The package's assets are linked to, for nothing changes them.
    """
    found, wanted = {}, {Path("pyproject.toml")}
    for part in ("slug_lite", "tests"):
        files = sorted((ROOT / part).rglob("*"))
        wanted |= {
            f.relative_to(ROOT) for f in files
            if f.is_file() and "__pycache__" not in f.parts and not f.is_relative_to(ROOT / "slug_lite" / "assets")
        }  # fmt: skip
    for file in sorted(wanted):
        content, copy = (ROOT / file).read_bytes(), folder / file
        found[file.as_posix()] = content
        if not copy.is_file() or copy.read_bytes() != content:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
    for part in ("slug_lite", "tests"):
        for copy in (folder / part).rglob("*.py"):
            if copy.relative_to(folder) not in wanted:
                copy.unlink()
    link_assets(folder)
    return found


def seen_by(house: dict[str, bytes], tests: Sequence[str]) -> str:
    """A hash of all that the outcome of some tests may hang on: of everything but other tests."""
    digest = hashlib.sha256()
    for name, content in house.items():
        if name in tests or not Path(name).name.startswith("test_"):
            digest.update(name.encode() + content)
    return digest.hexdigest()[:16]


def link_assets(folder: Path) -> None:
    link = folder / "slug_lite" / "assets"
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(ROOT / "slug_lite" / "assets", target_is_directory=True)


def environment(folder: Path, times: Path) -> dict[str, str]:
    """For tests of a copy: its package, tools as plugins, one thread, a cache of sprites that no mistake can spoil."""
    paths = [str(folder), str(ROOT / "tools"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1", "TEST_TIMES": str(times),
        "SLUG_LITE_CACHE": str(WORK / "cache"), "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
    }  # fmt: skip


def run_pytest(folder: Path, tests: Sequence[str], log: Path, times: Path, write: bool) -> None:
    """The tests of a copy, in this process, which they end; the exit status is pytest's."""
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(environment(folder, times), TEST_TIMES_WRITE=str(int(write)))
    os.chdir(folder)
    sys.path[:0] = [str(folder), str(ROOT / "tools")]
    sys.dont_write_bytecode = True
    import pytest

    if write:
        import slug_lite

        assert Path(slug_lite.__file__).is_relative_to(folder), "the package is not that of the copy"
    sys.exit(int(pytest.main([*PYTEST, *tests])))


class Bench:
    """Runs tests of a copy of the package, each time in a process of its own that has torch loaded already."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.context = folder, multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOAD)
        os.environ.update(TQDM_DISABLE="1", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
        self.log = folder.parent / "log.txt"

    def run(self, tests: Sequence[str], times: Path, limit: float | None = None, write: bool = False) -> int | None:
        """pytest's exit status, None where it took longer than `limit` seconds."""
        process = self.context.Process(target=run_pytest, args=(self.folder, tests, self.log, times, write))
        process.start()
        process.join(limit)
        status = process.exitcode
        if status is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        return status

    def noticed_by(self) -> str:
        said = self.log.read_text(errors="replace")
        found = re.search(r"^(?:FAILED|ERROR) \S*?(\w+\.py(?:::\S+)?)", said, re.MULTILINE)
        return found[1] if found else ""


def by_hand(rooms: Sequence[str]) -> int:
    """Every mistake of the list in turn. Returns 0 where enough of them are noticed."""
    begun, folder, limits, rows = time.monotonic(), WORK / "hand" / "house", {}, []
    chosen = [one for one in read_list()[0] if any(one.room.startswith(room) for room in rooms or [""])]
    house, bench = copy_house(folder), Bench(folder)
    print(f"{len(chosen)} mistakes; first the tests as they are", flush=True)
    for tests in dict.fromkeys(one.tests for one in chosen):
        limits[tests] = as_they_are(bench, house, tests)
    for one in chosen:
        file, start = folder / one.file, time.monotonic()
        source = file.read_text(encoding="utf-8")
        try:
            file.write_text(one.applied(source), encoding="utf-8")
            status = bench.run(one.tests, *limits[one.tests])
        finally:
            file.write_text(source, encoding="utf-8")
        # other statuses are pytest's own trouble, as with a package that cannot be imported: no test noticed anything
        verdict = {None: "noticed", 1: "noticed", 0: "SURVIVED"}.get(status, f"ERROR {status}")
        by = one.left if verdict != "noticed" else bench.noticed_by() if status else "the time it took"
        rows.append({"room": one.room, "kind": one.kind, "why": one.why, "verdict": verdict, "by": by})
        print(f"{verdict:9}{time.monotonic() - start:6.1f} s  {one.room}: {one.why} [{one.kind}] {by}", flush=True)
    (folder.parent / "results.json").write_text(json.dumps(rows, indent=1))
    return report(rows, time.monotonic() - begun)


def as_they_are(bench: Bench, house: dict[str, bytes], tests: tuple[str, ...]) -> tuple[Path, float]:
    """A file with the seconds that tests take without any mistake, and how long they may take with one."""
    times = bench.folder.parent / "times" / f"{seen_by(house, tests)}.json"
    times.parent.mkdir(exist_ok=True)
    if not times.is_file() and bench.run(tests, times, write=True) != 0:
        times.unlink(missing_ok=True)
        print(bench.log.read_text(errors="replace")[-3000:])
        raise SystemExit(f"{', '.join(tests)}: they fail without any mistake")
    return times, 60 + 5 * sum(json.loads(times.read_text()).values())


def report(rows: list[dict[str, str]], seconds: float) -> int:
    """How many of each kind were noticed. Returns 1 for too few."""
    total = Counter(row["kind"] for row in rows)
    noticed = Counter(row["kind"] for row in rows if row["verdict"] == "noticed")
    for kind, number in total.items():
        print(f"{kind:12}{noticed[kind]:4} of {number:4} noticed")
    share = noticed.total() / max(1, len(rows))
    print(f"{'all':12}{noticed.total():4} of {len(rows):4} noticed, {share:.1%}, in {seconds:.0f} s")
    return int(share < ENOUGH)


def with_mutmut(rooms: Sequence[str], jobs: int) -> int:
    """mutmut on each room of the trunk, against the room's tests, in a folder of its own."""
    begun, own, rows = time.monotonic(), read_list()[1], []
    for room in (room for room in TRUNK if any(room.startswith(some) for some in rooms or [""])):
        folder, start = WORK / "mutmut" / room, time.monotonic()
        copy_house(folder)
        link_assets(folder / "mutants")
        settings = {**tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"],
                    "only_mutate": [f"slug_lite/{room}.py"],
                    "pytest_add_cli_args_test_selection": tests_of(room, own)}  # fmt: skip
        text = "\n".join(["[tool.mutmut]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items()), ""])
        if not (told := folder / "settings.toml").is_file() or told.read_text(encoding="utf-8") != text:
            (folder / "slug_lite" / f"{room}.py").touch()  # by other settings other mutants are made of it
        told.write_text(text, encoding="utf-8")
        (folder / "pyproject.toml").write_text(text, encoding="utf-8")
        forget_survivors(folder, tests_of(room, own))
        env = os.environ | environment(folder / "mutants", folder / "mutants" / "mutmut-stats.json")
        env["CUDA_VISIBLE_DEVICES"] = ""  # mutmut forks after the tests have run: not what CUDA stands
        command = [sys.executable, "-c", "from mutmut.__main__ import cli; cli()"]
        subprocess.run([*command, "run", "--max-children", str(jobs)], cwd=folder, env=env, check=True)
        found = verdicts(folder, room)
        passed = [name for name, status in found.items() if status in (0, 33)]
        show = {"cwd": folder, "env": env, "capture_output": True, "text": True, "check": True}
        diffs = [subprocess.run([*command, "show", name], **show).stdout for name in passed]
        new = [diff for diff in diffs if (room, *changed(diff)) not in read_left()]
        (folder / "survived.diff").write_text("\n".join(new), encoding="utf-8")
        rows.append((room, len(found), sum(status is None for status in found.values()), len(passed), len(new)))
        print(f"{room}: {time.monotonic() - start:.0f} s; neither noticed nor listed: {folder / 'survived.diff'}")
    for room, number, waiting, passed, new in rows:
        rest = f", {waiting} not tried" if waiting else ""
        print(f"{room:12}{number - waiting - passed:4} of {number:4} noticed, {passed - new} listed, {new} not{rest}")
    print(f"in {time.monotonic() - begun:.0f} s")
    return int(any(new for *_, new in rows))


def changed(diff: str) -> tuple[str, str]:
    """The lines of a diff that were taken away, and those that were put in their place."""
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
    return tuple("\n".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+")


def read_left(file: Path = LEFT) -> set[tuple[str, str, str]]:
    """Room, lines taken away and lines put in their place, of all that is known not to be noticed."""
    groups = tomllib.loads(file.read_text(encoding="utf-8"))["left"]
    return {(one["room"], old, new) for one in groups for old, new in one["lines"]}


def verdicts(folder: Path, room: str) -> dict[str, int | None]:
    """mutmut's exit statuses by mutant: 0 survived, 33 without any test, None not tried; all others were noticed."""
    meta = folder / "mutants" / "slug_lite" / f"{room}.py.meta"
    return json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"] if meta.is_file() else {}


def forget_survivors(folder: Path, tests: Sequence[str]) -> None:
    """Where tests have changed since the last time, what had survived (or met no test) is tried again."""
    state = hashlib.sha256(b"".join((folder / test).read_bytes() for test in tests)).hexdigest()
    mark = folder / "tests.sha256"
    if mark.is_file() and mark.read_text() != state:
        for file in (folder / "mutants" / "slug_lite").glob("*.meta"):
            meta = json.loads(file.read_text(encoding="utf-8"))
            codes = meta["exit_code_by_key"]
            meta["exit_code_by_key"] = {name: None if code in (0, 33) else code for name, code in codes.items()}
            file.write_text(json.dumps(meta, indent=4), encoding="utf-8")
        (folder / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)  # which test looks at what
    mark.write_text(state)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("how", choices=["hand", "mutmut"])
    parser.add_argument("rooms", nargs="*", metavar="ROOM")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time, for mutmut")
    asked = parser.parse_args()
    return by_hand(asked.rooms) if asked.how == "hand" else with_mutmut(asked.rooms, asked.jobs)


if __name__ == "__main__":
    raise SystemExit(main())
