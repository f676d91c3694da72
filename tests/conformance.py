"""Compares ie_jax, array by array, with recordings of the published implementation.

    python tests/conformance.py DIR [--only A_math 'E*' ...]

DIR holds `checkpoints/` and the records of groups A to F, or the records of the methods that the
paper compares with, or those of the metrics (`docs/conformance.md`). Prints one line per recorded
array, then `N passed, M failed`. Exit status 0: none failed; 1: some did; 2: DIR is not such a
folder.

Records are as torch has them (NCHW), arrays of ie_jax NHWC until they are compared.
"""

import argparse
import functools
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # else tests decide
    # One arithmetic on all processors: what AVX-512 rounds otherwise, long chains make visible.
    os.environ["XLA_FLAGS"] = f"--xla_cpu_max_isa=AVX2 {os.environ.get('XLA_FLAGS', '')}"

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

sys.path.insert(0, str(Path(__file__).parents[1]))  # a checkout need not be installed

from ie_jax.data.images import preprocess
from ie_jax.diffusion.consistency import consistency_step, per_image
from ie_jax.diffusion.schedule import BOUNDARIES, Schedule, dynamic_guidance, make_schedule
from ie_jax.diffusion.trajectory import Trajectory, generate, invert, with_text
from ie_jax.errors import UserError
from ie_jax.methods import inverse_and_edit as program
from ie_jax.methods.guidance import NEGLIGIBLE, StepRecord, Strength, norm, rescale_factor
from ie_jax.methods.guiders import Guider, make_guider, map_difference
from ie_jax.methods.inverse_and_edit import Models
from ie_jax.methods.statistics import match_statistics, mean_std
from ie_jax.models.attention import probabilities
from ie_jax.models.execution import Execution, Precision
from ie_jax.models.lora import merge, round_to_fp16
from ie_jax.models.networks import denoiser, encode_text, vae
from ie_jax.models.pixels import from_uint8, to_uint8
from ie_jax.models.tokenizer import PromptCut, Tokenizer
from ie_jax.models.unet import UNet, guidance_embedding, sinusoidal_embedding
from ie_jax.weights.folder import Weights, convert_files
from ie_jax.weights.layout import find_files
from ie_jax.weights.load import use_compilation_cache
from ie_jax.weights.names import local
from tests import training_records
from tests.baseline_records import CASES as BASELINES
from tests.baseline_records import Baselines, method_of
from tests.comparison import EDIT, LONG, METRICS, Arrays, Report
from tests.metric_records import MetricRecording, compute_metrics
from tests.training_records import TENSORS, Training
from tests.turbo_records import CASES as TURBO_CASES
from tests.turbo_records import Turbo

LOSSES = "F_losses"
"""A file of scalars; those of LPIPS, which take minutes, are a case of their own."""

Ours = dict[str, Any]
"""Our arrays by their names in the records."""


def nhwc(x: np.ndarray) -> Any:
    """Channels last."""
    return np.moveaxis(x, -3, -1)


def nchw(x: Any) -> np.ndarray:
    """Channels before rows and columns."""
    return np.moveaxis(np.asarray(x), -1, -3)


# --- Published configs ---------------------------------------------------------------------------


@functools.cache
def guider(name: str, options: frozenset[tuple[str, Any]] = frozenset()) -> Guider:
    """One object per guider and options, so that each program is compiled once."""
    return make_guider(name, **dict(options))


def guiders_of(config: Mapping[str, Any]) -> dict[Guider, Any]:
    """The guiders of a published config and their strengths."""
    return {
        guider(g["name"], frozenset((g.get("kwargs") or {}).items())): g["g_scale"]
        for g in config["guiders"]
    }


def bounds_of(config: Mapping[str, Any]) -> tuple[float, float]:
    """The bounds of |G| / |eps_trg - eps_inv| of a published config."""
    match config["noise_rescaling_setup"]:
        case {"type": "identity_rescaler"}:
            return 0.0, float("inf")
        case {"type": "range_other_on_cfg_norm", "init_setup": [lower, upper]}:
            return float(lower), float(upper)
        case other:
            raise ValueError(f"unknown rescaler {other}")


