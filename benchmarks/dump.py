"""Memory and collectives of a step whose compilation is not done, from what the compiler writes.

    XLA_FLAGS="--xla_dump_to=DIR --xla_dump_hlo_as_text" python -m benchmarks.aot ... &
    python -m benchmarks.dump DIR

A TPU's compiler assigns all buffers first, and then generates code for hours.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.aot import collective_bytes
from benchmarks.harness import row, table
from ie_jax.cli import run
from ie_jax.errors import UserError

REPORT = "-memory-usage-report.txt"


def dumped(folder: Path) -> tuple[int, dict[str, int]]:
    """Bytes of all buffers of a step in a device's memory, and bytes that each kind of collective
    yields.

    Raises:
        UserError: the compiler has not come as far, or has written of several steps.
    """
    reports = list(folder.glob(f"*.jit_step.*after_optimizations{REPORT}"))
    if len(reports) > 1:
        raise UserError(
            f"{folder} has reports of {len(reports)} steps: dump each in its own folder"
        )
    total = re.search(r"color=0\)\nTotal bytes: (\d+)", reports[0].read_text()) if reports else None
    module = Path(str(reports[0]).replace(REPORT, ".txt")) if reports else folder
    text = module.read_text() if module.is_file() else ""
    if not total or not text.rstrip().endswith("}"):  # the module is written after the report
        raise UserError(
            f"{folder} has no whole report of the step's memory: compile with "
            'XLA_FLAGS="--xla_dump_to=DIR --xla_dump_hlo_as_text", and wait for the buffers'
        )
    return int(total[1]), collective_bytes(text)


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dump", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    header = ("dump", "peak GB", "collectives GB per step", "of which")
    print("\n".join(table(header)))
    for folder in parser.parse_args(argv).folders:
        total, moved = dumped(folder)
        kinds = ", ".join(f"{kind} {size / 1e9:.3f}" for kind, size in moved.items()) or "none"
        print(row((folder.name, f"{total / 1e9:.2f}", f"{sum(moved.values()) / 1e9:.3f}", kinds)))


if __name__ == "__main__":
    run(main)
