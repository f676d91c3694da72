"""Commands made of schemas: options, help, and one line for whatever goes wrong."""

import dataclasses
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import jax
import pytest

from ie_jax.cli import run
from ie_jax.config import parse
from ie_jax.editing.command import EditRequest
from ie_jax.editing.config import EditConfig
from ie_jax.errors import UserError


@dataclass(frozen=True)
class Inner:
    """Nested."""

    kind: Literal["plain", "fancy"] = "plain"
    """What kind."""
    rate: float = 0.5
    """How much of it, in %."""


@dataclass(frozen=True)
class Settings:
    """Settings."""

    steps: int = 4
    """How many."""
    start_noise: bool = True
    """Whether to add noise."""
    schedule: tuple[float, ...] = (0.0, 7.0)
    """One per step."""
    limits: tuple[float, float] | None = None
    """From and to."""
    inner: Inner = field(default_factory=Inner)
    """Inside."""


@dataclass(frozen=True)
class Request:
    """This run."""

    target: tuple[str, ...] = ()
    """What to make."""
    name: str | None = None
    """What to call it."""


@dataclass(frozen=True)
class FurtherRequest(Request):
    """A run with more to ask."""

    further: bool = False
    """Whether there is more."""


def test_help_tells_inherited_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"], "What it does.", FurtherRequest, Settings)
    shown = capsys.readouterr().out
    assert "What to call it." in shown and "Whether there is more." in shown


def parsed(*argv: str) -> tuple[Request, Settings]:
    request, config, _ = parse(argv, "Do it.", Request, Settings)
    return request, config


def refusal(*argv: str) -> str:
    with pytest.raises(UserError) as caught:
        parsed(*argv)
    return str(caught.value)


# --- options ---


def test_no_options_are_the_defaults() -> None:
    assert parsed() == (Request(), Settings())


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--steps", "3"], Settings(steps=3)),
        (["--steps=3"], Settings(steps=3)),
        (["--no-start-noise"], Settings(start_noise=False)),
        (["--no-start-noise", "--start-noise"], Settings()),
        (["--no_start_noise"], Settings(start_noise=False)),
        (["--schedule", "0", "-1.5", "2e4"], Settings(schedule=(0, -1.5, 20000))),
        (["--schedule", "-1e-05", "-.5E2", "-3e+1"], Settings(schedule=(-1e-5, -50, -30))),
        (["--limits", "-.inf", "-1_000"], Settings(limits=(-float("inf"), -1000))),
        (["--schedule", "[1, 2]"], Settings(schedule=(1, 2))),
        (["--schedule", "[]"], Settings(schedule=())),
        (["--limits", "0", "1"], Settings(limits=(0, 1))),
        (["--limits", "0", ".inf"], Settings(limits=(0, float("inf")))),
        (["--limits", "null"], Settings()),
        (["--inner.kind", "fancy"], Settings(inner=Inner("fancy"))),
        (
            ["--inner.rate", "1", "--inner.kind=fancy", "--steps", "1"],
            Settings(steps=1, inner=Inner("fancy", 1)),
        ),
    ],
)
def test_options_of_settings(argv: list[str], expected: Settings) -> None:
    assert parsed(*argv) == (Request(), expected)


def test_text_is_taken_as_it_is() -> None:
    request, _ = parsed("--target", "3", "null", "a_b [c", "--name", "1.0")
    assert request == Request(("3", "null", "a_b [c"), "1.0")
    assert parsed("--name=--with_dashes")[0].name == "--with_dashes"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--stepz", "3"], "unknown argument '--stepz': did you mean --steps?"),
        (["--inner.kin", "plain"], "unknown argument '--inner.kin': did you mean --inner.kind?"),
        (["--start-nois"], "unknown argument '--start-nois': did you mean --start-noise?"),
        (["--qqqq"], "unknown argument '--qqqq': see --help"),
        (["photo.jpg"], "unknown argument 'photo.jpg': see --help"),
        (["--start-noise", "false"], "unknown argument 'false': see --help"),
        (["--steps"], "argument --steps: expected one argument"),
        (["--steps", "["], "argument --steps: invalid 'YAML' value: '['"),
        (["--steps", "2024-13-45"], "argument --steps: invalid 'YAML' value: '2024-13-45'"),
        (["--steps", "many"], 'command line: steps = "many": Input should be a valid integer'),
        (
            ["--inner.kind", "nice"],
            "command line: inner.kind = \"nice\": Input should be 'plain' or 'fancy'",
        ),
        (["--config"], "argument --config: expected one argument"),
    ],
)
def test_bad_options_are_refused(argv: list[str], message: str) -> None:
    assert refusal(*argv) == message


# --- help ---


def leaves(schema: type, prefix: str = "") -> dict[str, object]:
    """The names of all options, with their defaults."""
    found: dict[str, object] = {}
    for name, default in vars(schema()).items():
        if dataclasses.is_dataclass(default):
            found |= leaves(type(default), f"{prefix}{name}.")
        else:
            found[prefix + name] = list(default) if isinstance(default, tuple) else default
    return found


def test_help_lists_every_setting_with_its_description_and_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "10000")  # one line per option
    with pytest.raises(SystemExit) as caught:
        parse(["--help"], "Edit a photo.", EditRequest, EditConfig)
    assert caught.value.code == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "Edit a photo." in lines
    options = leaves(EditRequest) | leaves(EditConfig)
    assert {"image", "guiders", "noise_rescaling_setup.init_setup", "execution.unroll"} < set(
        options
    )
    for name, default in options.items():
        option = f"--{name.replace('_', '-')}"
        (at,) = (i for i, x in enumerate(lines) if x.startswith((f"{option} ", f"{option}, ")))
        # A long option has its description on the next line.
        description = lines[at].partition("  ")[2].strip() or lines[at + 1]
        end = f"(default: {default})"
        assert description.endswith(end)
        assert len(description.removesuffix(end).split()) >= 2, f"{option} is not described"
    assert any(line.startswith("--config FILE") for line in lines)


