"""The commands that measure methods on PIE-Bench, on COCO and on one's own images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ie_jax.editing.command import check_model
from ie_jax.editing.editor import schedule_of
from ie_jax.editing.jobs import Job
from ie_jax.errors import UserError
from ie_jax.evaluation import coco, lists, pie_bench
from ie_jax.evaluation.compare import KEPT, Protocol, Request, asked, compare
from ie_jax.evaluation.metrics.masks import SIDE
from ie_jax.evaluation.runner import Case

PIE_METRICS = (
    *("structure_distance", "psnr_unedited", "lpips_squeeze_unedited", "mse_unedited"),
    *("ssim_unedited", "clip_score_target", "clip_score_edited"),
    *("lpips_vgg", "lpips_alex", "clip_b32", "clip_l14", "dinov2", "image_reward"),
)
"""Those of PIE-Bench's tables, and those of the paper's."""
COCO_METRICS = ("mse", "psnr", "ssim", "lpips_vgg", "lpips_alex", "dinov2", "image_reward")
LIST_METRICS = ("psnr", "ssim", "lpips_vgg", "dinov2", "clip_l14", "image_reward")
MASK_METRICS = ("psnr_outside", "ssim_unedited", "lpips_squeeze_unedited", "clip_score_edited")
TRUTH_METRICS = ("psnr_truth", "ssim_truth", "lpips_vgg_truth", "dinov2_truth")
"""Of a list in which a mask, or a truth, is known."""
PIE_DESCRIPTION = f"""pie-bench: edit PIE-Bench's images by several methods and measure the results,
as its suite and the paper do. {KEPT}"""
COCO_DESCRIPTION = f"""coco: invert COCO's val2014 under its captions and come back under the same,
by several methods, and measure what is lost. {KEPT}"""
LIST_DESCRIPTION = f"""list: edit one's own images by several methods and measure the results.
--data is a list as edit.py takes it, where wanted with a mask and a truth in a line. {KEPT}"""


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
    request, config, given = asked(argv, PIE_DESCRIPTION, PieRequest)
    folder = data_path(request)
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
    protocol = Protocol("pie-bench", cases, PIE_METRICS, str(folder.resolve()), SIDE)
    compare(protocol, request, config, given)


def photos(argv: Sequence[str]) -> None:
    """Run COCO.

    Raises:
        UserError: bad input, or the results cannot be written.
    """
    request, config, given = asked(argv, COCO_DESCRIPTION, Request)
    folder = data_path(request)
    found = coco.read_photos(folder, coco.SHORTEST)
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
    protocol = Protocol("coco", cases, COCO_METRICS, str(folder.resolve()), load=prepared)
    compare(protocol, request, config, given)


def listed(argv: Sequence[str]) -> None:
    """Run a list of one's own images.

    Raises:
        UserError: bad input, or the results cannot be written.
    """
    request, config, given = asked(argv, LIST_DESCRIPTION, Request)
    path = data_path(request)
    cases = lists.read_cases(path, config.seed)
    known = {
        MASK_METRICS: any(case.mask is not None for case in cases),
        TRUTH_METRICS: any(case.truth is not None for case in cases),
    }
    metrics = (*LIST_METRICS, *(x for names, here in known.items() if here for x in names))
    compare(Protocol("list", cases, metrics, str(path.resolve())), request, config, given)


def data_path(request: Request) -> Path:
    """Where the images are.

    Raises:
        UserError: it is not named.
    """
    if not request.data:
        raise UserError("--data is missing: name the folder of the images, or the list")
    return Path(request.data).expanduser()


def prepared(path: str, size: int) -> np.ndarray:
    """See `prepared_photo`."""
    return coco.prepared_photo(Path(path), size)
