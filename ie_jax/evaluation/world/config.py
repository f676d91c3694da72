"""What the world protocol draws and how it edits: its settings."""

from dataclasses import dataclass
from typing import Literal

from ie_jax.editing.config import EditConfig, GuiderConfig, GuiderOptions, RescalingConfig
from ie_jax.errors import UserError
from ie_jax.evaluation.world.tasks import check_places

GUIDERS = (GuiderConfig("features_map_l2", (8.0, 8.0, 8.0, 0.0), GuiderOptions(block="mid")),)
RESCALING = RescalingConfig(init_setup=(0.0, 0.5))
"""Guiders and bound that keep most of the source in this world. The published up block keeps no
more than no guider, and with the published bound, 1, fewer edits succeed (docs/world.md)."""


@dataclass(frozen=True)
class WorldConfig:
    """What scenes are drawn, and how reconstructions, edits and samples are made."""

    places: int = 1
    """How many objects a scene has room for, 1 or 2."""
    guidance: tuple[float, ...] = (0.0, 1.0, 1.0, 1.0)
    """Scale w of each generation step of edits."""
    guiders: tuple[GuiderConfig, ...] = GUIDERS
    """Of guided edits, as a YAML list of {name, g_scale, kwargs}."""
    noise_rescaling_setup: RescalingConfig = RESCALING
    match_statistics: bool = False
    """Give edits the source's brightness and contrast."""
    ddim_steps: int = 50
    """Of the teacher, in either direction."""
    sample_guidance: float = 3.0
    """Scale w of the teacher's samples, and of the backward model's beside them."""
    sweep_scenes: int = 128
    """Scenes of the trade-off curves, one edit of each."""
    sweep_batch: int = 8
    """Of these, how many at once; all strengths of a scene are one call."""
    sweep_methods: tuple[Literal["iCD", "ours"], ...] = ("ours",)
    """Whose trade-off."""
    strengths: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
    """Factors of the guiders' weights."""
    bounds: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0, 2.0)
    """Upper bounds of the gradient's ratio."""
    schedules: tuple[tuple[float, ...], ...] = (
        (0.0, 1.0, 1.0, 1.0),
        (0.0, 1.0, 2.0, 3.0),
        (0.0, 2.0, 3.0, 5.0),
        (0.0, 3.0, 3.0, 3.0),
        (0.0, 7.0, 11.0, 19.0),
        (0.0, 19.0, 19.0, 19.0),
    )
    """Guidance schedules, each with and without guiders."""

    def __post_init__(self) -> None:
        check_places(self.places)
        if not self.guiders:
            raise UserError("guiders is empty: guided edits need one")
        if any(len(schedule) != len(self.guidance) for schedule in self.schedules):
            raise UserError("schedules must have as many values each as guidance")
        if min(self.sweep_scenes, self.sweep_batch) < 1:
            raise UserError("sweep_scenes and sweep_batch must be positive")
        if self.ddim_steps < 1 or 1000 % self.ddim_steps:
            raise UserError(f"ddim_steps {self.ddim_steps} must divide 1000")
        if min(self.bounds, default=0) < self.noise_rescaling_setup.bounds[0]:
            raise UserError("bounds must not lie below the lower bound of noise_rescaling_setup")

    def edit_config(self, model: str) -> EditConfig:
        """The guided editor's."""
        return EditConfig(
            model=model,
            cfg_schedule=self.guidance,
            guiders=self.guiders,
            noise_rescaling_setup=self.noise_rescaling_setup,
            match_statistics=self.match_statistics,
        )
