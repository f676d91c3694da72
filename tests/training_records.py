"""Group F of the recorded data: losses, gradients and updates of fine-tuning.

Losses and gradients are the package's own; the three updates of a batch are made one by one with
the published optimiser, since XLA takes minutes for them as one program on a CPU (that the step is
these updates, `tests/training/test_step.py` shows). The records' draws take the place of ours.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ie_jax.diffusion.trajectory import walk_all
from ie_jax.models.lpips import lpips, lpips_shapes, per_layer
from ie_jax.models.networks import Networks, encode_text, vae
from ie_jax.models.pixels import from_uint8
from ie_jax.training.inputs import latents_of
from ie_jax.training.losses import FORWARD, TEACHER, pseudo_huber, squared
from ie_jax.training.stages import cycle
from ie_jax.training.stages.cycle import LATENT, CycleConfig, Example, Frozen, make_loss, models_of
from ie_jax.weights.convert import convert, find, flatten
from ie_jax.weights.folder import Weights
from ie_jax.weights.names import LORA, LPIPS
from tests.comparison import Arrays
from tests.lpips_recipe import upstream_weights

Ours = dict[str, Any]
STEPS = ("1_forward", "2_align", "3_preserve")
LOSSES = {"forward": "distillation", "align": "cycle", "preserve": "preservation"}
"""The records' names of the losses, in the order of their updates, and ours."""
KINDS = {"l2": 0, "huber": 1}
GIVEN: Any = "given"
"""The distance between latents that a batch names by its `kind`."""


def nhwc(x: np.ndarray) -> jax.Array:
    """Channels last."""
    return jnp.moveaxis(jnp.asarray(x), -3, -1)


def nchw(x: Any) -> np.ndarray:
    """Channels before rows and columns."""
    return np.moveaxis(np.asarray(x), -1, -3)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def value_and_gradient(
    config: CycleConfig,
    networks: Networks,
    names: tuple[str, ...],
    weights: Any,
    lora: Any,
    frozen: Frozen,
    example: Example,
    kind: Any,
) -> tuple[Any, Any]:
    """The unweighted losses of these names, and the gradient of their weighted sum.

    The weights, and which distance GIVEN is, are a matter of data, so that one program serves all
    losses and all kinds of records.
    """

    def given(x: Any, y: Any) -> Any:
        return jnp.where(kind == KINDS["l2"], squared(x, y), pseudo_huber(x, y))

    with mock.patch.dict(cycle.LATENT, {GIVEN: given}):
        loss = make_loss(config, networks, {name: weights[name] for name in names})
        (_, values), slope = jax.value_and_grad(loss, has_aux=True)(lora, frozen, example)
    return values, slope


@functools.partial(jax.jit, static_argnums=0)
def intermediates(networks: Networks, lora: Any, frozen: Frozen, example: Example) -> Ours:
    """What the losses compute on the way."""
    config, schedule = CycleConfig(), frozen.schedule
    eps = models_of(networks, lora, frozen, example.context)
    terms = cycle.terms_of(config, example, schedule, cycle.NAMES)
    leads = {name: term.lead for name, term in terms.items() if term.lead is not None}
    led = walk_all(eps, schedule.abar, leads)
    aims = {name: term.aim(led.get(name)) for name, term in terms.items()}
    walked = walk_all(eps, schedule.abar, {name: aim.chain for name, aim in aims.items()})
    at, kept = leads["distillation"], aims["preservation"]
    t, w = at.t[0], jnp.zeros(at.t[0].shape)
    models = jnp.array([FORWARD, TEACHER])
    student_eps, teacher_eps = lax.map(lambda model: eps(model, at.start, t, w), models)
    return {
        "fwd.start_timesteps": t,
        "fwd.next_timesteps": at.s[0],
        "fwd.boundary_timesteps": at.s[1],
        "fwd.noisy": at.start,
        "fwd.student_eps": student_eps,
        "fwd.student_pred": walked["distillation"][-1],
        "fwd.teacher_eps": teacher_eps,
        "fwd.x_next": led["distillation"][0],
        "fwd.target": aims["distillation"].target,
        "align.trajectory": walked["cycle"],
        "preserve": {
            kind: d(walked["preservation"][-1], kept.target) for kind, d in LATENT.items()
        },
    }


