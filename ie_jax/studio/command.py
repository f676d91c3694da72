"""The command: a page on this machine for editing photos."""

import inspect
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ie_jax.cli import ABANDONED, run
from ie_jax.config import parse
from ie_jax.editing.config import EditConfig
from ie_jax.errors import UserError
from ie_jax.studio.samples import draw_samples
from ie_jax.studio.work import Studio

DESCRIPTION = """Open a page on which photos are edited by text. It listens on this machine only,
unless --host says otherwise; what is uploaded is deleted when its visitor leaves, after an hour,
and when the page ends."""
WAITING = 32
"""People who may wait for their turn; others are asked to come again."""
LARGEST = "100mb"
"""Of a photo's file."""


@dataclass(frozen=True)
class StudioRequest:
    """Where the page is."""

    host: str = "127.0.0.1"
    """Who may see it: 127.0.0.1, this machine; 0.0.0.0, whoever can reach it."""
    port: int = 7860
    offline: bool = False
    """Never use the network for weights."""
    quiet: bool = False
    """Show no progress."""


@contextmanager
def served(
    config: EditConfig = EditConfig(), request: StudioRequest = StudioRequest()
) -> Iterator[Any]:
    """The page as a gradio app, served while this is open.

    Raises:
        UserError: gradio or the weights are missing, or the port is taken.
    """
    if find_spec("gradio") is None:
        raise UserError("the studio needs gradio: pip install 'ie_jax[studio]'")
    if config.method != "ours":
        raise UserError(f"the studio is of our method, not of {config.method}")
    with tempfile.TemporaryDirectory(prefix="ie_jax-studio-", ignore_cleanup_errors=True) as folder:
        # Read when gradio is first imported; of the network it is to want nothing.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        gr = imported_gradio()

        from ie_jax.studio.page import STYLE, build

        studio = Studio(config, request.offline, progress=not request.quiet)
        page = build(studio, draw_samples(Path(folder)))
        page.queue(max_size=WAITING)
        threading.Thread(target=studio.warm, daemon=True, name=ABANDONED).start()
        try:
            page.launch(
                server_name=request.host,
                server_port=request.port,
                share=False,
                prevent_thread_lock=True,
                quiet=True,
                max_file_size=LARGEST,
                theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
                css=STYLE,
                footer_links=[],
                ssr_mode=False,
            )
        except OSError as error:
            where = f"{request.host}:{request.port}"
            raise UserError(f"cannot listen at {where}: choose another --port") from error
        try:
            yield page
        finally:
            page.close(verbose=False)


def imported_gradio() -> Any:
    """gradio. It would write the stubs of its components at each import, which takes most of the
    time of it, and does not where no source can be found."""
    with patch.object(inspect, "getfile", side_effect=OSError):
        import gradio
    return gradio


def launch(config: EditConfig = EditConfig(), request: StudioRequest = StudioRequest()) -> None:
    """Serve the page until the process is told to end.

    Raises:
        UserError: see `served`.
    """

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    with served(config, request) as page, suppress(KeyboardInterrupt):
        if not request.quiet:
            print(f"the studio is at {page.local_url} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()


def serve(argv: Sequence[str]) -> None:
    """Run the command.

    Raises:
        UserError: see `served`.
    """
    request, config, _ = parse(argv, DESCRIPTION, StudioRequest, EditConfig)
    launch(config, request)


def main() -> None:
    """The console command."""
    run(serve)
