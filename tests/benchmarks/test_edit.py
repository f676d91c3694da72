"""The edit benchmark: its count of work, its table and a run."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import edit
from benchmarks.models import architecture_of, pipeline_of
from benchmarks.work import edit_work
from ie_jax.errors import UserError
from ie_jax.models.architecture import unet_config
from tests.models.test_architecture import SD15, SDXL


@pytest.mark.slow
def test_counts_the_work_of_sd15() -> None:
    """method 4: about 10 TFLOP for a plain edit at 512 px, about 23 for a guided one."""
    found = edit_work(architecture_of("sd15"), 512)
    assert found["plain"] == pytest.approx(8 * 0.80e12 + 1.12e12 + 2.51e12, rel=0.02)
    assert found["guided"] == pytest.approx(24 * 0.80e12 + 1.12e12 + 2.51e12, rel=0.02)


def test_table_relates_ours_to_torch() -> None:
    own = {"latency": 2.0, "start": 5.0, "temporaries": 3_000_000, "cold compile": 4.0}
    facts = {"tflop": 8.0, "ours": own, "torch": {"latency": 4.0}, "difference": 1e-5}
    lines = list(edit.table({"plain": facts}, 10e12))
    assert lines[2] == "| plain | ours | 4 | - | - | 5 | 2 | 4 | 40 | 0.003 |"
    assert lines[3] == "| plain | torch | - | - | - | - | 4 | 2 | 20 | - |"
    assert "0.50 times" in lines[-1]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["random", "random-sdxl-tiny"])
def test_measures_a_start_and_warm_edits(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results.json"
    command = ["--model", model, "--edits", "plain", "--no-torch", "--repeats", "2"]
    edit.main([*command, "--output", str(output)])
    ours = json.loads(output.read_text())["results"]["plain"]["ours"]
    assert len(ours["all latencies"]) == 2
    assert 0 < ours["latency"] < ours["start"]
    assert 0 < ours["cached compile"] < ours["cold compile"]
    assert "| plain | ours |" in capsys.readouterr().out


def test_random_sdxl_is_as_large_as_sdxl() -> None:
    published = unet_config(SD15 | SDXL | {"time_cond_proj_dim": 512})
    assert architecture_of("sdxl").unet == published


@pytest.mark.slow
def test_sdxl_in_bfloat16_is_never_held_in_float32() -> None:
    weights = pipeline_of("random-sdxl-tiny", param="bfloat16").weights
    low = {x.dtype for x in jax.tree.leaves((weights.unet, weights.text_encoder_2))}
    assert low == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(weights.vae)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    "bad", [["--repeats", "0"], ["--model", "random-huge"], ["--model", "random-sdxl-tiny"]]
)
def test_refuses_bad_input(bad: list[str]) -> None:
    with pytest.raises(UserError, match=bad[1]):
        edit.main(bad)
