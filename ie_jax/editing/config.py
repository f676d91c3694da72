"""The schema of an edit."""

import math
from dataclasses import dataclass, field
from typing import Literal

from ie_jax.errors import UserError
from ie_jax.methods.settings import MethodConfig
from ie_jax.methods.table import Name
from ie_jax.models.execution import Execution, Precision


@dataclass(frozen=True)
class GuiderOptions:
    """Options of a guider, named as in the published configs."""

    block: Literal["up", "down", "mid"] = "up"
    """Where features_map_l2 takes its features."""


@dataclass(frozen=True)
class GuiderConfig:
    """One guider and its strength."""

    name: Literal["self_attn_map_l2", "features_map_l2"]
    g_scale: float | tuple[float, ...]
    """Weight of the energy: one for all steps, or one per step."""
    kwargs: GuiderOptions = field(default_factory=GuiderOptions)

    def __post_init__(self) -> None:
        if self.name != "features_map_l2" and self.kwargs != GuiderOptions():
            raise UserError(f"guiders: {self.name} takes no kwargs")

    def scales(self, steps: int) -> tuple[float, ...]:
        """The weight at each step; as many as are given, or one for each of `steps`."""
        return self.g_scale if isinstance(self.g_scale, tuple) else (self.g_scale,) * steps

    @property
    def label(self) -> str:
        """What tells this guider from all others of a config."""
        block = self.kwargs.block
        return self.name if block == GuiderOptions().block else f"{self.name}_{block}"


@dataclass(frozen=True)
class RescalingConfig:
    """How the guiders' gradient is scaled to the size of the guidance term (method 4)."""

    type: Literal["range_other_on_cfg_norm", "identity_rescaler"] = "range_other_on_cfg_norm"
    """range_other_on_cfg_norm: clip the ratio of norms. identity_rescaler: leave the gradient."""
    init_setup: tuple[float, float] | None = (0.0, 1.0)
    """Lower and upper bound of the ratio."""

    def __post_init__(self) -> None:
        ranged = self.type == "range_other_on_cfg_norm"
        if ranged and self.init_setup is None:
            raise UserError(f"noise_rescaling_setup: {self.type} needs init_setup, e.g. [0, 1]")
        if self.init_setup is not None and not 0 <= self.init_setup[0] <= self.init_setup[1]:
            raise UserError(
                f"noise_rescaling_setup: bounds {list(self.init_setup)} must be 0 <= lower <= upper"
            )

    @property
    def bounds(self) -> tuple[float, float]:
        """The bounds; 0 and infinity leave the gradient as it is."""
        if self.type == "identity_rescaler" or self.init_setup is None:
            return 0.0, math.inf
        return self.init_setup


