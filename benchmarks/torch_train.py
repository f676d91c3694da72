"""The same fine-tuning step in PyTorch, on diffusers', transformers' and peft's networks.

    trainer = TorchTrainer(config, pipeline, perceptual, device="cuda")
    losses = trainer(batch, draws)

It is the plain way to write it there (method 3): three UNets that share the base's tensors, peft's
LoRA on two of them, gradient checkpointing, autocast with float32 LoRA, one AdamW. Weights come
from our trees, so that both programs start from the same numbers.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import peft
import torch
from torch import Tensor

from benchmarks.random_weights import ALPHA, LORA_TARGETS
from benchmarks.torch_networks import (
    Tree,
    channels_last,
    empty_unet,
    guidance_embedding,
    leaf,
    make_text_encoder,
    make_vae,
    unet_state,
    upstream_state,
)
from ie_jax.diffusion.schedule import cumulative_alphas
from ie_jax.models.lpips import EPSILON, SCALE, SHIFT, blocks
from ie_jax.training.stages import TrainConfig
from ie_jax.weights.convert import flatten
from ie_jax.weights.folder import Pipeline
from ie_jax.weights.names import LORA

# --- LPIPS ----------------------------------------------------------------------------------------


class Lpips:
    """LPIPS of `ie_jax.models.lpips`' parameters."""

    def __init__(self, params: Tree, device: torch.device, dtype: torch.dtype) -> None:
        self.blocks = [
            [
                (
                    leaf("kernel", params[name]["kernel"]).to(device, dtype),
                    leaf("bias", params[name]["bias"]).to(device, dtype),
                )
                for name in names
            ]
            for names in blocks(params)
        ]
        self.heads = [
            leaf("weight", params[f"lin{i}"]["weight"]).to(device)[None, :, None, None]
            for i in range(len(self.blocks))
        ]
        self.shift, self.scale = (
            torch.tensor(x, device=device)[None, :, None, None] for x in (SHIFT, SCALE)
        )
        self.dtype = dtype

    def features(self, x: Tensor) -> list[Tensor]:
        """The activations at the end of each block, of unit length over the channels."""
        x = ((x.float() - self.shift) / self.scale).to(self.dtype)
        maps: list[Tensor] = []
        for block in self.blocks:
            if maps:
                x = torch.nn.functional.max_pool2d(x, 2)
            for kernel, bias in block:
                x = torch.nn.functional.conv2d(x, kernel, bias, padding=1).relu()
            y = x.float()
            maps.append(y / ((y**2).sum(1, keepdim=True) + EPSILON**2).sqrt())
        return maps

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """One distance for each pair of images."""
        pairs = zip(self.features(x), self.features(y), self.heads, strict=True)
        terms = [((a - b) ** 2 * head).sum(1).mean((1, 2)) for a, b, head in pairs]
        return torch.stack(terms).sum(0)


def patches(x: Tensor, size: int, stride: int, layout: str) -> Tensor:
    """All patches of all images; `interleaved`: their values in the published order."""
    cut = x.unfold(2, size, stride).unfold(3, size, stride)  # b, colour, row, column, patch
    axes = {"windows": (0, 2, 3, 1, 4, 5), "interleaved": (0, 2, 4, 1, 3, 5)}
    return cut.permute(axes[layout]).reshape(-1, x.shape[1], size, size)


def squared(x: Tensor, y: Tensor) -> Tensor:
    """Mean of d²."""
    return ((x - y) ** 2).mean()


def pseudo_huber(x: Tensor, y: Tensor, c: float = 1e-3) -> Tensor:
    """Mean of sqrt(d² + c²) - c."""
    return (((x - y) ** 2 + c**2).sqrt() - c).mean()


LATENT = {"huber": pseudo_huber, "l2": squared}

# --- The step -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """A batch as the losses see it."""

    latents: Tensor
    context: Tensor
    noise: Tensor
    index: Tensor
    segment: Tensor
    target: Tensor | None


