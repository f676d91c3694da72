"""Recordings of the methods that the paper compares with: what ours computes for each array.

A case is told by its JSON: `method`, prompts and settings. Nothing depends on a case's name.
"""

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ie_jax.diffusion import ddim
from ie_jax.diffusion.ddim import Steps, leading, move
from ie_jax.diffusion.schedule import cumulative_alphas, dynamic_guidance, make_schedule
from ie_jax.errors import UserError
from ie_jax.methods import (
    cfg,
    guide_and_rescale,
    infedit,
    null_text,
    prompt_to_prompt,
    prompts,
    renoise,
)
from ie_jax.methods.direct_inversion import path_offsets
from ie_jax.methods.icd import icd
from ie_jax.methods.masactrl import masactrl, mutual_attention
from ie_jax.methods.negative_prompt import negative_embedding, proximal
from ie_jax.methods.prompt_to_prompt import Blend, Edits
from ie_jax.models.execution import Execution, Precision
from ie_jax.models.lora import round_to_fp16
from ie_jax.models.networks import Networks, encode_text, one_denoiser, vae
from ie_jax.models.pixels import from_uint8, to_uint8
from ie_jax.models.tokenizer import Tokenizer
from ie_jax.weights.convert import convert
from ie_jax.weights.folder import (
    Weights,
    architecture,
    convert_files,
    read_configs,
    read_part,
    unguided,
)
from ie_jax.weights.formats import read_tensors
from ie_jax.weights.layout import find_files, network_file
from ie_jax.weights.names import UNET

Arrays = dict[str, np.ndarray]
Ours = dict[str, Any]
OFFSET = 1
"""Of the grid 1, 21, ..., 981."""
SHARP = "sd15_cfg_distill_sharp_overrides.safetensors"


def nchw(x: Any) -> np.ndarray:
    """Channels before rows and columns."""
    return np.moveaxis(np.asarray(x), -1, -3)


def nhwc(x: np.ndarray) -> Any:
    """Channels last."""
    return jnp.asarray(np.moveaxis(x, -3, -1))


class Baselines:
    """A folder of such recordings, and the networks that they were made with."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError if the checkpoints beside it are missing."""
        self.folder = folder
        beside = folder.parent / "goldens" / "checkpoints"
        own = folder / "checkpoints" / "stable-diffusion-v1-5"
        self.checkpoints = own.parent if own.is_dir() else beside
        if not self.checkpoints.is_dir():
            raise UserError(f"{folder} needs the small SD1.5 checkpoints: there is no {beside}")
        self.pipeline = self.checkpoints / "stable-diffusion-v1-5"
        arch = unguided(architecture(read_configs(self.pipeline), str(self.pipeline)))
        execution = Execution().resolve(Precision())
        self.networks = Networks(arch, execution=execution)
        self.tokenizer = Tokenizer(self.pipeline / "tokenizer")
        self.abar = jnp.asarray(cumulative_alphas(arch.betas))

        def read(part: Any) -> Any:
            path = network_file(self.pipeline, part)
            return jax.device_put(read_part(part, path, arch))

        plain = self.pipeline / "unet" / "diffusion_pytorch_model.safetensors"
        self.unet = jax.device_put(read_part("denoiser", plain, arch))
        self.vae, self.text = read("vae"), read("text_encoder")

    @functools.cached_property
    def sharpened(self) -> tuple[Networks, Weights]:
        """The distilled models with sharpened cross-attention."""
        arch, weights = convert_files(find_files(self.checkpoints))
        files = find_files(self.checkpoints)
        tensors = read_tensors(files.teacher) | read_tensors(self.folder / "checkpoints" / SHARP)
        unet = convert(tensors, UNET, weights.unet, SHARP)
        weights = replace(
            weights,
            unet=unet,
            forward=round_to_fp16(weights.forward),
            backward=round_to_fp16(weights.backward),
        )
        networks = replace(self.networks, architecture=arch)
        return networks, jax.device_put(weights)

    def ids(self, prompt: str) -> np.ndarray:
        """Token ids, (77)."""
        return self.tokenizer([prompt])[0]

    def embed(self, prompt: str) -> jax.Array:
        """(1, 77, c)."""
        return embed(self.networks, self.text, self.ids(prompt)[None])

    def encode(self, text: str) -> list[int]:
        """Token ids without padding."""
        return self.tokenizer.encode(text)

    def decode(self, token: int) -> str:
        """The text of a token."""
        return self.tokenizer.decode(token)

    def latent(self, pixels: np.ndarray) -> jax.Array:
        """The posterior's mean, scaled: (1, h, w, c)."""
        return encode_image(self.networks, self.vae, pixels[None])

    def image(self, z: Any) -> np.ndarray:
        """Latents as uint8 (b, h, w, 3)."""
        return np.asarray(decode_image(self.networks, self.vae, z))


