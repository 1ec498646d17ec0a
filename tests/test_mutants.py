"""The list of small mistakes that `make mutants-by-hand` tries: all of them still can be made."""

import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import mutants  # noqa: E402

MUTANTS, OWN = mutants.read_list()
KINDS = {"mechanics", "splits", "seeds", "kept", "options", "processes", "averages", "names"}


def test_every_mistake_can_be_made():
    """Its text is there exactly once, what comes out is Python, and there are tests to notice it."""
    for one in MUTANTS:
        source = (ROOT / one.file).read_text(encoding="utf-8")
        compile(one.applied(source), one.file, "exec")
        assert one.why and one.tests and all((ROOT / test).is_file() for test in one.tests), one.why


def test_what_cannot_be_made_is_an_error():
    one = mutants.Mutant("losses", "mechanics", "", "a", "b", ())
    assert one.applied("xay") == "xby"
    for source in ("", "aa"):
        with pytest.raises(ValueError, match="does not apply"):
            one.applied(source)


def test_there_are_enough_of_every_kind_and_in_every_room_of_the_trunk():
    rooms, kinds = Counter(one.room for one in MUTANTS), Counter(one.kind for one in MUTANTS)
    assert set(kinds) == KINDS and min(kinds.values()) >= 5
    assert all(rooms[room] >= 5 for room in mutants.TRUNK) and sum(rooms[room] for room in mutants.TRUNK) >= 100
    assert len({(one.room, one.old, one.new) for one in MUTANTS}) == len(MUTANTS)
    assert sum(bool(one.left) for one in MUTANTS) <= (1 - mutants.ENOUGH) * len(MUTANTS)


def test_tests_of_a_room_are_those_beside_it_in_the_order_of_the_house():
    assert mutants.tests_of("losses", {}) == ["tests/test_losses.py"]
    assert mutants.tests_of("runtime/linear", {}) == ["tests/runtime/test_linear.py"]
    assert mutants.tests_of("losses", {"losses": ["tests/x.py"]}) == ["tests/x.py"]
    assert all((ROOT / test).is_file() for room in mutants.TRUNK for test in mutants.tests_of(room, OWN))


def test_the_share_that_is_noticed_decides(capsys):
    rows = [{"kind": "names", "verdict": "noticed"}] * 95 + [{"kind": "seeds", "verdict": "SURVIVED"}] * 5
    assert mutants.report(rows, 1.0) == 0 and mutants.report(rows[1:], 1.0) == 1
    assert "95 of  100 noticed, 95.0%" in capsys.readouterr().out


def test_what_is_known_to_pass_is_still_there():
    """Lines of the room that they were taken from, each with something else in its place."""
    for room, old, new in mutants.read_left():
        lines = [line.strip() for line in (ROOT / "slug_lite" / f"{room}.py").read_text(encoding="utf-8").splitlines()]
        assert room in mutants.TRUNK and old != new and all(line in lines for line in old.splitlines()), old


def test_a_diff_is_known_by_its_lines():
    diff = "# x: survived\n--- slug_lite/x.py\n+++ slug_lite/x.py\n@@ -1 +1 @@\n a\n-    b = 1\n-    c\n+    b = 2\n"
    assert mutants.changed(diff) == ("b = 1\nc", "b = 2")
