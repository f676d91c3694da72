"""docs/comparison.md anew: settings of all methods on the world, the comparison, its pictures.

python -m benchmarks.comparison --output comparison
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from ie_jax.cli import run
from ie_jax.errors import UserError
from ie_jax.evaluation import drawn
from ie_jax.evaluation.__main__ import evaluation

DOCS = Path(__file__).parents[1] / "docs"
PAGE, PICTURES = DOCS / "comparison.md", DOCS / "comparison"
START, END = "<!-- table -->", "<!-- end of table -->"
TAKEN = ("tradeoff.png", "cost.png", "pictures.png", "results.csv")


def compare(argv: Sequence[str]) -> None:
    """Run the command.

    Raises:
        UserError: see `ie_jax.evaluation`.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("comparison"))
    parser.add_argument("--scenes", default="48")
    parser.add_argument("--no-tuning", action="store_true", help="keep the settings that are there")
    options = parser.parse_args(argv)
    if not options.no_tuning:
        settings = Path(drawn.__file__).with_name(drawn.SETTINGS)
        evaluation(["tune", "--output", str(settings), "--overwrite"])
        tried = settings.with_suffix(".jsonl")
        PICTURES.mkdir(exist_ok=True)
        shutil.move(tried, PICTURES / "tried.jsonl")
    given = ["--methods", "all", "--scenes", options.scenes, "--output", str(options.output)]
    evaluation(["world", *given])
    PICTURES.mkdir(exist_ok=True)
    for name in TAKEN:
        shutil.copyfile(options.output / name, PICTURES / name)
    PAGE.write_text(with_table(PAGE.read_text(), (options.output / "tables.md").read_text()))


def with_table(page: str, table: str) -> str:
    """A page with another table between its marks.

    Raises:
        UserError: it has no marks.
    """
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise UserError(f"{PAGE}: lacks {START} or {END}")
    return f"{before}{start}\n{table}{end}{after}"


if __name__ == "__main__":
    run(compare)
