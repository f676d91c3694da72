"""The two tiny models that tests run: `random`, which the package has, and one of a single level,
which is compiled in a third of its time."""

from typing import Any

from ie_jax.weights.folder import architecture
from ie_jax.weights.untrained import RANDOM_CONFIGS

ONE: dict[str, Any] = {"block_out_channels": [16], "norm_num_groups": 4, "sample_size": 16}
SMALLEST: dict[str, dict[str, Any]] = {
    "unet": ONE
    | {
        "down_block_types": ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"],
    },
    "vae": ONE
    | {
        "down_block_types": ["DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D"],
    },
}
"""What makes `random` the smallest: latents as large as images, 16 pixels."""
SMALLEST_SDXL = SMALLEST["unet"] | {"attention_head_dim": [2], "transformer_layers_per_block": [2]}
"""The same of the UNet of `weights.models.SDXL`."""
RANDOM_MODEL = architecture(RANDOM_CONFIGS, "the random model")
SMALLEST_MODEL = architecture(
    {part: config | SMALLEST.get(part, {}) for part, config in RANDOM_CONFIGS.items()},
    "the smallest model",
)


def shrink() -> None:
    """Make `random` the smallest for the rest of the process."""
    for part, changes in SMALLEST.items():
        RANDOM_CONFIGS[part] |= changes
