"""Recordings of SDXL's networks and of methods on SDXL-Turbo: what ours computes for each array.

As in `baseline_records`, a case is told by its JSON.
"""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ie_jax.diffusion import euler
from ie_jax.diffusion.schedule import cumulative_alphas
from ie_jax.methods import gnri, renoise, turbo, turboedit
from ie_jax.models.execution import Execution, Precision
from ie_jax.models.networks import (
    Networks,
    Tokens,
    apply_text_encoder,
    encode_two,
    one_denoiser,
)
from ie_jax.models.tokenizer import PromptCut, Tokenizer
from ie_jax.models.unet import Conditions, UNet
from ie_jax.weights.folder import read_base
from ie_jax.weights.names import local
from tests.baseline_records import Arrays, Ours, decode_float, moments, nchw, nhwc


class Turbo:
    """The networks that such recordings were made with, and what the methods start from."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError if the checkpoints in the folder are missing or damaged."""
        base = read_base(folder / "checkpoints" / "sdxl-turbo")
        execution = Execution().resolve(Precision())
        self.networks = Networks(base.architecture, execution=execution)
        self.unet, self.vae, self.texts = jax.device_put((base.unet, base.vae, base.texts))
        self.tokenizers = [Tokenizer(path) for path in base.tokenizers]
        self.zero_negative = base.zero_negative
        self.abar = jnp.asarray(cumulative_alphas(base.architecture.betas))

    def ids(self, prompts: Sequence[str]) -> tuple[np.ndarray, ...]:
        """Token ids of either tokenizer."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PromptCut)
            return tuple(tokenizer(prompts) for tokenizer in self.tokenizers)

    def conditions(self, prompts: Sequence[str], sizes: Any) -> Conditions:
        """Prompts, of images of these sizes, (b, 6)."""
        first, second = self.ids(prompts)
        tokens = Tokens(first, second, sizes)  # type: ignore[arg-type]
        found: Conditions = encode(self.networks, self.texts, tokens)
        return found

    def prompt(self, prompt: str, pixels: int) -> Conditions:
        """One prompt, of a whole image of so many pixels a side."""
        whole = jnp.array([[pixels, pixels, 0, 0, pixels, pixels]], jnp.float32)
        return self.conditions([prompt], whole)

    def latent(self, record: Arrays) -> jax.Array:
        """Of the source, scaled: a sample of the posterior where noise for it is recorded, else its
        mean."""
        mean, std = moments(self.networks, self.vae, record["source_u8"][None])
        noise = record.get("vae_sample_noise")
        z = mean if noise is None else mean + std * nhwc(noise)
        return z * self.networks.architecture.vae.scaling_factor

    def image(self, z: Any) -> np.ndarray:
        """A latent as pixels, rounded."""
        x = np.asarray(decode_float(self.networks, self.vae, z)[0])
        return np.round(np.clip(x / 2 + 0.5, 0, 1) * 255).astype(np.uint8)


encode: Any = jax.jit(encode_two, static_argnums=0)


def told(conditions: Conditions) -> Ours:
    """What the UNet was told."""
    return {
        "context": conditions.text,
        "pooled": conditions.pooled,
        "time_ids": conditions.sizes,
    }


# --- The networks ---


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_text_encoder(config: Any, precision: Precision, *arguments: Any) -> Any:
    """What a text encoder gives."""
    return apply_text_encoder(config, precision, *arguments)


@functools.partial(jax.jit, static_argnums=0)
def run_unet(networks: Networks, unet: Any, z: Any, t: Any, conditions: Conditions) -> Any:
    """The prediction, and what every module gives."""
    module = UNet(networks.architecture.unet, networks.precision, networks.execution)
    inputs = (z, t, None, conditions)
    kept: Any = {"capture_intermediates": True, "mutable": "intermediates"}
    return module.apply({"params": unet}, *inputs, **kept)


INTERMEDIATE_T = 499
"""The call of which the modules' outputs are recorded."""


