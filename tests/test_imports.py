"""Imports point one way, and nothing heavy is imported on the way in."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ie_jax"
# What each part may import beside itself; `errors` and `files` are open to all.
ALLOWED = {
    "errors": set(),
    "files": set(),
    "devices": set(),
    "models": set(),
    "diffusion": {"models"},
    "weights": {"models", "diffusion"},
    "methods": {"devices", "models", "diffusion", "weights"},
    "config": set(),
    "cli": set(),
    "progress": set(),
    "products": set(),
    "data": {"devices", "models", "weights", "diffusion", "config", "cli", "progress"},
    "editing": {
        "devices",
        "methods",
        "models",
        "weights",
        "diffusion",
        "config",
        "cli",
        "progress",
        "products",
        "data",
    },
    "training": {"devices", "models", "weights", "diffusion", "config", "cli", "progress", "data"},
    "evaluation": {
        *("models", "weights", "diffusion", "config", "cli", "progress", "products", "data"),
        *("devices", "methods", "editing", "training"),
    },
    "studio": {
        *("models", "weights", "diffusion", "config", "cli", "progress", "data", "methods"),
        *("editing", "evaluation"),
    },
}
OPEN = {"errors", "files", "__version__"}


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(source: str) -> set[str]:
    """The parts of ie_jax that a module names in its imports."""
    parts = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = (
                [f"ie_jax.{a.name}" for a in node.names]
                if node.module == "ie_jax"
                else [node.module]
            )
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        else:
            continue
        parts |= {name.split(".")[1] for name in names if name.startswith("ie_jax.")}
    return parts


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_imports_point_one_way(path: Path) -> None:
    here = part(path)
    if here == "__init__":
        return
    wrong = imported_parts(path.read_text()) - ALLOWED[here] - OPEN - {here}
    assert not wrong, f"{path.relative_to(PACKAGE)} must not import {wrong}"


def test_a_wrong_import_would_be_seen() -> None:
    assert imported_parts("from ie_jax.methods.inverse_and_edit import Models") == {"methods"}
    assert imported_parts("from ie_jax import training") == {"training"}


def test_imports_need_neither_torch_nor_tensorflow_and_start_no_device() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['tensorflow'] = None\n"
        "import ie_jax.editing.command, ie_jax.training.command, ie_jax.evaluation.__main__\n"
        "from jax._src.xla_bridge import backends_are_initialized as started\n"
        "assert not started(), 'a process could not join others any more'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


def test_the_editor_is_at_the_top() -> None:
    import ie_jax
    from ie_jax.editing.config import EditConfig
    from ie_jax.editing.editor import Editor

    assert ie_jax.Editor is Editor
    assert ie_jax.EditConfig is EditConfig
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ie_jax.nothing
