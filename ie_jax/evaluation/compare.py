"""Several methods on a protocol's images: what may be asked for, and how it is done."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from ie_jax.config import build, merged, parse, plain, read_yaml
from ie_jax.data.images import load_image
from ie_jax.devices import Processes, batch_size, join, local_mesh, part, process_zero_first
from ie_jax.editing.command import check_model
from ie_jax.editing.config import EditConfig
from ie_jax.editing.editor import Editor
from ie_jax.editing.images import write_errors
from ie_jax.editing.jobs import refuse_twice
from ie_jax.errors import UserError
from ie_jax.evaluation.metrics.table import (
    METRICS,
    Judges,
    Pair,
    measured,
    needs_mask,
    needs_truth,
)
from ie_jax.evaluation.page import write_page
from ie_jax.evaluation.runner import (
    Case,
    Run,
    claim,
    evaluate_method,
    join_parts,
    load_picture,
)
from ie_jax.evaluation.tables import rows_of, write_tables
from ie_jax.files import alone_in
from ie_jax.methods.table import METHODS
from ie_jax.weights.load import load_pipeline, use_compilation_cache

ALL = ("ours", *METHODS)
TRIAL = 64
"""Pixels of the picture on which every metric is tried before long work."""
KEPT = "Each result is kept as it is made: a run that ended goes on when it is started again."


@dataclass(frozen=True)
class Request(Processes):
    """What to measure, and where the results go."""

    data: str = ""
    """The folder of the images, or the list."""
    methods: tuple[str, ...] = ()
    """ours, others of docs/methods.md, and names of `settings`. Empty, or all: all of them."""
    settings: str | None = None
    """A YAML file with settings of single methods, by name; further names are further methods."""
    metrics: tuple[str, ...] = ()
    """Of docs/evaluation.md; empty: those of the published tables."""
    weights: str | None = None
    """A folder with the files of the metrics' networks. None: they are downloaded once."""
    limit: int | None = None
    """The first so many images only."""
    output: str = "evaluation"
    """Folder of the results."""
    batch_size: int | None = None
    """Images at once, a multiple of the devices. None: one for each."""
    offline: bool = False
    """Never use the network."""
    quiet: bool = False
    """Show no progress."""


@dataclass(frozen=True)
class Protocol:
    """What a protocol measures, and how."""

    name: str
    cases: Sequence[Case]
    metrics: Sequence[str]
    """Where none are asked for."""
    data: str
    """Where the images come from."""
    side: int | None = None
    """See `Run`, as is `load`."""
    load: Callable[[str, int], np.ndarray] | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of single methods, where a person's do not say otherwise."""
    prepare: Callable[[], None] = lambda: None
    """Called once in the folder of the results before any edit."""
    world: Path | None = None
    """See `Judges`."""


R = TypeVar("R", bound=Request)


def asked(
    argv: Sequence[str], description: str, schema: type[R]
) -> tuple[R, EditConfig, Sequence[str]]:
    """What a person asks for, see `parse`; this process has joined the others.

    Raises:
        UserError: it cannot be understood, or the others cannot be found.
    """
    request, config, given = parse(argv, description, schema, EditConfig)
    join(request)
    return request, config, given


def compare(protocol: Protocol, request: Request, config: EditConfig, given: Sequence[str]) -> None:
    """Run a protocol.

    Raises:
        UserError: bad input, or results cannot be written.
    """
    configs = configs_of(protocol, request, config, given)
    metrics = request.metrics or tuple(protocol.metrics)
    check(protocol, request, metrics)
    process, processes = jax.process_index(), jax.process_count()
    mesh, quiet = local_mesh(), request.quiet or process > 0
    weights = None if request.weights is None else Path(request.weights).expanduser()
    run = Run(
        Path(request.output),
        protocol.cases[: request.limit],
        Judges(weights, request.offline, not quiet, world=protocol.world),
        metrics,
        batch_size(mesh, request.batch_size),
        protocol.side,
        protocol.load or partial(load_image, fit=config.fit),
        process,
        processes,
        quiet,
    )
    measured(run.judges, trial(), metrics)
    facts = {"protocol": protocol.name, "data": protocol.data, "config": asdict(config)}
    methods = {name: asdict(x) for name, x in configs.items()}
    with ExitStack() as held:

        def begin() -> None:
            with write_errors(run.folder):
                run.folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(alone_in(run.folder))
            claim(run.folder, facts, methods)
            protocol.prepare()

        process_zero_first(begin)
        use_compilation_cache()
        broken, size = edit_and_measure(protocol, run, configs, request, mesh)
        part()
        if process == 0:
            for name in configs:
                join_parts(run.folder, name, run.cases)
            report(protocol, run, configs, size)
    told = "".join(f"; {name}: {count} passed over" for name, count in broken.items() if count)
    what = "report.html, results.csv, tables, and a .jsonl and pictures of each method"
    print(f"wrote {run.folder}: {what}{told}" if process == 0 else f"process {process}: done{told}")


