"""The trained miniature model that comes with the package, as two pairs of LoRAs on one base.

`python -m ie_jax.weights.embedded FOLDER` puts a model that was trained anew in its place. Numbers
are rounded to float16, as the published files have them; headers are kept. The denoiser before
guidance distillation stays behind: nothing but that stage reads it.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ie_jax.errors import UserError
from ie_jax.files import appearing_whole, folder_appearing_whole
from ie_jax.weights.folder import read_parts
from ie_jax.weights.formats import number_types, read_metadata, read_tensors, write_tensors
from ie_jax.weights.layout import PARTS, PIPELINE, copy_model_files
from ie_jax.weights.published import Files

WORLD = Path(__file__).parents[1] / "world"
MODEL, SUMS = "model", "SHA256SUMS"
EMBEDDED = {"world": PARTS["fine_tuned"], "world-icd": PARTS["forward"]}
"""The forward LoRA of each model: after cycle fine-tuning, and before it."""


def embedded_files(model: str, forward: str | None = None, backward: str | None = None) -> Files:
    """Where the files of an embedded model are, if the installation is whole: see `check_sums`.

    Args:
        model: a name in `EMBEDDED`.
        forward, backward: file names of other LoRAs beside its own.
    """
    folder = WORLD / MODEL
    return Files(
        pipeline=folder / PIPELINE,
        teacher=folder / PARTS["unet"],
        forward=folder / (forward or EMBEDDED[model]),
        backward=folder / (backward or PARTS["backward"]),
    )


def folder_of(model: str) -> Path:
    """Where a model's files lie: those of one that comes along, or of a folder, named so."""
    return WORLD / MODEL if model in EMBEDDED else Path(model).expanduser()


def sums(folder: Path) -> str:
    """Hashes of all files of the model in a folder, in the format of `sha256sum`."""
    files = sorted(path for path in (folder / MODEL).rglob("*") if path.is_file())
    return "".join(f"{digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sums() -> None:
    """Raise UserError unless the embedded model is as its SHA256SUMS tells."""
    try:
        listed = (WORLD / SUMS).read_text(encoding="utf-8")
        found = sums(WORLD)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the model in {WORLD}: {error}: reinstall ie_jax") from error
    if wrong := sorted(set(listed.splitlines()) ^ set(found.splitlines())):
        name = wrong[0].partition("  ")[2]
        raise UserError(f"{WORLD / name} is damaged or missing: reinstall ie_jax")


def to_float16(path: Path) -> None:
    """Round the floating numbers of a `.safetensors` file, in place. A file of float16 stays as it
    is.

    Raises:
        UserError: a number is beyond float16's range.
    """

    def rounded(name: str, x: np.ndarray) -> np.ndarray:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        with np.errstate(over="ignore"):
            half = x.astype(np.float16)
        if not np.isfinite(half).all():
            raise UserError(f"{path.name}: {name} holds numbers that float16 cannot")
        return half

    if number_types(path) == {"F16"}:
        return
    tensors = {name: rounded(name, x) for name, x in read_tensors(path).items()}
    metadata = read_metadata(path)
    with appearing_whole(path) as file:
        write_tensors(file, tensors, metadata)


def ship(folder: Path, world: Path = WORLD) -> None:
    """Write `world/model` and `world/SHA256SUMS` from a trained model folder.

    Raises:
        UserError: the folder lacks a part, or a file is damaged or does not fit.
    """
    read_parts(folder, [name for name in PARTS if name != "denoiser"])
    with folder_appearing_whole(world / MODEL) as new:
        copy_model_files(folder, new)
        (new / PARTS["denoiser"]).unlink(missing_ok=True)
        for path in sorted(new.rglob("*.safetensors")):
            to_float16(path)
    with appearing_whole(world / SUMS) as file:
        file.write(sums(world).encode())


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m ie_jax.weights.embedded", description=__doc__)
    parser.add_argument("folder", type=Path, help="a model folder with all its parts")
    try:
        ship(parser.parse_args().folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
