"""Captioned pictures side by side, as people look at results."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ie_jax.data.images import require_rgb
from ie_jax.errors import UserError


def side_by_side(panels: Sequence[tuple[str, np.ndarray]], notes: Sequence[str] = ()) -> np.ndarray:
    """A row of captioned pictures on white: uint8 RGB (h, w, 3) from (caption, picture) pairs.

    Pictures keep their size and stand on one line under their captions. A caption is wrapped
    to its picture's width (at least 80 pixels) and cut after four lines. Pillow's own font draws
    it, which has ASCII only: other characters show as boxes.

    Args:
        notes: what stands under the pictures, one text each, or nothing.

    Raises UserError if there are no panels or one is no picture.
    """
    if not panels:
        raise UserError("there are no pictures to lay side by side")
    for _, image in panels:
        require_rgb(image)

    gap = 8
    columns = [max(image.shape[1], 80) for _, image in panels]
    font_size = min(max(min(columns) // 18, 11), 20)
    font = ImageFont.load_default(font_size)
    line_height = font_size + 4
    above, below = (
        [wrapped(text, column, font) for text, column in zip(texts, columns, strict=True)]
        for texts in ([text for text, _ in panels], notes or [""] * len(panels))
    )
    strip = gap + line_height * max(map(len, above)) + gap // 2
    base = strip + max(image.shape[0] for _, image in panels) + gap
    height = base + (line_height * max(map(len, below)) if notes else 0)
    row = Image.new("RGB", (sum(columns) + gap * (len(panels) + 1), height), "white")
    left = gap
    for (_, image), column, *texts in zip(panels, columns, above, below, strict=True):
        cell = Image.new("RGB", (column, height), "white")
        draw = ImageDraw.Draw(cell)
        for lines, top in zip(texts, (gap, base - gap // 2), strict=True):
            for number, line in enumerate(lines):
                draw.text((0, top + number * line_height), line, fill="black", font=font)
        cell.paste(Image.fromarray(image), (0, strip))
        row.paste(cell, (left, 0))
        left += column + gap
    return np.array(row)


def wrapped(text: str, width: int, font: Any, max_lines: int = 4) -> list[str]:
    """Text in at most `max_lines` lines of at most `width` pixels, "..." at the end if it was cut.

    Broken at spaces, and inside a word only where the word is wider than a line.
    """
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            if lines[-1]:
                lines.append("")
            for character in word:
                if font.getlength(lines[-1] + character) > width:
                    lines.append("")
                lines[-1] += character
                if len(lines) > max_lines:
                    break
        if len(lines) > max_lines:
            last = lines[max_lines - 1]
            while font.getlength(last + "...") > width:
                last = last[:-1]
            return [*lines[: max_lines - 1], last + "..."]
    return lines
