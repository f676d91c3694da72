"""Small pictures on disk, each of one colour that tells its number."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def colour(number: int) -> tuple[int, int, int]:
    """The colour of a picture."""
    return number % 256, number // 256, 77


def number_of(pixels: np.ndarray) -> np.ndarray:
    """The numbers of pictures (..., H, W, 3)."""
    return pixels[..., 0, 0, 0].astype(int) + 256 * pixels[..., 0, 0, 1].astype(int)


def png(number: int, shape: tuple[int, int] = (12, 9)) -> bytes:
    """A picture's file."""
    buffer = io.BytesIO()
    Image.new("RGB", shape, colour(number)).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(path: Path, count: int, captions: int = 1, start: int = 0) -> Path:
    """A folder of pictures and metadata.jsonl, "<number> <caption's number>" their captions."""
    path.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(start, start + count):
        (path / f"{number:04}.png").write_bytes(png(number))
        texts = [f"{number} {k}" for k in range(captions)]
        lines.append(json.dumps({"file_name": f"{number:04}.png", "text": texts}))
    (path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return path


def tokenize(texts: Sequence[str]) -> np.ndarray:
    """The numbers in texts as ids, int32 (b, 4)."""
    rows = [[int(word) for word in text.split() if word.isdecimal()] for text in texts]
    return np.array([(row + [-1] * 4)[:4] for row in rows], np.int32)
