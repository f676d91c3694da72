from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from ie_jax.models.architecture import TextConfig, text_config
from ie_jax.models.shapes import text_encoder_shapes
from ie_jax.models.text_encoder import TextEncoder
from ie_jax.weights.convert import convert
from ie_jax.weights.names import TEXT_ENCODER
from tests.parity.oracle import arrays, as_users_have_it, randomised, relative, torch, transformers

CONFIGS: dict[str, dict[str, Any]] = {
    "sd15 in small": {
        "vocab_size": 100,
        "bos_token_id": 98,
        "eos_token_id": 99,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "hidden_act": "quick_gelu",
    },
    "gelu": {
        "vocab_size": 50,
        "bos_token_id": 48,
        "eos_token_id": 49,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_act": "gelu",
        "max_position_embeddings": 20,
        "layer_norm_eps": 1e-3,
        "architectures": ["CLIPTextModelWithProjection"],
        "projection_dim": 12,
    },
}


class Case(NamedTuple):
    """A text encoder of transformers, its tensors without prefix, its converted weights."""

    upstream: Any
    state: dict[str, np.ndarray]
    config: TextConfig
    params: dict[str, Any]


@pytest.fixture(scope="module", params=CONFIGS)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    values = CONFIGS[request.param]
    kind = getattr(transformers, values.get("architectures", ["CLIPTextModel"])[0])
    upstream = randomised(kind(transformers.CLIPTextConfig(**values)))
    state = arrays(upstream.state_dict())
    state = {name.removeprefix("text_model."): x for name, x in state.items()}
    config = text_config(values)
    params = convert(state, TEXT_ENCODER, text_encoder_shapes(config), "upstream")
    with as_users_have_it(request.param):
        yield Case(upstream, state, config, params)


def test_what_it_gives(case: Case) -> None:
    """The end token stands at several places of a text, of which the first one counts."""
    length, end = case.config.max_position_embeddings, case.config.eos_token_id
    ids = np.random.default_rng(0).integers(0, end, (2, length), np.int32)
    ids[0, 5:7] = ids[1, 3] = end
    with torch.no_grad():
        expected = case.upstream(torch.from_numpy(ids), output_hidden_states=True)
    found = jax.jit(TextEncoder(case.config).apply)({"params": case.params}, ids)
    assert relative(found.last, expected.last_hidden_state) <= 1e-5
    assert relative(found.penultimate, expected.hidden_states[-2]) <= 1e-5
    if case.config.projection_dim:
        assert relative(found.pooled, expected.text_embeds) <= 1e-5
    else:
        assert found.pooled is None


@pytest.mark.parametrize("buffer", [False, True])
def test_names_of_older_files(case: Case, buffer: bool) -> None:
    """A prefix, and a buffer of positions that is no weight."""
    positions = {"embeddings.position_ids": np.arange(case.config.max_position_embeddings)[None]}
    state = case.state | (positions if buffer else {})
    projection = ("text_projection",)
    state = {f"{'' if k.startswith(projection) else 'text_model.'}{k}": x for k, x in state.items()}
    found = convert(state, TEXT_ENCODER, text_encoder_shapes(case.config), "older")
    jax.tree.map(np.testing.assert_array_equal, found, case.params)
