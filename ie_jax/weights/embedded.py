"""The trained miniature model that comes with the package, as two pairs of LoRAs on one base."""

import hashlib
from pathlib import Path

from ie_jax.errors import UserError
from ie_jax.weights.parts import PARTS, PIPELINE
from ie_jax.weights.sources import Files

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
