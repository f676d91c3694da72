"""What all tests share. Settings travel through the environment, so that nothing heavy is imported
here and programs that a test starts have them too."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
# Compiled programs survive from one run of the tests to the next.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keeps the tests out of the user's cache; the folder that they use instead."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IE_JAX_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder of data recorded from the published code."""
    folder = Path(os.environ.get("IE_JAX_GOLDENS") or ROOT.parent / "shared" / "goldens")
    if not folder.is_dir():
        pytest.skip("needs the recorded data: set IE_JAX_GOLDENS to its folder")
    return folder


@pytest.fixture(scope="session")
def checkpoints(goldens: Path) -> Path:
    """A small model in the published files' names and formats."""
    return goldens / "checkpoints"
