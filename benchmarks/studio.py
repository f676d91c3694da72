"""The studio in a real browser: how soon it answers, and what it looks like.

    python -m benchmarks.studio --output FOLDER

starts the page as a user does, picks the first sample, presses Edit and moves the strength; prints
the seconds, and writes pictures of the page, wide and on a phone, light and dark, into FOLDER.
Needs chromium and chromedriver. Run it twice: the first run compiles what the second finds.
"""

import argparse
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
    options = parser.parse_args(argv)
    from tests.studio.visitor import CHROMIUM, DRIVER, Visitor, browser

    if not (CHROMIUM and DRIVER):
        raise UserError("this needs chromium and chromedriver: install them")
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        driver = browser(Path(profile))
        start = time.perf_counter()
        port = str(free_port())
        command = [sys.executable, "-m", "ie_jax.studio", "--model", options.model, "--quiet"]
        server = subprocess.Popen([*command, "--port", port])
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(url, server)
            visitor = Visitor(driver, url)
            say("\n".join(table(("what", "seconds", "since the start"))))
            tell("page", start, start)
            time_edits(visitor, start)
            take_pictures(visitor, url, options.output)
        finally:
            driver.quit()
            server.terminate()
            server.wait(30)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def tell(what: str, since: float, start: float) -> None:
    """A row of the table: seconds of something, and since the start."""
    now = time.perf_counter()
    say(row([what, f"{now - since:.1f}", f"{now - start:.1f}"]))


def time_edits(visitor: Any, start: float) -> None:
    """The first edit of a sample, and the same at other strengths."""
    picked(visitor)
    begun = time.perf_counter()
    visitor.edited(lambda: visitor.click("#edit"))
    tell("first answer", begun, start)
    for share in (0.8, 0.6, 0.8, 0.6):
        begun = time.perf_counter()
        visitor.edited(partial(visitor.drag, SLIDER, (0.95, 0.5), (share, 0.5), 0))
        tell("strength moved", begun, start)
        visitor.edited(lambda: visitor.click("#undo"))


def take_pictures(visitor: Any, url: str, folder: Path) -> None:
    """The page with two edits of a sample where they are found, in either theme and size."""
    for theme, (name, (width, height)) in product(("light", "dark"), SIZES.items()):
        visitor.driver.set_window_size(width, height)
        visitor.driver.get(f"{url}?__theme={theme}")
        picked(visitor)
        source = visitor.value("#source textarea, #source input")
        target = visitor.value("#targets textarea")
        visitor.write("#targets textarea", f"{target}\n{source.replace(*BACKGROUND)}")
        visitor.edited(lambda: visitor.click("#edit"))
        visitor.edited(lambda: visitor.click("#where label:nth-of-type(2)"))
        visitor.driver.execute_script("window.scrollTo(0, 0)")
        time.sleep(1)  # until the page has come to rest
        visitor.driver.save_screenshot(str(folder / f"studio-{name}-{theme}.png"))


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
