"""The same edit in PyTorch, on diffusers' and transformers' networks: what ours is measured beside.

    editor = TorchEditor(Path("models"), device="cuda", dtype="bfloat16")
    edit = editor(pixels, source_ids, target_ids, noise, scales=scales)

It is the plain way to write it there (method 2 and 4): each model is the distilled UNet with
its LoRA merged, the three passes of a guided step follow one another, self-attention keeps its
whole maps where they are compared, and autograd gives the gradient. Attention that is not compared
runs on PyTorch's fused kernel.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from torch import Tensor

from ie_jax.diffusion.schedule import BOUNDARIES, GUIDANCE, cumulative_alphas
from ie_jax.editing.guidance import NEGLIGIBLE
from ie_jax.models.lora import lora_scale
from ie_jax.weights.formats import read_json, read_tensors
from ie_jax.weights.local import local_files

for library in (diffusers, transformers):
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()

PEFT = "unet.base_model.model."


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


def merged(teacher: Mapping[str, Tensor], lora: Path) -> dict[str, Tensor]:
    """The teacher's weights with a LoRA's change, its factors rounded to float16 as published.

    Tensors that the LoRA leaves alone are the teacher's own.
    """
    factors = {
        name.removeprefix(PEFT): torch.from_numpy(x).half().float()
        for name, x in read_tensors(lora).items()
    }
    state = dict(teacher)
    for name, a in factors.items():
        if ".lora_A." not in name:
            continue
        b = factors[name.replace(".lora_A.", ".lora_B.")].flatten(1)
        target = name.replace(".lora_A.", ".")
        change = (b @ a.flatten(1)).view(state[target].shape)
        state[target] = state[target] + lora_scale(a.shape[0]) * change
    return state


def guidance_embedding(w: Tensor, features: int) -> Tensor:
    """Sines, then cosines of 1000 w at geometrically falling frequencies."""
    half = features // 2
    rate = np.log(10000.0) / (half - 1)
    frequencies = torch.exp(-rate * torch.arange(half, dtype=torch.float32, device=w.device))
    angle = 1000.0 * w[:, None] * frequencies
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


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
    """The models of a folder of upstream files (see `ie_jax.weights.local.local_files`)."""

    def __init__(self, folder: Path, device: str = "cpu", dtype: str = "float32") -> None:
        """Load and merge the weights.

        Raises:
            UserError: a file is missing or damaged.
        """
        files = local_files(folder)
        self.device, self.dtype = torch.device(device), getattr(torch, dtype)
        # float32 means float32 here too, not TF32.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.recorder = Recorder()
        teacher = {name: torch.from_numpy(x) for name, x in read_tensors(files.teacher).items()}
        config = read_json(files.pipeline / "unet/config.json")
        config["time_cond_proj_dim"] = teacher["time_embedding.cond_proj.weight"].shape[1]
        self.embedding_features = config["time_cond_proj_dim"]
        self.forward = self.unet(config, merged(teacher, files.forward))
        self.backward = self.unet(config, merged(teacher, files.backward))
        del teacher
        load = {"local_files_only": True}
        self.vae = self.place(
            diffusers.AutoencoderKL.from_pretrained(files.pipeline / "vae", **load)
        )
        self.text_encoder = self.place(
            transformers.CLIPTextModel.from_pretrained(files.pipeline / "text_encoder", **load)
        )
        abar = torch.from_numpy(cumulative_alphas()).to(self.device)
        self.alphas, self.sigmas = abar.sqrt(), (1 - abar).sqrt()

    def place(self, module: Any) -> Any:
        """A frozen network on the device."""
        return module.to(self.device, self.dtype).requires_grad_(False).eval()

    def unet(self, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Any:
        """A UNet that records: its self-attention on our processor, its features hooked."""
        with torch.device("meta"):
            unet = diffusers.UNet2DConditionModel.from_config(config)
        unet.load_state_dict(state, assign=True)
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
            total = torch.zeros(())
            for scale, energy in zip(scales, (sum(differences), features), strict=True):
                weighted = scale * energy
                counts = weighted.abs() > NEGLIGIBLE
                if counts.any():
                    total = total + weighted[counts].sum()
            if not total.requires_grad:
                return eps_trg.detach()
            (gradient,) = torch.autograd.grad(total, z)
        eps_trg = eps_trg.detach()
        size, other = image_norm(gradient), image_norm(eps_trg - eps_inv)
        ratio = torch.where(other == 0, 1.0, size / other)
        factor = torch.where(size == 0, 1.0, ratio.clamp(*bounds) / ratio)
        return eps_trg + factor[:, None, None, None] * gradient

    @torch.no_grad()
    def __call__(
        self,
        pixels: np.ndarray,
        source_ids: np.ndarray,
        target_ids: np.ndarray,
        noise: np.ndarray,
        guidance: Sequence[float] = GUIDANCE,
        scales: Sequence[Sequence[float]] | None = None,
        bounds: tuple[float, float] = (0.0, 1.0),
        boundaries: Sequence[int] = BOUNDARIES,
        match: bool = True,
    ) -> TorchEdit:
        """Invert, generate under the target prompts and decode.

        Args:
            pixels: uint8 (b, H, W, 3).
            source_ids, target_ids: (b, tokens).
            noise: (b, h, w, c), at the start of inversion.
            scales: of both energies, self-attention first, at each step; None: no guidance by them.
            bounds: of the ratio of the gradient to the guidance term.
            match: give the result the source's mean and standard deviation.
        """
        image = torch.from_numpy(np.array(pixels)).to(self.device).permute(0, 3, 1, 2).float()
        source, target = (
            self.text_encoder(torch.from_numpy(np.asarray(ids)).long().to(self.device))[0]
            for ids in (source_ids, target_ids)
        )
        scaling = self.vae.config.scaling_factor
        posterior = self.vae.encode((image / 127.5 - 1).to(self.dtype)).latent_dist
        z = posterior.mode().float() * scaling
        inversion = [z]
        start = torch.from_numpy(np.array(noise)).to(self.device).permute(0, 3, 1, 2)
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
        return TorchEdit(nhwc(result), nhwc(torch.stack(latents)), nhwc(torch.stack(inversion)))


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
