"""All metrics by name, and the networks that some of them need."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ie_jax.errors import UserError
from ie_jax.evaluation.metrics import attributes, perceptual, pixels
from ie_jax.evaluation.metrics.clip import Clip
from ie_jax.evaluation.metrics.dinov2 import Dinov2
from ie_jax.evaluation.metrics.image_reward import ImageReward
from ie_jax.evaluation.metrics.masks import Part, of_part
from ie_jax.evaluation.metrics.structure import Structure
from ie_jax.weights.judges import CLASSIFIER, PERCEPTUAL, judge_files, load_classifier, load_lpips

LPIPS_NETS = ("vgg", "alex", "squeeze")


@dataclass(frozen=True)
class Pair:
    """A picture and what became of it; all of one height and width."""

    source: np.ndarray
    """uint8 (h, w, 3), as is `result`."""
    result: np.ndarray
    source_prompt: str
    target_prompt: str
    mask: np.ndarray | None = None
    """uint8 (h, w), 1 where the picture is to be edited. None: nothing tells."""
    truth: np.ndarray | None = None
    """uint8 (h, w, 3), what the result should be. None: nothing tells."""


@dataclass
class Judges:
    """The networks, each read when it is first asked for."""

    weights: Path | None = None
    """A folder that holds their files, see `judge_files`. None: those that are published."""
    offline: bool = False
    progress: bool = True
    nets: dict[str, Any] = field(default_factory=dict)
    world: Path | None = None
    """The model folder whose networks judge drawn scenes."""

    def lpips(self, net: str) -> Any:
        """The parameters of LPIPS with that network.

        Raises:
            UserError: they cannot be had; so too the others.
        """
        if net not in self.nets:
            name = "vgg16" if net == "vgg" else net
            source = name if self.weights is None else str(self.weights / f"lpips-{net}")
            self.nets[net] = load_lpips(source, self.offline, self.progress)
        return self.nets[net]

    def files(self, name: str) -> list[Path]:
        """Where a network's files lie, see `judge_files`."""
        return judge_files(name, self.weights, self.offline, self.progress)

    @cached_property
    def clip_b32(self) -> Clip:
        """CLIP ViT-B/32."""
        return Clip(self.files("clip-b32")[0].parent)

    @cached_property
    def clip_l14(self) -> Clip:
        """CLIP ViT-L/14."""
        return Clip(self.files("clip-l14")[0].parent)

    @cached_property
    def dinov2(self) -> Dinov2:
        """DINOv2 ViT-B/14."""
        return Dinov2(self.files("dinov2")[0].parent)

    @cached_property
    def image_reward(self) -> ImageReward:
        """ImageReward v1.0."""
        reward, _, vocabulary, *_ = self.files("image-reward")
        return ImageReward(reward.parent, vocabulary.parent)

    @cached_property
    def world_lpips(self) -> Any:
        """The world's perceptual network."""
        return load_lpips(str(self.world_folder / PERCEPTUAL))

    @cached_property
    def world_classifier(self) -> Any:
        """What tells the attributes of drawn scenes."""
        return load_classifier(self.world_folder / CLASSIFIER)

    @property
    def world_folder(self) -> Path:
        """Where the world's judges lie.

        Raises:
            UserError: nothing tells.
        """
        if self.world is None:
            raise UserError("there is no model of the world whose networks could judge")
        return self.world

    @cached_property
    def structure(self) -> Structure:
        """DINO ViT-B/8."""
        return Structure(self.files("dino")[0])


Measure = Callable[[Judges, Pair], float]


def of_pictures(metric: Callable[[np.ndarray, np.ndarray], float]) -> Measure:
    """A metric of pixels alone."""
    return lambda judges, pair: metric(pair.result, pair.source)


def of_lpips(net: str, metric: Callable[..., float] = perceptual.lpips) -> Measure:
    """LPIPS with that network."""
    return lambda judges, pair: metric(judges.lpips(net), pair.result, pair.source)


def structure(judges: Judges, pair: Pair) -> float:
    """The structure distance."""
    return judges.structure.distance(pair.result, pair.source)


