"""What a pair's files tell of it: in their headers, in their names, or not at all."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ie_jax.weights.facts import Facts, as_metadata, facts_of


@pytest.mark.parametrize(
    ("forward", "backward", "expected"),
    [
        ("finetuned_forward_model", "iCD-SD15-reverse_259_519_779_999", (0, (259, 519, 779, 999))),
        (
            "iCD-SD15-forward_19_259_519_779",
            "iCD-SD15-reverse_259_519_779_999",
            (19, (259, 519, 779, 999)),
        ),
        ("forward_19_339_699", "reverse_339_699_999", (19, (339, 699, 999))),
        ("my_forward_2", "my_reverse", (0, (259, 519, 779, 999))),
    ],
)
def test_names_tell_the_grid(
    forward: str, backward: str, expected: tuple[int, tuple[int, ...]]
) -> None:
    facts = facts_of(Path(f"{forward}.safetensors"), Path(f"{backward}.safetensors"))
    assert (facts.start_timestep, facts.boundaries) == expected
    assert (facts.guidance, facts.data) == (Facts().guidance, "photos")


def written(path: Path, metadata: dict[str, str]) -> Path:
    """A file with this header."""
    save_file({"x": np.zeros(1)}, path, metadata)
    return path


def test_headers_go_before_names(tmp_path: Path) -> None:
    facts = Facts(9, (199, 599, 999), (0.0, 1.5, 2.0), "world")
    header = as_metadata(facts)
    forward = written(tmp_path / "forward_19_259_519_779.safetensors", header)
    backward = written(tmp_path / "reverse_259_519_779_999.safetensors", header | {"data": "world"})
    assert facts_of(forward, backward) == facts
    # Each file tells its own half.
    assert facts_of(backward, forward) == replace(facts, data="photos")


@pytest.mark.parametrize("value", ["soon", "nan 1", "inf", "", "1e999"])
def test_a_header_that_makes_no_sense_tells_nothing(tmp_path: Path, value: str) -> None:
    header = dict.fromkeys(as_metadata(Facts()), value)
    path = written(tmp_path / "lora.safetensors", header)
    assert facts_of(path, path) == Facts()
