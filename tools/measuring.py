"""What the scripts that measure share: units of work, taken up where a run was stopped; a results file that says more.

A script says what it measures, as a `Measurement` and a list of `Unit`s, and calls `run`; `options` has what every
script can be asked.

A finished unit is kept in the package's own cache, in a folder whose name is a hash over everything that its rows come
from: all code of the package, the scripts, the weights, the settings, the versions. Change any, and nothing of before
is taken up. Results are written when every unit is measured, not before.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import slug_lite
from slug_lite.book import results
from slug_lite.runtime.progress import bar, silent
from slug_lite.world.sprites import cache_dir

PACKAGE = Path(slug_lite.__file__).parent
CLIP, SD, JUDGE = (PACKAGE / "assets" / name for name in ("mini-clip", "mini-sd", "mini-judge"))
Key = tuple[str | int, ...]
Done = dict[Key, list[dict]]


@dataclass(frozen=True)
class Unit:
    """A piece of work. key: what tells it from the others, its part first where there are parts."""

    key: Key
    measure: Callable[[], list[dict]]  # rows that JSON can hold


@dataclass(frozen=True)
class Measurement:
    """What is measured. settings: stated in the results file, with the seed."""

    name: str  # of the results file
    script: Path
    settings: Mapping[str, object]
    weights: Sequence[Path] = (CLIP,)  # folders of models
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # each part, and what its rows call themselves

    @functools.cached_property
    def origin(self) -> dict[str, str]:
        """Hashes of what the rows come from. Read once: what is changed while a run goes on is not in its memory."""
        code = {*PACKAGE.rglob("*.py"), *(PACKAGE / "assets" / "world").rglob("*.*"), *sources(self.script)}
        weights = {f for folder in self.weights for f in folder.rglob("*.*") if f.suffix in (".safetensors", ".json")}
        return {
            "code": _hash(*sorted(code)), "weights": _hash(*sorted(weights)), "settings": _hash(self.settings),
            "versions": _hash(results.versions()),
        }  # fmt: skip


def _hash(*parts: object) -> str:
    """Of files, by their names and what is in them; of anything else, as JSON has it."""
    found = hashlib.sha256()
    for part in parts:
        file = isinstance(part, Path)
        content = part.read_bytes() if file else json.dumps(part, sort_keys=True, default=str).encode()
        found.update(f"{part.name if file else ''} {len(content)} ".encode() + content)
    return found.hexdigest()[:16]


def sources(script: Path) -> set[Path]:
    """A script, this runner, and the scripts beside it that any of them imports."""
    found, todo = set[Path](), {script.resolve(), Path(__file__).resolve()}
    while todo:
        found.add(file := todo.pop())
        tree = list(ast.walk(ast.parse(file.read_bytes())))
        names = [alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in tree if isinstance(node, ast.ImportFrom)]
        todo |= {beside for name in names if (beside := file.with_name(f"{name}.py")).is_file()} - found
    return found


class Kept:
    """Finished units of one origin, a file each. Where nothing can be kept, that is said once, and the run goes on."""

    def __init__(self, measurement: Measurement) -> None:
        cache = cache_dir()
        self.folder = cache and cache / "measured" / f"{measurement.name}-{_hash(measurement.origin)}"

    def get(self, key: Key) -> list[dict] | None:
        """A unit's rows; None where they are not there, or damaged."""
        try:
            file = self.folder and self.folder / f"{_hash(key)}.json"
            saved = json.loads(file.read_bytes()) if file and file.is_file() else {}
            return saved["rows"] if saved["digest"] == _hash([key, saved["rows"]]) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: Key, rows: list[dict]) -> None:
        saved = json.dumps({"unit": key, "digest": _hash([key, rows]), "rows": rows})
        try:
            if self.folder:
                self.folder.mkdir(parents=True, exist_ok=True)
                results.write(self.folder / f"{_hash(key)}.json", saved)
        except OSError as error:
            warnings.warn(f"what is measured is not kept: {error}. SLUG_LITE_CACHE names another folder", stacklevel=2)
            self.folder = None


