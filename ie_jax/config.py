"""Settings from YAML files and the command line, read strictly into frozen dataclasses.

argparse reads the words of the command line, PyYAML their values, pydantic checks all types.
"""

import argparse
import dataclasses
import difflib
import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import docstring_parser
import pydantic
import yaml

from ie_jax import __version__
from ie_jax.errors import UserError
from ie_jax.files import read_bytes

C = TypeVar("C")
COMMAND_LINE = "command line"
TEXTS = (str, str | None, tuple[str, ...])
"""Types of fields whose options are taken word for word; the words of all others are YAML."""
STRICT = pydantic.ConfigDict(strict=True, extra="forbid")
# What the published configs hold beside our own keys: the only values that this program does, and
# keys that choose nothing here.
PUBLISHED_ONLY = {"pipeline_type": "ours", "start_latent": "consistency"}
PUBLISHED_NOTES = {"verbose", "edit_types"}


# --- YAML ---


MOST_YAML, MOST_VALUES, MOST_DEPTH = 100_000, 2_000, 50
"""Bytes, values with each alias written out, and values in each other, of a text in YAML."""
MOST_INTEGER = 2**32


class Loader(yaml.SafeLoader):
    """Safe YAML in which 2e4 is a number, as in JSON and YAML 1.2 (YAML 1.1 asks for 2.0e+4), no
    key stands twice, and aliases do not multiply."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.values = self.depth = 0
        self.sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        is_alias, before = self.check_event(yaml.AliasEvent), self.values
        self.values, self.depth = before + 1, self.depth + 1
        node = None
        if max(self.values / MOST_VALUES, self.depth / MOST_DEPTH) <= 1:
            node = super().compose_node(parent, index)
        self.depth -= 1
        if node is not None and not is_alias:
            self.sizes[node] = self.values - before
        elif node is not None:  # one that is not whole yet holds itself
            self.values += self.sizes.get(node, MOST_VALUES)
        if node is None or self.values > MOST_VALUES:
            problem = f"more than {MOST_VALUES} values, or {MOST_DEPTH} in each other"
            raise yaml.composer.ComposerError(None, None, problem, None)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for i, (key, _) in enumerate(node.value):
            if key.value in keys[:i]:
                problem = f"{key.value!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+"),
    list("-+.0123456789"),
)


def parse_yaml(text: str) -> Any:
    """The value that YAML text stands for.

    Raises:
        ValueError: it is not YAML.
    """
    if len(text) > MOST_YAML:
        raise ValueError(f"not valid YAML: more than {MOST_YAML} letters")
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError) as error:  # a date that does not exist is the latter
        raise ValueError(f"not valid YAML: {error}") from error
    except Exception as error:  # nearly any type
        raise ValueError("not valid YAML: a tag (!!...) does not fit its value") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings of a YAML file, with the published layout's extra keys taken out.

    Raises:
        UserError: unreadable, not YAML, not a mapping, or a published key with another value.
    """
    try:
        content = parse_yaml(read_bytes(path, MOST_YAML).decode())
    except OSError as error:
        raise UserError(f"cannot read the config {path}: {error.strerror}") from error
    except ValueError as error:  # not YAML, not UTF-8, or a name that cannot be one
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error
    settings = {} if content is None else content
    if not isinstance(settings, dict):
        raise UserError(f"{path} must hold a mapping of settings, `name: value`")
    for key, only in PUBLISHED_ONLY.items():
        if settings.pop(key, only) != only:
            raise UserError(f"{path}: {key} must be {only!r}, nothing else is implemented")
    return {key: value for key, value in settings.items() if key not in PUBLISHED_NOTES}


# --- from plain values to a config ---


