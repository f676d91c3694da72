"""Commands made of config schemas: every field is an option, bad input is one line and status 2."""

import argparse
import dataclasses
import difflib
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NoReturn, TextIO, get_args, get_origin

import docstring_parser
import jax

from ie_jax.config import build, merged, nested_schemas, parse_yaml, read_yaml
from ie_jax.errors import UserError

COMMAND_LINE = "command line"


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def yaml_value(text: str) -> Any:
    """A value as YAML has it: 3, 0.5, null, [1, 2], text."""
    try:
        return parse_yaml(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a value") from error


def is_sequence(annotation: Any) -> bool:
    """Whether a field takes several values."""
    return get_origin(annotation) is tuple or any(map(is_sequence, get_args(annotation)))


def add_options(parser: argparse.ArgumentParser, schema: type, prefix: str = "") -> None:
    """An option per field, nested fields with dots, help from the fields' docstrings."""
    described = docstring_parser.parse_from_object(schema).params
    help_of = {p.arg_name: " ".join((p.description or "").split()) for p in described}
    for field in dataclasses.fields(schema):
        name = prefix + field.name
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if dataclasses.is_dataclass(default):
            add_options(parser, nested_schemas(field.type)[0], f"{name}.")
            continue
        shown = list(default) if isinstance(default, tuple) else default
        text = f"{help_of.get(field.name, '')} (default: {shown})".strip().replace("%", "%%")
        options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text}
        if field.type is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif field.type in (str, str | None):
            options["metavar"] = "TEXT"
        elif is_sequence(field.type):
            kind = str if field.type == tuple[str, ...] else yaml_value
            options |= {"nargs": "+", "type": kind, "metavar": "VALUE"}
        elif get_origin(field.type) is Literal:
            options |= {"type": yaml_value, "metavar": "|".join(map(str, get_args(field.type)))}
        else:
            options |= {"type": yaml_value, "metavar": "VALUE"}
        parser.add_argument(f"--{name.replace('_', '-')}", **options)


def dashed(word: str) -> str:
    """An option with its underscores, as configs have them, written as dashes."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} as {"a": {"b": 1}}; a list or null in a list of one is itself."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        only = isinstance(value, list) and len(value) == 1
        leaf: Any = value[0] if only and isinstance(value[0], list | None) else value
        for part in reversed(name.split(".")):
            leaf = {part: leaf}
        tree = merged(tree, leaf)
    return tree


def parse(
    argv: Sequence[str], description: str, request: type, config: type
) -> tuple[Any, Any, list[str]]:
    """A request and a config from the command line; `--config FILE` gives the config's defaults.

    Returns:
        request, config, and the names of the options that were given.

    Raises:
        UserError: an unknown or malformed option, or a config that is not valid.
    """
    parser = Parser(description=description, allow_abbrev=False, usage="%(prog)s [options]")
    parser.add_argument("--version", action="version", version=f"ie_jax {version('ie_jax')}")
    add_options(parser.add_argument_group("this run"), request)  # type: ignore[arg-type]
    settings = parser.add_argument_group("settings")
    settings.add_argument("--config", metavar="FILE", help="a YAML file of settings")
    add_options(settings, config)  # type: ignore[arg-type]
    known, unknown = parser.parse_known_args([dashed(word) for word in argv])
    if unknown:
        options = [o for action in parser._actions for o in action.option_strings]
        near = difflib.get_close_matches(unknown[0], options, n=1)
        hint = f"did you mean {near[0]}?" if near else "see --help"
        raise UserError(f"unknown argument {unknown[0]!r}: {hint}")
    given = vars(known)
    file = given.pop("config")
    requested = {f.name for f in dataclasses.fields(request)}
    asked = {name: value for name, value in given.items() if name in requested}
    overrides = nest({name: value for name, value in given.items() if name not in requested})
    values: dict[str, Any] = {}
    if file:
        values = read_yaml(Path(file))
        build(config, values, file)  # so that its mistakes are reported as the file's
    return (
        build(request, nest(asked), COMMAND_LINE),
        build(config, merged(values, overrides), COMMAND_LINE),
        list(given),
    )


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: 0, or 2 with one line on standard error for bad input."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print_line("warning", str(message), sys.stderr)

    warnings.showwarning = show
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console that lacks a letter shows its number
            stream.reconfigure(errors="backslashreplace")
    # Numbers of 64 bits, which the environment may ask for, would make other pictures of a seed.
    jax.config.update("jax_enable_x64", False)
    # Of transformers only the tokenizer is used; it would advise to install torch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print_line("error", str(error), sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print_line("error", "interrupted", sys.stderr)
        sys.exit(130)
    except Exception:
        if problem := missing_platform():
            print_line("error", problem, sys.stderr)
            sys.exit(2)
        raise
    sys.exit(0)


def missing_platform() -> str | None:
    """What is wrong with the platform that the environment asks JAX for, if anything is."""
    wanted = os.environ.get("JAX_PLATFORMS")
    try:
        jax.devices()
    except Exception as error:  # RuntimeError at the first use, others later
        if wanted:
            return (
                f"JAX_PLATFORMS={wanted} asks for a platform that is not here: unset it, or set it "
                f"to cpu ({error or type(error).__name__})"
            )
    return None


def print_line(kind: str, message: str, file: TextIO) -> None:
    """One line, whatever the message holds."""
    print(f"{kind}: {' '.join(message.split())}", file=file, flush=True)
