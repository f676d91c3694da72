"""Prompts, strengths and masks as people give them, as lists and arrays of one shape."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ie_jax.data.masks import AUTO, WHITE
from ie_jax.errors import UserError
from ie_jax.methods.guidance import Strength
from ie_jax.methods.masks import Mask


def one_each(prompts: str | Sequence[str], count: int, what: str) -> list[str]:
    """One prompt per picture."""
    listed = [prompts] * count if isinstance(prompts, str) else as_list(prompts)
    require_texts(listed, what)
    if len(listed) != count:
        raise UserError(f"{len(listed)} {what} for {count} images: give one, or one per image")
    return listed


def as_list(prompts: Any) -> list[Any]:
    """A list, tuple or array of prompts as a list; anything else as a list of that one thing, which
    `require_texts` then refuses."""
    return list(prompts) if isinstance(prompts, list | tuple | np.ndarray) else [prompts]


def require_texts(prompts: Sequence[Any], what: str) -> None:
    """Raise UserError unless all prompts say something."""
    if not all(isinstance(prompt, str) and prompt.strip() for prompt in prompts):
        raise UserError(f"{what} must be texts and not empty: {list(prompts)!a}")


def prompt_rows(prompts: str | Sequence[str] | Sequence[Sequence[str]], b: int) -> list[list[str]]:
    """Target prompts as one row of equal length per picture."""
    listed = [prompts] if isinstance(prompts, str) else as_list(prompts)
    if all(isinstance(prompt, str) for prompt in listed):
        rows = [listed] * b
    else:
        rows = [[row] if isinstance(row, str) else as_list(row) for row in listed]
    if len(rows) != b or len({len(row) for row in rows}) != 1 or not rows[0]:
        raise UserError(f"target prompts must be one row of equal length per image, {b} in all")
    for row in rows:
        require_texts(row, "target prompts")
    return rows


def in_one_shape(
    rows: list[list[str]], guidance: Any, strength: Strength, guiders: int, steps: int
) -> tuple[list[list[str]], jax.Array, Strength]:
    """Everything that may differ by edit, for each of b pictures' e edits.

    Args:
        rows: target prompts, one row for each picture.
        guidance: w, broadcasting to (b, e, steps).
        strength: scales broadcast to (b, e, guiders, steps), the others to (b, e).

    Raises:
        UserError: they do not broadcast to each other, or a strength is not from 0 to 1.
    """
    b = len(rows)
    given = (guidance, strength.scales, strength.lower, strength.upper, strength.amount)
    arrays = [np.asarray(x, np.float32) for x in given]
    ends: list[tuple[int, ...]] = [(steps,), (guiders, steps), (), (), ()]

    def leading(x: np.ndarray, end: tuple[int, ...]) -> tuple[int, ...]:
        shape = np.broadcast_shapes(x.shape, end)
        return shape[: len(shape) - len(end)]

    try:
        shape = np.broadcast_shapes((b, len(rows[0])), *map(leading, arrays, ends))
        if len(shape) != 2 or shape[0] != b:
            raise ValueError
    except ValueError:
        shapes = [x.shape for x in arrays]
        raise UserError(
            f"guidance {shapes[0]}, scales {shapes[1]}, strength {shapes[-1]} and bounds do not "
            f"broadcast to {b} images, {len(rows[0])} edits, {guiders} guiders and {steps} steps"
        ) from None
    check_strength(arrays[-1])
    rows = [row * shape[1] if len(row) == 1 else row for row in rows]
    w, *leaves = (
        jnp.broadcast_to(jnp.asarray(x), (*shape, *end))
        for x, end in zip(arrays, ends, strict=True)
    )
    return rows, w, Strength(*leaves)


def check_strength(amount: Any) -> None:
    """Raise UserError unless all numbers are from 0 to 1."""
    if not np.all((np.asarray(amount) >= 0) & (np.asarray(amount) <= 1)):
        raise UserError(f"strength {np.asarray(amount).tolist()} must be from 0 to 1")


def mask_of(mask: Any, b: int, e: int, size: tuple[int, int], feather: float) -> Mask | None:
    """Where each of b pictures' e edits may change it.

    Args:
        mask: None: everywhere. "auto": where the edit is found to change something. An array (H, W)
            or (e, H, W) of booleans, of bytes or of numbers to 1: where it is white, from the
            middle of its range up. Or a list of these, one for each picture.
        size: of the pictures, (H, W).
        feather: as a share of the shorter side.

    Raises:
        UserError: it is none of these, or of another size, or lets nothing change.
    """
    each = list(mask) if isinstance(mask, list | tuple) else [mask] * b
    if len(each) != b:
        raise UserError(f"{len(each)} masks for {b} images: give one, or a list of one per image")
    if all(one is None for one in each):
        return None
    drawn = np.stack([np.broadcast_to(drawn_by(one, size), (e, *size)) for one in each])
    found = np.array([[isinstance(one, str)] * e for one in each])
    return Mask(
        jnp.asarray(drawn, jnp.float32),
        jnp.asarray(found, jnp.float32),
        jnp.full((b, e), feather * min(size), jnp.float32),
    )


def drawn_by(mask: Any, size: tuple[int, int]) -> np.ndarray:
    """The pixels that a mask leaves free: bool (H, W) or (e, H, W).

    Raises:
        UserError: see `mask_of`.
    """
    if mask is None or (isinstance(mask, str) and mask == AUTO):
        return np.ones(size, bool)
    array = np.asarray(mask)
    if array.dtype.kind not in "buf" or array.shape[-2:] != size or array.ndim > 3:
        raise UserError(
            f"a mask must be {AUTO!r} or an array {size} of booleans, bytes or numbers to 1, not "
            f"{mask if isinstance(mask, str) else f'{array.dtype} {array.shape}'}"
        )
    white = array >= {"b": 1, "u": WHITE, "f": 0.5}[array.dtype.kind]
    if not white.any(axis=(-2, -1)).all():
        raise UserError("a mask is black everywhere: paint white what may change")
    return white