def components_case(base: Turbo, facts: Mapping[str, Any], record: Arrays) -> Ours:
    """Tokenizers, text encoders, UNet and autoencoder."""
    prompts, arch = facts["prompts"], base.networks.architecture
    ids = base.ids(prompts)
    sizes = jnp.zeros((len(prompts), 6))
    one, two = (
        run_text_encoder(config, base.networks.precision, *given)
        for config, *given in zip((arch.text, arch.text_2), base.texts, ids, strict=True)
    )
    both, empty = base.conditions(prompts, sizes), base.conditions([""], sizes[:1])
    without = jax.tree.map(jnp.zeros_like, empty) if base.zero_negative else empty
    called = base.conditions(facts["unet_call_prompts"], jnp.asarray(record["unet_time_ids"]))
    z = nhwc(record["unet_sample"])
    calls = [
        run_unet(base.networks, base.unet, z, jnp.full(len(z), t), called) for t in record["unet_t"]
    ]
    mean, std = moments(base.networks, base.vae, record["image_u8"][None])
    scaled = mean * arch.vae.scaling_factor
    ours = {
        "ids_1": ids[0],
        "ids_2": ids[1],
        "penultimate_1": one.penultimate,
        "last_hidden_1": one.last,
        "penultimate_2": two.penultimate,
        "pooled_2": two.pooled,
        "prompt_embeds": both.text,
        "pooled": both.pooled,
        "negative_embeds_without_negative_prompt": without.text,
        "negative_pooled_without_negative_prompt": without.pooled,
        "negative_embeds_empty_negative_prompt": empty.text,
        "negative_pooled_empty_negative_prompt": empty.pooled,
        "unet_prompt_index": [prompts.index(x) for x in facts["unet_call_prompts"]],
        "unet_eps": np.stack([nchw(eps) for (eps, _), _ in calls]),
        "vae_mean": nchw(mean),
        "vae_logvar": nchw(2 * jnp.log(std)),
        "vae_decoded": nchw(decode_float(base.networks, base.vae, scaled)),
        "latent_scaled_mean": nchw(scaled),
    }
    _, kept = calls[list(record["unet_t"]).index(INTERMEDIATE_T)]
    for name in record:
        if name.startswith("inter."):
            found = kept["intermediates"]
            for part in local(name.removeprefix("inter.")).split("/"):
                found = found[part]
            (output,) = found["__call__"]
            output = output[0] if isinstance(output, tuple) else output
            ours[name] = nchw(output) if output.ndim == 4 else output
    return ours


# --- TurboEdit ---


@functools.partial(jax.jit, static_argnums=0)
def run_turboedit(networks: Networks, unet: Any, *arguments: Any) -> Any:
    """TurboEdit."""
    method: Any = turboedit.turboedit
    return method(one_denoiser(networks, unet), *arguments)


def plan_of(facts: Mapping[str, Any]) -> turboedit.Plan:
    """A case's steps: given, or from the grid."""
    config = facts["run_config"]
    t = config["timesteps"]
    if t is None:
        t = euler.trailing(config["num_steps_inversion"])[config["step_start"] :]
    noised = config["noise_timesteps"]
    if noised is None:
        stride = t[0] - t[1]
        noised = [x - int(config["noise_shift_delta"] * stride) for x in t]
    limits = jnp.array(config["max_norm_zs"], jnp.float32)
    return turboedit.Plan(jnp.asarray(t), jnp.asarray(noised), limits)


