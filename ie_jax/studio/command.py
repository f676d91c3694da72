"""The command: a page on this machine for editing photos."""

import os
import tempfile
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ie_jax.cli import run
from ie_jax.config import parse
from ie_jax.editing.config import EditConfig
from ie_jax.errors import UserError
from ie_jax.studio.samples import draw_samples
from ie_jax.studio.work import Studio

DESCRIPTION = """Open a page on which photos are edited by text. It listens on this machine only,
unless --host says otherwise; what is uploaded is deleted after an hour, and when the page ends."""
WAITING = 32
"""People who may wait for their turn; others are asked to come again."""


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


def launch(
    config: EditConfig = EditConfig(),
    host: str = "127.0.0.1",
    port: int = 7860,
    offline: bool = False,
    quiet: bool = False,
    wait: bool = True,
) -> Any:
    """Serve the page.

    Args:
        wait: until it is ended. False: give the gradio app back at once.

    Raises:
        UserError: gradio or the weights are missing, or the port is taken.
    """
    if find_spec("gradio") is None:
        raise UserError("the studio needs gradio: pip install 'ie_jax[studio]'")
    if config.method != "ours":
        raise UserError(f"the studio is of our method, not of {config.method}")
    folder = tempfile.TemporaryDirectory(prefix="ie_jax-studio-")
    # Read when gradio is first imported; of the network it is to want nothing.
    os.environ |= {"GRADIO_TEMP_DIR": folder.name, "GRADIO_ANALYTICS_ENABLED": "False"}
    import gradio as gr

    from ie_jax.studio.page import STYLE, build

    studio = Studio(config, offline, progress=not quiet)
    page = build(studio, draw_samples(Path(folder.name)))
    page.queue(max_size=WAITING)
    threading.Thread(target=studio.warm, daemon=True).start()
    try:
        page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            max_file_size="100mb",
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            css=STYLE,
            footer_links=[],
            ssr_mode=False,
        )
    except OSError as error:
        raise UserError(f"port {port} is taken: choose another --port") from error
    weakref.finalize(page, folder.cleanup)
    if not quiet:
        print(f"the studio is at {page.local_url} (Ctrl-C ends it)", flush=True)
    if wait:
        page.block_thread()
    return page


def serve(argv: Sequence[str]) -> None:
    """Run the command.

    Raises:
        UserError: see `launch`.
    """
    request, config, _ = parse(argv, DESCRIPTION, StudioRequest, EditConfig)
    launch(config, request.host, request.port, request.offline, request.quiet)


def main() -> None:
    """The console command."""
    run(serve)
