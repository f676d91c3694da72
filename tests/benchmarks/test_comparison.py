"""The page of the comparison, made anew."""

import pytest

from benchmarks.comparison import END, PAGE, START, with_table
from ie_jax.errors import UserError


def test_the_table_goes_between_its_marks() -> None:
    page = PAGE.read_text()
    assert with_table(f"a\n{START}\nold\n{END}\nb\n", "new\n") == f"a\n{START}\nnew\n{END}\nb\n"
    assert START in with_table(page, "new\n") and "\nnew\n" in with_table(page, "new\n")
    with pytest.raises(UserError, match="lacks"):
        with_table("a", "b")
