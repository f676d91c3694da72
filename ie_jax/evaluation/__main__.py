"""The command: measure how well a model inverts and edits."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ie_jax.cli import run
from ie_jax.config import parse
from ie_jax.editing.images import check_place, write_errors
from ie_jax.errors import UserError
from ie_jax.evaluation.drawn import drawn
from ie_jax.evaluation.protocols import listed, photos, pie
from ie_jax.evaluation.report import environment
from ie_jax.evaluation.runner import write
from ie_jax.evaluation.tuning import tune
from ie_jax.evaluation.world.config import WorldConfig
from ie_jax.evaluation.world.masks import masks
from ie_jax.evaluation.world.protocol import evaluate
from ie_jax.evaluation.world.report import write_plots, write_sheets, write_tables
from ie_jax.evaluation.world.tasks import check_seed
from ie_jax.products import OWN, check_folder
from ie_jax.progress import Stages

DESCRIPTION = """world: measure a model of the embedded world on scenes that it never saw:
reconstruction, edits beside their exact results, and the trade-off between the two. Writes
results.json, tables, plots and pictures into a folder. With --methods NAMES, or all: compare
methods on its scenes instead, see world --methods all -h."""


@dataclass(frozen=True)
class WorldRequest:
    """What to measure, and where the results go."""

    model: str = "world"
    """world, which comes along, or a model folder with judges: classifier.safetensors and
    perceptual.safetensors."""
    scenes: int = 512
    """How many scenes."""
    seed: int = 2026
    """Of the scenes; from 1000 up, as those below are training's."""
    output: str = "evaluation"
    """Folder of the results."""
    overwrite: bool = False
    """Write into the folder whatever it holds."""
    batch_size: int = 32
    """Scenes, or edits, at once."""
    quiet: bool = False
    """Show no progress."""


def world(argv: Sequence[str]) -> None:
    """Run the protocol of the embedded world.

    Raises:
        UserError: bad input, or the results cannot be written.
    """
    request, config, _ = parse(argv, DESCRIPTION, WorldRequest, WorldConfig)
    check_seed(request.seed)
    folder = Path(request.output)
    record = folder / "results.json"
    with write_errors(folder):
        check_folder(folder, record, request.overwrite)
        folder.mkdir(parents=True, exist_ok=True)
    check_place(record)
    stages = Stages(request.quiet)
    results, pictures = evaluate(
        request.model, request.scenes, request.seed, request.batch_size, config, stages
    )
    results |= environment() | OWN
    # Numbers first: whatever fails after them, they are kept.
    write(record, json.dumps(results, indent=1, allow_nan=False) + "\n")
    write_tables(folder, results)
    write_sheets(folder, pictures)
    if not write_plots(folder, results):
        print("plots are skipped: matplotlib is not installed", file=sys.stderr)
    print(f"wrote {folder}: results.json, tables.md and their parts, plots and pictures")


def drawn_or_model(argv: Sequence[str]) -> None:
    """`world`, or with --methods the methods on its scenes."""
    chosen = any(word.partition("=")[0] == "--methods" for word in argv)
    (drawn if chosen else world)(argv)


PROTOCOLS: dict[str, Callable[[Sequence[str]], None]] = {
    "world": drawn_or_model,
    "pie-bench": pie,
    "coco": photos,
    "list": listed,
    "tune": tune,
    "masks": masks,
}


def evaluation(argv: Sequence[str]) -> None:
    """Run the protocol that the first word names.

    Raises:
        UserError: there is none of that name, or the protocol cannot be run.
    """
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: python -m ie_jax.evaluation {'|'.join(PROTOCOLS)} [options]; see NAME -h")
        return
    if not argv or argv[0] not in PROTOCOLS:
        given = f"{argv[0]!r} is not a protocol" if argv else "the protocol is missing"
        raise UserError(f"{given}: name one first: {', '.join(PROTOCOLS)}")
    PROTOCOLS[argv[0]](argv[1:])


def main() -> None:
    """The command."""
    run(evaluation)


if __name__ == "__main__":
    main()
