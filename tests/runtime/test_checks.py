"""What errors list."""

from slug_lite.runtime.checks import unknown


def test_errors_list_a_dozen_and_a_count():
    names = [f"name {k}" for k in range(30)]
    said = str(unknown("name 29x", names, "name"))
    assert "did you mean 'name 29'" in said and "name 11, and 18 more of 30 in all" in said and "name 12" not in said
    few = str(unknown("x", names[:12], "name"))
    assert few.endswith('name 10, name 11"') and "more" not in few
