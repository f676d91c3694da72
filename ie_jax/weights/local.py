"""Finding the published files in a folder that the user filled."""

import glob
import hashlib
from pathlib import Path

import filelock

from ie_jax.errors import UserError
from ie_jax.weights.archives import find, unpack
from ie_jax.weights.download import home
from ie_jax.weights.pipeline import NETWORKS, lacks_tokenizer, network_file
from ie_jax.weights.sources import FINE_TUNED, HUB_SD15, PIPELINE_FILES, Files

_PIPELINE = HUB_SD15.rpartition("/")[2]
_TEACHER = "sd15_cfg_distill"


def local_files(folder: Path, *, forward: str | None = None, backward: str | None = None) -> Files:
    """Finds everything one pair of models is converted from.

    Looked for are `stable-diffusion-v1-5/` in diffusers layout; `sd15_cfg_distill.pt` or
    `.safetensors`; one `*forward*.safetensors`, where `finetuned_forward_model.safetensors` goes
    before others; and one `*reverse*.safetensors`. Weight files may lie one folder deeper, or still
    in their archives, `sd15_cfg_distill*.tar.gz` and `iCD-SD15*.tar.gz`: these are unpacked under
    `download.home()`, so that `folder` is never written to.

    Args:
        folder: the user's folder.
        forward: file name of the forward LoRA, where the choice above is not wanted.
        backward: file name of the backward LoRA, likewise.

    Raises:
        UserError: one line with all that is missing or ambiguous; or a damaged archive.
    """
    folder = folder.expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    problems = [
        f"{_PIPELINE}/{name}"
        for name in PIPELINE_FILES
        if name.endswith("config.json") and not name.startswith("tokenizer/")
        if not (folder / _PIPELINE / name).is_file()
    ]
    for part in NETWORKS:
        try:
            network_file(folder / _PIPELINE, part)
        except UserError as error:
            problems.append(str(error).removeprefix(f"{folder}/"))
    lacking = lacks_tokenizer(folder / _PIPELINE / "tokenizer")
    problems += [f"{_PIPELINE}/tokenizer/{name}" for name in lacking]

    def choose(archives: str, *preferences: str) -> Path:
        """The one file that matches the first preference that any file matches."""
        found = _first_match(preferences, _shallow_files(folder))
        if not found:
            unpacked = [_unpacked(path) for path in sorted(folder.glob(archives))]
            found = _first_match(preferences, [f for root in unpacked for f in find(root, "*")])
        if len(found) != 1:
            names = ", ".join(str(path.name) for path in found)
            problems.append(" or ".join(preferences) + (f" (choose from {names})" if found else ""))
        return found[0] if found else folder

    teacher = choose(f"{_TEACHER}*.tar.gz", f"{_TEACHER}.safetensors", f"{_TEACHER}.pt")
    forwards = [glob.escape(forward)] if forward else [FINE_TUNED, "*forward*.safetensors"]
    backwards = [glob.escape(backward)] if backward else ["*reverse*.safetensors"]
    files = Files(
        pipeline=folder / _PIPELINE,
        teacher=teacher,
        forward=choose("iCD-SD15*.tar.gz", *forwards),
        backward=choose("iCD-SD15*.tar.gz", *backwards),
    )
    if problems:
        raise UserError(f"{folder} has missing or ambiguous files: {'; '.join(problems)}")
    return files


def _shallow_files(folder: Path) -> list[Path]:
    """Files of the folder and of its folders, sorted, without the pipeline's and hidden ones."""
    found = [*folder.glob("*.*"), *folder.glob("*/*.*")]
    return sorted(
        path
        for path in found
        if path.is_file() and path.parent.name != _PIPELINE and not path.name.startswith(".")
    )


def _first_match(patterns: tuple[str, ...], paths: list[Path]) -> list[Path]:
    for pattern in patterns:
        if found := [path for path in paths if path.match(pattern)]:
            return found
    return []


def _unpacked(archive: Path) -> Path:
    """The folder that holds the archive's content, unpacked now or by an earlier call."""
    state = archive.stat()
    version = hashlib.sha256(f"{archive} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()
    target = home() / "unpacked" / f"{archive.name.partition('.')[0]}-{version[:12]}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(target.parent / ".lock"):
            if not target.is_dir():
                unpack(archive, target)
    except OSError as error:
        raise UserError(f"cannot unpack {archive} under {home()}: {error}") from error
    return target
