"""A tiny model in parts, for tests of model folders."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ie_jax.models.lora import lora_shapes
from ie_jax.weights.folder import architecture, shapes
from ie_jax.weights.layout import CONFIGS, PIPELINE, Part
from ie_jax.weights.untrained import RANDOM_CONFIGS, write_byte_tokenizer

METADATA = {"trained_on": "made-up pictures", "steps": "3"}


def write_plan(folder: Path) -> Path:
    """A model folder without weights: configs and tokenizer."""
    for name, file in CONFIGS.items():
        path = folder / PIPELINE / file
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(RANDOM_CONFIGS[name]), encoding="utf-8")
    write_byte_tokenizer(folder / PIPELINE / "tokenizer")
    return folder


@cache
def small_parts() -> dict[Part, Any]:
    """All parts of the random model, normal random values everywhere."""
    arch = architecture(RANDOM_CONFIGS, "")
    rng = np.random.default_rng(0)

    def filled(tree: Any) -> Any:
        return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), tree)

    networks: tuple[Part, ...] = ("vae", "text_encoder", "denoiser", "unet")
    loras: tuple[Part, ...] = ("forward", "backward", "fine_tuned")
    base = shapes("unet", arch)
    return {name: filled(shapes(name, arch)) for name in networks} | {
        name: filled(lora_shapes(base, 4)) for name in loras
    }
