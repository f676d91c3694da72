"""The editor: pictures and prompts in, pictures and diagnostics out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from ie_jax.data.images import Fit, load_image
from ie_jax.data.masks import AUTO, load_mask
from ie_jax.devices import local_mesh, over_devices, place, replicated
from ie_jax.diffusion.schedule import BETAS, Schedule, make_schedule
from ie_jax.editing.arguments import in_one_shape, mask_of, one_each, prompt_rows
from ie_jax.editing.by_method import METHOD_PLACES, Words, edit_by
from ie_jax.editing.config import EditConfig
from ie_jax.editing.program import Announce, Program, silent
from ie_jax.errors import UserError
from ie_jax.methods.guidance import StepRecord, Strength
from ie_jax.methods.guiders import make_guider
from ie_jax.methods.inverse_and_edit import (
    Edit,
    Inversion,
    Models,
    contexts,
    edit_images,
    edit_inversion,
    invert_images,
    places,
    reconstruct,
)
from ie_jax.methods.masks import Mask
from ie_jax.methods.settings import numbers_of, size_of
from ie_jax.methods.table import METHODS, check_method, settled
from ie_jax.models.execution import dtype
from ie_jax.models.lora import round_to_fp16
from ie_jax.models.networks import Tokens, vae_precision, whole_picture
from ie_jax.models.tokenizer import Tokenizer
from ie_jax.weights.facts import Facts
from ie_jax.weights.folder import Pipeline, Weights
from ie_jax.weights.load import facts_before_loading, load_pipeline, use_compilation_cache

Picture = str | Path | Image.Image | np.ndarray
Seed = int | Sequence[int] | None


@dataclass(frozen=True)
class EditResult:
    """Edited pictures and what guidance did."""

    images: np.ndarray
    """uint8 (images, edits, height, width, 3)."""
    diagnostics: dict[str, np.ndarray]
    """Per step, (steps, images, edits): `energy_<guider>` (its `label`), unweighted, gradient_norm,
    difference_norm, ratio, scale, active (see `StepRecord`). Empty without guiders."""
    masks: np.ndarray | None = None
    """bool (images, edits, height, width), where pictures could change; None without a mask."""


class Editor:
    """Inverts pictures and edits them by text.

        editor = Editor.from_pretrained("sd15")
        inversion = editor.invert("photo.jpg", "a cat on a table")
        result = editor.edit(inversion, ["a dog on a table", "a fox on a table"])

    Programs are compiled at their first use, once per number and size of pictures and edits.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        config: EditConfig = EditConfig(),
        announce: Announce = silent,
        mesh: Mesh | None = None,
        weights: Weights | None = None,
    ) -> None:
        """Place the weights on the devices and name the programs.

        Args:
            config: what it leaves open is as the model's facts say.
            announce: opened around each compilation and run, with its name.
            mesh: devices of this process that share each batch of images, see `devices`. None: one.
            weights: the pipeline's, where they are on the devices already.

        Raises:
            UserError: the config does not fit the model.
        """
        self.mesh = local_mesh(1) if mesh is None else mesh
        arch = pipeline.architecture
        config = replace(config, vae_precision=vae_precision(arch, config.vae_precision))
        self.config, self.facts, self.announce = config, pipeline.facts, announce
        self.schedule = check_config(config, pipeline.facts, arch.betas)
        steps = self.schedule.steps
        self.strength = Strength(
            jnp.asarray(np.reshape(config.scales(steps), (len(config.guiders), steps))),
            *map(jnp.float32, config.noise_rescaling_setup.bounds),
        )
        self.models = Models(
            arch,
            config.precision,
            config.vae_precision,
            config.execution.resolve(config.precision),
            config.lora,
            tuple(
                make_guider(g.name, **({"block": g.kwargs.block} if "features" in g.name else {}))
                for g in config.guiders
            ),
        )
        self.size = config.size or arch.image_size
        self.weights = placed(pipeline.weights, config, self.mesh) if weights is None else weights
        self.pipeline = replace(pipeline, weights=self.weights)
        self.tokenizers = [Tokenizer(folder) for folder in pipeline.tokenizers]
        self.programs = self.make_programs()

    def make_programs(self) -> dict[str, Program]:
        """What the editor runs, by name; nothing is compiled yet."""
        config = self.config
        functions: dict[str, Callable[..., Any]] = {
            "invert": invert_images,
            "edit": edit_inversion,
            "reconstruct": reconstruct,
            "invert and edit": edit_images,
        }
        where = places(self.models)
        if config.method != "ours":
            method = METHODS[config.method].edit
            size = size_of(settled(config.method, config.baseline))
            functions[config.method] = partial(edit_by, method=method, size=size)
            where[config.method] = METHOD_PLACES
        programs = {
            name: Program(
                name,
                over_devices(partial(functions[name], self.models), self.mesh, *at),
                self.announce,
                config.execution.compiler_options,
            )
            for name, at in where.items()
        }
        if config.method == "infedit":
            programs["text"] = Program("text", partial(contexts, self.models), self.announce)
        return programs

    def variant(self, **changes: Any) -> Self:
        """An editor of the same weights, which are on the devices once, with other settings.

        Args:
            changes: of the config; those of precision and rounding are not for it.

        Raises:
            UserError: the config does not fit the model.
        """
        config = replace(self.config, **changes)
        return type(self)(self.pipeline, config, self.announce, self.mesh, self.weights)

    @classmethod
    def from_pretrained(
        cls,
        model: str | None = None,
        config: EditConfig = EditConfig(),
        offline: bool = False,
        progress: bool = True,
        announce: Announce = silent,
        mesh: Mesh | None = None,
    ) -> Self:
        """An editor with the weights of `model` (default: the config's), see `load_pipeline`.

        Compiled programs are kept on disk from then on (`use_compilation_cache`).

        Raises:
            UserError: the weights cannot be had or do not fit.
        """
        use_compilation_cache()
        name = config.model if model is None else model
        config = replace(config, model=name)
        # Refuses what does not fit before gigabytes are fetched.
        check_config(config, facts_before_loading(name, config.forward, config.backward))
        with announce(f"load {name}"):
            pipeline = load_pipeline(name, config.forward, config.backward, offline, progress)
        return cls(pipeline, config, announce, mesh)

    @property
    def fit(self) -> Fit:
        """How pictures are cut: SDXL knows aspect ratios of its own."""
        buckets = self.config.fit == "aspect" and self.models.architecture.text_2
        return "buckets" if buckets else self.config.fit

    @property
    def tokenizer(self) -> Tokenizer:
        """The first text encoder's."""
        return self.tokenizers[0]

    @property
    def network_calls(self) -> int:
        """Of the UNet for one edit of an image, at most, each item of a batch counted."""
        if self.config.method != "ours":
            chosen = settled(self.config.method, self.config.baseline)
            return METHODS[self.config.method].evaluations(chosen)
        # Inversion and generation; guided, also the passes of inversion and source.
        return self.schedule.steps * (4 if self.config.guiders else 2)

    def load(self, image: Picture) -> np.ndarray:
        """A picture as uint8 (height, width, 3) of a size that the networks take.

        Files are read, turned upright, cropped and resized; arrays must have a fitting size.
        """
        if isinstance(image, str | Path):
            image = load_image(image, self.size, self.fit)
        pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
        if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8:
            raise UserError(
                f"an image must be uint8 (height, width, 3), not {pixels.dtype} {pixels.shape}"
            )
        factor = self.models.architecture.latent_factor
        if any(side < factor or side % factor for side in pixels.shape[:2]):
            raise UserError(
                f"image sides {pixels.shape[1]}x{pixels.shape[0]} must divide by {factor}: "
                f"choose such a --size"
            )
        return pixels

    def load_mask(self, mask: str | None, photo: str | None, pixels: np.ndarray) -> Any:
        """A mask for `edit`: that of a file, cut as the photo was; "auto" or None as they are.

        Args:
            photo: its file.
            pixels: the photo as `load` gave it.
        """
        if mask is None or mask == AUTO:
            return mask
        height, width, _ = pixels.shape
        return load_mask(Path(mask), Path(photo) if photo else None, (height, width), self.fit)

    def batch(self, images: Picture | Sequence[Picture]) -> np.ndarray:
        """One picture or several of one size as uint8 (b, height, width, 3)."""
        several = isinstance(images, list | tuple) or (
            isinstance(images, np.ndarray) and images.ndim == 4
        )
        pictures = [self.load(image) for image in images] if several else [self.load(images)]  # type: ignore[arg-type, union-attr]
        if not pictures:
            raise UserError("there are no images to edit")
        if len({picture.shape for picture in pictures}) != 1:
            raise UserError("images of one batch must have one size: use fit=crop")
        if len(pictures) % self.mesh.size:
            raise UserError(
                f"a batch of {len(pictures)} images must divide by the {self.mesh.size} devices"
            )
        return np.stack(pictures)

    def noise(self, pixels: np.ndarray, seed: Seed = None) -> np.ndarray:
        """The standard normal noise at the start of inversion, (b, h, w, c): of each picture what
        its seed draws, whatever else is in the batch."""
        b, height, width, _ = pixels.shape
        shape = (1, *self.models.architecture.vae.latent_shape(height, width))
        seeds = self.seeds(b, seed)
        draws = {int(x): jax.random.normal(jax.random.key(int(x)), shape) for x in set(seeds)}
        return np.concatenate([np.asarray(draws[int(x)]) for x in seeds])

    def seeds(self, b: int, seed: Seed) -> np.ndarray:
        """One for each picture."""
        return np.broadcast_to(self.config.seed if seed is None else np.asarray(seed), b)

    def ids(self, prompts: Sequence[str], size: tuple[int, int] | None = None) -> Any:
        """Prompts as the text encoders take them: token ids; with SDXL those of either tokenizer,
        and that a picture of this size (height, width) is whole.

        Raises:
            UserError: SDXL is not told the size.
        """
        arch = self.models.architecture
        configs = (arch.text, *([arch.text_2] if arch.text_2 else []))
        first, *rest = (
            tokenizer(prompts, config.max_position_embeddings)
            for tokenizer, config in zip(self.tokenizers, configs, strict=True)
        )
        if not rest:
            return first
        if size is None:
            raise UserError("this model's prompts go with the size of their picture: give it")
        return Tokens(first, rest[0], whole_picture(*size, len(prompts)))  # type: ignore[arg-type]

    def invert(
        self,
        images: Picture | Sequence[Picture],
        prompts: str | Sequence[str],
        seed: Seed = None,
        noise: jax.Array | np.ndarray | None = None,
    ) -> Inversion:
        """Pictures to noise, under the prompts that describe them.

        Args:
            seed: of the start noise, one for all pictures or one each; None: the config's.
            noise: the start noise itself, (b, h, w, c).

        Raises:
            UserError: pictures that cannot be used, or another number of prompts.
        """
        pixels = self.batch(images)
        ids = self.ids(one_each(prompts, len(pixels), "source prompts"), pixels.shape[1:3])
        noise = self.noise(pixels, seed) if noise is None else noise
        inversion: Inversion = self.programs["invert"](
            self.weights, pixels, ids, noise, self.schedule
        )
        return inversion

    def reconstruct(self, inversion: Inversion) -> np.ndarray:
        """The inverted pictures back from their noise, uint8 (b, height, width, 3).

        Raises:
            UserError: the networks gave NaN or infinity.
        """
        match = jnp.float32(self.config.match_statistics)
        pixels, finite = self.programs["reconstruct"](self.weights, inversion, self.schedule, match)
        require_finite(finite)
        return np.asarray(pixels)

    def edit(
        self,
        inversion: Inversion,
        prompts: str | Sequence[str] | Sequence[Sequence[str]],
        guidance: Any = None,
        scales: Any = None,
        bounds: tuple[Any, Any] | None = None,
        strength: Any = None,
        mask: Any = None,
    ) -> EditResult:
        """Edit inverted pictures, each e times, in one call.

        Args:
            prompts: one; or e for every picture; or e for each of b pictures.
            guidance: scale w, broadcasting to (b, e, steps); None: the config's.
            scales: weights of the guiders, broadcasting to (b, e, guiders, steps).
            bounds: lower and upper bound of the gradient's ratio, each broadcasting to (b, e).
            strength: 0 to 1, broadcasting to (b, e); None: the config's.
            mask: where pictures may change, see `mask_of`. None: everywhere.

        Raises:
            UserError: an empty prompt, or shapes that do not fit.
        """
        b, height, width, _ = inversion.pixels.shape
        arguments = self.edit_arguments(
            b, (height, width), prompts, guidance, scales, bounds, strength, mask
        )
        return self.result(self.programs["edit"](self.weights, inversion, *arguments))

    def prepare(self, inversion: Inversion, prompts: str | Sequence[str], **others: Any) -> None:
        """Compile what `edit` runs with arguments like these, and do not run it."""
        b, height, width, _ = inversion.pixels.shape
        arguments = self.edit_arguments(b, (height, width), prompts, **others)
        self.programs["edit"].prepare(self.weights, inversion, *arguments)

    def edit_each(
        self, inversion: Inversion, prompts: Sequence[str], strength: Any = None, **others: Any
    ) -> EditResult:
        """`edit`, one edit after the other: another number of them compiles nothing.

        Args:
            prompts: of the edits, the same for all pictures.
            strength: of all edits. None: each of the config's for each prompt.
            others: see `edit`.
        """
        amounts = self.config.strength if strength is None else (strength,)
        made = [
            self.edit(inversion, prompt, strength=amount, **others)
            for prompt in prompts
            for amount in amounts
        ]
        masks = [one.masks for one in made if one.masks is not None]
        return EditResult(
            np.concatenate([one.images for one in made], axis=1),
            {
                name: np.concatenate([one.diagnostics[name] for one in made], axis=2)
                for name in made[0].diagnostics
            },
            np.concatenate(masks, axis=1) if masks else None,
        )

    def __call__(
        self,
        images: Picture | Sequence[Picture],
        source: str | Sequence[str],
        prompts: str | Sequence[str] | Sequence[Sequence[str]],
        seed: Seed = None,
        **strengths: Any,
    ) -> tuple[Inversion, EditResult]:
        """`invert` and `edit` as one compiled program."""
        inversion, edit = self.run(images, source, prompts, seed, **strengths)
        return inversion, self.result(edit)

    def run(
        self,
        images: Picture | Sequence[Picture],
        source: str | Sequence[str],
        prompts: str | Sequence[str] | Sequence[Sequence[str]],
        seed: Seed = None,
        **strengths: Any,
    ) -> tuple[Inversion, Edit]:
        """`__call__`, with the result on the devices, finite or not."""
        pixels = self.batch(images)
        size = pixels.shape[1:3]
        ids = self.ids(one_each(source, len(pixels), "source prompts"), size)
        targets, *rest = self.edit_arguments(len(pixels), size, prompts, **strengths)
        inversion, edit = self.programs["invert and edit"](
            self.weights, pixels, ids, targets, self.noise(pixels, seed), *rest
        )
        return inversion, edit

    def apply(
        self,
        images: Picture | Sequence[Picture],
        source: str | Sequence[str],
        prompts: str | Sequence[str] | Sequence[Sequence[str]],
        seed: Seed = None,
        mask: Any = None,
    ) -> Edit:
        """Edits by the config's method, whichever it is; finite or not.

        Args:
            mask: see `mask_of`; of our method alone.

        Raises:
            UserError: the prompts do not suit the method.
        """
        if self.config.method == "ours":
            return self.run(images, source, prompts, seed, mask=mask)[1]
        pixels = self.batch(images)
        size = pixels.shape[1:3]
        sources = one_each(source, len(pixels), "source prompts")
        rows = prompt_rows(prompts, len(pixels))
        length = self.models.architecture.text.max_position_embeddings
        words = Words(self.tokenizer, length, self.embedding)
        keys = [jax.random.key_data(jax.random.key(int(x))) for x in self.seeds(len(pixels), seed)]
        tables = [
            stacked(
                [
                    (words.edits(text, x, self.config), words.blend(text, x, self.config))
                    for x in row
                ]
            )
            for text, row in zip(sources, rows, strict=True)
        ]
        result: Edit = self.programs[self.config.method](
            self.weights,
            pixels,
            self.ids(sources, size),
            stacked([self.ids(row, size) for row in rows]),
            self.ids([""], size),
            np.stack(keys),
            self.schedule,
            stacked(tables),
            numbers_of(settled(self.config.method, self.config.baseline)),
            jnp.float32(self.config.match_statistics),
        )
        return result

    def embedding(self, text: str) -> np.ndarray:
        """A prompt's embedding, (tokens, width), for InfEdit."""
        return np.asarray(self.programs["text"](self.weights, self.ids([text]))[0])

    def edit_arguments(
        self,
        b: int,
        size: tuple[int, int],
        prompts: str | Sequence[str] | Sequence[Sequence[str]],
        guidance: Any = None,
        scales: Any = None,
        bounds: tuple[Any, Any] | None = None,
        strength: Any = None,
        mask: Any = None,
    ) -> tuple[Any, Schedule, Strength, jax.Array, Mask | None]:
        """Targets' tokens and what follows them in the programs, of one shape.

        Args:
            b, size: how many pictures, and their height and width.
        """
        w = self.schedule.guidance if guidance is None else np.asarray(guidance, np.float32)
        v = self.strength.scales if scales is None else np.asarray(scales, np.float32)
        lower, upper = (self.strength.lower, self.strength.upper) if bounds is None else bounds
        rows = prompt_rows(prompts, b)
        if strength is None:
            strength = np.tile(self.config.strength, len(rows[0]))
            rows = [[text for text in row for _ in self.config.strength] for row in rows]
        chosen = Strength(v, lower, upper, strength)  # type: ignore[arg-type]
        rows, w, strengths = in_one_shape(
            rows, w, chosen, len(self.config.guiders), self.schedule.steps
        )
        return (
            stacked([self.ids(row, size) for row in rows]),
            replace(self.schedule, guidance=w),
            strengths,
            jnp.float32(self.config.match_statistics),
            mask_of(mask, b, len(rows[0]), size, self.config.mask_feather),
        )

    def result(self, edit: Edit) -> EditResult:
        """An edit on the host.

        Raises:
            UserError: the networks gave NaN or infinity.
        """
        require_finite(edit.finite)
        masks = None if edit.mask is None else np.asarray(edit.mask > 0)
        return EditResult(np.asarray(edit.pixels), diagnostics(edit.record, self.config), masks)


