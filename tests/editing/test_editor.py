"""The editor: its ways to one result agree, and what varies from edit to edit never recompiles."""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ie_jax.editing.config import EditConfig, GuiderConfig, GuiderOptions, RescalingConfig
from ie_jax.editing.editor import (
    Editor,
    EditResult,
    one_each,
    prompt_rows,
)
from ie_jax.editing.program import Program
from ie_jax.errors import UserError
from ie_jax.methods.inverse_and_edit import Inversion
from ie_jax.models.tokenizer import PromptCut
from ie_jax.weights.facts import Facts
from ie_jax.weights.folder import Pipeline
from ie_jax.weights.load import use_compilation_cache
from ie_jax.weights.untrained import RANDOM_CONFIGS, random_pipeline
from tests.tiny import SMALLEST

SOURCE = "a cat on a table"
SIZE = (16, 16)
TARGETS = ["a dog on a table", "a fox", "a cat in the snow"]
GUIDERS = (
    GuiderConfig("self_attn_map_l2", (0.0, 20000.0, 20000.0, 20000.0)),
    GuiderConfig("features_map_l2", 0.5, GuiderOptions(block="mid")),
)


@pytest.fixture(scope="module")
def pipeline(own_home: Path) -> Pipeline:
    """The smallest model with LoRAs that change something."""
    with pytest.MonkeyPatch.context() as patch:
        for part, changes in SMALLEST.items():
            patch.setitem(RANDOM_CONFIGS, part, RANDOM_CONFIGS[part] | changes)
        fresh = random_pipeline()
    rng = np.random.default_rng(0)

    def drawn(lora: Any) -> Any:
        return jax.tree.map(
            lambda x: x if x.any() else rng.normal(0, 0.05, x.shape).astype(np.float32), lora
        )

    weights = fresh.weights.replace(  # type: ignore[attr-defined]
        forward=drawn(fresh.weights.forward), backward=drawn(fresh.weights.backward)
    )
    return replace(fresh, weights=weights)


COMPILED: list[str] = []


@contextmanager
def announce(name: str) -> Iterator[None]:
    """Notes what is compiled."""
    if name.startswith("compile"):
        COMPILED.append(name)
    yield


@pytest.fixture(scope="module")
def plain(pipeline: Pipeline) -> Editor:
    return Editor(pipeline, EditConfig(), announce=announce)


@pytest.fixture(scope="module")
def guided(pipeline: Pipeline) -> Editor:
    return Editor(pipeline, EditConfig(guiders=GUIDERS), announce=announce)


def alike(editor: Editor, pipeline: Pipeline, **changes: Any) -> Editor:
    """An editor with another config that asks for the same programs: those of `editor`."""
    other = Editor(pipeline, replace(editor.config, **changes))
    other.programs = editor.programs
    return other


def picture(seed: int = 0, size: int = 16) -> np.ndarray:
    """Smooth colours."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def inversion(plain: Editor) -> Inversion:
    return plain.invert(picture(), SOURCE)


def assert_close(one: Any, other: Any, tolerance: float = 1e-5) -> None:
    """Relative to the norm."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    assert one.shape == other.shape
    assert np.linalg.norm(one - other) <= tolerance * np.linalg.norm(other)


def assert_same_images(one: np.ndarray, other: np.ndarray) -> None:
    """Truncation to 8 bits may turn a difference in the last place into a whole level."""
    assert one.shape == other.shape and one.dtype == other.dtype == np.uint8
    difference = np.abs(one.astype(int) - other.astype(int))
    assert difference.max() <= 2 and (difference > 0).mean() < 0.02


def assert_same_results(one: EditResult, other: EditResult, edits: Any = np.s_[:, :]) -> None:
    assert_same_images(one.images, other.images[edits])
    assert one.diagnostics.keys() == other.diagnostics.keys()
    for name, x in one.diagnostics.items():
        assert_close(x, other.diagnostics[name][:, *edits], 1e-3)


def distinct(images: np.ndarray) -> bool:
    """Whether no two of (n, height, width, 3) are alike."""
    return all(
        np.abs(a.astype(int) - b.astype(int)).mean() > 0.5
        for i, a in enumerate(images)
        for b in images[:i]
    )


# --- one result by several ways ---