class Recording:
    """A folder of records, and the networks of its checkpoints."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError if it is not such a folder."""
        self.folder = folder
        self.cases = sorted(path.stem for path in folder.glob("[ABCDEF]*.npz"))
        if (folder / f"{LOSSES}.json").exists():
            self.cases += [LOSSES, f"{LOSSES}_lpips"]
        if not self.cases:
            raise UserError(f"{folder} holds no records of groups A to F (such as A_math.npz)")
        files = find_files(folder / "checkpoints")
        architecture, weights = convert_files(files)
        self.unrounded: Weights = jax.device_put(weights)  # as training reads them
        weights = self.unrounded
        self.weights: Weights = weights.replace(  # as the published editing code loads them
            forward=round_to_fp16(weights.forward), backward=round_to_fp16(weights.backward)
        )
        self.tokenizer = Tokenizer(files.pipeline / "tokenizer")
        self.models = Models(architecture, execution=Execution().resolve(Precision()), lora="merge")

    def record(self, case: str) -> Arrays:
        """The arrays of a case."""
        if case.startswith(LOSSES):
            scalars = self.json(LOSSES).items()
            of_images = case.endswith("_lpips")
            return {name: np.asarray(x) for name, x in scalars if ("_lpips" in name) == of_images}
        with np.load(self.folder / f"{case}.npz") as arrays:
            return dict(arrays)

    def json(self, name: str) -> Any:
        """A JSON file beside the records."""
        return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))

    def ids(self, prompts: Sequence[str]) -> np.ndarray:
        """Token ids."""
        length = self.models.architecture.text.max_position_embeddings
        with warnings.catch_warnings(action="ignore", category=PromptCut):
            return self.tokenizer(prompts, length)

    def schedule(self, boundaries: Iterable[int], start: int = 0, w: Any = None) -> Schedule:
        """The checkpoints' noise levels with a record's timesteps and guidance (default 0)."""
        boundaries = [int(s) for s in boundaries]
        w = np.zeros(len(boundaries)) if w is None else w
        return make_schedule(boundaries, int(start), w, betas=self.models.architecture.betas)

    def decode(self, z: Any) -> Ours:
        """A latent (1, h, w, c) as image, float and uint8."""
        image = decode(self.models, self.weights, z)
        return {"float": nchw(image), "u8": to_uint8(image)[0]}

    @functools.cached_property
    def inversions(self) -> list[Arrays]:
        """Records of inversion. They hold the image and the noise of the editing cases too."""
        return [self.record(case) for case in self.cases if case.startswith("B_inversion")]

    def given(self, name: str, shape: tuple[int, ...], start: int, record: Arrays) -> Any:
        """The array of that name and shape for an editing case that starts at a timestep: its own,
        or that of an inversion, best one with the same start, or the autoencoder's; else None."""
        inversions = sorted(self.inversions, key=lambda x: x["timesteps"][0] != start)
        vae = [self.record(case) for case in self.cases if case.startswith("A_vae")]
        found = [x[name] for x in (record, *inversions, *vae) if name in x]
        return next((x for x in found if x.shape == shape), None)

    @functools.cached_property
    def training(self) -> Training:
        """What the cases of group F share."""
        return Training(self.models, self.unrounded, self.ids, self.record, self.json)

    @functools.cached_property
    def guiders(self) -> tuple[Guider, ...]:
        """The guiders of all cases. A program is compiled with all that it can run; those that a
        case does not have get strength 0, which the method skips."""
        found = {guider("self_attn_map_l2"): 0}
        for path in sorted(self.folder.glob(f"{EDIT}.json")):
            try:
                found |= guiders_of(self.json(path.stem)["config"])
            except Exception:  # reported where the case itself is run
                continue
        return tuple(found)


