from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ie_jax.models.execution import Execution

WEIGHTS = [np.random.default_rng(i).normal(0, 1 / 16, (256, 256)) for i in range(8)]


def steps(weights: list[jax.Array], x: jax.Array) -> jax.Array:
    """Layers, called three times in a loop."""

    def step(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        for w in weights:
            x = jnp.tanh(x @ w)
        return x, None

    return jax.lax.scan(step, x, None, 3)[0]


def test_sparing_programs_hold_no_copy_of_the_weights() -> None:
    weights, x = [jnp.bfloat16(w) for w in WEIGHTS], jnp.ones((16, 256), jnp.bfloat16)
    results: list[np.ndarray] = []
    held: list[int] = []
    for sparing in (False, True):
        options = Execution(sparing=sparing).compiler_options
        compiled = jax.jit(steps, compiler_options=options).lower(weights, x).compile()
        results.append(np.asarray(compiled(weights, x), np.float32))
        memory: Any = compiled.memory_analysis()
        held.append(memory.temp_size_in_bytes)
    np.testing.assert_allclose(results[0], results[1], atol=0.02)
    count = sum(w.size for w in WEIGHTS)
    assert held[1] < count
    if jax.__version_info__ < (0, 11):  # later compilers hold none in any case
        assert held[0] > 4 * count
