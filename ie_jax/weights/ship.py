"""`python -m ie_jax.weights.ship FOLDER`: a trained model becomes the one in the package.

Numbers are rounded to float16, as the published files have them; headers are kept. The denoiser
before guidance distillation stays behind: nothing but that stage reads it.
"""

import argparse
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from ie_jax.errors import UserError
from ie_jax.files import appearing_whole, folder_appearing_whole
from ie_jax.weights.embedded import MODEL, SUMS, WORLD, sums
from ie_jax.weights.formats import read_metadata, read_tensors
from ie_jax.weights.parts import PARTS, copy_model_files, read_parts


def to_float16(path: Path) -> None:
    """Round the floating numbers of a `.safetensors` file, in place.

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

    tensors = {name: rounded(name, x) for name, x in read_tensors(path).items()}
    content = safetensors.numpy.save(tensors, read_metadata(path) or None)
    with appearing_whole(path) as file:
        file.write(content)


def ship(folder: Path, world: Path = WORLD) -> None:
    """Write `world/model` and `world/SHA256SUMS` from a trained model folder.

    Raises:
        UserError: the folder lacks a part, or a file is damaged or does not fit.
    """
    read_parts(folder, PARTS)
    with folder_appearing_whole(world / MODEL) as new:
        copy_model_files(folder, new)
        (new / PARTS["denoiser"]).unlink()
        for path in sorted(new.rglob("*.safetensors")):
            to_float16(path)
    with appearing_whole(world / SUMS) as file:
        file.write(sums(world).encode())


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m ie_jax.weights.ship", description=__doc__)
    parser.add_argument("folder", type=Path, help="a model folder with all its parts")
    try:
        ship(parser.parse_args().folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
