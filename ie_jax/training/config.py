"""The settings that all stages of training share."""

from dataclasses import dataclass, field
from typing import Literal

from ie_jax.data.config import DataConfig
from ie_jax.errors import UserError
from ie_jax.models.execution import Execution, Precision


@dataclass(frozen=True)
class OptimiserConfig:
    """The optimiser, on clipped gradients. The defaults are the published run's."""

    name: Literal["adamw", "muon"] = "adamw"
    """muon: kernels and matrices learn by Muon (momentum whose directions all count alike), all
    else by AdamW. A network that is trained from nothing learns in fewer steps, each of which takes
    longer."""
    learning_rate: float = 8e-6
    """After the warm-up."""
    decay_steps: int | None = None
    """Updates until the learning rate has fallen to 0 along a cosine. None: it is constant."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW."""
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest norm of a gradient."""
    warmup_steps: int = 0
    """Updates (with order in_turn a batch makes three) in which the learning rate rises from 0."""
    ema: float | None = None
    """Decay, per batch, of a moving average of the LoRA. None: none is kept."""

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and self.eps > 0 and self.clip > 0):
            raise UserError("optimiser: learning_rate, eps and clip must be positive")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimiser: betas {list(self.betas)} must be from 0 to below 1")
        if self.weight_decay < 0 or self.warmup_steps < 0:
            raise UserError("optimiser: weight_decay and warmup_steps must not be negative")
        if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            raise UserError("optimiser: decay_steps must be more than warmup_steps")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise UserError(f"optimiser: ema {self.ema} must be from 0 to below 1")


@dataclass(frozen=True)
class MeshConfig:
    """How devices share the work."""

    fsdp: int = 1
    """So many devices in a row share one copy of the frozen weights. 1: each holds all."""


@dataclass(frozen=True)
class RunConfig:
    """What decides how a run computes, whatever its stage.

    The defaults are the published run's, but for the data's path.
    """

    model: str = "icd-sd15"
    """What training starts from: random (untrained, tiny), icd-sd15, icd-sd15-2, icd-sd15-3steps,
    sd15 (published, downloaded once), or a folder of upstream files."""
    start: Literal["nothing", "model"] = "nothing"
    """Where autoencoder and denoiser start: from random numbers, or from those that the model's
    folder has, to train them further."""
    forward: str | None = None
    """The forward LoRA to start from: a file, or its name in a folder that holds several."""
    backward: str | None = None
    """The backward LoRA, likewise."""
    perceptual: str = "vgg16"
    """Weights of LPIPS: vgg16 (published, fetched once), random (untrained, narrow), model (those
    in the model's folder), none, or a file or folder of weights."""
    data: DataConfig = field(default_factory=DataConfig)
    """The images."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    batch_size: int = 16
    """Images per step, on all devices together."""
    accumulate: int = 1
    """Parts that a device computes its share of a batch in: more take less memory."""
    steps: int = 6000
    """Batches in all."""
    seed: int = 0
    """Of the data's order and of all noise."""
    evaluate_every: int = 500
    """Steps between validations."""
    save_every: int = 500
    """Steps between checkpoints."""
    keep: int = 2
    """So many of the latest checkpoints stay, and the best."""
    log_every: int = 10
    """Steps between lines of the log."""
    pictures: int = 8
    """Held-out images that are shown at each validation."""
    lora: Literal["merge", "low_rank"] = "low_rank"
    """low_rank: a path beside each layer, so that no gradient of a whole kernel is made. merge: add
    the LoRA to the base in each step."""
    precision: Precision = field(default_factory=Precision)
    """Number types of UNet and text encoder. The LoRA stays float32."""
    vae_precision: Precision = field(default_factory=Precision)
    """Number types of the autoencoder."""
    execution: Execution = field(default_factory=Execution)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        counts = ("batch_size", "accumulate", "steps", "evaluate_every", "save_every", "keep")
        for name in (*counts, "log_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)} must be 1 or more")
        if self.mesh.fsdp < 1:
            raise UserError(f"mesh: fsdp {self.mesh.fsdp} must be 1 or more")
        if self.pictures < 0:
            raise UserError(f"pictures {self.pictures} must not be negative")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed {self.seed} must be from 0 to 4294967295")
        if self.batch_size % self.accumulate:
            raise UserError(
                f"batch_size {self.batch_size} must divide by accumulate {self.accumulate}"
            )