def check_config(
    config: EditConfig, facts: Facts, betas: tuple[float, float, int] = BETAS
) -> Schedule:
    """The steps of an edit, `schedule_of`.

    Raises:
        UserError: the config does not fit a model of these facts.
    """
    check_method(config.method, config.baseline, config.model, facts)
    return schedule_of(config, facts, betas)


def schedule_of(
    config: EditConfig, facts: Facts, betas: tuple[float, float, int] = BETAS
) -> Schedule:
    """The steps of an edit: the config's, and where it leaves them open, the model's.

    Raises:
        UserError: they do not fit each other.
    """
    start = facts.start_timestep if config.start_timestep is None else config.start_timestep
    noise = facts.start_noise if config.start_noise is None else config.start_noise
    boundaries = config.boundaries or facts.boundaries
    guidance = config.cfg_schedule or facts.guidance
    schedule = make_schedule(boundaries, start, guidance, noise, betas)
    config.scales(schedule.steps)
    return schedule


def stacked(trees: Sequence[Any]) -> Any:
    """Trees of one structure as one, with a new first axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def require_finite(finite: jax.Array) -> None:
    """Raise UserError unless all results are."""
    if not np.asarray(finite).all():
        raise UserError(
            "the result came out as NaN or infinity: lower the guidance or the guiders, or use "
            "float32 (--precision.compute float32 --vae-precision.compute float32)"
        )


def placed(weights: Weights, config: EditConfig, mesh: Mesh) -> Weights:
    """Weights on every device, in the config's types; LoRA in float32, rounded if asked for."""

    # On the host: on the device each shape would be a small compilation of its own. One by one: a
    # whole copy of SDXL's would be 5 GB.
    def cast(tree: Any, name: Any) -> Any:
        where = replicated(mesh)
        return jax.tree.map(lambda x: place(np.asarray(x, dtype(name)), where), tree)

    def lora(tree: Any) -> Any:
        tree = jax.tree.map(np.asarray, tree)
        with np.errstate(over="ignore"):
            return cast(round_to_fp16(tree) if config.round_lora else tree, "float32")

    return Weights(
        unet=cast(weights.unet, config.precision.param),
        forward=lora(weights.forward),
        backward=lora(weights.backward),
        vae=cast(weights.vae, config.vae_precision.param),
        text_encoder=cast(weights.text_encoder, config.precision.param),
        text_encoder_2=cast(weights.text_encoder_2, config.precision.param),
    )


def diagnostics(record: StepRecord | None, config: EditConfig) -> dict[str, np.ndarray]:
    """A record by name, on the host."""
    if record is None:
        return {}
    energies = {
        f"energy_{guider.label}": np.asarray(record.energies[:, i])
        for i, guider in enumerate(config.guiders)
    }
    names = ("active", "gradient_norm", "difference_norm", "ratio", "scale")
    return energies | {name: np.asarray(getattr(record, name)) for name in names}