embed = jax.jit(encode_text, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def encode_image(networks: Networks, params: Any, pixels: Any) -> Any:
    """Pixels to latents."""
    return vae(networks).apply({"params": params}, from_uint8(pixels), method="encode")


@functools.partial(jax.jit, static_argnums=0)
def decode_image(networks: Networks, params: Any, z: Any) -> Any:
    """Latents to pixels."""
    x: Any = vae(networks).apply({"params": params}, z, method="decode")
    return to_uint8(x)


@functools.partial(jax.jit, static_argnums=0)
def run_inversion(networks: Networks, unet: Any, z: Any, context: Any, steps: Steps) -> Any:
    """DDIM inversion."""
    return cfg.invert(one_denoiser(networks, unet), z, context, steps)


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_generation(
    networks: Networks,
    kind: Any,
    unet: Any,
    z: Any,
    uncond: Any,
    cond: Any,
    w: Any,
    steps: Steps,
    quantile: Any,
) -> Any:
    """Guided generation, proximal where `kind` says so."""
    combine = proximal(kind, quantile) if kind else cfg.guided
    return cfg.generate(one_denoiser(networks, unet), z, uncond, cond, w, steps, combine)


class Fifty:
    """What the methods of fifty steps share of a case."""

    def __init__(self, base: Baselines, facts: Mapping[str, Any], record: Arrays) -> None:
        self.base, self.facts, self.record = base, facts, record
        self.n = facts["steps"]
        self.empty = base.embed("")
        self.source, self.target = (base.embed(facts[f"{x}_prompt"]) for x in ("src", "trg"))
        self.w = jnp.full(1, facts.get("guidance_scale", 1.0), jnp.float32)
        self.down = leading(base.abar, self.n, OFFSET)
        self.there = run_inversion(
            base.networks,
            base.unet,
            base.latent(record["image_u8"]),
            self.source,
            ddim.inverted(self.down),
        )

    @property
    def noise(self) -> Any:
        """Where the inversion ends."""
        return self.there.latents[-1]

    def common(self) -> Ours:
        """Prompts and the inversion."""
        kept = self.record.get("inv_eps_steps", np.arange(self.n))
        texts = {"uncond": "", "src": self.facts["src_prompt"], "trg": self.facts["trg_prompt"]}
        contexts = {"uncond": self.empty, "src": self.source, "trg": self.target}
        return {
            **{f"ids_{name}": self.base.ids(text) for name, text in texts.items()},
            **{f"emb_{name}": x[0] for name, x in contexts.items()},
            "inv_latents": nchw(self.there.latents[:, 0]),
            "inv_eps": nchw(self.there.eps[:, 0])[kept],
            "inv_eps_steps": kept,
            "inv_t": self.down.t[::-1],
            "vae_rec_u8": self.base.image(self.there.latents[0])[0],
            "eps_steps": self.record.get("eps_steps", np.arange(self.n)),
        }

    def generated(
        self, uncond: Any, cond: Any, w: Any = None, kind: Any = None, quantile: float = 0.0
    ) -> Any:
        """A pass from the noise; `uncond` of one step or of each."""
        if uncond.ndim == 3:
            uncond = cfg.same_each_step(uncond, self.down)
        w = self.w if w is None else w
        arguments = (self.noise, uncond, cond, w, self.down, jnp.float32(quantile))
        return run_generation(self.base.networks, kind, self.base.unet, *arguments)

    def told(self, name: str, path: Any) -> Ours:
        """The arrays of a pass."""
        kept = self.record.get("eps_steps", np.arange(self.n))
        uncond, text = (nchw(x)[kept] for x in path.eps)
        return {
            f"{name}_latents": nchw(path.latents),
            f"{name}_eps_uncond": uncond,
            f"{name}_eps_text": text,
            f"{name}_t": self.down.t,
            f"{name}_image_u8": self.base.image(path.latents[-1]),
        }


def ddim_case(base: Baselines, facts: Mapping[str, Any], record: Arrays) -> Ours:
    """DDIM inversion and guided generation."""
    case = Fifty(base, facts, record)
    passes = {
        "rec": case.generated(case.empty, case.source),
        "rec1": case.generated(case.empty, case.source, jnp.ones(1)),
        "edit": case.generated(case.empty, case.target),
    }
    ours = case.common()
    for name, path in passes.items():
        ours |= case.told(name, path)
    return ours


def negative_case(base: Baselines, facts: Mapping[str, Any], record: Arrays) -> Ours:
    """Negative-prompt inversion."""
    case = Fifty(base, facts, record)
    negative = jax.jit(negative_embedding)(
        case.source, case.empty, jnp.float32(facts["npi_interp"] or 0)
    )
    kind, quantile = facts["prox"], facts["quantile"] or 0.0
    ours = case.common() | {"negative_embedding": negative}
    ours |= case.told("rec", case.generated(negative, case.source))
    return ours | case.told(
        "edit", case.generated(negative, case.target, kind=kind, quantile=quantile)
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_null_text(
    networks: Networks,
    inner: int,
    unet: Any,
    reference: Any,
    cond: Any,
    empty: Any,
    w: Any,
    steps: Steps,
    near: Any,
    first: Any = 0,
) -> Any:
    """The optimisation of the unconditional embeddings."""
    network = one_denoiser(networks, unet)
    return null_text.null_texts(network, reference, cond, empty, w, steps, inner, near, first)


@functools.partial(jax.jit, static_argnums=0)
def inner_gradient(
    networks: Networks,
    unet: Any,
    z: Any,
    goal: Any,
    eps_c: Any,
    w: Any,
    step: Steps,
    u: Any,
) -> Any:
    """Of the inner loss."""
    network = one_denoiser(networks, unet)
    loss = functools.partial(null_text.distance, network, z, goal, eps_c, w, step)
    return jax.grad(loss, has_aux=True)(u)[0]


def found_null_texts(case: Fifty, inner: int, near: float) -> Any:
    """The optimisation of a case."""
    return run_null_text(
        case.base.networks,
        inner,
        case.base.unet,
        case.there.latents,
        case.source,
        case.empty,
        case.w,
        case.down,
        jnp.float32(near),
    )


def null_text_case(base: Baselines, facts: Mapping[str, Any], record: Arrays) -> Ours:
    """Null-text inversion. Adam's steps are nearly signs of gradients, so that rounding in one step
    shows in the next: embeddings and inner gradients of a step are compared from the recorded
    embedding and latent before it, all else from our own."""
    case = Fifty(base, facts, record)
    inner, near = facts["num_inner_steps"], facts["early_stop_epsilon"]
    found = found_null_texts(case, inner, near)
    recorded = jnp.asarray(record["null_embeddings"])[:, None]
    starts = jnp.concatenate([case.empty[None], recorded[:-1]])
    latents = nhwc(record["opt_latent_cur"])[:, None]
    goals = nhwc(record["inv_latents"])[-2::-1, None]

    @functools.cache
    def of_step(i: int) -> Any:
        """The step from its recorded start."""
        step = jax.tree.map(lambda x: x[i : i + 1], case.down)
        reference = jnp.stack([goals[i], latents[i]])
        given = (reference, case.source, starts[i], case.w, step, jnp.float32(near), jnp.int32(i))
        return run_null_text(base.networks, inner, base.unet, *given)

    def gradient(i: int, u: Any) -> Any:
        step = jax.tree.map(lambda x: x[i], case.down)
        given = (latents[i], goals[i], of_step(i).eps_c[0], case.w, step, u)
        return inner_gradient(base.networks, base.unet, *given)

    kept = record.get("opt_steps", np.arange(case.n))
    ours = case.common() | {
        "null_embeddings": np.stack([of_step(i).embeddings[0, 0] for i in range(case.n)]),
        "losses": found.losses[:, :, 0],
        "inner_steps_taken": found.taken[:, 0],
        "lr": null_text.learning_rate(jnp.arange(case.n)),
        "opt_latent_cur": nchw(found.latents[:, 0]),
        "opt_eps_cond": nchw(found.eps_c[:, 0])[kept],
        "opt_eps_batched": np.stack([nchw(x[:, 0])[kept] for x in found.eps], axis=1),
        "opt_steps": kept,
        "inner_grad_first": jnp.stack([gradient(i, starts[i])[0] for i in kept]),
    }
    for name in record:
        if match := re.fullmatch(r"inner_emb_step(\d+)", name):
            i, u, adam = int(match[1]), starts[int(match[1])], optax.scale_by_adam()
            state, values, gradients = adam.init(u), [u[0]], []
            for _ in range(int(found.taken[i, 0])):
                grads = gradient(i, u)
                updates, state = adam.update(grads, state)
                u = u - null_text.learning_rate(jnp.float32(i)) * updates
                values.append(u[0])
                gradients.append(grads[0])
            ours |= {name: jnp.stack(values), f"inner_grad_step{i}": jnp.stack(gradients)}
    ours |= case.told("rec", case.generated(found.embeddings, case.source))
    return ours | case.told("edit", case.generated(found.embeddings, case.target))


# --- Prompt-to-Prompt ---


def alignment_of(base: Baselines, source: str, target: str, replace: bool) -> tuple[Any, Ours]:
    """The alignment of two prompts, and its arrays."""
    texts = (base.encode, base.decode)
    if replace:
        found = prompts.replace(source, target, *texts)
        return found, {"mapper": found.matrix[None]}
    mapper, weights = prompts.refine_mapper(base.encode(source), base.encode(target))
    return prompts.refine(mapper, weights), {"mapper": mapper[None], "refine_alphas": weights[None]}


def edits_of(
    base: Baselines, facts: Mapping[str, Any], source: str, target: str, replace: bool, steps: int
) -> tuple[Edits, Ours]:
    """Attention control as a case's settings have it."""
    texts = (base.encode, base.decode)
    alignment, ours = alignment_of(base, source, target, replace)
    given = facts.get("equalizer") or facts.get("eq_params")
    factors = dict(zip(given["words"], given["values"], strict=True)) if given else {}
    equalizer = prompts.equalizer(target, factors, *texts)
    cross = facts["cross_replace_steps"]
    table = prompts.time_table(steps, cross, {}, target, *texts)
    ends = np.array([0, int(steps * facts["self_replace_steps"])], np.int32)
    ours |= {
        "equalizer": equalizer[None],
        "cross_replace_alpha": table[:, None],
        "num_self_replace": ends,
    }
    arrays = (alignment.matrix[None], alignment.own[None], equalizer[None], table[:, None], ends)
    return Edits(*map(jnp.asarray, arrays)), ours


def blend_of(
    base: Baselines,
    source: str,
    target: str,
    words: Any,
    without: Any,
    thresholds: Any,
    start: int,
) -> tuple[Blend | None, Ours]:
    """The local blend of a case's settings."""
    if not words:
        return None, {}

    def rows(words: Any) -> np.ndarray:
        pairs = zip((source, target), words, strict=True)
        return np.stack([prompts.word_mask(t, w, base.encode, base.decode) for t, w in pairs])

    wanted, left = rows(words), rows(without or [[], []])
    ours = {"blend_alpha": wanted, "blend_sub_alpha": left, "blend_alpha_layers": wanted}
    numbers = (jnp.float32(thresholds[0]), jnp.float32(thresholds[1]), jnp.int32(start))
    return Blend(jnp.asarray(wanted)[:, None], jnp.asarray(left)[:, None], *numbers), ours


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_p2p(networks: Networks, largest: int, unet: Any, *arguments: Any) -> Any:
    """Prompt-to-Prompt."""
    method = functools.partial(prompt_to_prompt.prompt_to_prompt, largest=largest)
    return method(one_denoiser(networks, unet), *arguments)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def probe_p2p(
    networks: Networks,
    largest: int,
    layers: tuple[int, ...],
    unet: Any,
    z: Any,
    t: Any,
    uncond: Any,
    cond: Any,
    edits: Edits,
    step: Any,
) -> Any:
    """Attention maps before and after the control, of one step."""
    control = prompt_to_prompt.control_of(edits, step, 4, None, largest, layers)
    out = cfg.two_halves(one_denoiser(networks, unet), z, t, uncond, cond, control)[2]
    return {name: maps for seen in out["control"] for name, maps in seen.items()}


@functools.partial(jax.jit, static_argnums=0)
def run_offsets(networks: Networks, unet: Any, *arguments: Any) -> Any:
    """Direct inversion's offsets."""
    return path_offsets(one_denoiser(networks, unet), *arguments)


def flat_heads(maps: Any) -> np.ndarray:
    """(groups, 1, heads, n, m) as (groups * heads, n, m)."""
    return np.asarray(maps).reshape(-1, *maps.shape[-2:])


def p2p_case(base: Baselines, facts: Mapping[str, Any], record: Arrays) -> Ours:
    """Prompt-to-Prompt on DDIM, null-text or direct inversion."""
    case = Fifty(base, facts, record)
    source, target = facts["src_prompt"], facts["trg_prompt"]
    edits, tables = edits_of(base, facts, source, target, facts["is_replace_controller"], case.n)
    thresholds = facts["blend_th"] or [0.3, 0.3]
    blend, words = blend_of(
        base,
        source,
        target,
        facts["blend_words"],
        facts["blend_substruct_words"],
        thresholds,
        facts["blend_start_step"] or 0,
    )
    ours = case.common() | tables | words
    uncond = cfg.same_each_step(case.empty, case.down)
    ours["uncond_embeddings"] = case.empty
    if facts["inversion"] == "nti":
        uncond = found_null_texts(case, facts["nti_inner_steps"], 1e-5).embeddings
        ours["uncond_embeddings"] = uncond[:, 0]
    cond, offsets = cfg.pair(case.source, case.target), None
    if facts["inversion"] == "direct":
        both = jnp.concatenate([case.there.latents] * 2, axis=1)
        w = cfg.pair(case.w, case.w)
        arguments = (both, case.empty, cond, w, case.down)
        every = run_offsets(base.networks, base.unet, *arguments)
        offsets = every[:, :1]
        ours["offsets"] = nchw(every)
    largest = facts["max_pixels_stored_and_self_replaced"]

    def run(edits: Edits) -> Any:
        given = (case.noise, uncond, case.source, case.target, case.w, case.down, edits)
        return run_p2p(base.networks, largest, base.unet, *given, blend, offsets)

    path, masks = run(edits)
    ours |= case.told("edit", path)
    if "plain_latents" in record:
        still = replace(edits, cross=0 * edits.cross, self_steps=jnp.zeros(2, jnp.int32))
        ours |= case.told("plain", run(still)[0])
    layers = tuple(sorted(i for kind in facts["attn_layers"].values() for i in kind))

    @functools.cache
    def probed(j: int) -> Any:
        given = (path.latents[j], case.down.t[j], cfg.pair(uncond[j], uncond[j]), cond, edits)
        return probe_p2p(base.networks, largest, layers, base.unet, *given, jnp.int32(j))

    for name in record:
        if match := re.fullmatch(r"attn_(?:cross|self)_layer(\d+)_(in|out)", name):
            steps = record[f"{name.rpartition('_')[0]}_steps"]
            at = ("in", "out").index(match[2])
            maps = [flat_heads(probed(int(j))[f"maps {match[1]}"][at]) for j in steps]
            ours |= {name: np.stack(maps), f"{name.rpartition('_')[0]}_steps": steps}
    if masks is not None:
        kept = record["blend_mask_steps"]
        u, c = path.eps
        w = cfg.pair(case.w, case.w)
        eps = jax.vmap(cfg.guided, (0, 0, None))(u, c, w)
        levels = (x[:, None, None, None, None] for x in (case.down.before, case.down.after))
        ours |= {
            "blend_x_in": nchw(move(path.latents[:-1], eps, *levels)),
            "blend_x_out": nchw(path.latents[1:]),
            "blend_mask_steps": np.arange(case.n)[facts["blend_start_step"] :],
            "blend_mask": np.asarray(masks.wanted, np.uint8)[kept],
            "blend_sub_mask": np.asarray(masks.without, np.uint8)[kept],
            "blend_map_before_pool": np.asarray(masks.maps)[kept],
        }
    return ours


def aligner_case(base: Baselines, facts: Mapping[str, Any], record: Arrays) -> Ours:
    """Tables of pairs of prompts."""
    texts = (base.encode, base.decode)
    ours: Ours = {}
    for i, pair in enumerate(facts["pairs"]):
        source, target = pair["src"], pair["trg"]
        mapper, weights = prompts.refine_mapper(base.encode(source), base.encode(target))
        ours |= {
            f"pair{i}_ids_src": base.encode(source),
            f"pair{i}_ids_trg": base.encode(target),
            f"pair{i}_refine_mapper": mapper,
            f"pair{i}_refine_alphas": weights,
        }
        try:
            ours[f"pair{i}_replace_mapper"] = prompts.replace(source, target, *texts).matrix
        except UserError:
            assert pair["replace"] != "ok"
        for word, places in pair["word_inds_trg"].items():
            assert prompts.tokens_of(target, word, *texts) == places, (target, word)
    text = facts["equalizer"]["text"]
    factors = dict(zip(facts["equalizer"]["words"], facts["equalizer"]["values"], strict=True))
    ours["equalizer"] = prompts.equalizer(text, factors, *texts)[None]
    for name, table in facts.items():
        if name.startswith("time_alpha_"):
            shares = {k: tuple(x) if isinstance(x, list) else x for k, x in table["spec"].items()}
            default = shares.pop("default_", (0.0, 1.0))
            made = prompts.time_table(table["steps"], default, shares, text, *texts)
            ours[name] = made[:, None]
    return ours


# --- MasaCtrl ---


@functools.partial(jax.jit, static_argnums=0)
def run_masactrl(networks: Networks, unet: Any, *arguments: Any) -> Any:
    """MasaCtrl."""
    return masactrl(one_denoiser(networks, unet), *arguments)


@functools.partial(jax.jit, static_argnums=(0, 1))
def probe_masactrl(
    networks: Networks,
    layers: tuple[int, ...],
    unet: Any,
    z: Any,
    t: Any,
    empty: Any,
    cond: Any,
    on: Any,
    first_layer: Any,
) -> Any:
    """What layers compute in a step."""
    control = mutual_attention(on, first_layer, layers)
    out = cfg.two_halves(one_denoiser(networks, unet), z, t, empty, cond, control)[2]
    return {name: x for seen in out["control"] for name, x in seen.items()}


def masactrl_case(base: Baselines, facts: Mapping[str, Any], record: Arrays) -> Ours:
    """MasaCtrl on its own inversion."""
    case = Fifty(base, facts, record)
    first_step, first_layer = (
        jnp.int32(facts["controller_args"][x]) for x in ("start_step", "start_layer")
    )
    reference = case.there.latents if facts["ref_intermediate_latents"] else None
    path, taken = run_masactrl(
        base.networks,
        base.unet,
        *(case.noise, case.empty, case.source, case.target, case.w, case.down),
        *(first_step, first_layer, reference),
    )
    fixed = case.generated(case.empty, case.target)
    eps_u, eps_c = path.eps
    w = cfg.pair(case.w, case.w)
    rows = record["inv_eps_batch"].shape[1]
    ours = case.common() | {
        "inv_eps_batch": np.repeat(nchw(case.there.eps), rows, axis=1),
        "fixed_latents": nchw(fixed.latents[:-1, 0]),
        "fixed_image": base.image(fixed.latents[-1])[0],
        "edit_step_in": nchw(taken),
        "edit_step_out": nchw(path.latents[1:]),
        "edit_eps_guided": nchw(jax.vmap(cfg.guided, (0, 0, None))(eps_u, eps_c, w)),
        "edit_eps_batch": nchw(jnp.concatenate([eps_u, eps_c], axis=1)),
        "edit_t": case.down.t,
        "edit_image_u8": base.image(path.latents[-1]),
    }
    layers = tuple(facts["recorded_layers"])
    cond = cfg.pair(case.source, case.target)

    def probed(j: int) -> Any:
        given = (taken[j], case.down.t[j], case.empty, cond, jnp.int32(j) >= first_step)
        return probe_masactrl(base.networks, layers, base.unet, *given, first_layer)

    for layer in layers:
        name = f"attn_layer{layer}"
        seen = [probed(int(j))[f"layer {layer}"] for j in record["attn_steps"]]
        at = [list(record["attn_steps"]).index(j) for j in record["attn_qkv_steps"]]
        for i, part in enumerate("qkv"):  # (b, n, h, d) as (b h, n, d)
            rows_of = [jnp.moveaxis(seen[j][i], 2, 1) for j in at]
            ours[f"{name}_{part}"] = np.stack(
                [np.asarray(x).reshape(-1, *x.shape[2:]) for x in rows_of]
            )
        for i, part in ((3, "plain"), (4, "out")):
            joined = [np.asarray(x[i]).reshape(*x[i].shape[:2], -1) for x in seen]
            ours[f"{name}_{part}"] = np.stack(joined)
    kept = {name: record[name] for name in ("attn_steps", "attn_qkv_steps")}
    return ours | kept


# --- Guide-and-Rescale ---


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def run_guided(networks: Networks, groups: Any, steps: int, unet: Any, *arguments: Any) -> Any:
    """Guide-and-Rescale."""
    network = one_denoiser(networks, unet, collect=("features", "queries_keys"))
    method = functools.partial(guide_and_rescale.guide_and_rescale, groups=groups, steps=steps)
    return method(network, *arguments)


@functools.partial(jax.jit, static_argnums=0)
def observe(networks: Networks, unet: Any, z: Any, t: Any, context: Any) -> Any:
    """Features, and the middle block's attention map."""
    network = one_denoiser(networks, unet, collect=("features", "maps"))
    context = jnp.broadcast_to(context, (len(z), *context.shape[1:]))
    return network(z, t, jnp.zeros(len(z)), context)[1]


@functools.cache
def groups_of(names: tuple[str, ...], block: str) -> Any:
    """One object for each set of guiders, so that programs are shared."""
    parts = {
        "self_attn_map_l2_appearance": (
            guide_and_rescale.LAYOUT,
            guide_and_rescale.appearance(block),
        ),
        "self_attn_map_l2": (guide_and_rescale.LAYOUT,),
        "features_map_l2": (guide_and_rescale.FEATURES,),
    }
    return tuple(guide_and_rescale.GuiderGroup(parts[name]) for name in names)


def guided_case(base: Baselines, facts: Mapping[str, Any], record: Arrays) -> Ours:
    """Guide-and-Rescale."""
    n, config = facts["steps"], facts["config"]
    (cfg_guider,) = (g for g in config["guiders"] if g["name"] == "cfg")
    guiders = [g for g in config["guiders"] if g["name"] != "cfg"]
    block, columns = "last", []
    for g in guiders:
        scale = np.broadcast_to(np.asarray(g["g_scale"], np.float32), n)
        options = g["kwargs"]
        if g["name"] == "self_attn_map_l2_appearance":
            block = "last" if options["new_features"] else "norm"
            on = np.arange(n) < options["total_first_steps"]
            columns += [scale * on * options[name] for name in ("self_attn_gs", "app_gs")]
        else:
            columns.append(scale)
    weights = jnp.asarray(np.stack(columns, axis=1), jnp.float32)
    groups = groups_of(tuple(g["name"] for g in guiders), block)
    source, target = (base.embed(facts[f"{x}_prompt"]) for x in ("src", "trg"))
    empty = base.embed("")
    uncond = source if config["inversion_type"] == "npinv" else empty
    lower, upper = (
        jnp.full(1, x, jnp.float32) for x in config["noise_rescaling_setup"]["init_setup"]
    )
    there, seen = run_guided(
        base.networks,
        groups,
        n,
        base.unet,
        *(base.latent(record["image_u8"]), source, target, uncond, base.abar),
        *(jnp.full(1, cfg_guider["g_scale"], jnp.float32), weights, (lower, upper)),
    )
    kept, looked = record["internal_steps"], record["feature_steps"]
    t = leading(base.abar, n, 0).t
    inv, src, trg = (
        observe(base.networks, base.unet, z[looked, 0], t[looked], context)
        for z, context in (
            (there.latents[:0:-1], source),
            (seen.latent_in, source),
            (seen.latent_in, target),
        )
    )
    which = "up" if any(g["name"] == "features_map_l2" for g in guiders) else block
    middle = facts["n_self_attention_maps"][0]
    ours: Ours = {
        "inv_latents": nchw(there.latents[:, 0]),
        "inv_eps": nchw(there.eps[:, 0])[record["inv_eps_steps"]],
        "inv_eps_steps": record["inv_eps_steps"],
        "inv_t": t[::-1],
        "emb_uncond": empty[0],
        "emb_src": source[0],
        "emb_trg": target[0],
        "internal_steps": kept,
        "feature_steps": looked,
        "latent_in": nchw(seen.latent_in[:, 0]),
        "latent_out": nchw(seen.latent_out[:, 0]),
        "t": t,
        "has_other": seen.active[:, 0],
        "cfg_norm": seen.cfg_norm[:, 0],
        "other_norm": seen.gradient_norm[:, 0],
        "ratio": seen.ratio[:, 0],
        "other_scale": seen.factor[:, 0],
        "eps_uncond": nchw(seen.eps_uncond[:, 0])[kept],
        "eps_inv": nchw(seen.eps_inv[:, 0])[kept],
        "eps_src": nchw(seen.eps_src[:, 0])[kept],
        "eps_trg": nchw(seen.eps_trg[:, 0])[kept],
        "eps_final": nchw(seen.eps[:, 0])[kept],
        "grad_total": nchw(seen.gradient[:, 0])[kept],
        "self_attn_sum": seen.energies[:, 0, 0],
        "features_inv": nchw(inv["features"][which]),
        "features_src": nchw(src["features"][which]),
        "features_trg": nchw(trg["features"][which]),
        "attn_mid_inv": inv["maps"][middle],
        "attn_mid_src": src["maps"][middle],
        "final_image_u8": base.image(seen.latent_out[-1])[0],
    }
    for i, g in enumerate(guiders):
        composite = g["name"] == "self_attn_map_l2_appearance"
        ours[f"energy_{g['name']}"] = (
            seen.groups[:, i, 0] / np.asarray(g["g_scale"], np.float32)
            if composite
            else seen.energies[:, i, 0]
        )
        if composite:
            ours["app_mean_abs"] = seen.energies[:, 1, 0]
    return ours


# --- iCD ---


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_icd(networks: Networks, largest: int, weights: Weights, *arguments: Any) -> Any:
    """iCD with Prompt-to-Prompt."""
    forward, backward = (
        one_denoiser(networks, weights.unet, lora) for lora in (weights.forward, weights.backward)
    )
    return functools.partial(icd, largest=largest)(forward, backward, *arguments)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def probe_icd(
    networks: Networks,
    largest: int,
    layers: tuple[int, ...],
    weights: Weights,
    z: Any,
    t: Any,
    w: Any,
    context: Any,
    edits: Edits,
    step: Any,
) -> Any:
    """Attention maps before and after the control, of one step."""
    control = prompt_to_prompt.control_of(edits, step, 2, None, largest, layers)
    network = one_denoiser(networks, weights.unet, weights.backward)
    out = network(z, t, w, context, control)[1]
    return {name: maps for seen in out["control"] for name, maps in seen.items()}


def icd_case(base: Baselines, facts: Mapping[str, Any], record: Arrays) -> Ours:
    """iCD with Prompt-to-Prompt and dynamic guidance."""
    networks, weights = base.sharpened
    source, target = facts["src_prompt"], facts["tgt_prompt"]
    edits, ours = edits_of(base, facts, source, target, facts["is_replace"], 4)
    threshold = facts["blend_threshold"]
    blend, words = blend_of(
        base, source, target, facts["blend_word"], None, (threshold, threshold), 0
    )
    boundaries = facts["reverse_timesteps"]
    t = np.array(boundaries[::-1])
    w = dynamic_guidance(t, facts["guidance_scale"], facts["tau1"], facts["tau2"])
    schedule = make_schedule(boundaries, facts["start_timestep"], w[None])
    z = encode_image(networks, weights.vae, record["source_u8"][None])
    empty, src, trg = (base.embed(x) for x in ("", source, target))
    largest = (facts["image_size"] // 16) ** 2
    noise = nhwc(record["inv_noise"])
    there, back = run_icd(networks, largest, weights, z, noise, src, trg, schedule, edits, blend)
    start = schedule.forward_t
    starts = jnp.concatenate([jnp.repeat(there.latents[-1:], 2, axis=1), back.latents[:-1]])
    context = cfg.pair(src, trg)
    found = [
        re.fullmatch(r"attn_(?:self|cross)_\w+?_(\d+)_(?:step(\d+)_)?(before|after)", x)
        for x in record
    ]
    layers = tuple(sorted({int(m[1]) for m in found if m}))

    @functools.cache
    def probed(j: int) -> Any:
        at = jnp.full(2, t[j])
        both_w = jnp.array([0.0, w[j]], jnp.float32)
        return probe_icd(
            networks, largest, layers, weights, starts[j], at, both_w, context, edits, jnp.int32(j)
        )

    for match in found:
        if match:
            i = ("before", "after").index(match[3])
            steps = [int(match[2])] if match[2] else range(len(record[match[0]]))
            maps = [flat_heads(probed(j)[f"maps {match[1]}"][i]) for j in steps]
            ours[match[0]] = maps[0] if match[2] else np.stack(maps)
    if "refine_alphas" in ours:
        ours["refine_alphas"] = ours["refine_alphas"].reshape(1, 1, 1, -1)
    ours["cross_replace_alpha"] = ours["cross_replace_alpha"][:, 0]
    noised = jax.jit(lambda z, n: add_start_noise(z, n, schedule))(z, noise)
    ours |= words | {
        "clean_latent": nchw(z),
        "inv_noised_latent": nchw(noised),
        "inv_t": start,
        "inv_s": schedule.forward_s,
        "inv_w": np.zeros((4, 2), np.float32),
        "inv_eps": nchw(there.eps),
        "inv_jump": nchw(there.latents),
        "inv_context": jnp.concatenate([empty, src]),
        "gen_context": jnp.concatenate([empty, empty, src, trg]),
        "gen_t": schedule.backward_t,
        "gen_s": schedule.backward_s,
        "gen_w": np.stack([0 * w, 0 * w, 0 * w, w], axis=1),
        "gen_eps": nchw(back.eps),
        "gen_jump": nchw(back.jumps),
        "gen_latent_out": nchw(back.latents),
        "edited_u8": np.asarray(decode_image(networks, weights.vae, back.latents[-1]))[1],
    }
    if back.masks is not None:
        ours |= {
            "blend_map": np.asarray(back.masks.maps),
            "blend_mask": np.asarray(back.masks.mask) > 0,
        }
    return ours


def add_start_noise(z: Any, noise: Any, schedule: Any) -> Any:
    """The latent at the start timestep."""
    from ie_jax.diffusion.consistency import add_noise

    return add_noise(schedule.abar, z, noise, schedule.forward_t[:1])


# --- InfEdit ---


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def run_infedit(
    networks: Networks,
    largest: int,
    steps: int,
    from_image: bool,
    mutual: bool,
    probe: tuple[int, ...],
    unet: Any,
    *arguments: Any,
) -> Any:
    """InfEdit."""
    *before, branches, eta = arguments
    method: Any = functools.partial(
        infedit.infedit,
        from_image=from_image,
        take_from_mutual=mutual,
        largest=largest,
        probe=probe,
    )
    return method(one_denoiser(networks, unet), *before, steps, branches, eta)


def infedit_case(base: Baselines, facts: Mapping[str, Any], record: Arrays) -> Ours:
    """InfEdit on the distilled UNet without its w."""
    networks, weights = base.sharpened
    source, target = facts["src_prompt"], facts["tgt_prompt"]
    ids, others = base.encode(source), base.encode(target)
    src, trg = base.embed(source), base.embed(target)
    positive, negative = (base.embed(facts[f"{x}_prompt"]) for x in ("positive", "negative"))
    mapper, plain = prompts.refine_mapper(ids, others)
    states = (np.asarray(src[0]), np.asarray(trg[0]))
    mapper, alphas, pairs = infedit.joined(mapper, plain, *states, len(others), len(ids))
    blend = base.encode(facts["target_blend"])
    alpha_e = prompts.phrase_mask(others, blend)
    alpha_m = prompts.phrase_mask(others, base.encode(facts["source_blend"]))
    for at, taken in pairs:
        if ids[taken] in blend:
            alpha_e[at] = 1
    alpha_me = alpha_e * alpha_m
    alignment = prompts.refine(mapper, alphas)
    inside = np.zeros(prompts.LENGTH, np.float32)
    inside[1 : len(others) - 1] = 1
    thresholds = (facts["thresh_e"], facts["thresh_m"])
    words = infedit.Words(
        *(jnp.asarray(x)[None] for x in (alpha_e, alpha_m, alpha_me, inside)),
        *map(jnp.float32, thresholds),
    )
    matrix, own = (jnp.asarray(x)[None] for x in (alignment.matrix, alignment.own))
    cross, late = (jnp.float32(facts[f"{x}_replace_steps"]) for x in ("cross", "self"))
    branches = infedit.Branches(matrix, own, cross, late, words)
    t = infedit.timesteps(facts["num_inference_steps"], facts["strength"])
    mean, std = moments(networks, weights.vae, record["source_u8"][None])
    z0 = (mean + std * nhwc(record["vae_sample_noise"])) * networks.architecture.vae.scaling_factor
    low, high = facts["source_guidance_scale"], facts["guidance_scale"]
    guidance = jnp.asarray([low, high, low], jnp.float32)[:, None]
    uncond, cond = jnp.stack([positive, negative, positive]), jnp.stack([src, trg, src])
    largest = (facts["image_size"] // 16) ** 2
    seen = run_infedit(
        networks,
        largest,
        facts["num_inference_steps"],
        bool(facts["denoise_model"]),
        facts["entry"] == "run_pie_bench",
        (10, 11),
        weights.unet,
        *(z0, nhwc(record["init_noise"]), nhwc(record["step_noise"]), uncond, cond, guidance),
        *(base.abar, jnp.asarray(t), branches, jnp.float32(facts["eta"])),
    )
    probed = {name: x for part in seen.control for name, x in part.items()}
    kept = facts["attn_out_steps"]
    block = weights.unet["down_blocks_2"]["attentions_1"]["transformer_blocks_0"]

    def output(layer: int, name: str) -> np.ndarray:
        """What a layer gives after its projection."""
        y = np.asarray(probed[f"output {layer}"])[kept]
        last = block[name]["to_out_0"]
        return y.reshape(*y.shape[:3], -1) @ np.asarray(last["kernel"]) + np.asarray(last["bias"])

    before, after = probed["maps 11"]
    masks, thresholds, maps = seen.blend
    result = np.asarray(seen.clean[-1]) / networks.architecture.vae.scaling_factor
    decoded = decode_float(networks, weights.vae, seen.clean[-1])
    edited = np.round(np.clip(np.asarray(decoded[0]) / 2 + 0.5, 0, 1) * 255).astype(np.uint8)
    return {
        "t": t,
        "self_attn_out": output(10, "attn1"),
        "cross_attn_out": output(11, "attn2"),
        "cross5_step0_before": flat_heads(before[0]),
        "cross5_after_tgt": np.asarray(after)[:2, 1, 0],
        "eps": nchw(seen.eps),
        "src_ddcm_next": nchw(seen.latents[:, 0]),
        "tgt_ddcm_next": nchw(seen.latents[:, 1]),
        "mut_ddcm_next": nchw(seen.latents[:, 2]),
        "tgt_next": nchw(seen.target),
        "mask": np.asarray(masks)[1:, :, 0],
        "mask_thresh": np.asarray(thresholds)[1:],
        "mask_map": np.asarray(maps)[1:, :, 0],
        "decode_in": nchw(result),
        "context": jnp.concatenate([*uncond, *cond]),
        "mapper": mapper,
        "alphas": alphas,
        "alphas_before_match": plain,
        "alpha_e": alpha_e,
        "alpha_m": alpha_m,
        "alpha_me": alpha_me,
        "edited_u8": edited,
        "clean_latent": nchw(z0),
    }


# --- ReNoise ---


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_renoise_step(networks: Networks, zone: Any, unet: Any, *arguments: Any) -> Any:
    """One inversion step of ReNoise."""
    *before, rolls, weights = arguments
    method: Any = renoise.renoise_steps
    return method(one_denoiser(networks, unet), *before, zone, rolls, weights)


def renoise_case(base: Baselines, facts: Mapping[str, Any], record: Arrays) -> Ours:
    """ReNoise on SD1.5. Regularisation has absolute values and limits inside, which magnify
    rounding from step to step: each inversion step, and the generation, starts from the recorded
    latent."""
    config = facts["config"]
    n, k = config["num_inversion_steps"], config["num_renoise_steps"]
    mean, std = moments(base.networks, base.vae, record["source_u8"][None])
    scaling = base.networks.architecture.vae.scaling_factor
    z = (mean + std * nhwc(record["vae_sample_noise"])) * scaling
    source, target = (base.embed(facts[f"{x}_prompt"]) for x in ("src", "tgt"))
    up = ddim.inverted(leading(base.abar, n, OFFSET))
    count = int(np.sum(np.asarray(up.t) < renoise.LOW))
    each = [renoise.regularisations(zone) for zone in renoise.zones(k)]
    shape = (
        config["noise_regularization_num_reg_steps"],
        config["noise_regularization_num_ac_rolls"],
        z.shape[-1],
        renoise.levels(z.shape[1]),
    )
    rolls = np.asarray(record["reg_rolls"], np.int32).reshape(-1, *shape)
    first = rolls[: count * each[0]].reshape(count, each[0], *shape)
    rest = rolls[count * each[0] :].reshape(n - count, each[1], *shape)
    weights = renoise.Weights(
        jnp.float32(config["noise_regularization_lambda_ac"]),
        jnp.float32(config["noise_regularization_lambda_kl"]),
    )
    starts = nhwc(record["all_latents"])[:, None]

    def of_steps(zone: Any, first: int, rolls: np.ndarray) -> Any:
        """The steps of a zone, each from its recorded start."""
        each = []
        for i in range(len(rolls)):
            step = jax.tree.map(lambda x, i=i: x[first + i : first + i + 1], up)
            given = (starts[first + i], z, source, step, jnp.asarray(rolls[i : i + 1]), weights)
            each.append(run_renoise_step(base.networks, zone, base.unet, *given))
        return jax.tree.map(lambda *x: jnp.concatenate(x), *each)

    zones = renoise.zones(k)
    low = of_steps(zones[0], 0, first)
    high = of_steps(zones[1], count, rest)
    latents = jnp.concatenate([z[None], low.latents, high.latents])
    calls = [low.eps.shape[1]] * count + [high.eps.shape[1]] * (n - count)
    down = leading(base.abar, n, OFFSET)
    back = run_inversion(base.networks, base.unet, starts[-1], target, down)
    before = np.cumsum([0, *calls])[:-1][:count]
    # A pass's own regularisation follows its call; that of the mean follows the last.
    places = [min(i + 1, calls[0]) for i in range(each[0])]
    decoded = decode_float(base.networks, base.vae, back.latents[-1])
    return {
        "call_t": np.repeat(np.asarray(up.t), calls),
        "call_batch": np.concatenate([[2] + [1] * (count - 1) for count in calls]),
        "call_t_low": np.repeat(np.asarray(up.t)[:count], calls[:count]),
        "call_z": nchw(low.taken.reshape(-1, *z.shape[1:])),
        "call_eps": nchw(low.eps.reshape(-1, *z.shape[1:])),
        "optimal_eps": nchw(low.optimal[:, 0]),
        "reg_out": nchw(low.regularised.reshape(-1, *z.shape[1:])),
        "reg_after_call": (before[:, None] + np.asarray(places)).ravel(),
        "noise_draws_inversion": np.asarray(record["noise_draws_inversion"]),
        "inf_t": down.t,
        "decode_in": nchw(back.latents[-1]),
        "all_latents": nchw(latents[:, 0]),
        "context": source,
        "inf_latent_last": nchw(back.latents[-1]),
        "edited_u8": np.round(np.clip(np.asarray(decoded[0]) / 2 + 0.5, 0, 1) * 255).astype(
            np.uint8
        ),
    }


@functools.partial(jax.jit, static_argnums=0)
def moments(networks: Networks, params: Any, pixels: Any) -> Any:
    """Of the posterior."""
    return vae(networks).apply({"params": params}, from_uint8(pixels), method="moments")


@functools.partial(jax.jit, static_argnums=0)
def decode_float(networks: Networks, params: Any, z: Any) -> Any:
    """Latents to images in [-1, 1], not clamped."""
    return vae(networks).apply({"params": params}, z, method="decode")


CASES: dict[str, Callable[[Baselines, Mapping[str, Any], Arrays], Ours]] = {
    "ddim_inversion": ddim_case,
    "negative_prompt_inversion": negative_case,
    "null_text_inversion": null_text_case,
    "prompt_to_prompt": p2p_case,
    "p2p_aligner": aligner_case,
    "masactrl": masactrl_case,
    "guide_and_rescale": guided_case,
    "iCD + Prompt-to-Prompt": icd_case,
    "InfEdit": infedit_case,
    "ReNoise": renoise_case,
}
"""By the method that a case's JSON names."""


def method_of(folder: Path, case: str) -> str:
    """What a case's JSON says it is of; empty if there is none."""
    path = folder / f"{case}.json"
    if not path.is_file():
        return ""
    facts = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(facts, dict):
        return ""
    if "unet_call_prompts" in facts:
        return "SDXL components"
    method, config = str(facts.get("method", "")), facts.get("config", {})
    turbo = isinstance(config, dict) and "SDXL" in str(config.get("model_type", ""))
    return f"{method} on SDXL-Turbo" if turbo else method
