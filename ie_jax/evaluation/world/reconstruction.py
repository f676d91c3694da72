"""Scenes to noise and back, by the teacher and by each pair."""

from dataclasses import asdict
from functools import partial

import numpy as np

from ie_jax.evaluation.batches import in_batches
from ie_jax.evaluation.metrics.means import estimate
from ie_jax.evaluation.metrics.pixels import psnr_of, squared_error
from ie_jax.evaluation.report import Pictures
from ie_jax.evaluation.world.config import WorldConfig
from ie_jax.evaluation.world.model import Model, autoencode, reconstruct, teacher_reconstruct
from ie_jax.evaluation.world.scores import Results, distance
from ie_jax.evaluation.world.tasks import SHOWN, Source
from ie_jax.progress import Stages

AUTOENCODER, DDIM = "autoencoder", "DDIM"


def reconstruction_row(
    model: Model,
    size: int,
    source: Source,
    bound: np.ndarray,
    pixels: np.ndarray,
    std: np.ndarray | None = None,
) -> Results:
    """The measures of one way to reconstruct.

    Args:
        bound: what the autoencoder alone gives.
        std: deviation of each scene's noise.
    """
    mse = squared_error(pixels, source.pixels)
    none = estimate(np.empty(0))
    return {
        "mse": estimate(mse),
        "psnr": estimate(psnr_of(mse)),
        "psnr_to_autoencoder": (
            none if pixels is bound else estimate(psnr_of(squared_error(pixels, bound)))
        ),
        "perceptual": estimate(distance(model, size, pixels, source.pixels)),
        "noise_std": none if std is None else estimate(std),
    }


def measure_reconstruction(
    model: Model, config: WorldConfig, size: int, source: Source, stages: Stages
) -> tuple[list[Results], Pictures]:
    """The reconstruction table, and the first pictures of its main rows."""
    weights, models = model.plain.weights, model.models
    rows: list[Results] = []
    shown: Pictures = {"source": source.pixels[:SHOWN]}

    def add(row: Results, pixels: np.ndarray, std: np.ndarray | None, name: str | None) -> None:
        rows.append(row | reconstruction_row(model, size, source, bound, pixels, std))
        if name:
            shown[name] = pixels[:SHOWN]

    with stages("reconstruct: autoencoder"):
        bound = in_batches(partial(autoencode, models, weights), size, source.pixels)
        nothing = {"start_timestep": None, "start_noise": None}
        add({"method": AUTOENCODER, **nothing}, bound, None, AUTOENCODER)
    with stages(f"reconstruct: DDIM, {config.ddim_steps} steps there and back"):
        teacher = partial(teacher_reconstruct, models, config.ddim_steps, weights)
        pixels, std = in_batches(teacher, size, source.pixels, source.ids)
        add({"method": DDIM, **nothing}, pixels, std, DDIM)
    main = {pair: name for name, pair in model.published.items()}
    for pair in model.pairs:
        noise = "with" if pair.start_noise else "without"
        with stages(f"reconstruct: {pair.method}, start {pair.start_timestep} {noise} noise"):
            run = partial(reconstruct, model, pair)
            pixels, std = in_batches(run, size, source.pixels, source.ids, source.noise)
            add(asdict(pair), pixels, std, main.get(pair))
    return rows, shown