def turboedit_case(base: Turbo, facts: Mapping[str, Any], record: Arrays) -> Ours:
    """TurboEdit."""
    plan, z = plan_of(facts), base.latent(record)
    drawn = iter(nhwc(record["noise"]))
    noise = jnp.stack([next(drawn) if t > 0 else jnp.zeros(z.shape[1:]) for t in plan.noised])
    prompts = [base.prompt(facts[f"{x}_prompt"], facts["image_size"]) for x in ("src", "tgt")]
    w = jnp.full(1, facts["w"], jnp.float32)
    seen = run_turboedit(base.networks, base.unet, z, noise[:, None], *prompts, base.abar, plan, w)
    rows = [prompts[i] for i in (0, 0, 1)]
    sources = turboedit.noised_sources(base.abar, z, noise[:, None], plan)
    return told(jax.tree.map(lambda *x: jnp.concatenate(x), *rows)) | {
        "t": plan.t,
        "latent_in": nchw(seen.taken[:, :, 0]),
        "eps": nchw(seen.eps[:, :, 0]),
        "z": nchw(seen.missed[:, 0]),
        "z_norm": seen.norm[:, 0],
        "z_coeff": seen.kept[:, 0],
        "mu_src": nchw(seen.means[:, 0, 0]),
        "mu_edit_chain": nchw(seen.means[:, 1:, 0]),
        "x_ts": nchw(sources[:, 0]),
        "decode_in": nchw(seen.latents[-1, :, 0]),
        "clean_latent": nchw(z),
        "edited_u8": base.image(seen.latents[-1, 2]),
    }


# --- Generation, of the others ---


@functools.partial(jax.jit, static_argnums=0)
def run_generation(networks: Networks, unet: Any, *arguments: Any) -> Any:
    """Generation from an inverted latent."""
    generate: Any = turbo.generate
    return generate(one_denoiser(networks, unet), *arguments)


def generated(
    base: Turbo,
    facts: Mapping[str, Any],
    start: np.ndarray,
    noise: np.ndarray,
    negative: str,
    steps: euler.Steps,
) -> Ours:
    """Its arrays, from a recorded latent with recorded noise."""
    guided = facts["edit_cfg"] > 1
    size = facts["image_size"]
    back = run_generation(
        base.networks,
        base.unet,
        nhwc(start),
        nhwc(noise)[len(noise) - len(steps.t) :, None],
        base.prompt(negative, size) if guided else None,
        base.prompt(facts["tgt_prompt"], size),
        jnp.full(1, facts["edit_cfg"], jnp.float32),
        steps,
    )
    taken = jnp.concatenate([nhwc(start)[None], back.latents[:-1]])
    inputs = jax.vmap(euler.scaled)(taken, steps.high)
    return {
        "inf_t": steps.t,
        "inf_unet_in": nchw(jnp.repeat(inputs, 2, axis=1) if guided else inputs[:, 0]),
        "inf_eps": nchw(back.eps[:, :, 0] if guided else back.eps[:, 0]),
        "inf_latent_out": nchw(back.latents[:, 0]),
        "decode_in": nchw(back.latents[-1]),
        "edited_u8": base.image(back.latents[-1]),
    }


# --- ReNoise ---


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_renoise_step(networks: Networks, zone: Any, unet: Any, *arguments: Any) -> Any:
    """One inversion step of ReNoise."""
    *before, rolls, weights = arguments
    method: Any = renoise.renoise_steps
    return method(one_denoiser(networks, unet), *before, zone, rolls, weights, renoise.TURBO)


@functools.partial(jax.jit, static_argnums=0)
def run_correction(networks: Networks, unet: Any, above: Any, below: Any, *arguments: Any) -> Any:
    """A step's noise corrected, and generation's step by it."""
    corrected: Any = renoise.corrected
    found = corrected(one_denoiser(networks, unet), above, below, *arguments)
    step = arguments[-1]
    return found, euler.down(above, found.eps, found.noise, step.high, step.low)


def turbo_zones(config: Mapping[str, Any]) -> tuple[renoise.Zone, renoise.Zone]:
    """A case's zones."""
    averages = [config["average_first_step_range"], config["average_step_range"]]
    if not config["average_latent_estimations"]:
        averages = [(1, 1), (1, 1)]
    first, rest = (tuple(x) for x in averages)
    most = config["max_num_renoise_steps_first_step"]
    return renoise.zones(config["num_renoise_steps"], most, first, rest)