def test_one_call_is_inversion_and_edit(plain: Editor, inversion: Inversion) -> None:
    together, result = plain(picture(), SOURCE, TARGETS)
    jax.tree.map(assert_close, together, inversion)
    assert_same_results(result, plain.edit(inversion, TARGETS))
    assert result.images.shape == (1, 3, 16, 16, 3) and result.diagnostics == {}
    assert distinct(result.images[0])


def test_edits_one_after_the_other_are_those_of_one_call(
    guided: Editor, pipeline: Pipeline
) -> None:
    inversion = guided.invert(picture(), SOURCE)
    each = guided.edit_each(inversion, TARGETS[:2], mask="auto")
    alone = [guided.edit(inversion, target, mask="auto") for target in TARGETS[:2]]
    assert each.masks is not None and each.masks.shape == (1, 2, 16, 16)
    for i, one in enumerate(alone):
        np.testing.assert_array_equal(each.images[:, i : i + 1], one.images)
        np.testing.assert_array_equal(each.masks[:, i : i + 1], one.masks)
        assert one.diagnostics
        for name, x in one.diagnostics.items():
            np.testing.assert_array_equal(each.diagnostics[name][..., i : i + 1], x)


def test_reconstruction_is_an_edit_without_change(plain: Editor, inversion: Inversion) -> None:
    edit = plain.edit(inversion, [SOURCE] * 3, guidance=0.0)
    for image in edit.images[0]:
        assert_same_images(plain.reconstruct(inversion)[0], image)


def test_an_inversion_can_be_edited_again(plain: Editor, inversion: Inversion) -> None:
    first = plain.edit(inversion, TARGETS).images
    np.testing.assert_array_equal(plain.edit(inversion, TARGETS).images, first)
    changed = plain.edit(inversion, TARGETS[::-1]).images
    assert_same_images(changed[:, ::-1], first)


@pytest.mark.long("two guided edits are compiled, of one and of six pictures")
def test_guided_edits_of_a_batch_are_each_alone(guided: Editor) -> None:
    """Every picture and prompt with its own guidance, scales and bounds."""
    pictures = [picture(0), picture(1)]
    sources = [SOURCE, "a house by the sea"]
    targets = [TARGETS, ["a tower by the sea", "a house at night", "a boat"]]
    guidance = np.array([[[0, 7, 11, 19], [0, 3, 5, 7], [1, 2, 0, 4]]]) * np.ones((2, 1, 1))
    scales = np.array([[0, 2e4, 2e4, 2e4], [0.5] * 4]) * np.array([1, 30, 0.1])[None, :, None, None]
    scales = scales * np.array([1, 0.3])[:, None, None, None]
    bounds = np.array([[0, 0.2, 0]] * 2), np.array([[1, 3, 0.1]] * 2)
    batch = guided.invert(pictures, sources)
    together = guided.edit(batch, targets, guidance, scales, bounds)
    assert distinct(together.images.reshape(6, 16, 16, 3))
    noise = guided.noise(np.stack(pictures), None)
    for i in range(2):
        alone = guided.invert(pictures[i], sources[i], noise=noise[i : i + 1])
        assert_close(alone.latents, batch.latents[:, i : i + 1])
        for j in range(3):
            at = np.s_[i : i + 1, j : j + 1]
            strengths = guidance[at], scales[at], (bounds[0][at], bounds[1][at])
            one = guided.edit(alone, targets[i][j], *strengths)
            assert_same_results(one, together, at)


def test_one_prompt_or_row_serves_all(plain: Editor, inversion: Inversion) -> None:
    rows = plain.edit_arguments(2, SIZE, [["a", "b"], ["a", "b"]])[0]
    np.testing.assert_array_equal(plain.edit_arguments(2, SIZE, ["a", "b"])[0], rows)
    one = plain.edit_arguments(1, SIZE, "a", guidance=np.zeros((1, 3, 4)))[0]
    np.testing.assert_array_equal(one, plain.edit_arguments(1, SIZE, ["a", "a", "a"])[0])


