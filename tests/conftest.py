"""What all tests share. Settings travel through the environment: programs that a test starts have
them too."""

import gc
import hashlib
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import hypothesis
import pytest

from tests.shapes import CHECKING, check_shapes, switch_checks

ROOT = Path(__file__).parents[1]
LONG = 20
"""Seconds. A test that takes longer says why: `@pytest.mark.long("why")`."""


def compiled() -> Path:
    """The folder of compiled programs, which survive from one run of the tests to the next.

    JAX tells the programs of one folder apart, but not the processors that they were compiled for.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    processor = Path("/proc/cpuinfo")
    lines = processor.read_text().splitlines() if processor.exists() else [platform.machine()]
    flags = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    facts = [version("jax"), version("jaxlib"), *(flags or [platform.machine()])]
    return cache / "ie_jax-tests" / hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
# Compiling is most of the work of the tests, and optimising half of that. See `optimised`.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
"""Without them XLA runs a compiler of its own for each of thousands of fused operations."""
# One arithmetic on all processors: what AVX-512 rounds otherwise, long chains make visible.
FLAGS = ["--xla_cpu_max_isa=AVX2"]
# XLA ends a process that names a flag which it does not know, and later ones know no such flag.
FLAGS += [QUICK] if version("jaxlib").startswith("0.10.") else []
for flag in FLAGS:
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
# Each worker has a core; more threads of torch's than cores wait for each other without rest.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled()))
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2 << 30))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

check_shapes()
# Imports and tracing make many objects and little garbage, which is searched for often by default.
gc.set_threshold(200_000, 20, 100)
# How long an example takes tells more of the machine than of the code.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="module", autouse=True)
def shapes(request: pytest.FixtureRequest) -> None:
    """Checking each call doubles the time of tracing: only tests of what is checked do so."""
    switch_checks(any(x in request.path.as_posix() for x in CHECKING))


@contextmanager
def optimisation() -> Iterator[None]:
    """Programs are compiled as users have them."""
    import jax

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
        jax.config.update("jax_disable_most_optimizations", False)
        yield
    quick = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"].lower() not in ("0", "false", "no", "off")
    jax.config.update("jax_disable_most_optimizations", quick)


@pytest.fixture(scope="module")
def optimised() -> Iterator[None]:
    """Where numbers are compared with recorded ones."""
    with optimisation():
        yield


def collect_garbage() -> None:
    """Collect it, and keep libraries' complaints about their own from the next file."""
    with warnings.catch_warnings():
        # The hub's client leaves one open where a server refuses.
        warnings.filterwarnings("ignore", "unclosed <socket", ResourceWarning)
        # Those of a page that was served and closed.
        warnings.filterwarnings("ignore", "unclosed event loop", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module", autouse=True)
def little_garbage() -> None:
    """What JAX keeps of the files before is not searched for garbage again and again, which took a
    quarter of the time of the tests."""
    collect_garbage()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keeps the tests out of the user's cache; the folder that they use instead."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IE_JAX_HOME", str(folder))
        yield folder
    collect_garbage()


def recordings(kind: str = "") -> Path:
    """A folder of recorded data: the published code's, or of another kind beside it."""
    folder = Path(os.environ.get("IE_JAX_GOLDENS") or ROOT.parent / "shared" / "goldens")
    folder = folder.parent / f"goldens-{kind}" if kind else folder
    if not folder.is_dir():
        pytest.skip(f"needs the recorded data in {folder}: set IE_JAX_GOLDENS")
    return folder


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder of data recorded from the published code."""
    return recordings()


@pytest.fixture(scope="session")
def checkpoints(goldens: Path) -> Path:
    """A small model in the published files' names and formats."""
    return goldens / "checkpoints"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests go first, so that no worker is left alone with one at the end."""
    first = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in first)
    for item in items:
        if marker := item.get_closest_marker("long"):
            item.user_properties.append(("long", marker.args[0]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the long tests, and why they are."""
    seconds: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid] = seconds.get(report.nodeid, 0.0) + report.duration
                reasons |= {report.nodeid: str(dict(report.user_properties).get("long", ""))}
    long = [(name, taken) for name, taken in seconds.items() if taken > LONG]
    if long:
        terminalreporter.section(f"tests over {LONG} s, and why")
    for name, taken in sorted(long, key=lambda x: -x[1]):
        terminalreporter.line(f"{taken:.0f} s {name}: {reasons[name] or 'gives no reason'}")
