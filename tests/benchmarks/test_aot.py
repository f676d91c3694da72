"""What the ahead-of-time report reads from a compiled module."""

from benchmarks.aot import collective_bytes

MODULE = """
HloModule jit_step

%piece.1 (p: bf16[2,4]) -> bf16[8,4] {
  ROOT %gather.1 = bf16[8,4]{1,0:T(4,128)} all-gather(%p), channel_id=7, dimensions={0}
}

%piece.2 (p: bf16[2,4]) -> bf16[8,4] {
  ROOT %gather.2 = bf16[8,4]{1,0:T(4,128)} all-gather(%p), channel_id=7, dimensions={0}
}

%body (p: (s32[], f32[10])) -> (s32[], f32[10]) {
  %sum = f32[10]{0} all-reduce(%x), channel_id=3, to_apply=%add
  %inner = (s32[]) while(%t), body=%nested, backend_config={"known_trip_count":{"n":"2"}}
}

%nested (p: (s32[])) -> (s32[]) {
  %move = f32[5]{0} collective-permute(%y), channel_id=4
}

ENTRY %main (a: f32[10]) -> f32[10] {
  %start = bf16[8,4] fusion(%a), kind=kCustom, calls=%piece.1
  %done = bf16[8,4] fusion(%start), kind=kCustom, calls=%piece.2
  %loop = (s32[], f32[10]) while(%t), body=%body, backend_config={"known_trip_count":{"n":"4"}}
  %again = f32[10]{0} all-reduce(%c), channel_id=3, to_apply=%add
  %once.more = f32[10]{0} all-reduce(%again), channel_id=3, to_apply=%add
  %early = (f32[6]{0}, f32[6]{0}) all-reduce-start(%b), channel_id=8, to_apply=%add
  ROOT %late = f32[6]{0} all-reduce-done(%early)
}
"""


def test_collectives_are_counted_as_often_as_they_run() -> None:
    assert collective_bytes(MODULE) == {
        "all-gather": 8 * 4 * 2,  # once, though two fusions carry it
        "all-reduce": (4 + 2) * 10 * 4 + 6 * 4,
        "collective-permute": 4 * 2 * 5 * 4,
    }