def build(schema: type[C], values: Mapping[str, Any], where: str) -> C:
    """A config from plain values, strictly: no unknown keys, no wrong types.

    Raises:
        UserError: what is wrong; `where` names the file or the command line.
    """
    values = over_defaults(schema, values)
    try:
        # JSON is the strict mode in which a list is a tuple but "7" is not a number. A YAML date,
        # say, has no place in it, nor has a list that holds itself.
        text = json.dumps([values], ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise UserError(f"{where}: a text is no UTF-8: it holds half a letter, {half!a}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: a value is neither text, number nor list: {error}") from error
    try:
        json.loads(text, parse_int=small_integer)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    # Dataclasses take STRICT from what they are in.
    adapter = pydantic.TypeAdapter(tuple[schema], config=STRICT)  # type: ignore[valid-type]
    try:
        return adapter.validate_json(text)[0]
    except pydantic.ValidationError as error:
        raise UserError(f"{where}: {mistake(schema, values, error)}") from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def over_defaults(schema: type, values: Any) -> Any:
    """Values with those of sections in full, where a section's default is not that of its type: who
    sets one thing of it means to leave the others. What is no mapping stays as it is."""
    if not isinstance(values, Mapping):
        return values
    filled = dict(values)
    for field in dataclasses.fields(schema) if dataclasses.is_dataclass(schema) else ():
        default, given = default_of(field), values.get(field.name)
        if dataclasses.is_dataclass(default) and isinstance(given, Mapping):
            section: Any = type(default)
            usual = plain(section())
            apart = {name: x for name, x in plain(default).items() if x != usual[name]}
            filled[field.name] = merged(apart, given)
    return filled


def plain(config: Any) -> dict[str, Any]:
    """A config, or a mapping with configs' values in it, as JSON has it."""
    values = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config  # type: ignore[arg-type]
    found: dict[str, Any] = json.loads(json.dumps(values))
    return found


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, the second's values before the first's."""
    both = {
        name: merged(base[name], x)
        for name, x in over.items()
        if isinstance(x, Mapping) and isinstance(base.get(name), Mapping)
    }
    return {**base, **over, **both}


def default_of(field: Any) -> Any:
    """What a field is where nothing is given; None where it must be given."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def small_integer(digits: str) -> int:
    """An integer that libraries and arrays take as a size or a seed.

    Raises:
        ValueError: it is larger.
    """
    number = int(digits)
    if abs(number) > MOST_INTEGER:
        raise ValueError(f"{textwrap.shorten(digits, 40)} is larger than any size or seed, 2^32")
    return number


def mistake(schema: type, values: Any, error: pydantic.ValidationError) -> str:
    """An unknown setting, or the innermost wrong value and what it should be."""
    found = []
    for wrong in error.errors(include_url=False):
        place, message = wrong["loc"][1:], wrong["msg"]
        if wrong["type"] == "unexpected_keyword_argument":
            return f"unknown setting {'.'.join(map(str, place))!r}: {hint_at(schema, place)}"
        if wrong["type"] == "missing":
            name = place[-1]
            message = "too few values" if isinstance(name, int) else f"{name} is missing"
        found.append((*follow(values, place), message))
    path, value, _ = max(found, key=lambda wrong: len(wrong[0]))
    wanted = " or ".join(message for at, _, message in found if at == path)
    wanted = wanted.replace(" or Input should be", " or")
    given = textwrap.shorten(json.dumps(value), 80)
    return f"{'.'.join(path) or 'settings'} = {given}: {wanted}"


def follow(values: Any, place: Iterable[int | str]) -> tuple[list[str], Any]:
    """As much of a place as there is in the values, and what stands there."""
    path = []
    for part in place:
        # Passed over: what is missing, and the name of one of several types.
        with suppress(KeyError, IndexError, TypeError):
            values = values[part]
            path.append(str(part))
    return path, values


def hint_at(schema: Any, place: Sequence[int | str]) -> str:
    """What the last name of a place may be meant for."""
    *parents, name = place
    for part in parents:
        schema = get_args(schema)[0] if isinstance(part, int) else get_type_hints(schema)[part]
    known = [field.name for field in dataclasses.fields(schema)]
    return hint(str(name), known, f"known are {', '.join(known)}")


def hint(name: str, known: Iterable[str], otherwise: str) -> str:
    """The known name that is nearest to a mistyped one."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else otherwise


# --- the command line ---


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, which knows -1e-5 and -.inf as numbers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # argparse's own pattern ends before the exponent, and takes the rest for an option.
        self._negative_number_matcher = re.compile(
            r"-(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(e[+-]?\d+)?$|-\.?(inf|infinity)$", re.IGNORECASE
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def is_sequence(annotation: Any) -> bool:
    """Whether a field takes several values."""
    return get_origin(annotation) is tuple or any(map(is_sequence, get_args(annotation)))


def words(annotation: Any) -> dict[str, Any]:
    """How argparse reads the words of a field's option."""
    if annotation in (bool, bool | None):
        return {"action": argparse.BooleanOptionalAction}
    several = {"nargs": "+"} if is_sequence(annotation) else {}
    if annotation in TEXTS:
        return {"metavar": "TEXT", **several}
    choices = get_args(annotation) if get_origin(annotation) is Literal else ["VALUE"]
    return {"type": "YAML", "metavar": "|".join(map(str, choices)), **several}


def add_options(
    group: argparse._ArgumentGroup, schema: type, prefix: str = "", defaults: Any = None
) -> None:
    """An option per field, nested fields with dots, help from the strings below the fields.

    Args:
        defaults: an instance; None: one with nothing given.
    """
    defaults = schema() if defaults is None else defaults
    lineage = [x for x in reversed(schema.__mro__) if dataclasses.is_dataclass(x)]
    described = [p for x in lineage for p in docstring_parser.parse_from_object(x).params]
    help_of = {p.arg_name: p.description for p in described}
    # What a class says itself stands before what it inherits.
    said = [vars(x).get("__annotations__", {}) for x in schema.__mro__]
    for field in sorted(
        dataclasses.fields(schema), key=lambda x: next(i for i, y in enumerate(said) if x.name in y)
    ):
        name, default = prefix + field.name, getattr(defaults, field.name)
        if dataclasses.is_dataclass(default):
            add_options(group, type(default), f"{name}.", default)
            continue
        shown = list(default) if isinstance(default, tuple) else default
        group.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            default=argparse.SUPPRESS,
            help=f"{help_of.get(field.name) or ''} (default: {shown})".replace("%", "%%"),
            **words(field.type),
        )


