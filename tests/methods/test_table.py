"""Every method is one program: it takes batches, and no value recompiles it."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from ie_jax.editing.config import EditConfig
from ie_jax.editing.editor import Editor
from ie_jax.errors import UserError
from ie_jax.methods.settings import MethodConfig, Settings, numbers_of, size_of
from ie_jax.methods.table import METHODS, settled
from ie_jax.weights.folder import Pipeline
from ie_jax.weights.untrained import RANDOM_CONFIGS, random_pipeline
from tests.conftest import ROOT
from tests.tiny import SMALLEST

WHOLE = dict(RANDOM_CONFIGS)
SHORT = MethodConfig(steps=2, inner_steps=2, first_step=0, first_layer=0, guidance=2.0)


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    with pytest.MonkeyPatch.context() as patch:
        for part, changes in SMALLEST.items():
            patch.setitem(RANDOM_CONFIGS, part, RANDOM_CONFIGS[part] | changes)
        found = random_pipeline()
        rng = np.random.default_rng(0)

        def moved(tree: Any) -> Any:
            """Random LoRAs change nothing as they are drawn."""
            return jax.tree.map(
                lambda x: x + 0.05 * rng.standard_normal(x.shape).astype(np.float32), tree
            )

        weights = found.weights
        loras = {"forward": moved(weights.forward), "backward": moved(weights.backward)}
        yield replace(found, weights=replace(weights, **loras))


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """The random model with all levels: the smallest has no maps of words, nor features above."""
    for part, config in WHOLE.items():
        monkeypatch.setitem(RANDOM_CONFIGS, part, config)
    return random_pipeline()


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 16, 16, 3), np.uint8)


FAST = ("ddim", "p2p", "masactrl", "icd")
"""What `make test` compiles; the others are shown by `make slow`."""


@pytest.mark.parametrize(
    "name", [x if x in FAST else pytest.param(x, marks=pytest.mark.slow) for x in METHODS]
)
def test_a_method_takes_batches_and_no_value_recompiles_it(name: Any, pipeline: Pipeline) -> None:
    short = replace(SHORT, steps=3) if name == "turboedit" else SHORT
    config = EditConfig("random", method=name, baseline=short, match_statistics=False)
    editor = Editor(pipeline, config)
    images, sources = pictures(2), ["a cat", "a red house"]
    targets = [["a dog", "a cat"], ["a blue house", "a red tree"]]
    both = editor.apply(images, sources, targets)
    assert both.pixels.shape == (2, 2, 16, 16, 3) and bool(np.all(both.finite))
    first = np.asarray(both.latents)
    assert np.abs(first[0, 0, 0] - first[0, 0, 1]).max() > 1e-4  # prompts count
    # An image's edits depend on no other image of its batch.
    swapped = editor.apply(images[::-1], sources[::-1], targets[::-1])
    np.testing.assert_allclose(np.asarray(swapped.latents)[:, ::-1], first, rtol=2e-3, atol=2e-3)
    program = editor.programs[name]
    changed = replace(short, guidance=3.0, interpolation=0.5, first_step=1, cross_steps=1.0)
    editor.config = replace(config, baseline=replace(changed, layout=1.0, appearance=1.0))
    other = editor.apply(images, sources, [["a fox", "a cat"], ["a hat", "a tree"]], seed=4)
    assert len(program.compiled) == 1
    assert np.abs(np.asarray(other.latents) - first).max() > 1e-4


def test_numbers_have_one_shape_whatever_they_are() -> None:
    settings = settled("p2p", SHORT), settled("ddim", replace(SHORT, layout=7.0, bounds=(0.1, 9.0)))
    one, other = map(numbers_of, settings)
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (one, other)]
    assert shapes[0] == shapes[1]


def test_what_is_not_given_is_as_published() -> None:
    assert settled("ddim", MethodConfig()) == Settings()
    found = settled("infedit", MethodConfig(guidance=4.0))
    assert (found.steps, found.guidance, found.cross_steps) == (12, 4.0, 0.7)
    assert METHODS["infedit"].evaluations(found) == 72
    assert settled("renoise", MethodConfig()).guidance == 1
    assert METHODS["renoise"].evaluations(settled("renoise", MethodConfig())) == 213


def test_a_style_has_settings_of_its_own() -> None:
    found = settled("guide-and-rescale", MethodConfig(style=True, layout=7.0))
    assert (found.layout, found.appearance, found.guided_steps) == (7.0, 2.5, 0.5)
    assert found.bounds == (1.5, 1.5) and size_of(found).style
    plain = settled("guide-and-rescale", MethodConfig())
    assert (plain.layout, plain.appearance, plain.bounds) == (3e5, 500.0, (1 / 3, 3.0))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"steps": 0}, "steps 0 must be from 1 to 1000"),
        ({"cross_steps": 1.5}, "shares, from 0 to 1"),
        ({"inner_steps": 0}, "inner_steps must be 1 or more"),
        ({"bounds": (2.0, 1.0)}, "0 <= lower <= upper"),
        ({"highest": 1.5}, "highest over 0 and at most 1"),
        ({"blend": ("", "")}, "blend needs a word"),
        ({"prior": -1.0}, "prior must not be negative"),
    ],
)
def test_nonsense_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        MethodConfig(**settings)


def test_a_blend_holds_the_result_to_the_source_but_around_its_words(whole: Pipeline) -> None:
    def config(threshold: float) -> EditConfig:
        baseline = replace(SHORT, blend=("cat", "dog"), blend_threshold=threshold)
        return EditConfig("random", method="icd", baseline=baseline, match_statistics=False)

    photo = np.random.default_rng(1).integers(0, 256, (1, 32, 64, 3), np.uint8)

    def latents(editor: Editor) -> np.ndarray:
        found = editor.apply(photo, "a cat", [["a dog", "a red dog"]]).latents
        return np.asarray(found)[0, 0]

    editor = Editor(whole, config(2.0))
    plain, red = latents(editor)  # nothing has twice the words' largest attention
    np.testing.assert_allclose(plain, red, atol=1e-5)
    editor.config = config(-1.0)
    plain, red = latents(editor)
    assert np.abs(plain - red).max() > 1e-3
    assert len(editor.programs["icd"].compiled) == 1  # words and thresholds are arrays


@pytest.mark.slow
def test_infedit_differs_around_its_word_alone(whole: Pipeline) -> None:
    def config(word: str, threshold: float) -> EditConfig:
        baseline = replace(SHORT, steps=4, blend=("cat", word), blend_threshold=threshold)
        return EditConfig("random", method="infedit", baseline=baseline, match_statistics=False)

    def latents(editor: Editor) -> np.ndarray:
        photo = np.random.default_rng(1).integers(0, 256, (1, 32, 64, 3), np.uint8)
        return np.asarray(editor.apply(photo, "a cat", "a red dog").latents)

    editor = Editor(whole, config("dog", 2.0))
    nowhere = latents(editor)  # nothing has twice the word's largest attention
    editor.config = config("red", 2.0)
    np.testing.assert_array_equal(latents(editor), nowhere)
    editor.config = config("red", 0.0)
    assert np.abs(latents(editor) - nowhere).max() > 1e-3
    assert len(editor.programs["infedit"].compiled) == 1


@pytest.mark.slow
def test_a_style_is_another_edit(whole: Pipeline) -> None:
    photo = np.random.default_rng(1).integers(0, 256, (1, 32, 64, 3), np.uint8)

    def latents(style: bool) -> np.ndarray:
        short = replace(SHORT, layout=1e3, appearance=1e3, guided_steps=1.0, bounds=(0.5, 9.0))
        baseline = replace(short, style=style)
        config = EditConfig("random", method="guide-and-rescale", baseline=baseline)
        return np.asarray(Editor(whole, config).apply(photo, "a cat", "a dog").latents)

    assert np.abs(latents(True) - latents(False)).max() > 1e-3


@pytest.mark.parametrize(
    ("method", "blend", "told"),
    [
        ("p2p", ("lion", "dog"), "'lion' is no word of 'a cat'"),
        ("icd", ("cat", "do"), "'do' is no word of 'a dog'"),
        ("masactrl", ("cat", "dog"), "blend is for p2p, .*, not masactrl"),
    ],
)
def test_a_blend_without_its_words_is_told(
    method: Any, blend: tuple[str, str], told: str, pipeline: Pipeline
) -> None:
    baseline = replace(SHORT, blend=blend)
    editor = Editor(pipeline, EditConfig("random", method=method, baseline=baseline))
    with pytest.raises(UserError, match=told):
        editor.apply(pictures(1), "a cat", "a dog")


def test_prompts_that_do_not_suit_replacement_are_told(pipeline: Pipeline) -> None:
    baseline = replace(SHORT, words="replace")
    editor = Editor(pipeline, EditConfig("random", method="p2p", baseline=baseline))
    with pytest.raises(UserError, match="replace needs prompts of equally many words"):
        editor.apply(pictures(1), "a cat", "a big dog")


def test_the_example_of_a_gradient_works(pipeline: Pipeline) -> None:
    text = (ROOT / "docs" / "method.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    space = {"editor": Editor(pipeline, EditConfig("random")), "photo": pictures(1)[0]}
    exec(compile(code, "docs/method.md", "exec"), space)
    gradient = np.asarray(space["gradient"])
    assert gradient.shape == (1, 16, 16, 3)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_the_example_of_a_new_method_works(pipeline: Pipeline, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "methods.md").read_text().partition("## A new method")[2]
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    space: dict[str, Any] = {"pipeline": pipeline, "photo": pictures(1)[0]}
    methods = dict(METHODS)
    try:
        exec(compile(code, "docs/methods.md", "exec"), space)
    finally:
        METHODS.clear()
        METHODS.update(methods)
    assert space["edit"].pixels.shape == (1, 1, 16, 16, 3)
