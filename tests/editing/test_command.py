"""The command as a user meets it: what it writes, and what it says when it cannot."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from ie_jax import products
from ie_jax.cli import run
from ie_jax.config import build
from ie_jax.data.images import preprocess, read_rgb
from ie_jax.editing import command as edit_command
from ie_jax.editing.command import edit
from ie_jax.editing.config import EditConfig
from ie_jax.progress import WAIT
from ie_jax.weights.facts import Facts
from ie_jax.weights.formats import read_tensors
from ie_jax.weights.published import FINE_TUNED
from ie_jax.weights.untrained import RANDOM_CONFIGS
from tests.tiny import SMALLEST
from tests.weights.server import TEACHER

ROOT = Path(__file__).parents[2]
PROMPTS = ("--source", "a cat", "--target", "a dog")


@pytest.fixture(scope="module", autouse=True)
def started() -> Iterator[None]:
    """JAX runs before output is captured, and `random` is the smallest model, of 16 pixels."""
    jax.devices()
    with pytest.MonkeyPatch.context() as patch:
        for part, changes in SMALLEST.items():
            patch.setitem(RANDOM_CONFIGS, part, RANDOM_CONFIGS[part] | changes)
        yield


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small photo in the folder where the command runs."""
    monkeypatch.chdir(tmp_path)
    gradient = np.linspace(0, 255, 90 * 120 * 3).reshape(90, 120, 3).astype(np.uint8)
    Image.fromarray(gradient).save(tmp_path / "photo.jpg")
    return "photo.jpg"


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str, str]]:
    """Runs the command on the random model; exit status, standard output, standard error."""

    def call(*argv: str) -> tuple[Any, str, str]:
        capfd.readouterr()
        if not {"--model", "--config"} & set(argv):
            argv = ("--model", "random", *argv)
        with warnings.catch_warnings(), pytest.raises(SystemExit) as caught:
            warnings.simplefilter("default", UserWarning)
            run(edit, argv)
        return caught.value.code, *capfd.readouterr()

    return call


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


# --- what it writes ---


def test_masks_and_strengths(photo: str, tmp_path: Path, command: Any) -> None:
    """The mask that was found is written, and can be given back; strengths make a strip."""
    argv = ["--image", photo, *PROMPTS, "--mask-feather", "0", "--quiet"]
    status, out, _ = command(*argv, "--mask", "auto", "--output", "a.png")
    assert status == 0 and "a-mask.png" in out
    assert set(json.loads((tmp_path / "a.json").read_text())["outputs"]) == {"a.png", "a-mask.png"}
    with Image.open(tmp_path / "a-mask.png") as mask:
        white = np.asarray(mask.convert("L")) > 0
    assert 0 < white.mean() < 1
    status, out, _ = command(
        *argv, "--mask", "a-mask.png", "--strength", "0", "0.5", "1", "--output", "b.png"
    )
    assert status == 0
    results = {"b-1.png", "b-2.png", "b-3.png", "b-side-by-side.png"}
    assert set(json.loads((tmp_path / "b.json").read_text())["outputs"]) == results
    source = preprocess(read_rgb(Path(photo), photo), 16)
    for name in ("b-1.png", "b-3.png"):
        with Image.open(tmp_path / name) as result:
            pixels = np.asarray(result)
        np.testing.assert_array_equal(pixels[~white], source[~white])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--mask", "photo.jpg", "--output", "photo.jpg"], "is what is to be edited"),
        (["--mask", "none.png"], "none.png"),
        (["--mask", "auto", "--method", "ddim"], "--mask is of our method, not of ddim"),
        (["--strength", "0.5", "--method", "ddim"], "--strength is of our method"),
        (["--strength", "2"], "strength [2.0] must be one or more numbers from 0 to 1"),
        (["--mask-feather", "-1"], "mask_feather -1.0 must be from 0 to 1"),
    ],
)
def test_masks_that_cannot_be(photo: str, argv: list[str], message: str, command: Any) -> None:
    status, _, err = command("--image", photo, *PROMPTS, "--quiet", *argv)
    assert status == 2 and message in err and len(err.strip().splitlines()) == 1