# --- exit status and standard error ---


def exit_of(main: Callable[[Sequence[str]], None]) -> object:
    with pytest.raises(SystemExit) as caught:
        run(main, [])
    return caught.value.code


def test_success_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    assert exit_of(lambda argv: None) == 0
    assert capfd.readouterr() == ("", "")


def test_bad_input_is_one_line_and_status_2(capfd: pytest.CaptureFixture[str]) -> None:
    def main(argv: Sequence[str]) -> None:
        raise UserError("wrong\n  in\tseveral lines")

    assert exit_of(main) == 2
    assert capfd.readouterr() == ("", "error: wrong in several lines\n")


def test_an_interruption_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    def main(argv: Sequence[str]) -> None:
        raise KeyboardInterrupt

    assert exit_of(main) == 130
    assert capfd.readouterr() == ("", "error: interrupted\n")


def test_a_warning_is_one_line_without_code(capfd: pytest.CaptureFixture[str]) -> None:
    def main(argv: Sequence[str]) -> None:
        warnings.warn("cut\nshort", UserWarning, stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert exit_of(main) == 0
    assert capfd.readouterr() == ("", "warning: cut short\n")


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    def main(argv: Sequence[str]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(main, [])


def test_no_library_advises_to_install_others() -> None:
    """transformers, of which only the tokenizer is used, would ask for torch where it is absent."""
    code = """if True:
        import importlib.util, sys
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *a: None if name == "torch" else find(name, *a)
        from ie_jax.cli import run

        def main(argv):
            from transformers import CLIPTokenizer
            assert "torch" not in sys.modules
        run(main, [])"""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name != "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0
    assert "PyTorch" not in done.stderr


@pytest.mark.slow
def test_no_compiler_asks_users_to_file_a_bug() -> None:
    """XLA says so of what compiles for minutes; of a constant that it computes for over a second,
    by the same way."""
    code = """if True:
        import sys
        if sys.argv[1] == "ours":
            import ie_jax
        import jax, jax.numpy as jnp
        from jax import lax
        def wide():
            window = (40, 40, 1), (1, 1, 1), "SAME"
            return lax.reduce_window(2 * jnp.ones((120, 120, 1)), 0.0, lax.add, *window).sum()
        jax.jit(wide).lower().compile()"""
    unset = ("TF_CPP_MIN_LOG_LEVEL", "JAX_COMPILATION_CACHE_DIR", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    environment = {name: value for name, value in os.environ.items() if name not in unset}

    def heard(whose: str) -> str:
        argv = [sys.executable, "-c", code, whose]
        return subprocess.run(
            argv, capture_output=True, text=True, env=environment, check=True
        ).stderr

    assert "Constant folding" in heard("JAX's own")
    assert "Constant folding" not in heard("ours")


def test_a_console_without_a_letter_shows_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="cp1252"))
    with pytest.raises(SystemExit) as caught:
        run(lambda argv: print("wrote 猫.png", flush=True), [])
    assert caught.value.code == 0
    assert shown.getvalue() == b"wrote \\u732b.png\n"


def test_a_platform_that_is_not_here_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(argv: Sequence[str]) -> None:
        raise RuntimeError("whatever follows")

    def devices() -> None:
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(SystemExit) as caught:
        run(start, [])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: JAX_PLATFORMS=cuda") and error.count("\n") == 1
    monkeypatch.delenv("JAX_PLATFORMS")
    with pytest.raises(RuntimeError):
        run(start, [])


@pytest.mark.parametrize(("error", "status"), [(BrokenPipeError(), 0), (OSError(28, "full"), 1)])
def test_a_closed_standard_output_is_no_traceback(
    error: OSError, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Closed(io.StringIO):
        def flush(self) -> None:
            raise error

        def fileno(self) -> int:
            return file.fileno()

    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr(sys, "stdout", Closed())
        assert exit_of(lambda argv: print("wrote")) == status


def test_streams_that_are_closed_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(argv: Sequence[str]) -> None:
        print("wrote", sys.stderr.isatty())

    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert exit_of(main) == 0
    sys.stdout.close()
    sys.stderr.close()


def test_a_full_disk_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    def main(argv: Sequence[str]) -> None:
        raise OSError(28, "No space left on device")

    assert exit_of(main) == 2
    assert capfd.readouterr().err == "error: cannot write: No space left on device\n"


@pytest.mark.parametrize("half", ["\udcff", "\ud800"])
def test_half_a_letter_is_refused(half: str) -> None:
    for option in ("--name", "--target"):
        assert "a text is no UTF-8" in refusal(option, f"a {half} b")


def test_too_little_memory_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    def main(argv: Sequence[str]) -> None:
        raise MemoryError

    assert exit_of(main) == 2
    assert capfd.readouterr().err == "error: out of memory: take smaller sizes\n"


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(lambda argv: print(parse(argv, "Do it.", Request, Settings)), ["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out.startswith("ie_jax ")


def test_numbers_of_64_bits_are_not_taken_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same seed gives the same picture."""
    with jax.enable_x64(True), pytest.raises(SystemExit):
        run(lambda argv: sys.exit(str(jax.numpy.ones(1).dtype)), [])
    assert jax.numpy.ones(1).dtype == "float32"