def renoise_turbo_case(base: Turbo, facts: Mapping[str, Any], record: Arrays) -> Ours:
    """ReNoise on SDXL-Turbo. As on SD1.5, each inversion step, and the generation, starts from the
    recorded latent."""
    config = facts["config"]
    n, below = config["num_inversion_steps"], config["inversion_max_step"]
    z, noise = base.latent(record), nhwc(record["noise_list_initial"])
    source = base.prompt(facts["src_prompt"], facts["image_size"])
    aim = nhwc(record["z0_noise"])
    up = renoise.turbo_inversion_steps(base.abar, noise[:, None], aim, n, below)
    low = renoise.low_turbo_steps(n, len(base.abar), below)
    zones, corrects = turbo_zones(config), int(config["perform_noise_correction"])
    weights = renoise.Weights(
        jnp.float32(config["noise_regularization_lambda_ac"]),
        jnp.float32(config["noise_regularization_lambda_kl"]),
    )
    shape = (
        config["noise_regularization_num_reg_steps"],
        config["noise_regularization_num_ac_rolls"],
        z.shape[-1],
        renoise.levels(z.shape[1]),
    )
    rolls = iter(np.asarray(record["reg_rolls"], np.int32).reshape(-1, *shape))
    starts = nhwc(record["all_latents"])[:, None]
    calls: dict[str, list[Any]] = {x: [] for x in ("t", "batch", "z", "eps", "reg_after")}
    each: list[Any] = []
    for i in range(len(up.t)):
        zone = zones[i >= low]
        q = renoise.regularisations(zone)
        step = jax.tree.map(lambda x, i=i: x[i : i + 1], up)
        shifts = jnp.array([next(rolls) for _ in range(q)]).reshape(1, q, *shape)
        given = (starts[i], z, source, step, shifts, weights)
        seen = run_renoise_step(base.networks, zone, base.unet, *given)
        single = jax.tree.map(lambda x: x[0], step)
        ends = (seen.latents[0], starts[i])
        correction, back = run_correction(base.networks, base.unet, *ends, source, single)
        before, passes = len(calls["t"]), zone.passes
        calls["t"] += [up.t[i]] * (passes + corrects)
        calls["batch"] += [2] + [1] * (passes + corrects - 1)
        calls["z"] += [*seen.taken[0, :, 0], *seen.latents[0, :corrects]]
        calls["eps"] += [*seen.eps[0, :, 0], *correction.eps[:corrects]]
        # A pass's own regularisation follows its call; that of the mean follows the last.
        first = zone.average[0]
        calls["reg_after"] += [before + min(first + j + 1, passes) for j in range(q)]
        each.append((seen, correction, back))
    final = np.array(record["noise_list_initial"])
    index = np.arange(n - 1, n - 1 - len(up.t), -1)
    corrected = np.stack([nchw(correction.noise[0]) for _, correction, _ in each])
    if corrects:
        final[index] = corrected
    steps = euler.turbo_steps(base.abar, n, below)
    noises = record.get("noise_list_final", final)
    return (
        told(source)
        | generated(base, facts, record["all_latents"][-1:], noises, facts["src_prompt"], steps)
        | {
            "call_t": calls["t"],
            "call_batch": calls["batch"],
            "call_z": nchw(np.stack(calls["z"])),
            "call_eps": nchw(np.stack(calls["eps"])),
            "forward_z": nchw(jax.vmap(lambda s: renoise.TURBO.aim(z, s))(up)[:, 0]),
            "optimal_eps": nchw(np.stack([x.optimal[0, 0] for x, _, _ in each])),
            "reg_out": nchw(np.concatenate([x.regularised[0, :, 0] for x, _, _ in each])),
            "reg_after_call": calls["reg_after"],
            "noise_draws_inversion": n + 2,  # with those of the autoencoder and the aim
            "corr_index": index,
            "corr_eps": nchw(np.stack([x.eps[0] for _, x, _ in each])),
            "corr_noise_after": corrected,
            "corr_prev": nchw(np.stack([x[0] for _, _, x in each])),
            "noise_list_final": final,
            "all_latents": nchw(np.stack([z[0], *(x.latents[0, 0] for x, _, _ in each)])),
        }
    )