# --- Programs that several cases share -----------------------------------------------------------

embed = jax.jit(encode_text, static_argnums=0)
edit_images = jax.jit(program.edit_images, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def decode(models: Models, weights: Weights, z: Any) -> Any:
    """Latents to images in [-1, 1], not clamped."""
    return vae(models).apply({"params": weights.vae}, z, method="decode")


@functools.partial(jax.jit, static_argnums=0)
def encode(models: Models, weights: Weights, pixels: Any) -> Ours:
    """Pixels to the posterior, before and after clamping, and to the latent."""
    (mean, std), seen = vae(models).apply(
        {"params": weights.vae},
        from_uint8(pixels),
        method="moments",
        capture_intermediates=True,
        mutable=["intermediates"],
    )
    (moments,) = seen["intermediates"]["quant_conv"]["__call__"]
    latent = program.encode_image(models, weights, pixels)
    return {"moments": moments, "mean": mean, "std": std, "latent": latent}


@functools.partial(jax.jit, static_argnums=0)
def observe(models: Models, base: Any, z: Any, t: Any, w: Any, context: Any) -> Any:
    """eps, and the outputs of every submodule of the UNet."""
    unet = UNet(models.architecture.unet, models.precision, models.execution)
    (eps, _), seen = unet.apply(
        {"params": base}, z, t, w, context, capture_intermediates=True, mutable=["intermediates"]
    )
    return eps, seen["intermediates"]


@functools.partial(jax.jit, static_argnums=0)
def run_inversion(
    models: Models, weights: Weights, pixels: Any, context: Any, noise: Any, schedule: Schedule
) -> tuple[Any, Trajectory]:
    """The clean latent, and the steps of inversion with their eps."""
    z = program.encode_image(models, weights, pixels)
    eps = with_text(denoiser(models, weights.unet, weights.forward), context)
    return z, invert(eps, z, noise, schedule, models.execution.unroll)


@functools.partial(jax.jit, static_argnums=0)
def run_generation(
    models: Models, weights: Weights, start: Any, context: Any, schedule: Schedule
) -> Trajectory:
    """The steps of generation without guiders."""
    eps = with_text(denoiser(models, weights.unet, weights.backward), context)
    return generate(eps, start, schedule, models.execution.unroll)


@functools.partial(jax.jit, static_argnums=0)
def replay(
    models: Models, weights: Weights, z: Any, z_inv: Any, schedule: Schedule, src: Any, trg: Any
) -> Ours:
    """What the n steps of an edit compute on the way, all steps as one batch.

    Args:
        z: latents entering the steps (n, h, w, c).
        z_inv: the inversion's latents at the same timesteps.
        src, trg: embeddings of the source and the target prompt (1, tokens, width).

    Returns:
        (eps, out) of each pass; `gradients` of the unweighted energies (guiders, n, h, w, c);
        `attn_per_map` (n, maps).
    """
    network = denoiser(models, weights.unet, weights.backward, ("features", "queries_keys"))
    n, t, w = len(z), schedule.backward_t, schedule.guidance
    src, trg = (jnp.repeat(context, n, axis=0) for context in (src, trg))
    inv = network(z_inv, t, 0 * w, src)

    def passes(z: Any) -> Any:
        pairs = ((z, z), (t, t), (w, 0 * w), (trg, src))
        both = network(*(jnp.concatenate(pair) for pair in pairs))
        of_trg, of_src = (jax.tree.map(lambda x, h=h: x[h * n :][:n], both) for h in (0, 1))
        energies = [guider.energy(of_src[1], inv[1], of_trg[1]) for guider in models.guiders]
        return jnp.stack(energies), {"trg": of_trg, "src": of_src}

    energies, pull_back, seen = jax.vjp(passes, z, has_aux=True)
    one_at_a_time = jnp.eye(len(energies))[:, :, None] * jnp.ones((1, 1, n))
    gradients = lax.map(lambda chosen: pull_back(chosen)[0], one_at_a_time)
    layers = zip(seen["src"][1]["queries_keys"], inv[1]["queries_keys"], strict=True)
    per_map = jnp.stack([map_difference(*one, *other) for one, other in layers], axis=1)
    return seen | {"inv": inv, "gradients": gradients, "attn_per_map": per_map}


# --- Cases: (recording, name, record) -> our arrays ----------------------------------------------


def load_case(recording: Recording, case: str, record: Arrays) -> Ours:
    """The preparation of pictures to 512 x 512."""
    ours: Ours = {}
    for name in [array.removesuffix("_in_u8") for array in record if array.endswith("_in_u8")]:
        out = preprocess(record[f"{name}_in_u8"], 512)
        ours[f"{name}_out_u8_every8"] = out[::8, ::8]
        ours[f"{name}_out_sum"] = [out.sum(dtype=np.int64)]
        ours[f"{name}_out_rows_u8"] = out[[0, 1, 100, 255, 256, 510, 511]]
    return ours


def as_written(x: np.ndarray) -> np.ndarray:
    """float32 as the decimals that were written: 0.8, not 0.800000011920929."""
    return np.array([float(str(value)) for value in x.ravel()]).reshape(x.shape)


def math_case(recording: Recording, case: str, record: Arrays) -> Ours:
    """Schedules, the consistency step, the embedding of w, the statistics match."""
    abar = recording.schedule(BOUNDARIES).abar
    features = recording.models.architecture.unet.time_cond_proj_dim or 0

    def step(name: str, t: Any, s: Any) -> np.ndarray:
        both = (nhwc(record[f"{name}_{x}"]) for x in ("sample", "eps"))
        z, eps = (np.broadcast_to(x, (len(t), *x.shape[1:])) for x in both)
        return nchw(consistency_step(abar, *map(jnp.asarray, (z, eps, t, s))))

    def match(pixels: str, row: int) -> Any:
        mean, std = record["ms_target"][row, :, None]
        return match_statistics(jnp.asarray(record[pixels][None]), mean, std)[0]

    matched = {name: re.fullmatch(r"ms_out(\d+)_u8", name) for name in record}
    return {
        "alphas_cumprod": abar,
        "guidance_scale_embedding": guidance_embedding(jnp.asarray(record["w"]), features),
        "linear_schedule_old": dynamic_guidance(*as_written(record["linear_schedule_old_args"]).T),
        "po_out": step("po", *record["po_pairs"].T),
        "pob_out": step("pob", record["pob_t"], record["pob_s"]),
        "ms_flat_out_u8": match("ms_flat_in_u8", -1),
        **{name: match("ms_in_u8", int(m[1])) for name, m in matched.items() if m},
    }


def text_case(recording: Recording, case: str, record: Arrays) -> Ours:
    """Prompts to token ids, and those to embeddings where the record has them."""
    ids = recording.ids(recording.json("A_prompts" if case == "A_text" else case))
    ours: Ours = {"input_ids": ids}
    if "last_hidden_state" in record:
        ours["last_hidden_state"] = embed(recording.models, recording.weights.text_encoder, ids)
    return ours


def unet_case(recording: Recording, case: str, record: Arrays) -> Ours:
    """The three UNets over a grid of t and w and on a batch, and the submodules of one call.

    All calls make one batch, so that there is one program.
    """
    t, w, z, context = record["timesteps"], record["w"], nhwc(record["sample"]), record["context"]
    batch_z = nhwc(record.get("batch_sample", record["sample"][:0]))
    batch_t, batch_w, batch_context = (
        record.get(f"batch_{name}", record[name][:0]) for name in ("timesteps", "w", "context")
    )
    b, calls = len(z), len(t) * len(w) + 1
    observed_t, observed_w = observed_call(record)
    batch: Any = (
        np.concatenate([np.tile(z, (calls, 1, 1, 1)), batch_z]),
        np.concatenate([t.repeat(len(w) * b), [observed_t] * b, batch_t]),
        np.concatenate([np.tile(w.repeat(b), len(t)), [observed_w] * b, batch_w]),
        np.concatenate([np.tile(context, (calls, 1, 1)), batch_context]),
    )
    rows = slice((calls - 1) * b, calls * b)  # of the observed call
    ours: Ours = {}
    base = recording.weights.unet
    loras = {"forward": recording.weights.forward, "reverse": recording.weights.backward}
    for name in ("distill", *loras):
        params = jax.jit(merge)(base, loras[name]) if name in loras else base
        eps, seen = observe(recording.models, params, *batch)
        eps = nchw(eps)
        ours[f"eps_{name}"] = eps[: rows.start].reshape(len(t), len(w), b, *eps.shape[1:])
        ours[f"batch_eps_{name}"] = eps[rows.stop :]
        if name == "distill":
            ours["inter_eps"] = eps[rows]
            for array in record:
                if array.startswith("inter.") and array != "inter.time_proj":
                    ours[array] = submodule(seen, array.removeprefix("inter."), rows)
    config = recording.models.architecture.unet
    ours["inter.time_proj"] = sinusoidal_embedding(
        batch[1][rows], config.block_out_channels[0], config.flip_sin_to_cos, config.freq_shift
    )
    return ours


def observed_call(record: Arrays) -> tuple[int, float]:
    """(t, w) of the call whose submodules are recorded: where the grid has the same eps."""
    if "eps_distill" in record and "inter_eps" in record:
        same = (record["eps_distill"] == record["inter_eps"]).all(axis=(2, 3, 4, 5))
        for i, j in np.argwhere(same)[:1]:
            return int(record["timesteps"][i]), float(record["w"][j])
    return 519, 7.0  # as documented


def submodule(seen: Any, name: str, rows: slice) -> np.ndarray:
    """The (first) output of the submodule of an upstream name, in the upstream layout."""
    for part in local(name).split("/"):
        if part not in seen:  # the records leave out the name of the only transformer block
            seen = seen["transformer_blocks_0"]
        seen = seen[part]
    (output,) = seen["__call__"]
    output = np.asarray(output[0] if isinstance(output, tuple) else output)[rows]
    return nchw(output) if output.ndim == 4 else output


def vae_case(recording: Recording, case: str, record: Arrays) -> Ours:
    """The autoencoder both ways."""
    encoded = encode(recording.models, recording.weights, record["image_u8"][None])
    latents = {"decode": nhwc(record["decode_in"]), "decode_of_latent": encoded["latent"]}
    ours = {name: nchw(x) for name, x in encoded.items()}
    for name, z in latents.items():
        ours |= {f"{name}_{kind}": image for kind, image in recording.decode(z).items()}
    return ours


def inversion_case(recording: Recording, case: str, record: Arrays) -> Ours:
    """Inversion of an image with the recorded noise."""
    models, weights = recording.models, recording.weights
    schedule = recording.schedule(record["boundary_timesteps"], record["timesteps"][0])
    pixels, noise = record["image_u8"][None], nhwc(record["noise"])
    clean, path = run_inversion(models, weights, pixels, record["context"], noise, schedule)
    return {
        "uncond_context": embed(models, weights.text_encoder, recording.ids([""])),
        "start_latent": nchw(clean),
        "noised_latent": nchw(path.start),
        "latents": nchw(path.latents[:, 0]),
        "eps": nchw(path.eps[:, 0]),
        "image_rec_u8": recording.decode(path.start)["u8"],
        **timesteps_of(schedule),
    }


def timesteps_of(schedule: Schedule) -> Ours:
    """The timesteps of a schedule."""
    return {
        "timesteps": schedule.forward_t,
        "boundary_timesteps": schedule.forward_s,
        "reverse_timesteps": schedule.backward_t,
        "reverse_boundary_timesteps": schedule.backward_s,
    }


def generation_case(recording: Recording, case: str, record: Arrays) -> Ours:
    """Generation from a recorded latent, on the boundaries of the inversion that ended there."""
    start, steps = record["start"], len(record["latents"])
    ended = [x for x in recording.inversions if len(x["latents"]) == steps]
    ended.sort(key=lambda x: float(np.linalg.norm(x["latents"][-1] - start)))
    boundaries = ended[0]["boundary_timesteps"] if ended else BOUNDARIES
    named = re.search(r"_w(\d+(\.\d+)?)", case)
    w = record.get("w_per_step", np.full(steps, float(named[1]) if named else 0.0))
    schedule = recording.schedule(boundaries, w=w)
    path = run_generation(
        recording.models, recording.weights, nhwc(start), record["context"], schedule
    )
    return {"latents": nchw(path.latents[:, 0]), **timesteps_of(schedule)}


def edit_case(recording: Recording, case: str, record: Arrays) -> Ours:
    """An edit from the image on by the editing program, and a replay of its steps at the latents
    that it went through."""
    models, weights, spec = recording.models, recording.weights, recording.json(case)
    config, prompts = spec["config"], ("", spec["src_prompt"], spec["trg_prompt"])
    strengths, (lower, upper) = guiders_of(config), bounds_of(config)
    start = int(record["t_per_call"][0])
    schedule = recording.schedule(record["reverse_timesteps"][::-1], start, config["cfg_schedule"])
    pixels = recording.given("image_u8", record["final_image_u8"].shape, start, record)
    shape = (1, *record["latent_in"].shape[1:])
    noise = recording.given("noise", shape, start, record)
    noise = published_noise(shape) if noise is None else noise

    # Without a guider that reads the source pass the program is another one: it leaves that out.
    reads_source = any(guider.reads_source for guider in strengths)
    guiders = tuple(g for g in recording.guiders if strengths and g.reads_source <= reads_source)
    scales = [np.broadcast_to(strengths.get(g, 0.0), schedule.steps) for g in guiders]
    strength = Strength(jnp.float32(scales), jnp.float32(lower), jnp.float32(upper))
    ids = recording.ids(prompts)
    inversion, edit = edit_images(
        replace(models, guiders=guiders),
        weights,
        pixels[None],
        ids[1:2],
        ids[2:][None],
        nhwc(noise),
        schedule,
        strength,
        jnp.float32(1.0),
    )
    path, paired = edit.latents[:, 0, 0], inversion.latents[:0:-1, 0]
    entering = jnp.concatenate([paired[:1], path[:-1]])
    contexts = embed(models, weights.text_encoder, ids)
    replayed = replace(models, guiders=recording.guiders)
    seen = replay(replayed, weights, entering, paired, schedule, contexts[1:2], contexts[2:])
    eps = {name: seen[name][0] for name in ("trg", "src", "inv")}
    steps = no_guidance(norm(eps["trg"] - eps["inv"]))
    if edit.record is not None:
        steps = jax.tree.map(lambda x: x[..., 0, 0], edit.record)
    guided, total = guidance_of(config, recording, guiders, strength, steps, seen)
    return guided | {
        **calls_of(schedule, same_prompt=prompts[1] == prompts[2]),
        **timesteps_of(schedule),
        **attention_of(record, seen),
        **{f"eps_{name}": nchw(x) for name, x in eps.items()},
        **{f"decoded_{kind}": image for kind, image in recording.decode(path[-1:]).items()},
        "cfg_schedule": schedule.guidance,
        "context_uncond_src_trg": contexts,
        "target_mean_std": jnp.concatenate(mean_std(pixels[None])),
        "inv_latents": nchw(inversion.latents[:, 0]),
        "inv_latent": nchw(paired),
        "latent_in": nchw(entering),
        "has_other": steps.active,
        "cfg_norm": steps.difference_norm,
        "grad_total": nchw(total),
        "grad_norm": steps.gradient_norm,
        "ratio": steps.ratio,
        "ratio_clipped": jnp.clip(steps.ratio, lower, upper),
        "scale": steps.scale,
        "eps_final": nchw(eps["trg"] + per_image(steps.scale) * total),
        "latent_out": nchw(path),
        "final_image_u8": edit.pixels[0, 0],
    }


def published_noise(shape: tuple[int, ...]) -> np.ndarray:
    """The inversion's noise where no record holds it: the published seed, on the CPU."""
    import torch

    drawn: np.ndarray = torch.randn(shape, generator=torch.Generator().manual_seed(10500)).numpy()
    return drawn


def no_guidance(difference_norm: Any) -> StepRecord:
    """What guidance does in steps without guiders: nothing."""
    none = jnp.zeros_like(difference_norm)
    ratio, scale = rescale_factor(none, difference_norm, none, none + jnp.inf)
    return StepRecord(none[:, None][:, :0], none > 0, none, difference_norm, ratio, scale)


def guidance_of(
    config: Mapping[str, Any],
    recording: Recording,
    guiders: Sequence[Guider],
    strength: Strength,
    steps: StepRecord,
    seen: Ours,
) -> tuple[Ours, Any]:
    """Energies, gradients and features of a case's guiders, and the weighted gradient."""
    gradients = dict(zip(recording.guiders, seen["gradients"], strict=True))
    total = jnp.zeros_like(seen["trg"][0])
    for i, g in enumerate(guiders):
        scale = strength.scales[i]
        counts = jnp.abs(scale * steps.energies[:, i]) > NEGLIGIBLE
        total += per_image(jnp.where(counts, scale, 0.0)) * gradients[g]
    ours: Ours = {}
    for entry, g in zip(config["guiders"], guiders_of(config), strict=True):
        ours[f"energy_{entry['name']}"] = steps.energies[:, guiders.index(g)]
        ours[f"grad_{entry['name']}"] = nchw(gradients[g])
        if entry["name"] == "features_map_l2":
            block = (entry.get("kwargs") or {}).get("block", "up")
            ours["features_cur_trg"] = nchw(seen["trg"][1]["features"][block])
            ours["features_inv_inv"] = nchw(seen["inv"][1]["features"][block])
    return ours, total


def calls_of(schedule: Schedule, same_prompt: bool) -> Ours:
    """t, w and prompt (1: source, 2: target) of the network calls that the method makes: those of
    inversion, then inv, src and trg of each step."""
    n, w = schedule.steps, schedule.guidance
    return {
        "t_per_call": np.concatenate([schedule.forward_t, np.repeat(schedule.backward_t, 3)]),
        "w_per_call": np.concatenate([0 * w, np.stack([0 * w, 0 * w, w], axis=1).ravel()]),
        "context_per_call": [1] * n + [1, 1, 1 if same_prompt else 2] * n,
    }


def attention_of(record: Arrays, seen: Ours) -> Ours:
    """Self-attention of the source pass (in the records: cur_inv) and the inversion pass."""
    layers = {"cur": seen["src"][1]["queries_keys"], "inv": seen["inv"][1]["queries_keys"]}
    ours: Ours = {
        "attn_per_map": seen["attn_per_map"],
        "attn_shapes": [(q.shape[2], q.shape[1], k.shape[1]) for q, k in layers["inv"]],
    }
    for name in record:
        if match := re.fullmatch(r"map_step(\d+)_(cur|inv)_inv_(\d+)", name):
            step, (q, k) = int(match[1]), layers[match[2]][int(match[3])]
            ours[name] = probabilities(q[step : step + 1], k[step : step + 1])[0]
    return ours


def of_training(compute: training_records.Case) -> Callable[[Recording, str, Arrays], Ours]:
    """A case of group F."""
    return lambda recording, case, record: compute(recording.training, case, record)


# --- The command ---------------------------------------------------------------------------------

CASES: dict[str, Callable[[Recording, str, Arrays], Ours]] = {
    "A_load*": load_case,
    "A_math*": math_case,
    "A_text*": text_case,
    "A_tokenizer*": text_case,
    "A_unet*": unet_case,
    "A_vae*": vae_case,
    "B_inversion*": inversion_case,
    "B_generation*": generation_case,
    EDIT: edit_case,
    **{cases: of_training(compute) for cases, compute in training_records.CASES.items()},
}


def check(recording: Recording, case: str, report: Report) -> None:
    """Run one case and report every array of its record, whatever happens."""
    record: Arrays = {}
    try:
        record = recording.record(case)
        compute = next((f for cases, f in CASES.items() if fnmatch(case, cases)), None)
        ours = compute(recording, case, record) if compute else {}
        ours = {name: np.asarray(x) for name, x in ours.items() if name in record}
    except Exception as error:  # whatever it is, the other cases are still of interest
        report.crashed(case, error, record)
    else:
        compare = report.compare_tensors if fnmatch(case, TENSORS) else report.compare
        compare(case, ours, record)


class BaselineRecording:
    """A folder of records of the methods that the paper compares with."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cases = folder, baseline_cases(folder)

    @functools.cached_property
    def base(self) -> Baselines:
        """The networks of SD1.5."""
        return Baselines(self.folder)

    @functools.cached_property
    def turbo(self) -> Turbo:
        """Those of SDXL-Turbo."""
        return Turbo(self.folder)

    def record(self, case: str) -> Arrays:
        """The arrays of a case."""
        with np.load(self.folder / f"{case}.npz") as arrays:
            return dict(arrays)

    def facts(self, case: str) -> Any:
        """Its prompts and settings."""
        return json.loads((self.folder / f"{case}.json").read_text(encoding="utf-8"))


def baseline_cases(folder: Path) -> list[str]:
    """The cases of a folder whose JSON names a method."""
    return sorted(path.stem for path in folder.glob("*.npz") if method_of(folder, path.stem))


def check_baseline(recording: BaselineRecording, case: str, report: Report) -> None:
    """`check`, of such a record."""
    method, facts = method_of(recording.folder, case), recording.facts(case)
    record: Arrays = {}
    label = f"{LONG if facts.get('steps', 0) >= 50 else ''}{method}: {case}"
    try:
        record = recording.record(case)
        if method in TURBO_CASES:
            ours = TURBO_CASES[method](recording.turbo, facts, record)
        else:
            ours = BASELINES[method](recording.base, facts, record)
        ours = {name: np.asarray(x) for name, x in ours.items() if name in record}
    except Exception as error:  # whatever it is, the other cases are still of interest
        report.crashed(label, error, record)
    else:
        report.compare(label, ours, record)


def check_metric(recording: MetricRecording, case: str, report: Report) -> None:
    """`check`, of recorded metrics."""
    record: Arrays = {}
    try:
        record = recording.record(case)
        ours = compute_metrics(recording, case, record)
        ours = {name: np.asarray(x) for name, x in ours.items() if name in record}
    except Exception as error:  # whatever it is, the other cases are still of interest
        report.crashed(METRICS + case, error, record)
    else:
        report.compare(METRICS + case, ours, record)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description="Compare ie_jax with a folder of recordings.")
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="CASE", help="names, patterns")
    options = parser.parse_args(arguments)
    use_compilation_cache()
    run: Any = check
    try:
        recording: Any
        if baseline_cases(options.folder):
            recording, run = BaselineRecording(options.folder), check_baseline
        elif (options.folder / "recorded").is_dir():
            recording, run = MetricRecording(options.folder), check_metric
        else:
            recording = Recording(options.folder)
        cases = [c for c in recording.cases if any(fnmatch(c, only) for only in options.only)]
        if not cases:
            raise UserError(f"{options.folder} holds no case named {' or '.join(options.only)}")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    report = Report()
    for case in cases:
        run(recording, case, report)
    print(report.summary())
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
