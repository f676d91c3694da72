"""The same edit in PyTorch, on diffusers' and transformers' networks: what ours is measured beside.

    editor = TorchEditor(pipeline, device="cuda", dtype="bfloat16")
    edit = editor(pixels, source_ids, target_ids, noise, scales=scales)

It is the plain way to write it there (method 2 and 4): each model is the distilled UNet with
its LoRA merged, the three passes of a guided step follow one another, self-attention keeps its
whole maps where they are compared, and autograd gives the gradient. Attention that is not compared
runs on PyTorch's fused kernel. On a GPU tensors are channels-last, cuDNN's kernels are chosen by
measurement, and `captured` and `compiled` make it faster still.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from benchmarks.torch_networks import (
    Tree,
    channels_last,
    empty_unet,
    guidance_embedding,
    make_text_encoder,
    make_vae,
    unet_state,
)
from ie_jax.diffusion.schedule import BOUNDARIES, GUIDANCE, cumulative_alphas
from ie_jax.methods.guidance import NEGLIGIBLE
from ie_jax.models.architecture import UNetConfig
from ie_jax.models.lora import merge, round_to_fp16
from ie_jax.weights.folder import Pipeline


@dataclass
class Recorder:
    """What one network call leaves behind, where it is asked to."""

    want_maps: bool = False
    maps: list[Tensor] = field(default_factory=list)
    """Self-attention probabilities, (b, heads, tokens, tokens)."""
    features: Tensor | None = None
    """The output of the second ResNet of the second up block."""


class SelfAttention:
    """diffusers' attention processor, which leaves its maps on the recorder."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        b, n, _c = hidden_states.shape
        q, k, v = (
            project(hidden_states).view(b, n, attn.heads, -1).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        if self.recorder.want_maps:
            maps = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).float().softmax(-1)
            self.recorder.maps.append(maps)
            y = maps.to(v.dtype) @ v
        else:
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        result: Tensor = attn.to_out[0](y.transpose(1, 2).reshape(b, n, -1))
        return result


def image_norm(x: Tensor) -> Tensor:
    """Euclidean norm over the whole of each image."""
    return x.float().flatten(1).norm(dim=1)


def image_mean(x: Tensor) -> Tensor:
    """Mean over the whole of each image."""
    return x.flatten(1).mean(1)


@dataclass(frozen=True)
class TorchEdit:
    """The result, as ours has it."""

    pixels: np.ndarray
    """uint8 (b, H, W, 3)."""
    latents: np.ndarray
    """(n, b, h, w, c), after each generation step."""
    inversion: np.ndarray
    """(n + 1, b, h, w, c): the clean latent, and the latent after each inversion step."""