def test_one_target_with_settings_of_a_file_and_the_command_line(
    photo: str, tmp_path: Path, command: Any
) -> None:
    (tmp_path / "settings.yaml").write_text("model: random\nseed: 3\ncfg_schedule: [0, 1, 2, 3]\n")
    long = "dog " * 50
    argv = ["--image", photo, "--source", "a cat", "--target", long, "--output", "out.webp"]
    status, out, err = command(*argv, "--config", "settings.yaml", "--seed", "5", "--quiet")
    assert status == 0
    # Each letter is a token of the random model: 75 of them are 25 dogs.
    cut = "the prompt has 152 tokens and is cut to 77, after the word 'dog'"
    assert err == f"warning: {cut}\n"
    assert "UNTRAINED" in out and out.splitlines()[-1] == "wrote out.webp out.json"
    assert files(tmp_path) == {"photo.jpg", "settings.yaml", "out.webp", "out.json"}
    assert size(tmp_path / "out.webp") == (16, 16)

    record = json.loads((tmp_path / "out.json").read_text())
    config = EditConfig("random", seed=5, cfg_schedule=(0, 1, 2, 3))
    assert build(EditConfig, record["config"], "out.json") == config
    assert record["request"]["target"] == [long] and record["request"]["image"] == photo
    assert record["given"] == ["image", "source", "target", "output", "seed", "quiet"]
    assert record["diagnostics"] == {}
    assert record["seconds"].keys() >= {"load random", "invert", "edit"}
    assert set(record["versions"]) == {"ie_jax", "jax", "jaxlib", "flax", "python"}
    assert record["device"]["platform"] == jax.default_backend()


@pytest.mark.long("an edit with two targets is compiled")
def test_several_targets_are_numbered_and_laid_side_by_side(
    photo: str, tmp_path: Path, command: Any
) -> None:
    targets = ["--target", "a dog", "a fox"]
    status, out, err = command(
        "--image", photo, "--source", "a cat", *targets, "--side-by-side", "--output", "x.png"
    )
    assert status == 0
    written = ["x-1.png", "x-2.png", "x-side-by-side.png", "x.json"]
    assert out.splitlines()[-1] == f"wrote {' '.join(written)}"
    assert files(tmp_path) == {photo, *written}
    one, two = (np.asarray(Image.open(tmp_path / name)) for name in written[:2])
    assert np.abs(one.astype(int) - two.astype(int)).mean() > 0.1
    assert size(tmp_path / written[2]) == (4 * 80 + 5 * 8, size(tmp_path / written[2])[1])
    stages = ("load random", "compile invert", "invert", "compile edit", "edit")
    waits = {name: WAIT if name.startswith("compile") else "" for name in stages}
    lines = [line for name in stages for line in (f"{name}{waits[name]} ...", name)]
    assert [line.rpartition(":")[0] or line for line in err.splitlines()][:10] == lines


def test_reconstruction(photo: str, tmp_path: Path, command: Any) -> None:
    argv = ("--image", photo, "--source", "a cat", "--reconstruct", "--output", "out.png")
    status, out, _ = command(*argv)
    assert status == 0 and out.splitlines()[-1] == "wrote out.png out.json"
    assert files(tmp_path) == {photo, "out.png", "out.json"}
    assert size(tmp_path / "out.png") == (16, 16)


