"""Memory and collectives from a compiler's dump."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from benchmarks.dump import dumped, main
from ie_jax.devices import make_mesh
from ie_jax.errors import UserError


def compile_and_dump(folder: Path) -> int:
    """A step that sums 4 MiB over devices; bytes of its arguments and results."""

    def step(x: jax.Array) -> jax.Array:
        return jax.lax.psum(x, "data")

    mesh = make_mesh()
    sharded = jax.shard_map(step, mesh=mesh, in_specs=P("data"), out_specs=P())
    x = jax.ShapeDtypeStruct((mesh.size, 2**20), jnp.float32)
    options: dict[str, str | bool] = {"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True}
    compiled = jax.jit(sharded).trace(x).lower().compile(compiler_options=options)
    memory = compiled.memory_analysis()
    assert memory
    return int(memory.argument_size_in_bytes + memory.output_size_in_bytes)


def test_reads_memory_and_collectives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = compile_and_dump(tmp_path)
    total, moved = dumped(tmp_path)
    assert moved == {"all-reduce": 2**22}
    assert held <= total <= 1.1 * held
    main([str(tmp_path)])
    assert "| 0.004 | all-reduce 0.004 |" in capsys.readouterr().out


def test_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="wait for the buffers"):
        dumped(tmp_path)
    compile_and_dump(tmp_path)
    (module,) = tmp_path.glob("*.jit_step.*after_optimizations.txt")
    module.write_text(module.read_text()[:-100])
    with pytest.raises(UserError, match="wait for the buffers"):
        dumped(tmp_path)


def test_refuses_to_guess_between_steps(tmp_path: Path) -> None:
    compile_and_dump(tmp_path)
    (report,) = tmp_path.glob("*.jit_step.*memory-usage-report.txt")
    (tmp_path / f"again.{report.name}").write_text(report.read_text())
    with pytest.raises(UserError, match="reports of 2 steps"):
        dumped(tmp_path)