@dataclass(frozen=True)
class Batch:
    """Everything a step of the records starts from."""

    frozen: Frozen
    example: Example

    def with_guidance(self, w: np.ndarray) -> "Batch":
        """With w (b) in the cycle's generation from its second step on."""
        n = self.frozen.schedule.steps
        guidance = np.stack([0 * w, *([w] * (n - 1))], axis=1)
        return replace(self, example=replace(self.example, guidance=jnp.asarray(guidance)))


class Training:
    """The programs and results that several records of group F share."""

    def __init__(
        self,
        networks: Networks,
        weights: Weights,
        ids: Callable[[list[str]], np.ndarray],
        record: Callable[[str], Arrays],
        json: Callable[[str], Any],
    ) -> None:
        self.networks, self.weights, self.record = networks, weights, record
        self.ids, self.json = ids, json
        self.optimiser = optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(8e-6, 0.9, 0.999, 1e-8, weight_decay=0.0)
        )

    @functools.cached_property
    def perceptual(self) -> Any:
        """LPIPS of the records' recipe, float32."""
        seed = int(self.record("F_lpips")["vgg_seed"])
        upstream = dict(upstream_weights(seed))
        return jax.device_put(convert(upstream, LPIPS, lpips_shapes(), "the recipe"))

    def frozen(self, perceptual: bool) -> Frozen:
        """What training reads."""
        w = self.weights
        schedule = cycle.cycle_schedule(CycleConfig(), self.networks.architecture.betas)
        lpips_params = self.perceptual if perceptual else None
        return Frozen(w.unet, w.backward, w.vae, w.text_encoder, lpips_params, schedule)

    @functools.cached_property
    def latent_batch(self) -> Batch:
        """F_batch: four images of 128 px, losses on latents."""
        record = self.record("F_batch")
        frozen = self.frozen(perceptual=False)
        noise = nhwc(record["posterior_noise"])
        batch = {"pixels": jnp.asarray(record["images_u8"])}
        z = jax.jit(functools.partial(latents_of, self.networks))(frozen.vae, batch, noise)
        embed = jax.jit(encode_text, static_argnums=0)
        ids = self.ids(self.json("F_captions")["captions"])
        context = embed(self.networks, frozen.text_encoder, ids)
        return self.batch(frozen, record, z, context, None)

    @functools.cached_property
    def image_batch(self) -> Batch:
        """F_lpips: two latents of 512 px, the cycle's loss on images."""
        record, frozen = self.record("F_lpips"), self.frozen(perceptual=True)
        z = nhwc(record["latents"])
        decode = jax.jit(lambda p, z: vae(self.networks).apply({"params": p}, z, method="decode"))
        context = jnp.asarray(record["prompt_embeds"])
        return self.batch(frozen, record, z, context, decode(frozen.vae, z))

    def batch(self, frozen: Frozen, record: Arrays, z: Any, context: Any, target: Any) -> Batch:
        """A batch with a record's draws."""
        index, segment = (jnp.asarray(record[name]) for name in ("index", "endpoint_index"))
        none = jnp.zeros((len(z), frozen.schedule.steps))
        noise = nhwc(record["noise"])
        return Batch(frozen, Example(z, context, noise, index, segment, none, target))

    def batch_of(self, kind: str) -> Batch:
        """The batch of a kind of records: l2, huber, lpips, l2_w."""
        if kind == "l2_w":
            w = self.record("F_batch")["w_for_align_l2_w"].ravel()
            return self.latent_batch.with_guidance(w)
        return self.image_batch if kind == "lpips" else self.latent_batch

    def update(self, name: str, kind: str, lora: Any) -> tuple[Any, Any]:
        """Loss and gradient of an update at a LoRA."""
        batch, of_images = self.batch_of(kind), kind == "lpips"
        config = CycleConfig(distance="lpips" if of_images else GIVEN, latent_distance=GIVEN)
        # With LPIPS in the cycle, the published code takes Huber's for the other two.
        number = jnp.int32(KINDS["huber" if of_images else kind.removesuffix("_w")])
        networks = self.networks
        if of_images:  # 512 px in float32: 15 GB, if nothing were computed twice
            execution = replace(networks.execution, remat="block")
            networks = replace(networks, execution=execution)
        arguments = (lora, batch.frozen, batch.example, number)
        names = (name,) if of_images else tuple(LOSSES.values())
        own = getattr(config, f"{name}_weight")
        weights = {x: jnp.float32(own if x == name else 0) for x in names}
        values, slope = value_and_gradient(config, networks, names, weights, *arguments)
        return jax.block_until_ready((values[name], slope))

    @functools.cache  # noqa: B019  lives as long as the command
    def alone(self, step: str, kind: str) -> tuple[Any, Any]:
        """Loss and gradient at the initial LoRA."""
        return self.update(LOSSES[step], kind, self.weights.forward)

    @functools.cache  # noqa: B019
    def sequence(self, kind: str) -> tuple[Ours, dict[str, Any]]:
        """The three updates of a batch: scalars by the records' names, and the LoRA after each."""
        lora = self.weights.forward
        state = jax.jit(self.optimiser.init)(lora)
        change = jax.jit(self.optimiser.update)
        scalars: Ours = {}
        after: dict[str, Any] = {}
        for step in STEPS:
            first = step == STEPS[0]
            name = step[2:]
            update = self.alone(name, kind) if first else self.update(LOSSES[name], kind, lora)
            loss, slope = update
            changes, state = change(slope, state, lora)
            lora = optax.apply_updates(lora, changes)
            scalars[f"{step}.loss"] = loss
            scalars[f"{step}.grad_norm"] = optax.tree.norm(slope)
            scalars[f"{step}.param_change_norm"] = optax.tree.norm(changes)
            after[step] = lora
        return scalars, after

    def change(self, step: str, kind: str) -> Any:
        """Of the LoRA after an update and those before it."""
        return jax.tree.map(jnp.subtract, self.sequence(kind)[1][step], self.weights.forward)