class TorchEditor:
    """The models of a pipeline."""

    def __init__(self, pipeline: Pipeline, device: str = "cpu", dtype: str = "float32") -> None:
        self.device, self.dtype = torch.device(device), getattr(torch, dtype)
        # float32 means float32 here too, not TF32.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        self.recorder = Recorder()
        arch, weights = pipeline.architecture, pipeline.weights
        self.embedding_features = arch.unet.time_cond_proj_dim or 0
        self.forward, self.backward = (
            self.unet(arch.unet, merge(weights.unet, round_to_fp16(lora)))
            for lora in (weights.forward, weights.backward)
        )
        self.vae = self.place(make_vae(arch.vae, weights.vae))
        self.text_encoder = self.place(make_text_encoder(arch.text, weights.text_encoder))
        abar = torch.from_numpy(cumulative_alphas(arch.betas)).to(self.device)
        self.alphas, self.sigmas = abar.sqrt(), (1 - abar).sqrt()

    def place(self, module: Any) -> Any:
        """A frozen network on the device."""
        return channels_last(module.to(self.device, self.dtype).requires_grad_(False).eval())

    def unet(self, config: UNetConfig, tree: Tree) -> Any:
        """A UNet that records: its self-attention on our processor, its features hooked."""
        unet = empty_unet(config)
        unet.load_state_dict(unet_state(unet, tree), assign=True)
        unet = self.place(unet)
        processors = {
            name: SelfAttention(self.recorder) if ".attn1." in name else processor
            for name, processor in unet.attn_processors.items()
        }
        unet.set_attn_processor(processors)

        def keep(_module: Any, _inputs: Any, output: Tensor) -> None:
            self.recorder.features = output

        unet.up_blocks[1].resnets[1].register_forward_hook(keep)
        return unet

    @contextmanager
    def recording(self, want_maps: bool = False) -> Iterator[Recorder]:
        """What the call inside leaves."""
        self.recorder.want_maps = want_maps
        found = Recorder()
        yield found
        found.maps, found.features = self.recorder.maps, self.recorder.features
        self.recorder.maps, self.recorder.features = [], None
        self.recorder.want_maps = False

    def eps(self, unet: Any, z: Tensor, t: int, w: float, context: Tensor) -> Tensor:
        """The predicted noise, float32."""
        b = z.shape[0]
        embedding = guidance_embedding(
            torch.full((b,), w, device=self.device), self.embedding_features
        )
        predicted: Tensor = unet(
            z.to(self.dtype),
            torch.full((b,), t, device=self.device),
            encoder_hidden_states=context,
            timestep_cond=embedding.to(self.dtype),
        ).sample
        return predicted.float()

    def step(self, z: Tensor, eps: Tensor, t: int, s: int) -> Tensor:
        """The consistency step from t to s."""
        clean = (z - self.sigmas[t] * eps) / self.alphas[t]
        return clean if s == 0 else self.alphas[s] * clean + self.sigmas[s] * eps

    def guided_eps(
        self,
        z: Tensor,
        z_inv: Tensor,
        t: int,
        w: float,
        source: Tensor,
        target: Tensor,
        scales: Sequence[float],
        bounds: tuple[float, float],
    ) -> Tensor:
        """eps_trg plus the rescaled gradient of the energies of self-attention and features."""
        with self.recording(want_maps=True) as inv:
            eps_inv = self.eps(self.backward, z_inv, t, 0.0, source)
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            with self.recording(want_maps=True) as src:
                self.eps(self.backward, z, t, 0.0, source)
            with self.recording() as trg:
                eps_trg = self.eps(self.backward, z, t, w, target)
            assert trg.features is not None and inv.features is not None
            differences = [
                image_mean((a - b) ** 2) for a, b in zip(src.maps, inv.maps, strict=True)
            ]
            features = image_mean((trg.features.float() - inv.features.float()) ** 2)
            total = torch.zeros((), device=self.device)
            for scale, energy in zip(scales, (sum(differences), features), strict=True):
                if scale:
                    weighted = scale * energy
                    counts = weighted.abs() > NEGLIGIBLE
                    total = total + torch.where(counts, weighted, 0).sum()
            if not total.requires_grad:
                return eps_trg.detach()
            (gradient,) = torch.autograd.grad(total, z)
        eps_trg = eps_trg.detach()
        size, other = image_norm(gradient), image_norm(eps_trg - eps_inv)
        ratio = torch.where(other == 0, 1.0, size / other)
        factor = torch.where(size == 0, 1.0, ratio.clamp(*bounds) / ratio)
        return eps_trg + factor[:, None, None, None] * gradient

    def place_inputs(
        self, pixels: np.ndarray, source_ids: np.ndarray, target_ids: np.ndarray, noise: np.ndarray
    ) -> tuple[Tensor, ...]:
        """What `edit` takes, on the device. See `__call__`."""
        image, start = (
            torch.from_numpy(np.array(x)).to(self.device).permute(0, 3, 1, 2).float()
            for x in (pixels, noise)
        )
        ids = (
            torch.from_numpy(np.array(x)).long().to(self.device) for x in (source_ids, target_ids)
        )
        return image, *ids, start

    @torch.no_grad()
    def edit(
        self,
        image: Tensor,
        source_ids: Tensor,
        target_ids: Tensor,
        start: Tensor,
        guidance: Sequence[float] = GUIDANCE,
        scales: Sequence[Sequence[float]] | None = None,
        bounds: tuple[float, float] = (0.0, 1.0),
        boundaries: Sequence[int] = BOUNDARIES,
        match: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The edit on tensors: result (b, 3, H, W) uint8, latents and inversion (n, b, c, h, w)."""
        source, target = (self.text_encoder(ids)[0] for ids in (source_ids, target_ids))
        scaling = self.vae.config.scaling_factor
        posterior = self.vae.encode((image / 127.5 - 1).to(self.dtype)).latent_dist
        z = posterior.mode().float() * scaling
        inversion = [z]
        z = self.alphas[0] * z + self.sigmas[0] * start
        rising = [0, *boundaries]
        for t, s in itertools.pairwise(rising):
            z = self.step(z, self.eps(self.forward, z, t, 0.0, source), t, s)
            inversion.append(z)
        falling = rising[::-1]
        latents = []
        for i, (t, s) in enumerate(itertools.pairwise(falling)):
            if scales is None:
                eps = self.eps(self.backward, z, t, guidance[i], target)
            else:
                weights = [row[i] for row in scales]
                eps = self.guided_eps(
                    z, inversion[-1 - i], t, guidance[i], source, target, weights, bounds
                )
            z = self.step(z, eps, t, s)
            latents.append(z)
        decoded = self.vae.decode((z / scaling).to(self.dtype)).sample.float()
        result = ((decoded / 2 + 0.5).clamp(0, 1) * 255).byte()
        if match:
            result = match_statistics(result.float(), image)
        return result, torch.stack(latents), torch.stack(inversion)

    def __call__(
        self,
        pixels: np.ndarray,
        source_ids: np.ndarray,
        target_ids: np.ndarray,
        noise: np.ndarray,
        **settings: Any,
    ) -> TorchEdit:
        """Invert, generate under the target prompts and decode.

        Args:
            pixels: uint8 (b, H, W, 3).
            source_ids, target_ids: (b, tokens).
            noise: (b, h, w, c), at the start of inversion.
            settings: of `edit`. scales: of both energies, self-attention first, at each step; None:
                no guidance by them. bounds: of the ratio of the gradient to the guidance term.
                match: give the result the source's mean and standard deviation.
        """
        inputs = self.place_inputs(pixels, source_ids, target_ids, noise)
        return TorchEdit(*map(nhwc, self.edit(*inputs, **settings)))

    def captured(self, inputs: Sequence[Tensor], **settings: Any) -> Callable[[], Any]:
        """The edit of these inputs as one CUDA graph: launched at once, not kernel by kernel.

        Returns:
            a function that runs it and returns what `edit` does.
        """
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.edit(*inputs, **settings)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = self.edit(*inputs, **settings)

        def run() -> Any:
            graph.replay()
            return results

        return run

    def compile(self) -> None:
        """Let PyTorch's compiler have the networks, for plain edits."""
        for unet in (self.forward, self.backward):
            unet.set_attn_processor(AttnProcessor2_0())
            unet.up_blocks[1].resnets[1]._forward_hooks.clear()
            unet.compile()
        self.vae.encoder.compile()
        self.vae.decoder.compile()


def match_statistics(x: Tensor, source: Tensor) -> Tensor:
    """Each image with its source's mean and standard deviation, uint8."""

    def mean_std(y: Tensor) -> tuple[Tensor, Tensor]:
        return y.mean((1, 2, 3), keepdim=True), y.std((1, 2, 3), correction=0, keepdim=True)

    (own_mean, own_std), (mean, std) = mean_std(x), mean_std(source)
    return ((x - own_mean) / own_std * std + mean).clamp(0, 255).byte()


def nhwc(x: Tensor) -> np.ndarray:
    """Channels last, on the host."""
    moved: np.ndarray = x.movedim(-3, -1).cpu().numpy()
    return moved
