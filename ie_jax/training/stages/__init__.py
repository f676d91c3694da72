"""The stages of training, one file each: its settings, its losses, and what it reads and writes.

A new stage is a file here and its three lines below.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from ie_jax.training.config import RunConfig
from ie_jax.training.recipe import Recipe
from ie_jax.training.stages import (
    autoencoder,
    classifier,
    consistency,
    cycle,
    denoiser,
    guidance,
)
from ie_jax.training.stages.autoencoder import AutoencoderConfig
from ie_jax.training.stages.classifier import ClassifierConfig
from ie_jax.training.stages.consistency import ConsistencyConfig
from ie_jax.training.stages.cycle import CycleConfig
from ie_jax.training.stages.denoiser import DenoiserConfig
from ie_jax.training.stages.guidance import GuidanceConfig

Name = Literal["cycle", "autoencoder", "denoiser", "guidance", "consistency", "classifier"]


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """Everything that decides what a training run computes and how it is run."""

    stage: Name = "cycle"
    """What is trained."""
    cycle: CycleConfig = field(default_factory=CycleConfig)
    """The losses."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)


BUILD: dict[Name, Callable[[RunConfig, Any, bool, bool], Recipe]] = {
    "autoencoder": autoencoder.build,
    "classifier": classifier.build,
    "denoiser": denoiser.build,
    "guidance": guidance.build,
    "consistency": consistency.build,
    "cycle": cycle.build,
}
"""(run, the stage's own settings, offline, progress) -> recipe, which raises UserError."""


def build(config: TrainConfig, offline: bool = False, progress: bool = True) -> Recipe:
    """The recipe of a config's stage.

    Args:
        offline: never use the network.
        progress: show download bars.

    Raises:
        UserError: what the stage starts from is missing or does not fit.
    """
    return BUILD[config.stage](config, getattr(config, config.stage), offline, progress)