# --- GNRi ---


@functools.partial(jax.jit, static_argnums=0)
def run_iteration(networks: Networks, unet: Any, *arguments: Any) -> Any:
    """One iteration of GNRi."""
    iterate: Any = gnri.iterate
    return iterate(one_denoiser(networks, unet), *arguments)


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_gnri(networks: Networks, iterations: int, unet: Any, *arguments: Any) -> Any:
    """The whole inversion."""
    *before, prior = arguments
    inversion: Any = gnri.gnri_inversion
    return inversion(one_denoiser(networks, unet), *before, iterations, prior)


def gnri_case(base: Turbo, facts: Mapping[str, Any], record: Arrays) -> Ours:
    """GNRi. The sign in an iteration magnifies rounding: each starts from the recorded guess, where
    guesses are recorded."""
    n, below = facts["num_inversion_steps"], facts["inversion_max_step"]
    iterations, prior = facts["inv_hp"][0], jnp.float32(facts["inv_hp"][1])
    steps = euler.turbo_steps(base.abar, n, below)
    source = base.prompt(facts["src_prompt"], facts["image_size"])
    clean = base.latent(record) if "source_u8" in record else nhwc(record["z0"])
    levels = euler.turbo_steps(base.abar, n)
    ours = told(source) | {
        "newton_t": np.repeat(np.asarray(steps.t)[::-1], iterations),
        "z0": nchw(clean),
        "sigmas": jnp.append(levels.high, 0.0),
    }
    if "newton_latent" not in record:
        names = [name for name in record if name.startswith("noise_list")]
        noise = nhwc(record[names[0]])[-len(steps.t) :, None]
        given = (clean, noise, source, steps, prior)
        found = run_gnri(base.networks, iterations, base.unet, *given)
        return ours | {
            "residual_sum": found.iterations.residual.ravel() * clean.size,
            "step_result": nchw(found.latents[:, 0]),
        }
    noises = nhwc(record["noise_list"])[n - len(steps.t) :]
    guesses = nhwc(record["newton_latent"]).reshape(len(steps.t), iterations, *clean.shape)
    start, results, all_found, guessed = clean, [], [], []
    for i in range(len(steps.t)):
        step = jax.tree.map(lambda x, i=i: x[len(steps.t) - 1 - i], steps)
        noise = noises[len(steps.t) - 1 - i][None]
        found = [
            run_iteration(base.networks, base.unet, guess, start, clean, noise, source, step, prior)
            for guess in guesses[i]
        ]
        best = int(np.argmin([x.residual[0] for x in found]))
        results.append(found[best].reached)
        guessed += [start, *(x.following for x in found[:-1])]
        all_found += found
        start = nhwc(record["step_result"])[i][None]
    ours |= {
        "newton_latent": nchw(jnp.concatenate(guessed)),
        "newton_eps": nchw(jnp.concatenate([x.eps for x in all_found])),
        "newton_next": nchw(jnp.concatenate([x.reached for x in all_found])),
        "residual_sum": np.concatenate([x.residual * clean.size for x in all_found]),
        "step_result": nchw(jnp.concatenate(results)),
        "inverted_latent": nchw(results[-1]),
    }
    negative = facts["negative_prompt_edit"]
    return ours | generated(
        base, facts, record["inverted_latent"], record["noise_list"], negative, steps
    )


CASES: dict[str, Callable[[Turbo, Mapping[str, Any], Arrays], Ours]] = {
    "SDXL components": components_case,
    "TurboEdit": turboedit_case,
    "ReNoise on SDXL-Turbo": renoise_turbo_case,
    "GNRi": gnri_case,
}
"""By the method, `method_of` a case."""