def tensors_of(tree: Any, names: list[str]) -> Ours:
    """A LoRA tree's leaves in the layout and under the names of the records."""
    flat = flatten(tree)
    ours: Ours = {}
    for name in names:
        leaf = np.asarray(flat[find(LORA, name)[1] or ""])
        ours[name] = leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T
    return ours


def all_names(training: Training) -> list[str]:
    """The names of all tensors of a LoRA, sorted."""
    record = training.record("F_grads_align_l2")
    return sorted(record)


def tree_case(training: Training, tree: Any, record: Arrays) -> Ours:
    """A tree against a record of tensors by name, whole or a subset with all norms."""
    names = [name for name in record if name != "all_tensor_norms"]
    ours = tensors_of(tree, names)
    if "all_tensor_norms" in record:
        everything = tensors_of(tree, all_names(training))
        ours["all_tensor_norms"] = [float(np.linalg.norm(x)) for x in everything.values()]
    return ours


def batch_case(training: Training, case: str, record: Arrays) -> Ours:
    """The batch, and what the losses compute on the way."""
    batch, config = training.latent_batch, CycleConfig()
    seen = intermediates(training.networks, training.weights.forward, batch.frozen, batch.example)
    ours = {name: nchw(x) if x.ndim > 3 else x for name, x in seen.items() if name != "preserve"}
    schedule = batch.frozen.schedule
    stride = len(schedule.abar) // config.grid_steps
    return ours | {
        "latents": nchw(batch.example.latents),
        "prompt_embeds": batch.example.context,
        "w": batch.example.guidance[:, :1, None, None],
        "ddim_timesteps": config.grid_start + stride * np.arange(config.grid_steps),
        "endpoints": schedule.forward_t,
        "forward_endpoints": schedule.forward_s,
    }


