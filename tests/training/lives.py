"""train.py with the smallest model that has every part."""

from collections.abc import Sequence

from ie_jax.cli import run
from ie_jax.training.command import fine_tune
from tests.tiny import shrink


def main(argv: Sequence[str]) -> None:
    """The program."""
    shrink()
    run(fine_tune, argv)