def edit_and_measure(
    protocol: Protocol,
    run: Run,
    configs: Mapping[str, EditConfig],
    request: Request,
    mesh: Mesh,
) -> tuple[dict[str, int], int]:
    """One method after the other; process 0 writes the tables after each.

    Returns:
        Images that each method had to pass over, and pixels of a side for its networks.
    """
    broken: dict[str, int] = {}
    pipeline, parts, size = None, None, 0
    for name, config in configs.items():
        wanted = (config.model, config.forward, config.backward)
        if wanted != parts:
            pipeline = None  # goes before the next comes
            parts, pipeline = wanted, load_pipeline(*wanted, request.offline, not run.quiet)
        assert pipeline
        editor = Editor(pipeline, config, mesh=mesh)
        size = editor.size
        broken[name] = len(evaluate_method(run, name, editor))
        del editor  # its weights, before those of the next are placed
        if run.process == 0:
            write_tables(run.folder, rows_of(run.folder, protocol.name, configs, run.cases))
    return broken, size


def report(protocol: Protocol, run: Run, configs: Mapping[str, EditConfig], size: int) -> None:
    """Tables, plots and the page of what is there.

    Args:
        size: pixels of a side for the networks.

    Raises:
        UserError: they cannot be written.
    """
    rows = rows_of(run.folder, protocol.name, configs, run.cases)
    write_tables(run.folder, rows)
    facts = {
        "protocol": protocol.name,
        "model": next(iter(configs.values())).model,
        "data": protocol.data,
        "images": len(run.cases),
    }
    load = partial(load_picture, run, size=size)
    if not write_page(run.folder, facts, configs, run.cases, rows, load):
        note = "report.html is skipped: pip install 'ie_jax[evaluation]' for jinja2 and matplotlib"
        print(note, file=sys.stderr)


def configs_of(
    protocol: Protocol, request: Request, config: EditConfig, given: Sequence[str]
) -> dict[str, EditConfig]:
    """The settings of each method that is asked for, by its name in the results.

    Raises:
        UserError: there is none of that name, or its settings are wrong.
    """
    if "method" in given:
        raise UserError("give --methods, not --method")
    path = Path(request.settings or "").expanduser()
    own = read_yaml(path) if request.settings else {}
    table = {**protocol.settings, **own}
    for name in own:
        if name != Path(name).name or name.startswith(".") or not isinstance(own[name], dict):
            raise UserError(f"{path}: {name!r} must be a name for a folder, with settings below it")
    known = tuple(dict.fromkeys((*ALL, *table)))
    names = known if request.methods in ((), ("all",)) else request.methods
    refuse_unknown("methods", names, known)
    found = {}
    for name in dict.fromkeys(names):
        usual = {"method": name, "guiders": []} if name in METHODS else {}
        values = merged(plain(config), merged(usual, table.get(name, {})))
        found[name] = build(EditConfig, values, f"{path} {name}")
        check_model(found[name])
    return found


def check(protocol: Protocol, request: Request, metrics: Sequence[str]) -> None:
    """Raise UserError if it asks for what there is not."""
    refuse_unknown("metrics", metrics, tuple(METRICS))
    refuse_twice([case.job for case in protocol.cases], Path(request.data))
    if request.limit is not None and request.limit < 1:
        raise UserError(f"--limit {request.limit} must be positive")
    for name in metrics:
        for what, asks in (("mask", needs_mask), ("truth", needs_truth)):
            if asks(name) and all(getattr(case, what) is None for case in protocol.cases):
                raise UserError(f"--metrics: {name} needs a {what}, and no image has one")
        if name.startswith("world_") and protocol.world is None:
            raise UserError(f"--metrics: {name} is of the world's scenes alone")


def refuse_unknown(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raise UserError unless all names are known and there is one."""
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        told = f"{wrong[0]!r} is none of the" if wrong else "none are given of the"
        raise UserError(f"--{what}: {told} {what} {', '.join(known)}")


def trial() -> Pair:
    """Noise, with half of it to be edited."""
    one, other, third = np.random.default_rng(0).integers(0, 256, (3, TRIAL, TRIAL, 3), np.uint8)
    mask = np.zeros((TRIAL, TRIAL), np.uint8)
    mask[: TRIAL // 2] = 1
    return Pair(one, other, "noise", "other noise", mask, third)
