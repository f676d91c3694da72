"""Settings of the methods that are not ours: as a person gives them, and as programs take them."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from ie_jax.errors import UserError
from ie_jax.methods import gnri, postedit, turboedit


@dataclass(frozen=True)
class MethodConfig:
    """Settings of the methods that are not ours. The defaults are the published ones; None: those
    of the method, see `settled`."""

    steps: int | None = None
    """Of DDIM in either direction (50), of InfEdit (12), or of the methods on few-step models (4;
    turboedit 3 or 4, postedit 5)."""
    guidance: float | None = None
    """w of classifier-free guidance, where 1 is none; icd has `cfg_schedule` in its place.
    turboedit: by how much the difference of the prompts is enlarged."""
    words: Literal["refine", "replace"] = "refine"
    """How prompts are aligned. replace: word for word, of equally many words."""
    cross_steps: float | None = None
    """Share of steps in which cross-attention is taken over."""
    self_steps: float | None = None
    """Share of steps in which self-attention is taken over."""
    amplify: float | None = None
    """Factor of the taken maps of words that the source prompt does not have."""
    blend: tuple[str, str] | None = None
    """p2p and its kin, icd: the word of the source and that of the target prompt around which alone
    the result may differ, such as cat dog; "" for none. None: it may differ everywhere. Of infedit
    the target's word alone counts, as published."""
    blend_threshold: float | None = None
    """Share of the words' largest attention that is near to them (0.3; infedit 0.55)."""
    interpolation: float = 0.0
    """npi: from the source prompt (0) to the empty one (1) as the unconditional prompt."""
    inner_steps: int | None = None
    """nti: at most so many steps of Adam in each step (10). gnri: iterations of each inversion step
    (2). renoise-turbo: renoisings of each (9). postedit: Langevin steps of each (25000)."""
    near: float = 1e-5
    """nti: the loss at which a step's optimisation ends."""
    first_step: int = 4
    """masactrl: from this step on."""
    first_layer: int = 10
    """masactrl: from this self-attention layer on, of 16."""
    style: bool = False
    """guide-and-rescale: the published setting for edits of style, which the next four follow."""
    layout: float | None = None
    """guide-and-rescale: weight of self-attention maps (3e5; style 1e5)."""
    appearance: float | None = None
    """guide-and-rescale: weight of features (500; style 2.5)."""
    guided_steps: float | None = None
    """guide-and-rescale: share of steps with energies (0.6; style 0.5)."""
    bounds: tuple[float, float] | None = None
    """guide-and-rescale: of the gradient's norm to that of the guidance term (1/3, 3; style 1.5,
    1.5)."""
    limit: float = turboedit.PUBLISHED_LIMIT
    """turboedit: the largest norm of the last step's correction, at 512 pixels; it grows with the
    side. Below 0: none."""
    prior: float = gnri.PRIOR
    """gnri: weight of the prior that keeps a latent near the noised source."""
    highest: float | None = None
    """gnri (0.6), renoise-turbo (1): the share of the timesteps that inversion keeps to; postedit
    (0.5): at which it starts."""
    kept: float = postedit.KEPT
    """postedit: the share of the source's latent in what each step noises again."""

    def __post_init__(self) -> None:
        if self.steps is not None and not 1 <= self.steps <= 1000:
            raise UserError(f"baseline: steps {self.steps} must be from 1 to 1000")
        shares = (self.cross_steps, self.self_steps, self.guided_steps)
        if not all(x is None or 0 <= x <= 1 for x in shares):
            raise UserError(
                "baseline: cross_steps, self_steps and guided_steps are shares, from 0 to 1"
            )
        if self.inner_steps == 0 or min(self.inner_steps or 1, self.guidance or 0) < 0:
            raise UserError("baseline: inner_steps must be 1 or more, guidance not negative")
        if self.blend is not None and not any(self.blend):
            raise UserError("baseline: blend needs a word of the source or the target prompt")
        lower, upper = self.bounds or (0.0, 0.0)
        if not 0 <= lower <= upper:
            raise UserError("baseline: bounds must be 0 <= lower <= upper")
        if self.prior < 0 or not 0 < (1 if self.highest is None else self.highest) <= 1:
            raise UserError("baseline: prior must not be negative, highest over 0 and at most 1")
        if not 0 <= self.kept <= 1:
            raise UserError("baseline: kept is a share, from 0 to 1")


@dataclass(frozen=True)
class Settings(MethodConfig):
    """`MethodConfig` with nothing left open."""

    steps: int = 50
    guidance: float = 7.5
    cross_steps: float = 0.4
    self_steps: float = 0.6
    amplify: float = 1.0
    blend_threshold: float = 0.3
    inner_steps: int = 10
    highest: float = 1.0
    layout: float = 3e5
    appearance: float = 500.0
    guided_steps: float = 0.6
    bounds: tuple[float, float] = (1 / 3, 3.0)


class Size(NamedTuple):
    """What a program is compiled for."""

    steps: int
    inner_steps: int
    highest: float
    guided: bool
    """Whether guidance is another than 1; of renoise-turbo, which asks half as often without."""
    style: bool


@struct.dataclass
class Numbers:
    """Settings that recompile nothing, see `MethodConfig`."""

    guidance: Float[Array, ""]
    cross_steps: Float[Array, ""]
    self_steps: Float[Array, ""]
    interpolation: Float[Array, ""]
    near: Float[Array, ""]
    first_step: Int[Array, ""]
    first_layer: Int[Array, ""]
    energies: Float[Array, "n e"]
    """Weights of Guide-and-Rescale's energies in each step."""
    bounds: Float[Array, " 2"]
    limit: Float[Array, ""]
    prior: Float[Array, ""]
    kept: Float[Array, ""]


def size_of(config: Settings) -> Size:
    """The static settings."""
    guided = config.guidance != 1
    return Size(config.steps, config.inner_steps, config.highest, guided, config.style)


def numbers_of(config: Settings) -> Numbers:
    """All others, on the host."""
    on = np.arange(config.steps) < round(config.guided_steps * config.steps)
    weights = np.array([config.layout, config.appearance])
    shares = (config.cross_steps, config.self_steps)
    values = (config.guidance, *shares, config.interpolation, config.near)
    counts = (config.first_step, config.first_layer)
    arrays: list[Any] = [
        *(np.asarray(x, np.float32) for x in values),
        *(np.asarray(x, np.int32) for x in counts),
        np.asarray(on[:, None] * weights, np.float32),
        *(np.asarray(x, np.float32) for x in (config.bounds, config.limit, config.prior)),
        np.asarray(config.kept, np.float32),
    ]
    return Numbers(*arrays)
