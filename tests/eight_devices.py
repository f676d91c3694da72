"""Programs of tests/test_devices.py, on eight devices: in a process of their own, since the number
of devices is fixed when JAX starts. Each prints JSON."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
import optax

from ie_jax import devices
from ie_jax.editing.config import EditConfig, GuiderConfig, GuiderOptions
from ie_jax.editing.editor import Editor
from ie_jax.methods.settings import MethodConfig
from ie_jax.methods.table import METHODS
from ie_jax.models.execution import Execution, Precision
from ie_jax.models.networks import Networks
from ie_jax.training.stage import Stage, initial_state
from ie_jax.training.stages.cycle import CycleConfig, Frozen, cycle_schedule, cycle_stage
from ie_jax.training.step import make_step
from ie_jax.weights.folder import base_pipeline
from ie_jax.weights.untrained import random_pipeline
from tests.tiny import SMALLEST_SDXL, shrink
from tests.training import toy
from tests.weights.models import SDXL, write_sdxl

MESHES = {"1": (1, 1), "4 x 2": (8, 2), "1 x 8": (8, 8)}
"""Devices, and how many of them share a copy of the weights."""
COLLECTIVES = re.compile(
    r"(all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)(-start)?\("
)


def compare(stage: Stage, params: Any, frozen: Any, batch: Any, leaves: int) -> dict[str, float]:
    """Metrics and change of a step on many devices: their relative difference to one device's.

    Args:
        stage: with an optimiser by which the change of the parameters is the gradient.
        leaves: at least so many of the frozen weights are cut.
    """
    devices.SMALLEST = 1  # cut every leaf that can be

    def run(count: int, fsdp: int) -> tuple[dict[str, float], np.ndarray]:
        mesh = devices.make_mesh(fsdp, jax.devices()[:count])
        placed = devices.place(frozen, devices.weight_shardings(mesh, frozen))
        cut = sum(not x.is_fully_replicated for x in jax.tree.leaves(placed))
        assert (cut >= leaves) == (fsdp > 1), cut
        start = initial_state(stage, params)
        cuts = devices.weight_shardings(mesh, start)
        step = jax.jit(make_step(stage, mesh), out_shardings=(cuts, devices.replicated(mesh)))
        state = devices.place(start, cuts)
        after, metrics = step(state, placed, devices.place_batch(mesh, batch), jax.random.key(5))
        end = devices.gathered(mesh, after.params)
        change = jax.tree.map(lambda a, b: np.asarray(a - b), start.params, end)
        gradient = np.concatenate([x.ravel() for x in jax.tree.leaves(change)])
        return {name: float(x) for name, x in metrics.items()}, gradient

    results: dict[str, Any] = {name: run(*shape) for name, shape in MESHES.items()}
    expected, gradient = results.pop("1")
    errors = {}
    for name, (metrics, other) in results.items():
        for what, x in metrics.items():
            errors[f"{name} {what}"] = abs(x - expected[what]) / abs(expected[what])
        far = float(np.linalg.norm(other - gradient) / np.linalg.norm(gradient))
        errors[f"{name} gradient"] = far
    return errors


def toy_step(argv: Sequence[str]) -> None:
    """A step of a few numbers."""
    stage = replace(toy.stage(), optimiser=optax.sgd(1.0))
    frozen = {"scale": np.full((8, 1, 1), 2.0, np.float32)}

    def prepare(frozen: Any, batch: Any, keys: Any) -> Any:
        return toy.prepare({"scale": frozen["scale"].mean()}, batch, keys)

    stage = replace(stage, prepare=prepare, losses={"fit": toy.fit})
    print(json.dumps(compare(stage, toy.WEIGHTS, frozen, toy.batch(), 1)))


def cycle_step(argv: Sequence[str]) -> None:
    """A step of the smallest real model: the cycle alone, of latents."""
    shrink()
    pipeline = random_pipeline()
    weights, arch = pipeline.weights, pipeline.architecture
    alone = CycleConfig("sum", "l2", distillation_weight=0.0, preservation_weight=0.0)
    config = replace(alone, boundaries=(519, 999))
    networks = Networks(arch, execution=Execution().resolve(Precision()), lora="low_rank")
    frozen = Frozen(
        unet=weights.unet,
        backward=weights.backward,
        vae=weights.vae,
        text_encoder=weights.text_encoder,
        perceptual=None,
        schedule=cycle_schedule(config, arch.betas),
    )
    rng = np.random.default_rng(0)
    batch = {
        "pixels": rng.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8),
        "ids": rng.integers(0, 512, (8, 77), dtype=np.int32),
    }
    stage = cycle_stage(config, networks, optax.sgd(1.0))
    print(json.dumps(compare(stage, weights.forward, frozen, batch, 50)))


def crossings(editor: Editor, mask: str | None = None) -> None:
    """How many collectives its compiled programs hold for an edit of eight images."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    edit = editor.apply(pixels, "a cat", "a dog", seed=range(8), mask=mask)
    parts = len(edit.pixels.sharding.device_set)
    texts = [c.as_text() for x in editor.programs.values() for c in x.compiled.values()]
    counts = [len(COLLECTIVES.findall(text)) for text in texts]
    print(json.dumps({"devices": parts, "programs": len(texts), "collectives": sum(counts)}))


def edit_program(argv: Sequence[str]) -> None:
    """`crossings` of a guided edit of eight images, each in the mask that is found."""
    shrink()
    guiders = (GuiderConfig("features_map_l2", 0.5, GuiderOptions("mid")),)
    config = EditConfig("random", guiders=guiders)
    crossings(Editor(random_pipeline(), config, mesh=devices.local_mesh()), mask="auto")


def all_methods(argv: Sequence[str]) -> None:
    """Every method's edit of two images on two devices: its collectives, and how far its latents
    are from those of one device, relative."""
    shrink()
    pipeline, found = random_pipeline(), {}
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    names: Any = METHODS
    for name in names:
        steps = 3 if name == "turboedit" else 2
        short = MethodConfig(steps=steps, inner_steps=2, first_step=0, first_layer=0, guidance=2.0)
        config = EditConfig("random", method=name, baseline=short, match_statistics=False)
        latents = []
        for count in (1, 2):
            editor = Editor(pipeline, config, mesh=devices.make_mesh(devices=jax.devices()[:count]))
            edit = editor.apply(pixels, ["a cat", "a house"], ["a dog", "a red house"], seed=[3, 4])
            latents.append(np.asarray(edit.latents))
        (program,) = editor.programs[name].compiled.values()
        one, two = latents
        far = float(np.linalg.norm(two - one) / np.linalg.norm(one))
        found[name] = [len(COLLECTIVES.findall(program.as_text())), far]
    print(json.dumps(found))


def turbo_program(argv: Sequence[str]) -> None:
    """`crossings` of an edit of eight images by a model with two text encoders."""
    shrink()
    SDXL["unet"] |= SMALLEST_SDXL
    with TemporaryDirectory() as folder:
        write_sdxl(Path(folder))
        pipeline = base_pipeline(Path(folder))
        config = EditConfig(folder, method="turboedit")
        crossings(Editor(pipeline, config, mesh=devices.local_mesh()))