@dataclass(frozen=True)
class EditConfig:
    """Everything that decides what an edit computes and how it is run.

    The defaults are the published method without guiders.
    """

    model: str = "world"
    """world (comes along, trained on drawn scenes of 64 pixels), world-icd (the same before cycle
    fine-tuning), random (untrained, tiny), sd15, icd-sd15, icd-sd15-2, icd-sd15-3steps (published,
    downloaded once), icd-sdxl, icd-sdxl-2, icd-sdxl-3steps (likewise), or a folder of upstream
    files; or a base model for methods that need no pair:
    sdxl-turbo (published, downloaded once), or a diffusers folder of SD1.x or SDXL."""
    forward: str | None = None
    """A forward LoRA for any model: a path with a folder in it, as ./forward_lora.safetensors. Or
    its file name in a model's folder that holds several. A base model takes none."""
    backward: str | None = None
    """The backward LoRA, likewise; for a base model one that lets it make pictures in few steps."""
    method: Literal["ours"] | Name = "ours"
    """ours, or another of docs/methods.md, whose settings are below `baseline`."""
    baseline: MethodConfig = field(default_factory=MethodConfig)
    """Settings of the methods that are not ours."""
    boundaries: tuple[int, ...] | None = None
    """Timesteps between the segments, rising. None: those the model was trained for."""
    start_timestep: int | None = None
    """Where inversion starts: 0 or 19. None: as the model was trained."""
    start_noise: bool | None = None
    """Add noise at the start of inversion. None: as the model was trained; the published ones
    with."""
    cfg_schedule: tuple[float, ...] | None = None
    """Guidance scale w of each generation step. None: what suits the model, as its files tell:
    0, 7, 11, 19 for the published ones; 0, 1, 1, 1 for the embedded world's."""
    guiders: tuple[GuiderConfig, ...] = ()
    """Energies that hold the edit to the source, as a YAML list of {name, g_scale, kwargs}."""
    noise_rescaling_setup: RescalingConfig = field(default_factory=RescalingConfig)
    strength: tuple[float, ...] = (1.0,)
    """How much of an edit is made, from 0, the reconstruction, to 1, all of it: so much of the way
    from the source's to the target's embedding, and of the guidance. Several: a result for each."""
    mask_feather: float = 1 / 64
    """Over so much outside a mask, of the shorter side, the edit fades into the source."""
    match_statistics: bool = True
    """Give the result the source's brightness and contrast, as published; not where a mask keeps
    the source's pixels."""
    round_lora: bool = True
    """Round LoRA factors to float16 before merging, as the published loader does."""
    lora: Literal["merge", "low_rank"] = "merge"
    """merge: add the LoRA to the base before the steps. low_rank: a path beside each layer, which
    holds no second copy of the weights."""
    size: int | None = None
    """Pixels of the shorter side. None: as the model was trained (512 for SD1.5, 1024 for SDXL)."""
    fit: Literal["crop", "aspect"] = "crop"
    """crop: centre crop to a square, as published. aspect: keep the aspect ratio, with sides
    rounded to 64; with SDXL the nearest of the shapes that it was trained on."""
    seed: int = 0
    """Of the noise at the start of inversion."""
    precision: Precision = field(default_factory=Precision)
    """Number types of UNet and text encoder."""
    vae_precision: Precision = field(default_factory=Precision)
    """Number types of the autoencoder; SDXL's is float32 whatever stands here."""
    execution: Execution = field(default_factory=Execution)

    def __post_init__(self) -> None:
        schedule = self.cfg_schedule
        if schedule == ():
            raise UserError("cfg_schedule is empty: give one guidance scale per step")
        if schedule and self.boundaries is not None and len(self.boundaries) != len(schedule):
            raise UserError(
                f"cfg_schedule has {len(schedule)} values but there are {len(self.boundaries)} "
                "boundaries: give one value per step"
            )
        labels = [guider.label for guider in self.guiders]
        if len(set(labels)) < len(labels):
            raise UserError("guiders: one is listed twice: give it the sum of both g_scale")
        steps = len(schedule or self.boundaries or ())
        scales = self.scales(steps) if steps else [guider.scales(1) for guider in self.guiders]
        if not all(map(math.isfinite, [*(schedule or ()), *(x for row in scales for x in row)])):
            raise UserError("cfg_schedule and g_scale must be finite numbers")
        if not self.strength or not all(0 <= x <= 1 for x in self.strength):
            raise UserError(
                f"strength {list(self.strength)} must be one or more numbers from 0 to 1"
            )
        if not 0 <= self.mask_feather <= 1:
            raise UserError(f"mask_feather {self.mask_feather} must be from 0 to 1")
        if self.size is not None and self.size < 1:
            raise UserError(f"size {self.size} must be positive")
        if self.execution.query_chunk < 0 or self.execution.unroll < 1:
            raise UserError("execution: query_chunk must not be negative, unroll 1 or more")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed {self.seed} must be from 0 to 4294967295")

    def scales(self, steps: int) -> tuple[tuple[float, ...], ...]:
        """Weight of each guider at each of so many steps.

        Raises:
            UserError: a guider has another number of weights.
        """
        scales = tuple(guider.scales(steps) for guider in self.guiders)
        for guider, row in zip(self.guiders, scales, strict=True):
            if len(row) != steps:
                raise UserError(
                    f"g_scale of guider {guider.name} has {len(row)} values but there are {steps} "
                    "steps: give one value per step"
                )
        return scales