def masked(metric: Measure, part: Part) -> Measure:
    """A metric of one part, see `of_part`. NaN without a mask."""

    def measure(judges: Judges, pair: Pair) -> float:
        if pair.mask is None:
            return float("nan")

        def whole(result: np.ndarray, source: np.ndarray) -> float:
            texts = pair.source_prompt, pair.target_prompt
            return metric(judges, Pair(source, result, *texts))

        return of_part(whole, pair.result, pair.source, pair.mask, part)

    return measure


def to_truth(metric: Measure) -> Measure:
    """A metric of the result against the truth in place of the source. NaN without one."""

    def measure(judges: Judges, pair: Pair) -> float:
        if pair.truth is None:
            return float("nan")
        return metric(judges, replace(pair, source=pair.truth))

    return measure


def psnr_outside(judges: Judges, pair: Pair) -> float:
    """PSNR over the pixels that are not to be edited. NaN without a mask."""
    if pair.mask is None:
        return float("nan")
    return pixels.psnr(pair.result, pair.source, pair.mask == 0)


PAIRS: Mapping[str, Measure] = {
    "mse": of_pictures(pixels.mse),
    "psnr": of_pictures(pixels.psnr),
    "ssim": of_pictures(pixels.ssim),
    "lpips_squeeze": of_lpips("squeeze"),
    "structure_distance": structure,
}
"""Those that PIE-Bench has of either part."""
PICTURES: Mapping[str, Measure] = {
    **PAIRS,
    "lpips_vgg": of_lpips("vgg"),
    "lpips_alex": of_lpips("alex"),
    "lpips_vgg_224": of_lpips("vgg", perceptual.lpips_small),
    "clip_l14_images": lambda j, p: j.clip_l14.likeness(p.result, p.source),
    "dinov2": lambda j, p: j.dinov2.likeness(p.result, p.source),
}
"""Those of two pictures."""
METRICS: Mapping[str, Measure] = {
    **PICTURES,
    "clip_b32": lambda j, p: j.clip_b32.fit(p.result, p.target_prompt),
    "clip_l14": lambda j, p: j.clip_l14.fit(p.result, p.target_prompt),
    "clip_b32_unrounded": lambda j, p: j.clip_b32.fit_unrounded(p.result, p.target_prompt),
    "clip_l14_unrounded": lambda j, p: j.clip_l14.fit_unrounded(p.result, p.target_prompt),
    "clip_score_source": lambda j, p: j.clip_l14.score(p.source, p.source_prompt),
    "clip_score_target": lambda j, p: j.clip_l14.score(p.result, p.target_prompt),
    "clip_score_edited": masked(lambda j, p: j.clip_l14.score(p.result, p.target_prompt), "edited"),
    "image_reward": lambda j, p: j.image_reward.reward(p.result, p.target_prompt),
    "image_reward_truncated": lambda j, p: j.image_reward.reward(
        pixels.truncated(p.result), p.target_prompt
    ),
    "psnr_outside": psnr_outside,
    **{f"{name}_unedited": masked(metric, "unedited") for name, metric in PAIRS.items()},
    **{f"{name}_edited": masked(metric, "edited") for name, metric in PAIRS.items()},
    **{f"{name}_truth": to_truth(metric) for name, metric in PICTURES.items()},
    "world_success": lambda j, p: attributes.success(j.world_classifier, p.result, p.target_prompt),
    "world_perceptual_truth": to_truth(
        lambda j, p: perceptual.lpips(j.world_lpips, p.result, p.source)
    ),
}
"""Every metric: of the result against the source, the prompt or the truth."""


def needs_mask(name: str) -> bool:
    """Whether a metric is of one part of a picture."""
    return name.endswith(("_edited", "_unedited", "_outside"))


def needs_truth(name: str) -> bool:
    """Whether a metric asks what the result should be."""
    return name.endswith("_truth")


def measured(judges: Judges, pair: Pair, names: Sequence[str]) -> dict[str, float]:
    """Metrics of a pair; NaN where a part is empty, infinity where PSNR has no error.

    Raises:
        UserError: a network's weights cannot be had, or the pictures do not suit a metric.
    """
    others = {"source": pair.source, "mask": pair.mask, "truth": pair.truth}
    for what, other in others.items():
        if other is not None and other.shape[:2] != pair.result.shape[:2]:
            raise UserError(
                f"a result of {pair.result.shape[:2]} pixels cannot be compared with a {what} of "
                f"{other.shape[:2]}"
            )
    return {name: METRICS[name](judges, pair) for name in names}
