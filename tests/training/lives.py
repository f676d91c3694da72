"""train.py with the smallest model that has every part; and a server that starts it.

The server imports everything once, and each run is a fork. A line `[ARGUMENTS..., LOG]` (JSON) on
its input starts a run; it answers with the process's number, and later with its exit status.
"""

import json
import os
import sys
from pathlib import Path

from ie_jax.cli import run
from ie_jax.training.command import fine_tune
from tests.tiny import shrink


def serve() -> None:
    """The server."""
    for line in sys.stdin:
        child = os.fork()
        if not child:
            arguments = json.loads(line)
            with Path(arguments.pop()).open("a") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            run(fine_tune, arguments)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    shrink()
    if sys.argv[1:]:
        run(fine_tune)
    serve()