def options(script: Path, parts: Iterable[str] = ()) -> argparse.ArgumentParser:
    """The options that all scripts have; a script may add its own."""
    about = ast.get_docstring(ast.parse(script.read_bytes()))
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="take up nothing that is measured already")
    parser.add_argument("--list", action="store_true", help="say which units are measured already, and stop")
    parser.add_argument("--shard", default="0/1", help="K/N: every N-th unit from K on")
    parser.set_defaults(only=None)
    if parts:
        parser.add_argument("--only", choices=list(parts), help="one part; rows of the others stay")
    return parser


def measured(name: str, units: Sequence[Unit], kept: Kept, fresh: bool) -> Done:
    """Units with their rows, each taken up or measured now. An interrupt ends the script, and says what is kept."""
    done: Done = {}
    try:
        for unit in (progress := bar(units, desc=name, unit="unit")):
            progress.set_postfix_str(" ".join(map(str, unit.key)))
            rows = None if fresh else kept.get(unit.key)
            if rows is None:
                with silent():
                    rows = json.loads(json.dumps(unit.measure()))  # as they would be if they were taken up
                kept.put(unit.key, rows)
            done[unit.key] = rows
    except KeyboardInterrupt:
        many = sum(kept.get(unit.key) is not None for unit in units)
        raise SystemExit(f"stopped: {many} of {len(units)} units are kept, for the next run without --fresh") from None
    return done


def other_parts(measurement: Measurement, only: str) -> tuple[list[dict], dict[str, dict]]:
    """Rows of the results file that are of other parts than `only`, and "parts": when and by what code they were made.

    Parts may be measured days apart, but by the same settings and weights; what is not of these is left out.
    """
    kept, since = [], {}
    table, old = results.load_rows(measurement.name) if measurement.name in results.names() else ([], {})
    same = all(old.get("origin", {}).get(k) == measurement.origin[k] for k in ("settings", "weights"))
    for part in set(measurement.parts) - {only}:
        rows = [row for row in table if row["part"] in measurement.parts[part]]
        if rows and not same:
            print(f"{len(rows)} rows of {part!r} are left out: they were measured by other settings or weights")
        elif rows:
            kept += rows
            since[part] = old.get("parts", {}).get(part) or {k: old.get(k) for k in ("date", "commit", "origin")}
    return kept, {"parts": since} if since else {}


def run(
    measurement: Measurement, units: Sequence[Unit], finish: Callable[[list[dict]], list[dict]] = list,
    save: Callable[..., object] = results.save_results, given: argparse.Namespace | None = None,
) -> None:  # fmt: skip
    """Measure what is not measured yet, then write the results file.

    finish: makes its rows of those of all units. save: called as `save_results` is, for results that go elsewhere.
    given: what `options` read, where the script has some of its own.
    """
    given = given or options(measurement.script, measurement.parts).parse_args()
    commit, kept = results.this_commit(), Kept(measurement)
    units = [unit for unit in units if given.only in (None, unit.key[0])]
    if given.list:
        for unit in units:
            print("-" if kept.get(unit.key) is None else "measured", *unit.key)
        return
    shard, shards = map(int, given.shard.split("/"))
    if given.fresh and shards > 1:
        raise SystemExit("--fresh takes up nothing, so not what other shards measure either; leave one of them out")
    mine = measured(measurement.name, units[shard::shards], kept, given.fresh)
    done = [mine[unit.key] if unit.key in mine else kept.get(unit.key) for unit in units]
    if None in done:
        print(f"{len(done) - done.count(None)} of {len(done)} units are measured; the results are written when all are")
        return
    others, since = other_parts(measurement, given.only) if given.only else ([], {})
    rows = finish([row for some in done for row in some]) + others
    if others:  # part by part, as if all had been measured now
        place = {name: k for k, names in enumerate(measurement.parts.values()) for name in names}
        rows.sort(key=lambda row: place[row["part"]])
    about = {**measurement.settings, **since, "origin": measurement.origin, "commit": commit}
    print(save(measurement.name, rows, script=f"tools/{measurement.script.name}", **about))
