"""The models that are measured: published sizes, as shapes or with drawn weights, and files."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.sizes import GUIDANCE_FEATURES, SCHEDULER, SIZES
from ie_jax.errors import UserError
from ie_jax.models.execution import DType, Precision, dtype
from ie_jax.models.lora import lora_shapes
from ie_jax.models.lpips import WIDTHS
from ie_jax.models.networks import Architecture, vae_precision
from ie_jax.models.shapes import draw, text_encoder_shapes, unet_shapes, vae_shapes
from ie_jax.training.recipe import NARROW
from ie_jax.weights.folder import Pipeline, Weights, architecture
from ie_jax.weights.load import RANDOM, load_pipeline

RANK = 64
LORA_STRENGTH = 0.05
NAMES = tuple(SIZES)


def architecture_of(size: str) -> Architecture:
    """The networks of one of `NAMES`."""
    parts = SIZES[size].configs
    unet = parts["unet"] | {"time_cond_proj_dim": GUIDANCE_FEATURES}
    return architecture(parts | {"unet": unet, "scheduler": SCHEDULER}, size)


def weight_shapes(arch: Architecture, param: DType = "float32", rank: int = RANK) -> Weights:
    """All weights as shapes: networks in `param`, LoRA in float32, as the editor keeps them."""

    def cast(tree: Any, number: DType = param) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype(number)), tree)

    base = unet_shapes(arch.unet)
    lora = lora_shapes(base, rank)
    vae = cast(vae_shapes(arch.vae), vae_precision(arch, Precision(param)).param)
    second = cast(text_encoder_shapes(arch.text_2)) if arch.text_2 else None
    return Weights(cast(base), lora, lora, vae, cast(text_encoder_shapes(arch.text)), second)


def drawn_size(model: str) -> str | None:
    """SIZE of random-SIZE; None for all else.

    Raises:
        UserError: there is no such size.
    """
    size = model.removeprefix("random-")
    if size != model and size not in NAMES:
        raise UserError(f"--model {model}: the random ones are random-{', random-'.join(NAMES)}")
    return None if size == model else size


def pipeline_of(model: str, seed: int = 0, param: DType = "float32") -> Pipeline:
    """`random`, random-SIZE (drawn here, in no time and without files), or upstream files.

    Args:
        param: of the networks of random-SIZE, which are never held in another type.

    Raises:
        UserError: there is no such model.
    """
    size = drawn_size(model)
    if size is None:
        pipeline = load_pipeline(model, offline=True)
        if model != RANDOM:
            return pipeline
    else:
        arch = architecture_of(size)
        shapes = weight_shapes(arch, param)
        parts = {name: getattr(shapes, name) for name in Weights.__dataclass_fields__}
        drawn = {name: x and draw(x, seed + i) for i, (name, x) in enumerate(parts.items())}
        pipeline = Pipeline(arch, Weights(**drawn), Path())
    weights = pipeline.weights
    loras = {name: trained(getattr(weights, name), seed) for name in ("forward", "backward")}
    return replace(pipeline, weights=replace(weights, **loras))


def trained(lora: Any, seed: int) -> Any:
    """A LoRA whose B is not zero, as after training."""
    rng = np.random.default_rng(seed)

    def fill(path: Any, x: np.ndarray) -> np.ndarray:
        if path[-1].key != "up":
            return x
        return LORA_STRENGTH * rng.standard_normal(x.shape, np.float32)

    return jax.tree.map_with_path(fill, lora)


def facts_of(model: str) -> tuple[Architecture, int]:
    """A model's networks, and the rank of its LoRA."""
    size = drawn_size(model)
    if size is not None:
        return architecture_of(size), RANK
    pipeline = pipeline_of(model)
    leaves = jax.tree.leaves_with_path(pipeline.weights.forward)
    rank = next(x.shape[-1] for path, x in leaves if path[-1].key == "down")
    return pipeline.architecture, int(rank)


def widths_of(model: str) -> Sequence[int]:
    """Of LPIPS: narrow beside a tiny model."""
    return NARROW if model in (RANDOM, "random-tiny", "random-sdxl-tiny") else WIDTHS