def gradients_case(training: Training, case: str, record: Arrays) -> Ours:
    """F_grads_<step>_<kind>[_subset]."""
    step, kind = case.removeprefix("F_grads_").removesuffix("_subset").split("_", 1)
    return tree_case(training, training.alone(step, kind)[1], record)


def changes_case(training: Training, case: str, record: Arrays) -> Ours:
    """F_seq_<kind>_params_delta_after_<step>[_subset]."""
    kind, step = case.removeprefix("F_seq_").removesuffix("_subset").split("_params_delta_after_")
    return tree_case(training, training.change(step, kind), record)


def losses_case(training: Training, case: str, record: Mapping[str, Any]) -> Ours:
    """F_losses.json: scalars by name, <step>_<kind>.* or seq_<kind>.<step>.*"""
    ours: Ours = {}
    for name in record:
        group, key = name.split(".", 1)
        what, kind = group.split("_", 1)
        if what == "seq":
            ours[name] = training.sequence(kind)[0][key]
        elif key.startswith("log."):
            ours[name] = preserve_log(training, kind, key.removeprefix("log."))
        else:
            loss, slope = training.alone(what, kind)
            ours[name] = {"loss": loss, "grad_norm": optax.tree.norm(slope)}[key]
    return ours


def preserve_log(training: Training, kind: str, name: str) -> Any:
    """The preservation loss, or the share of it that the images of one segment have."""
    batch = training.latent_batch
    seen = intermediates(training.networks, training.weights.forward, batch.frozen, batch.example)
    distances = seen["preserve"][kind]
    ends = name.removeprefix("forward_preserve_loss").strip("_")
    if ends:
        upper = batch.frozen.schedule.forward_s[batch.example.segment]
        distances = jnp.where(upper == int(ends.split("_")[0]), distances, 0.0)
    return distances.mean()


def lpips_case(training: Training, case: str, record: Arrays) -> Ours:
    """LPIPS of a pair with its gradient, and the scalars of the published batch."""
    params = training.perceptual
    x, y = (from_uint8(jnp.asarray(record[f"img{i}_u8"])[None]) for i in (0, 1))
    # In float32 a few ReLUs and poolings go the other way, which ones by the processor.
    with jax.enable_x64(True):
        measure = functools.partial(lpips, compute=jnp.dtype("float64"))
        slope = jax.jit(jax.grad(lambda x, params, y: measure(params, x, y).sum()))(x, params, y)
    weights = dict(upstream_weights(int(record["vgg_seed"])))
    ours: Ours = {
        "value": jax.jit(lpips)(params, x, y)[:, None, None, None],
        "per_layer": jax.jit(per_layer)(params, x, y)[:, 0],
        "grad_img0_mean_abs": jnp.abs(slope).mean(),
        "grad_img0_crop16": nchw(slope[:, 100:116, 100:116]),
        "w": training.image_batch.example.guidance[:, :1, None, None],
        **losses_case(training, case, {name: 0 for name in record if "_lpips." in name}),
    }
    for name in record:
        if name.startswith("check."):
            tensor = weights[name.removeprefix("check.")].astype(np.float64)
            ours[name] = [tensor.sum(), np.abs(tensor).sum(), *tensor.ravel()[:4]]
        elif name.startswith("lin") and name[3:].isdigit():
            ours[name] = params[name]["weight"]
    return ours


Case = Callable[[Training, str, Any], Ours]
CASES: dict[str, Case] = {
    "F_batch": batch_case,
    "F_grads_*": gradients_case,
    "F_seq_*": changes_case,
    "F_losses*": losses_case,
    "F_lpips": lpips_case,
}
TENSORS = "F_[gs]*"
"""Cases whose arrays are the tensors of a LoRA."""
