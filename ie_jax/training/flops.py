"""How many floating point operations a program makes, from its jaxpr."""

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core


def flops(jaxpr: Any) -> int:
    """Operations of all matrix products and convolutions, those of a scan once per step.

    Of a `shard_map` those of one device are counted; of a condition the most expensive branch; of
    a while loop one turn.
    """
    return sum(of_equation(equation) for equation in jaxpr.eqns)


def of_equation(equation: Any) -> int:
    """Operations of one equation, with all inside."""
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return (
            2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
        )
    if name == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        kernel = equation.invars[1].aval.shape
        window = math.prod(kernel[i] for i in numbers.rhs_spec[1:])
        return 2 * math.prod(equation.outvars[0].aval.shape) * window
    inner = [flops(jaxpr) for jaxpr in inner_jaxprs(params)]
    if not inner:
        return 0
    return max(inner) if name == "cond" else sum(inner) * int(params.get("length", 1))


def inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among an equation's parameters."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


PEAKS = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}
"""FLOP/s of dense products in bfloat16, as makers state them, by the name a device gives itself."""


def peak(device: jax.Device) -> float | None:
    """The device's peak in bfloat16; None where it is not known."""
    return next((rate for name, rate in PEAKS.items() if name in device.device_kind), None)