class TorchTrainer:
    """The networks and the optimiser of a run."""

    def __init__(
        self, config: TrainConfig, pipeline: Pipeline, perceptual: Any, device: str = "cpu"
    ) -> None:
        self.config, self.device = config, torch.device(device)
        self.arch, weights = pipeline.architecture, pipeline.weights
        self.dtype = getattr(torch, config.precision.compute)
        # float32 means float32 here too, not TF32.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        remat = config.execution.remat_block or config.execution.remat_call
        state = unet_state(empty_unet(self.arch.unet), weights.unet)
        state = {name: channels_last(x.to(self.device, self.dtype)) for name, x in state.items()}

        def unet() -> Any:
            network = empty_unet(self.arch.unet)
            network.load_state_dict(state, assign=True)
            network.requires_grad_(False).train()
            if remat:
                network.enable_gradient_checkpointing()
            return network

        self.teacher = unet()
        self.forward = self.with_lora(unet(), weights.forward)
        self.backward = self.with_lora(unet(), weights.backward).requires_grad_(False)
        self.trained = [x for x in self.forward.parameters() if x.requires_grad]

        self.vae = make_vae(self.arch.vae, weights.vae)
        self.vae = channels_last(self.vae.to(self.device, self.dtype)).requires_grad_(False).train()
        if remat:
            self.vae.enable_gradient_checkpointing()
        text = make_text_encoder(self.arch.text, weights.text_encoder)
        self.text_encoder = text.to(self.device, self.dtype).requires_grad_(False).eval()
        self.lpips = None
        if perceptual is not None:
            compute = getattr(torch, config.cycle.perceptual_compute)
            self.lpips = Lpips(perceptual, self.device, compute)

        own = config.optimiser
        self.optimiser = torch.optim.AdamW(
            self.trained,
            own.learning_rate,
            own.betas,
            own.eps,
            own.weight_decay,
            fused=self.device.type == "cuda",
        )
        self.abar = torch.from_numpy(cumulative_alphas(self.arch.betas)).to(self.device)
        self.boundaries = torch.tensor(config.cycle.boundaries, device=self.device)

    def with_lora(self, unet: Any, lora: Tree) -> Any:
        """A UNet with peft's LoRA, float32."""
        rank = next(x for path, x in flatten(lora).items() if path.endswith("/down")).shape[-1]
        settings = peft.LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=list(LORA_TARGETS))
        model = channels_last(peft.get_peft_model(unet, settings).to(self.device))
        shapes = peft.get_peft_model_state_dict(model)
        peft.set_peft_model_state_dict(model, upstream_state(LORA, shapes, lora))
        return model

    def autocast(self) -> Any:
        """Around each network call: left open, it would keep casts made without gradient."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def eps(self, unet: Any, z: Tensor, t: Tensor, w: Tensor, context: Tensor) -> Tensor:
        """The predicted noise, float32."""
        embedding = guidance_embedding(w, self.arch.unet.time_cond_proj_dim or 0)
        with self.autocast():
            predicted: Tensor = unet(
                z, t, encoder_hidden_states=context, timestep_cond=embedding
            ).sample
        return predicted.float()

    def decode(self, z: Tensor) -> Tensor:
        """Latents to images."""
        with self.autocast():
            decoded: Tensor = self.vae.decode(z / self.vae.config.scaling_factor).sample
        return decoded.float()

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t."""
        at = self.abar[t][:, None, None, None]
        return at.sqrt(), (1 - at).sqrt()

    def noised(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """z at timestep t."""
        alpha, sigma = self.levels(t)
        return alpha * z + sigma * noise

    def clean(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x0 of z_t."""
        alpha, sigma = self.levels(t)
        return (z - sigma * eps) / alpha

    def step(self, z: Tensor, eps: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The consistency step t -> s."""
        x0 = self.clean(z, eps, t)
        return torch.where((s == 0)[:, None, None, None], x0, self.noised(x0, eps, s))

    @torch.no_grad()
    def prepare(self, batch: Mapping[str, Tensor], draws: Mapping[str, Tensor]) -> Example:
        """Latents, text embeddings and LPIPS' target."""
        image = batch["pixels"].permute(0, 3, 1, 2).float() / 127.5 - 1
        with self.autocast():
            context = self.text_encoder(batch["ids"].long())[0]
            posterior = self.vae.encode(image).latent_dist
        z = (posterior.mean + posterior.std * draws["posterior"]).float()
        z = z * self.vae.config.scaling_factor
        target = None
        if self.lpips is not None:
            target = self.decode(z) if self.config.cycle.target == "decoded" else image
        return Example(z, context, draws["noise"], draws["index"], draws["segment"], target)

    def distillation(self, x: Example) -> Tensor:
        """Consistency distillation of the forward model."""
        cycle = self.config.cycle
        stride = len(self.abar) // cycle.grid_steps
        t = cycle.grid_start + stride * x.index
        next_t = t + stride
        s = self.boundaries[torch.searchsorted(self.boundaries, next_t)]
        w = torch.zeros(len(t), device=self.device)
        z = self.noised(x.latents, x.noise, t)
        with torch.no_grad():
            eps = self.eps(self.teacher, z, t, w, x.context)
            z_next = self.noised(self.clean(z, eps, t), eps, next_t)
            own = self.eps(self.forward, z_next, next_t, w, x.context)
            arrived = (next_t == s)[:, None, None, None]
            target = torch.where(arrived, z_next, self.step(z_next, own, next_t, s))
        reached = self.step(z, self.eps(self.forward, z, t, w, x.context), t, s)
        return LATENT[cycle.latent_distance](reached, target)

    def cycle(self, x: Example) -> Tensor:
        """There and back again."""
        cycle = self.config.cycle
        rising = [cycle.start_timestep, *cycle.boundaries]
        ones = torch.ones(len(x.latents), dtype=torch.long, device=self.device)
        z = x.latents
        if cycle.start_noise:
            z = self.noised(z, x.noise, cycle.start_timestep * ones)
        for t, s in itertools.pairwise(rising):
            eps = self.eps(self.forward, z, t * ones, 0.0 * ones, x.context)
            z = self.step(z, eps, t * ones, s * ones)
        falling = [*cycle.boundaries[::-1], 0]
        for i, (t, s) in enumerate(itertools.pairwise(falling)):
            w = (cycle.guidance if i else 0.0) * ones
            z = self.step(z, self.eps(self.backward, z, t * ones, w, x.context), t * ones, s * ones)
        if self.lpips is None:
            return LATENT[cycle.distance](z, x.latents)
        assert x.target is not None
        how = (cycle.patch_size, cycle.patch_stride, cycle.patch_layout)
        cut = (patches(y, *how) for y in (self.decode(z), x.target))
        return self.lpips(*cut).mean()

    def preservation(self, x: Example) -> Tensor:
        """Back to where the backward model's step over a segment came from."""
        cycle = self.config.cycle
        lower_ends = torch.tensor([cycle.grid_start, *cycle.boundaries[:-1]], device=self.device)
        upper, lower = self.boundaries[x.segment], lower_ends[x.segment]
        w = torch.zeros(len(upper), device=self.device)
        z = self.noised(x.latents, x.noise, upper)
        with torch.no_grad():
            eps = self.eps(self.backward, z, upper, w, x.context)
            start = self.step(z, eps, upper, lower)
        reached = self.step(start, self.eps(self.forward, start, lower, w, x.context), lower, upper)
        return LATENT[cycle.latent_distance](reached, z)

    @property
    def losses(self) -> dict[str, tuple[float, Callable[[Example], Tensor]]]:
        """Weight and loss by name, in the published order."""
        cycle = self.config.cycle
        every = {
            "distillation": (cycle.distillation_weight, self.distillation),
            "cycle": (cycle.cycle_weight, self.cycle),
            "preservation": (cycle.preservation_weight, self.preservation),
        }
        return {name: (weight, loss) for name, (weight, loss) in every.items() if weight}

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def place(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """Arrays on the device; latents, channels last, in PyTorch's layout."""
        tensors = {
            name: torch.from_numpy(np.array(x)).to(self.device) for name, x in arrays.items()
        }
        return {
            name: x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 and x.is_floating_point() else x
            for name, x in tensors.items()
        }

    def __call__(
        self, batch: Mapping[str, Tensor], draws: Mapping[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """One step.

        Args:
            batch: `pixels` uint8 (b, H, W, 3) and `ids` (b, n), placed.
            draws: `posterior` and `noise` (b, c, h, w), `index` and `segment` (b), placed.

        Returns:
            losses and gradient norms as our step names them, and the seconds of each part.
        """
        metrics: dict[str, float] = {}
        seconds: dict[str, float] = {}
        begin = time.perf_counter()

        def done(part: str) -> None:
            nonlocal begin
            self.synchronise()
            now = time.perf_counter()
            seconds[part], begin = now - begin, now

        count = self.config.accumulate
        items = len(batch["ids"]) // count
        cuts = [slice(i * items, (i + 1) * items) for i in range(count)]
        examples = [
            self.prepare(
                {name: x[cut] for name, x in batch.items()},
                {name: x[cut] for name, x in draws.items()},
            )
            for cut in cuts
        ]
        done("prepare")
        groups = [[name] for name in self.losses]
        if self.config.cycle.order == "sum":
            groups = [list(self.losses)]
        for group in groups:
            name = group[0] if self.config.cycle.order == "in_turn" else "sum"
            self.optimiser.zero_grad(set_to_none=True)
            value = torch.zeros((), device=self.device)
            for example in examples:
                weighted = [self.losses[each][0] * self.losses[each][1](example) for each in group]
                loss = torch.stack(weighted).sum() / count
                loss.backward()
                value += loss.detach()
            norm = torch.nn.utils.clip_grad_norm_(self.trained, self.config.optimiser.clip)
            self.optimiser.step()
            done(name)
            metrics |= {f"{name}/loss": float(value), f"{name}/gradient_norm": float(norm)}
        return metrics, seconds