def test_low_rank_paths_are_the_merged_weights(
    plain: Editor, pipeline: Pipeline, inversion: Inversion
) -> None:
    def latents(editor: Editor) -> tuple[jax.Array, jax.Array]:
        ids = editor.ids([SOURCE])
        targets, *rest = editor.edit_arguments(1, SIZE, TARGETS, guidance=2.0)
        pixels = picture()[None]
        inversion, edit = editor.programs["invert and edit"](
            editor.weights, pixels, ids, targets, editor.noise(pixels, None), *rest
        )
        return inversion.latents, edit.latents

    beside = Editor(pipeline, EditConfig(lora="low_rank"))
    for one, other in zip(latents(beside), latents(plain), strict=True):
        assert_close(one, other, 1e-5)


# --- what changes nothing but values ---


@contextmanager
def nothing_compiled() -> Iterator[None]:
    """Fails if anything at all is traced or compiled inside, down to single operations."""
    events: list[str] = []

    def note(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if "trace" in event or "compile" in event:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    before = list(COMPILED)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert before == COMPILED and events == []


def test_values_never_recompile(guided: Editor) -> None:
    def run(i: int) -> tuple[Inversion, EditResult]:
        inversion = guided.invert(picture(i), f"source {i}", seed=i)
        edit = guided.edit(
            inversion,
            f"target {i}",
            guidance=[0, 1 + i, 2 + i, 3],
            scales=np.full((2, 4), 10.0 + i),
            bounds=(0.1 * i, 2 + i),
        )
        return inversion, edit

    first, _ = run(1)
    with nothing_compiled():
        second, _ = run(2)
    assert not np.allclose(first.latents, second.latents)


def test_the_counter_counts() -> None:
    with pytest.raises(AssertionError), nothing_compiled():
        jax.jit(lambda x: x + 1)(1.0)


def test_weights_are_arguments(plain: Editor, pipeline: Pipeline, inversion: Inversion) -> None:
    """Other weights give another result with the compiled program."""
    other = alike(plain, pipeline)
    other.weights = jax.tree.map(lambda x: 0.9 * x, plain.weights)
    first = plain.edit(inversion, TARGETS).images
    before = list(COMPILED)
    assert distinct(np.stack([first[0, 0], other.edit(inversion, TARGETS).images[0, 0]]))
    assert before == COMPILED


# --- settings ---


def test_the_seed_draws_the_noise(plain: Editor, pipeline: Pipeline, inversion: Inversion) -> None:
    again = plain.invert(picture(), SOURCE, seed=plain.config.seed)
    np.testing.assert_array_equal(again.latents, inversion.latents)
    other = plain.invert(picture(), SOURCE, seed=1)
    np.testing.assert_array_equal(other.latents[0], inversion.latents[0])
    assert np.abs(other.latents[1] - inversion.latents[1]).max() > 1e-3
    configured = alike(plain, pipeline, seed=1).invert(picture(), SOURCE)
    np.testing.assert_array_equal(configured.latents, other.latents)


def test_without_start_noise_the_seed_is_nothing(
    plain: Editor, pipeline: Pipeline, inversion: Inversion
) -> None:
    quiet = alike(plain, pipeline, start_noise=False)
    one, other = (quiet.invert(picture(), SOURCE, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(one.latents, other.latents)
    assert np.abs(one.latents[1] - inversion.latents[1]).max() > 1e-3


def test_the_grid_of_the_config_goes_before_the_models(pipeline: Pipeline) -> None:
    config = EditConfig(boundaries=(249, 499, 699, 999), start_timestep=0)
    trained = replace(pipeline, facts=Facts(19, (259, 519, 779, 999), (0.0, 2.0, 3.0, 5.0)))
    editor = Editor(trained, config)
    assert editor.schedule.forward_t.tolist() == [0, 249, 499, 699]
    editor = Editor(trained)
    assert editor.schedule.forward_t.tolist() == [19, 259, 519, 779]
    assert editor.schedule.guidance.tolist() == [0, 2, 3, 5]
    with pytest.raises(UserError, match="cfg_schedule has 2 values, but there are 4 steps"):
        Editor(pipeline, EditConfig(cfg_schedule=(0, 7)))


def test_statistics_are_matched_where_asked_for(
    plain: Editor, pipeline: Pipeline, inversion: Inversion
) -> None:
    def gaps(editor: Editor) -> tuple[float, float]:
        image = editor.edit(inversion, TARGETS).images[0, 0].astype(float)
        source = picture().astype(float)
        return abs(image.mean() - source.mean()), abs(image.std() - source.std())

    assert max(gaps(plain)) < 4
    assert max(gaps(alike(plain, pipeline, match_statistics=False))) > 5


def test_the_identity_rescaler_leaves_the_gradient(guided: Editor, pipeline: Pipeline) -> None:
    setup = RescalingConfig("identity_rescaler")
    identity = alike(guided, pipeline, noise_rescaling_setup=setup)
    inversion = guided.invert(picture(), SOURCE)
    free = identity.edit(inversion, TARGETS[0]).diagnostics
    np.testing.assert_allclose(free["scale"], 1, rtol=1e-6)
    bound = guided.edit(inversion, TARGETS[0], bounds=(0.0, 1e-4)).diagnostics
    assert free["ratio"][1] > 1e-4
    np.testing.assert_allclose(bound["scale"] * bound["ratio"], 1e-4, rtol=1e-4)


def test_diagnostics_of_each_step(guided: Editor) -> None:
    inversion = guided.invert(picture(), SOURCE)
    told = guided.edit(inversion, TARGETS[0]).diagnostics
    assert {name: x.shape for name, x in told.items()} == {
        name: (4, 1, 1)
        for name in (
            "energy_self_attn_map_l2",
            "energy_features_map_l2_mid",
            "active",
            "gradient_norm",
            "difference_norm",
            "ratio",
            "scale",
        )
    }
    ratio = told["gradient_norm"] / told["difference_norm"]
    np.testing.assert_allclose(told["ratio"], ratio, rtol=1e-5)
    np.testing.assert_allclose(told["scale"], np.clip(ratio, 0, 1) / ratio, rtol=1e-5)
    without = guided.edit(inversion, TARGETS[0], scales=0.0 * np.zeros((2, 4)))
    assert not without.diagnostics["active"].any() and told["active"].all()


def test_compiled_programs_are_kept_where_the_user_has_not_chosen(
    own_home: Path,
) -> None:
    chosen = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == chosen  # type: ignore[attr-defined]
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        use_compilation_cache()
        kept = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
        assert kept == str(own_home / "compiled")
    finally:
        jax.config.update("jax_compilation_cache_dir", chosen)


def test_low_precision_weights_are_placed_as_asked(pipeline: Pipeline) -> None:
    config = EditConfig()
    config = replace(
        config,
        precision=replace(config.precision, param="bfloat16"),
        vae_precision=replace(config.vae_precision, param="float16"),
    )
    weights = Editor(pipeline, config).weights
    assert {x.dtype for x in jax.tree.leaves((weights.unet, weights.text_encoder))} == {
        jnp.dtype("bfloat16")
    }
    assert {x.dtype for x in jax.tree.leaves(weights.vae)} == {jnp.dtype("float16")}
    loras = jax.tree.leaves((weights.forward, weights.backward))
    assert {x.dtype for x in loras} == {jnp.dtype("float32")}
    assert all((x == x.astype("float16")).all() for x in loras)
    exact = Editor(pipeline, EditConfig(round_lora=False)).weights
    jax.tree.map(np.testing.assert_array_equal, exact.forward, pipeline.weights.forward)


def test_a_guider_of_a_missing_block_is_refused(pipeline: Pipeline) -> None:
    """The smallest UNet has one down block."""
    guider = GuiderConfig("features_map_l2", 1.0, GuiderOptions(block="down"))
    editor = Editor(pipeline, EditConfig(guiders=(guider,)))
    with pytest.raises(UserError, match="no features named 'down'"):
        editor(picture(), SOURCE, TARGETS)


# --- what is refused ---


def test_a_result_of_nan_is_refused(plain: Editor, pipeline: Pipeline) -> None:
    """Wherever the NaN comes from: inversion, generation or the decoder alone."""
    inversion = plain.invert(picture(), SOURCE)
    for part, spoilt in (("forward", 3), ("backward", 2), ("vae", 2)):
        broken = alike(plain, pipeline)
        tree = getattr(plain.weights, part)
        if part == "vae":
            decoder = jax.tree.map(lambda x: x * jnp.nan, tree["decoder"])
            tree = tree | {"decoder": decoder}
        else:
            tree = jax.tree.map(lambda x: x * jnp.nan, tree)
        broken.weights = plain.weights.replace(**{part: tree})  # type: ignore[attr-defined]
        start = broken.invert(picture(), SOURCE) if spoilt == 3 else inversion
        for result in (
            lambda broken=broken, start=start: broken.edit(start, TARGETS),
            lambda broken=broken, start=start: broken.reconstruct(start),
        ):
            with pytest.raises(UserError, match="came out as NaN or infinity"):
                result()


def test_running_out_of_memory_is_told_in_one_line() -> None:
    def wide(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x, (1 << 45,)) + 1

    with pytest.raises(UserError, match="wide: out of memory: take a smaller --size"):
        Program("wide", wide, announce)(jnp.ones(1))


@pytest.fixture
def interrupts() -> Iterator[None]:
    """SIGINT as users have it: workers of the tests ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_an_interruption_is_heard_while_a_program_compiles() -> None:
    """The call that stands for the compiler runs in C and looks at no signal."""

    class Slow:
        def lower(self, *_: object) -> "Slow":
            return self

        def compile(self) -> None:
            hashlib.pbkdf2_hmac("sha256", b"", b"", 8_000_000)

    program = Program("slow", jnp.sin, announce)
    program.jitted = Slow()  # type: ignore[assignment]
    asked = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    start = time.monotonic()
    asked.start()
    with pytest.raises(KeyboardInterrupt):
        program(jnp.ones(1))
    assert time.monotonic() - start < 1.5


def test_threads_that_want_one_program_compile_it_once() -> None:
    begun = threading.Event()
    lowered = []

    class Slow:
        def lower(self, *args: object) -> "Slow":
            lowered.append(args)
            begun.set()
            time.sleep(0.2)
            return self

        def compile(self) -> Any:
            return jnp.sin

    program = Program("slow", jnp.sin, announce)
    program.jitted = Slow()  # type: ignore[assignment]
    first = threading.Thread(target=program.prepare, args=(jnp.ones(1),))
    first.start()
    assert begun.wait(10)
    np.testing.assert_array_equal(program(jnp.ones(1)), jnp.sin(jnp.ones(1)))
    first.join()
    assert len(lowered) == 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((64, 64, 3), np.float32), "must be uint8 .*, not float32"),
        (np.zeros((64, 64), np.uint8), "must be uint8"),
        (np.zeros((64, 64, 4), np.uint8), "must be uint8"),
        (np.zeros((0, 16, 3), np.uint8), "sides 16x0 must divide by 1"),
        ([], "no images"),
        (np.zeros((0, 16, 16, 3), np.uint8), "no images"),
        ([picture(), picture(size=128)], "one size"),
        ("no such file.png", "no such file.png: cannot be read"),
        (None, "must be uint8"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(plain: Editor, image: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plain.invert(image, SOURCE)


def test_sides_must_fit_all_levels_of_the_networks(own_home: Path) -> None:
    with pytest.raises(UserError, match="sides 64x60 must divide by 8"):
        Editor(random_pipeline()).invert(np.zeros((60, 64, 3), np.uint8), SOURCE)


def test_every_form_of_a_picture_is_taken(plain: Editor, tmp_path: Path) -> None:
    image = Image.fromarray(picture())
    image.save(tmp_path / "photo.png")
    for form in (picture(), image, image.convert("RGBA"), tmp_path / "photo.png"):
        np.testing.assert_array_equal(plain.batch([form]), [picture()])
    np.testing.assert_array_equal(plain.batch(str(tmp_path / "photo.png")), [picture()])
    np.testing.assert_array_equal(plain.batch(picture()[None]), [picture()])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("", "must be texts and not empty"),
        (["a", "  "], "must be texts and not empty"),
        ([], "one row of equal length per image, 1 in all"),
        ([["a"], ["b"]], "one row of equal length per image, 1 in all"),
        ([["a", "b"], ["c"]], "one row of equal length per image, 1 in all"),
        ([[]], "one row of equal length per image, 1 in all"),
    ],
)
def test_target_prompts_that_do_not_fit_are_refused(
    plain: Editor, inversion: Inversion, prompts: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plain.edit(inversion, prompts)


def test_source_prompts_that_do_not_fit_are_refused(plain: Editor) -> None:
    with pytest.raises(UserError, match="2 source prompts for 1 images"):
        plain.invert(picture(), ["a", "b"])
    with pytest.raises(UserError, match="1 source prompts for 2 images"):
        plain.invert([picture(), picture()], ["a"])


@pytest.mark.parametrize(
    "strength",
    [
        {"guidance": [1, 2, 3]},
        {"guidance": np.zeros((1, 2, 4))},
        {"guidance": np.zeros((2, 3, 4))},
        {"guidance": np.zeros((1, 1, 3, 4))},
        {"scales": np.zeros((3, 4))},
        {"scales": np.zeros((1, 2, 2, 4))},
        {"scales": [1, 2, 3]},
        {"bounds": (np.zeros((1, 2)), 1)},
        {"bounds": (0, np.zeros((2, 3)))},
    ],
)
def test_strengths_of_other_shapes_are_refused(guided: Editor, strength: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="do not broadcast to 1 images, 3 edits, 2 guiders"):
        guided.edit_arguments(1, SIZE, TARGETS, **strength)


def test_a_long_prompt_is_cut_with_a_warning(plain: Editor, inversion: Inversion) -> None:
    # Each letter is a token of the random model; start and end are one each.
    words = " ".join(f"w{i:02}" for i in range(40))
    with pytest.warns(
        PromptCut, match="has 122 tokens and is cut to 77, after the word 'w24'"
    ) as caught:
        plain.edit(inversion, [words, *TARGETS[1:]])
    assert len(caught) == 1


NO_PROMPTS: list[Any] = ["", " ", None, 3, [""], ["a cat", None], [None], [["a cat"], [""]]]


@pytest.mark.parametrize("prompts", NO_PROMPTS)
def test_prompts_must_say_something(prompts: Any) -> None:
    rows = 2 if isinstance(prompts, list) and len(prompts) == 2 else 1
    with pytest.raises(UserError, match="must be texts and not empty"):
        prompt_rows(prompts, rows)
    with pytest.raises(UserError, match="must be texts and not empty"):
        one_each(prompts, 1, "source prompts")


# --- masks and strength ---


def test_a_mask_keeps_what_lies_outside(
    plain: Editor, pipeline: Pipeline, inversion: Inversion
) -> None:
    left = np.zeros((16, 16), bool)
    left[:, :8] = True
    editor = alike(plain, pipeline, mask_feather=0.0)
    found = editor.edit(inversion, TARGETS[:2], mask=left)
    free = editor.edit(inversion, TARGETS[:2])
    assert found.masks is not None and free.masks is None
    np.testing.assert_array_equal(found.masks, np.broadcast_to(left, found.masks.shape))
    source = np.broadcast_to(picture(), found.images[0].shape)
    np.testing.assert_array_equal(found.images[0, :, :, 8:], source[:, :, 8:])
    assert (found.images[0, :, :, :8] != source[:, :, :8]).mean() > 0.5
    # What lets everything change changes nothing; and no mask is compiled for.
    count = len(COMPILED)
    everything = editor.edit(inversion, TARGETS[:2], mask=np.ones((16, 16)))
    assert_same_images(everything.images, free.images)
    auto = editor.edit(inversion, TARGETS[:2], mask="auto")
    assert auto.masks is not None and 0 < auto.masks.mean() < 1
    assert len(COMPILED) == count
    outside = ~auto.masks[0]
    np.testing.assert_array_equal(auto.images[0][outside], source[outside])


def test_strength_goes_from_the_reconstruction_to_the_edit(
    plain: Editor, inversion: Inversion
) -> None:
    swept = plain.edit(inversion, TARGETS[0], strength=[0.0, 0.5, 1.0]).images[0]
    assert_same_images(swept[:1], plain.reconstruct(inversion))
    whole = plain.edit(inversion, [TARGETS[0]] * 3).images[0]
    assert_same_images(swept[2:], whole[:1])
    assert (swept[1] != swept[0]).any() and (swept[1] != swept[2]).any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mask": "car"}, "a mask must be 'auto' or an array"),
        ({"mask": np.ones((8, 8))}, r"a mask must be 'auto' or an array \(16, 16\)"),
        ({"mask": np.zeros((16, 16))}, "black everywhere"),
        ({"mask": ["auto", "auto"]}, "2 masks for 1 images"),
        ({"strength": 1.5}, "strength 1.5 must be from 0 to 1"),
        ({"strength": [0, np.nan]}, "must be from 0 to 1"),
    ],
)
def test_masks_and_strengths_that_cannot_be(
    plain: Editor, inversion: Inversion, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plain.edit(inversion, TARGETS[0], **given)