def options(parser: Parser, argv: Sequence[str]) -> dict[str, Any]:
    """The values of the options that are given, by dotted names.

    Raises:
        UserError: an unknown or malformed option.
    """
    dashed = [re.sub("^--[^=]+", lambda name: name[0].replace("_", "-"), word) for word in argv]
    known, unknown = parser.parse_known_args(dashed)
    if unknown:
        near = hint(unknown[0], parser._option_string_actions, "see --help")
        raise UserError(f"unknown argument {unknown[0]!r}: {near}")
    return {name: unwrapped(value) for name, value in vars(known).items()}


def options_of(config: Any, prefix: str = "") -> list[str]:
    """The words of a command line that give this config: where it differs from its defaults."""
    given: list[str] = []
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        option = f"--{name.replace('_', '-')}"
        if dataclasses.is_dataclass(value):
            given += options_of(value, f"{name}.")
        elif value == getattr(type(config)(), field.name):
            continue
        elif isinstance(value, bool):
            given.append(option if value else option.replace("--", "--no-", 1))
        else:
            given += [option, *map(word, value if isinstance(value, tuple) else [value])]
    return given


def word(value: Any) -> str:
    """A value as `options` reads it: texts as they are, others in JSON, which is YAML."""
    plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
    return plain if isinstance(plain, str) else json.dumps(plain)


def unwrapped(value: Any) -> Any:
    """A list or null that is all that a list holds."""
    match value:
        case [list() | None as only]:
            return only
    return value


def put(values: dict[str, Any], name: str, value: Any) -> None:
    """Set what has a dotted name."""
    *parents, last = name.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
    values[last] = value


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
    parser.register("type", "YAML", parse_yaml)
    parser.add_argument("--version", action="version", version=f"ie_jax {__version__}")
    add_options(parser.add_argument_group("this run"), request)
    settings = parser.add_argument_group("settings")
    settings.add_argument("--config", metavar="FILE", help="a YAML file of settings")
    add_options(settings, config)
    given = options(parser, argv)
    file = given.pop("config")
    values = read_yaml(Path(file)) if file else {}
    build(config, values, file or COMMAND_LINE)  # so that a file's mistakes are told as the file's
    asked: dict[str, Any] = {}
    requested = {field.name for field in dataclasses.fields(request)}
    for name, value in given.items():
        put(asked if name in requested else values, name, value)
    return build(request, asked, COMMAND_LINE), build(config, values, COMMAND_LINE), list(given)