@pytest.mark.parametrize("name", ["photo.jpg", "./photo.jpg", "other.png", "PHOTO.JSON"])
def test_files_of_a_person_are_kept(name: str, photo: str, tmp_path: Path, command: Any) -> None:
    """Neither the photo itself, nor another picture, nor a JSON beside it, as annotation tools keep
    them, is replaced."""
    Image.new("RGB", (9, 9)).save(tmp_path / "other.png")
    record = tmp_path / "photo.json"
    if name == "PHOTO.JSON":
        record.write_text('{"shapes": []}')
        name = "photo.png"
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    status, out, err = command("--image", photo, *PROMPTS, "--output", name)
    assert (status, out) == (2, "") and "--overwrite" in err.splitlines()[-1]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_result_is_replaced_by_the_next_and_a_photo_if_asked(
    photo: str, tmp_path: Path, command: Any
) -> None:
    argv = ("--image", photo, "--source", "a cat", "--reconstruct", "--quiet")
    for seed in ("1", "2"):
        assert command(*argv, "--output", "out.png", "--seed", seed)[0] == 0
    assert json.loads((tmp_path / "out.json").read_text())["config"]["seed"] == 2
    assert command(*argv, "--output", photo, "--overwrite")[0] == 0
    assert size(tmp_path / photo) == (16, 16)


def test_a_toy_says_so_before_it_edits_a_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Facts(data="world")
    (only,) = edit_command.advice(world, False)
    assert "not photos" in only and "--model sd15" in only
    monkeypatch.setattr(edit_command, "is_fetched", lambda name: name == "icd-sd15")
    assert "--model icd-sd15" in edit_command.advice(world, False)[1]
    assert len(edit_command.advice(world, True)) == 1
    assert edit_command.advice(Facts(), False) == edit_command.advice(Facts(), True) == []


