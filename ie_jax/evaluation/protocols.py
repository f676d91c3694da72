"""The commands that measure methods on PIE-Bench and on COCO."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from ie_jax.config import parse
from ie_jax.devices import batch_size, local_mesh
from ie_jax.editing.command import check_model
from ie_jax.editing.config import EditConfig
from ie_jax.editing.editor import Editor, schedule_of, use_compilation_cache
from ie_jax.editing.images import write_errors
from ie_jax.editing.jobs import Job, refuse_twice
from ie_jax.errors import UserError
from ie_jax.evaluation import coco, pie_bench
from ie_jax.evaluation.metrics.masks import SIDE
from ie_jax.evaluation.metrics.table import METRICS, Judges, Pair, measured
from ie_jax.evaluation.runner import Case, claim, config_of, evaluate_method, write_tables
from ie_jax.files import alone_in
from ie_jax.methods.table import METHODS
from ie_jax.weights.load import load_pipeline

ALL = ("ours", *METHODS)
PIE_METRICS = (
    *("structure_distance", "psnr_unedited", "lpips_squeeze_unedited", "mse_unedited"),
    *("ssim_unedited", "clip_score_target", "clip_score_edited"),
    *("lpips_vgg", "lpips_alex", "clip_b32", "clip_l14", "dinov2", "image_reward"),
)
"""Those of PIE-Bench's tables, and those of the paper's."""
COCO_METRICS = ("mse", "psnr", "ssim", "lpips_vgg", "lpips_alex", "dinov2")
TRIAL = 64
"""Pixels of the picture on which every metric is tried before long work."""
KEPT = "Each result is kept as it is made: a run that ended goes on when it is started again."
PIE_DESCRIPTION = f"""pie-bench: edit PIE-Bench's images by several methods and measure the results,
as its suite and the paper do. {KEPT}"""
COCO_DESCRIPTION = f"""coco: invert COCO's val2014 under its captions and come back under the same,
by several methods, and measure what is lost. {KEPT}"""


@dataclass(frozen=True)
class Request:
    """What to measure, and where the results go."""

    data: str = ""
    """The folder of the images."""
    methods: tuple[str, ...] = ALL
    """ours, and others of docs/methods.md."""
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
class PieRequest(Request):
    """What to measure, and where the results go."""

    subset: Literal["all", "paper"] = "all"
    """all 700, or the 420 of the paper: random edits, and those of photos."""


def pie(argv: Sequence[str]) -> None:
    """Run PIE-Bench.

    Raises:
        UserError: bad input, or the results cannot be written.
    """
    request, config, given = parse(argv, PIE_DESCRIPTION, PieRequest, EditConfig)
    folder = data_folder(request)
    items = pie_bench.read_items(folder)
    if request.subset == "paper":
        items = [item for item in items if pie_bench.in_paper(item)]
    cases = [
        Case(
            Job(
                item.name,
                str(pie_bench.picture(folder, item)),
                item.source,
                (item.target,),
                config.seed,
            ),
            pie_bench.TYPES[item.kind],
            item.mask,
        )
        for item in items
    ]
    compare("pie-bench", request, config, given, cases, PIE_METRICS, side=SIDE)


def photos(argv: Sequence[str]) -> None:
    """Run COCO.

    Raises:
        UserError: bad input, or the results cannot be written.
    """
    request, config, given = parse(argv, COCO_DESCRIPTION, Request, EditConfig)
    found = coco.read_photos(data_folder(request), coco.SHORTEST)
    if not found:
        raise UserError(
            f"{request.data}: no captioned photo has a shorter side of {coco.SHORTEST} pixels"
        )
    cases = [
        Case(Job(x.path.stem, str(x.path), x.caption, (x.caption,), config.seed), "") for x in found
    ]
    if config.cfg_schedule is None:  # guidance would only lead away from the photo
        steps = schedule_of(config, check_model(config)).steps
        config = replace(config, cfg_schedule=(0.0,) * steps)
    if config.baseline.guidance is None:
        config = replace(config, baseline=replace(config.baseline, guidance=1.0))
    compare("coco", request, config, given, cases, COCO_METRICS)


def data_folder(request: Request) -> Path:
    """The folder of the images.

    Raises:
        UserError: it is not named.
    """
    if not request.data:
        raise UserError("--data is missing: name the folder of the images")
    return Path(request.data).expanduser()


def compare(
    protocol: str,
    request: Request,
    config: EditConfig,
    given: Sequence[str],
    cases: Sequence[Case],
    usual: Sequence[str],
    side: int | None = None,
) -> None:
    """Run a protocol.

    Args:
        usual: the metrics where none are named.
        side: see `evaluate_method`. None: photos, which are prepared as for training.

    Raises:
        UserError: see `pie`.
    """
    metrics = request.metrics or tuple(usual)
    check(request, given, metrics)
    refuse_twice([case.job for case in cases], Path(request.data))
    check_model(config)
    cases = cases[: request.limit]
    mesh = local_mesh()
    size = batch_size(mesh, request.batch_size)
    weights = None if request.weights is None else Path(request.weights).expanduser()
    judges = Judges(weights, request.offline, not request.quiet)
    measured(judges, trial(), metrics)
    folder = Path(request.output)
    data = str(Path(request.data).resolve())
    facts = {"protocol": protocol, "data": data, "config": asdict(config)}
    broken: dict[str, int] = {}
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        claim(folder, facts)
        use_compilation_cache()
        pipeline = load_pipeline(
            config.model, config.forward, config.backward, request.offline, not request.quiet
        )
        for method in request.methods:
            editor = Editor(pipeline, config_of(config, method), mesh=mesh)
            load = partial(prepared, size=editor.size) if side is None else None
            lost = evaluate_method(
                editor,
                cases,
                folder,
                judges,
                metrics,
                size,
                side=side,
                load=load,
                quiet=request.quiet,
            )
            del editor  # its weights, before those of the next are placed
            broken |= {method: len(lost)} if lost else {}
            write_tables(folder, request.methods, len(cases))
    told = "".join(f"; {method}: {count} passed over" for method, count in broken.items())
    print(f"wrote {folder}: results.csv, tables.md, and a .jsonl and pictures of each method{told}")


def check(request: Request, given: Sequence[str], metrics: Sequence[str]) -> None:
    """Raise UserError if it asks for what there is not."""
    refuse_unknown("metrics", metrics, tuple(METRICS))
    refuse_unknown("methods", request.methods, ALL)
    if "method" in given:
        raise UserError("give --methods, not --method")
    if request.limit is not None and request.limit < 1:
        raise UserError(f"--limit {request.limit} must be positive")


def prepared(path: str, size: int) -> np.ndarray:
    """See `prepared_photo`."""
    return coco.prepared_photo(Path(path), size)


def refuse_unknown(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raise UserError unless all names are known and there is one."""
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        told = f"{wrong[0]!r} is none of the" if wrong else "none are given of the"
        raise UserError(f"--{what}: {told} {what} {', '.join(known)}")


def trial() -> Pair:
    """Noise, with half of it to be edited."""
    one, other = np.random.default_rng(0).integers(0, 256, (2, TRIAL, TRIAL, 3), np.uint8)
    mask = np.zeros((TRIAL, TRIAL), np.uint8)
    mask[: TRIAL // 2] = 1
    return Pair(one, other, "noise", "other noise", mask)
