"""The studio in a real browser: how soon it answers, and what it looks like.

    python -m benchmarks.studio --output FOLDER

starts the page as a user does, picks the first sample, presses Edit and moves the strength; prints
the seconds, and writes pictures of the page, wide and on a phone, light and dark, into FOLDER.
Needs chromium and chromedriver. Run it twice: the first run compiles what the second finds.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from benchmarks.harness import row, say, table
from ie_jax.cli import run
from ie_jax.errors import UserError

SIZES = {"wide": (1440, 1650), "phone": (390, 2700)}
"""Of pictures of the page, pixels: width, and a height that shows all."""
BACKGROUND = "brown", "navy"
"""A word of the first sample's prompts, and what the second result has in its place."""
SLIDER = "#strength input[type=range]"
LONGEST = 300
"""Seconds until the page is given up."""


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studio", description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="world")
    parser.add_argument("--settle", type=float, default=0, help="seconds before the strength moves")
    options = parser.parse_args(argv)
    from tests.studio.visitor import CHROMIUM, DRIVER, Visitor, browser

    if not (CHROMIUM and DRIVER):
        raise UserError("this needs chromium and chromedriver: install them")
    options.output.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe, tempfile.TemporaryDirectory() as profile:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        driver = browser(Path(profile))
        url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "ie_jax.studio", "--model", options.model, "--port"]
        start = time.perf_counter()
        # The server ends with this process: a browser that cannot be driven leaves none behind.
        server = subprocess.Popen([*command, str(port), "--quiet"], env=os.environ)
        try:
            wait_for(url, server)
            say("\n".join(table(("what", "seconds", "since the start"))))

            def tell(what: str, since: float) -> None:
                now = time.perf_counter()
                say(row([what, f"{now - since:.1f}", f"{now - start:.1f}"]))

            visitor = Visitor(driver, url)
            tell("page", start)
            picked(visitor)
            begun = time.perf_counter()
            visitor.edited(lambda: visitor.click("#edit"))
            tell("first answer", begun)
            time.sleep(options.settle)
            for share in (0.8, 0.6, 0.8, 0.6):
                begun = time.perf_counter()
                visitor.edited(partial(visitor.drag, SLIDER, (0.95, 0.5), (share, 0.5)))
                tell("strength moved", begun)
                visitor.edited(lambda: visitor.click("#undo"))
            for theme, (name, (width, height)) in product(("light", "dark"), SIZES.items()):
                driver.set_window_size(width, height)
                driver.get(f"{url}?__theme={theme}")
                picked(visitor)
                source = visitor.value("#source textarea, #source input")
                target = visitor.value("#targets textarea")
                visitor.write("#targets textarea", f"{target}\n{source.replace(*BACKGROUND)}")
                visitor.edited(lambda: visitor.click("#edit"))
                visitor.edited(lambda: visitor.click("#where label:nth-of-type(2)"))
                driver.execute_script("window.scrollTo(0, 0)")
                time.sleep(1)
                driver.save_screenshot(str(options.output / f"studio-{name}-{theme}.png"))
        finally:
            driver.quit()
            server.terminate()
            server.wait(30)


def picked(visitor: Any) -> None:
    """Pick the first sample."""
    visitor.click("#samples button, #samples img")
    visitor.until(lambda: visitor.value("#targets textarea"), "the sample")


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers.

    Raises:
        UserError: it ended, or is too slow.
    """
    for _ in range(LONGEST * 20):
        if server.poll() is not None:
            break
        try:
            with urlopen(url, timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.05)
    raise UserError("the studio did not start: see above")


if __name__ == "__main__":
    run(main)