def outside(*argv: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command as a program of its own."""
    program = [sys.executable, str(ROOT / "edit.py"), *argv]
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False)
    # XLA's own lines, which it writes where its GPU plugin is installed and CUDA is not.
    own = ("absl::InitializeLog", "cudart_stub")
    lines = [x for x in done.stderr.splitlines() if not any(word in x for word in own)]
    done.stderr = "\n".join(lines)
    return done


@pytest.mark.slow
def test_without_an_image_a_guided_demonstration(tmp_path: Path) -> None:
    argv = ["--config", str(ROOT / "configs" / "random.yaml"), "--output", "demo.png"]
    done = outside(*argv, folder=tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "wrote demo.png demo.json"
    assert all(line.endswith((" s", "...")) for line in done.stderr.splitlines())
    assert files(tmp_path) == {"demo.png", "demo.json"}
    assert size(tmp_path / "demo.png")[0] == 3 * 80 + 4 * 8
    record = json.loads((tmp_path / "demo.json").read_text())
    assert np.shape(record["diagnostics"]["energy_features_map_l2"]) == (4, 1, 1)
    assert np.isfinite(record["diagnostics"]["scale"]).all()


def test_a_mistake_outside(tmp_path: Path) -> None:
    done = outside("--image", "none.png", *PROMPTS, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: none.png: cannot be read: No such file or directory"
    assert not any(tmp_path.iterdir())


# --- what it refuses ---


@pytest.fixture
def refused(command: Any, tmp_path: Path) -> Callable[..., str]:
    """Runs the command on bad input; the message, after checking how it was refused."""

    def call(*argv: str) -> str:
        before = files(tmp_path)
        status, out, err = command(*argv, "--quiet")
        assert (status, out) == (2, "")
        assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
        assert "Traceback" not in err
        assert files(tmp_path) == before
        return str(err).removeprefix("error: ").rstrip("\n")

    return call


def broken_photo(kind: str) -> None:
    match kind:
        case "truncated":
            Path("bad.jpg").write_bytes(Path("photo.jpg").read_bytes()[:-200])
        case "text":
            Path("bad.jpg").write_text("no picture")
        case "empty":
            Path("bad.jpg").touch()
        case "folder":
            Path("bad.jpg").mkdir()
        case "huge":
            Image.new("1", (30_000, 30_000)).save("bad.jpg", "PNG")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "cannot be read: No such file or directory"),
        ("folder", "holds no pictures (.avif"),
        ("truncated", "is damaged or incomplete"),
        ("text", "is not a picture in a known format"),
        ("empty", "is not a picture in a known format"),
        ("huge", "has over 64 megapixels"),
    ],
)
def test_images(photo: str, refused: Any, kind: str, message: str) -> None:
    broken_photo(kind)
    assert refused("--image", "bad.jpg", *PROMPTS).startswith(f"bad.jpg: {message}")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--target", "a dog"], "--source is missing: say what the photo shows"),
        (["--source", "a cat"], "--target is missing: say what the result should show"),
        (["--source", "a cat", "--target", ""], "--target is empty"),
        (["--source", "a cat", "--target", "a dog", " "], "--target is empty"),
        (["--source", "a cat", "--target"], "argument --target: expected at least one argument"),
        ([*PROMPTS, "--reconstruct"], "--reconstruct takes no --target"),
        ([*PROMPTS, "--sed", "1"], "unknown argument '--sed': did you mean --seed?"),
        ([*PROMPTS, "--seed", "one"], 'command line: seed = "one": Input should be a valid'),
        ([*PROMPTS, "--seed", "-1"], "command line: seed -1 must be from 0"),
        ([*PROMPTS, "--fit", "stretch"], "command line: fit = \"stretch\": Input should be 'crop'"),
        (
            [*PROMPTS, "--cfg-schedule", "0", "7"],
            "cfg_schedule has 2 values, but there are 4 steps",
        ),
        (
            [*PROMPTS, "--boundaries", "500", "400", "600", "999"],
            "boundaries [500, 400, 600, 999] must rise",
        ),
        ([*PROMPTS, "--boundaries", "1", "2", "3", "1000"], "boundaries [1, 2, 3, 1000] with"),
        ([*PROMPTS, "--model", "sd16"], "no model or folder named 'sd16'"),
        ([*PROMPTS, "--model", "sd15", "--offline"], "offline, and "),
        ([*PROMPTS, "--size", "100000"], "photo.jpg: size must be between 1 and 2048"),
        ([*PROMPTS, "--output", "none/out.png"], "none/out.png: there is no folder none"),
        ([*PROMPTS, "--output", "photo.jpg/out.png"], "photo.jpg/out.png: there is no folder"),
        ([*PROMPTS, "--output", "folder.png"], "folder.png: is a folder; name a file"),
        ([*PROMPTS, "--output", "record.png"], "record.json: is a folder; name a file"),
        ([*PROMPTS, "--output", "out.gif"], "out.gif: the name must end in one of .png"),
        ([*PROMPTS, "--output", "out"], "out: the name must end in one of .png"),
        ([*PROMPTS, "--output", "out.json"], "out.json: the name must end in one of .png"),
        ([*PROMPTS, "--config", "none.yaml"], "cannot read the config none.yaml: No such file"),
        ([*PROMPTS, "--config", "photo.jpg"], "photo.jpg: "),
        ([*PROMPTS, "--config", "bad.yaml"], "bad.yaml: not valid YAML: while parsing"),
        (
            [*PROMPTS, "--config", "key.yaml"],
            "key.yaml: unknown setting 'execution.unrol': did you",
        ),
        ([*PROMPTS, "--config", "steps.yaml"], "g_scale of guider features_map_l2 has 2 values"),
    ],
)
def test_requests_and_settings(
    photo: str, refused: Any, tmp_path: Path, argv: list[str], message: str
) -> None:
    for name in ("folder.png", "record.json"):
        (tmp_path / name).mkdir()
    (tmp_path / "bad.yaml").write_text("seed: [")
    (tmp_path / "key.yaml").write_text("execution: {unrol: 1}")
    (tmp_path / "steps.yaml").write_text("guiders: [{name: features_map_l2, g_scale: [1, 2]}]")
    assert refused("--image", photo, *argv).startswith(message)


def test_prompts_without_an_image(photo: str, refused: Any) -> None:
    assert refused(*PROMPTS) == "--image is missing: name the photo to edit"
    assert refused("--reconstruct") == "--image is missing: name the photo to edit"
    assert refused("--size", "100000") == "size must be between 1 and 2048, not 100000"


def test_a_cache_folder_that_cannot_be_used(
    photo: str, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IE_JAX_HOME", "photo.jpg/cache")
    message = refused("--image", photo, *PROMPTS)
    assert message.startswith("cannot use the cache folder photo.jpg/cache: ")


def test_a_record_that_cannot_be_written(
    photo: str, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full by then: the picture of before stays."""

    def full(path: Path) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(products, "appearing_whole", full)
    Path("edit.png").touch()
    message = refused("--image", photo, "--source", "a cat", "--reconstruct", "--overwrite")
    assert message == "edit.json: cannot be written: No space left on device"
    assert Path("edit.png").stat().st_size == 0


def without(name: str) -> Callable[[Path], object]:
    return lambda model: (model / name).unlink()


def changed(name: str, change: Callable[[dict[str, np.ndarray]], object]) -> Any:
    """Changes the tensors of a file; a torch file gives way to a safetensors one."""

    def spoil(model: Path) -> None:
        tensors = {key: x.copy() for key, x in read_tensors(model / name).items()}
        change(tensors)
        (model / name).unlink()
        save_file(tensors, (model / name).with_suffix(".safetensors"))

    return spoil


def doubled(model: Path) -> None:
    """The LoRA of a UNet twice as wide."""
    lora = load_file(model / FINE_TUNED)
    wide = {name: np.repeat(x, 2, axis=1 if ".lora_A." in name else 0) for name, x in lora.items()}
    save_file(wide, model / FINE_TUNED)


VAE = "stable-diffusion-v1-5/vae/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "no model or folder named 'model'"),
        (without(TEACHER), "has missing or ambiguous files: sd15_cfg_distill"),
        (without(VAE), f"has missing or ambiguous files: {VAE}"),
        (
            lambda model: os.truncate(model / FINE_TUNED, 5000),
            f"{FINE_TUNED} is damaged or not a safetensors file",
        ),
        (lambda model: os.truncate(model / TEACHER, 5000), f"{TEACHER} is damaged"),
        (changed(TEACHER, lambda x: x.pop("conv_in.bias")), "conv_in/bias (16,) is missing"),
        (
            changed(TEACHER, lambda x: x.update({"conv_in.bias": np.ones(7, np.float32)})),
            "conv_in.bias has shape (7,), which gives (7,), not (16,)",
        ),
        (
            changed(VAE, lambda x: x["encoder.conv_in.bias"].fill(np.nan)),
            "encoder.conv_in.bias holds NaN or infinite values",
        ),
        (doubled, "finetuned_forward_model.safetensors: does not fit its network"),
        (
            lambda model: (model / "stable-diffusion-v1-5/tokenizer/vocab.json").write_text("{"),
            "holds no readable CLIP tokenizer",
        ),
    ],
    ids=[
        "no folder",
        "no teacher",
        "no autoencoder",
        "truncated LoRA",
        "truncated teacher",
        "missing tensor",
        "misshapen tensor",
        "NaN",
        "another model's LoRA",
        "broken tokenizer",
    ],
)
def test_model_folders(
    photo: str,
    refused: Any,
    checkpoints: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    spoil: Callable[[Path], object],
    message: str,
) -> None:
    monkeypatch.setenv("IE_JAX_HOME", str(tmp_path_factory.mktemp("home")))
    shutil.copytree(checkpoints, tmp_path / "model", copy_function=shutil.copyfile)
    spoil(tmp_path / "model")
    assert message in refused("--image", photo, *PROMPTS, "--model", "model")
