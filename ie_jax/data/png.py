"""PNG without its texts, which Pillow reads and the pixels do not need."""

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
MOST_PROFILE = 1_000_000
"""Bytes of a colour profile unpacked. Pillow gives up at a little more."""


def without_texts(content: bytes) -> bytes:
    """The same picture without texts (programs keep whole workflows there) and without a colour
    profile that cannot be unpacked. Anything else is left as it is, damage too."""
    if not content.startswith(SIGNATURE):
        return content
    return SIGNATURE + b"".join(
        chunk for kind, chunk in chunks(content) if kind not in TEXTS and sound(kind, chunk)
    )


def chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, whole chunk) of each; what follows the end, or cannot be one, as the last."""
    place = len(SIGNATURE)
    while place < len(content):
        head = content[place : place + 8]
        kind = head[4:]
        length = struct.unpack(">I", head[:4])[0] + 12 if len(head) == 8 else len(content)
        yield kind, content[place : place + length]
        place += length


def sound(kind: bytes, chunk: bytes) -> bool:
    """False for a colour profile that cannot be unpacked, or is larger than any."""
    if kind != b"iCCP":
        return True
    packed = chunk[8:-4].partition(b"\0")[2][1:]  # after the name and the method
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(packed, MOST_PROFILE)
    except zlib.error:
        return False
    return unpacker.eof
