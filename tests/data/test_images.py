"""Pictures in: the published preparation, every kind of file, and every kind of bad one."""

import io
import os
import struct
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from ie_jax.data.colours import srgb
from ie_jax.data.images import MAX_SIDE, Fit, load_image, preprocess, read_rgb, resized
from ie_jax.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: np.ndarray, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, name, **options)
    return buffer.getvalue()


def refusal(path: Path) -> str:
    """The message with which a file is refused, checked to be one line that names the file."""
    with pytest.raises(UserError) as caught:
        load_image(path, 64)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


# --- preprocess ---


@pytest.mark.parametrize("name", ["wide", "tall"])
def test_crop_is_the_published_preparation(name: str, goldens: Path) -> None:
    with np.load(goldens / "A_load512.npz") as recorded:
        out = preprocess(recorded[f"{name}_in_u8"], 512)
        np.testing.assert_array_equal(out[::8, ::8], recorded[f"{name}_out_u8_every8"])
        rows = out[[0, 1, 100, 255, 256, 510, 511]]
        np.testing.assert_array_equal(rows, recorded[f"{name}_out_rows_u8"])
        assert out.sum(dtype=np.int64) == recorded[f"{name}_out_sum"][0]


def test_crop_keeps_the_central_square_rounding_the_offset_down() -> None:
    wide, tall = noise(8, 13), noise(13, 8)
    np.testing.assert_array_equal(preprocess(wide, 8), wide[:, 2:10])
    np.testing.assert_array_equal(preprocess(tall, 8), tall[2:10])


pictures = arrays(np.uint8, st.tuples(st.integers(1, 90), st.integers(1, 90), st.just(3)))


@settings(max_examples=60)
@given(image=pictures, size=st.integers(1, 200))
@example(image=np.full((1, 1, 3), 7, np.uint8), size=512)
@example(image=np.full((1, 3000, 3), 7, np.uint8), size=64)
def test_crop_gives_the_asked_square(image: np.ndarray, size: int) -> None:
    out = preprocess(image, size)
    assert out.shape == (size, size, 3) and out.dtype == np.uint8


@settings(max_examples=60)
@given(height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(1, 600))
@example(height=6, width=65, size=192)
def test_aspect_gives_sides_in_64s_that_follow_the_picture(
    height: int, width: int, size: int
) -> None:
    short = max(64, 64 * round(size / 64))
    ideal = np.array([height, width]) * short / min(height, width)
    if ideal.max() > MAX_SIDE + 32:  # a tie goes to the even multiple, which MAX_SIDE is
        with pytest.raises(UserError, match=f"{width}x{height} would become"):
            preprocess(noise(height, width), size, "aspect")
    else:
        out = preprocess(noise(height, width), size, "aspect")
        assert out.dtype == np.uint8 and out.shape[2] == 3
        assert min(out.shape[:2]) == short and out.shape[0] % 64 == out.shape[1] % 64 == 0
        assert np.abs(np.array(out.shape[:2]) - ideal).max() <= 32


@pytest.mark.parametrize("fit", ["crop", "aspect"])
def test_one_colour_stays_that_colour(fit: Fit) -> None:
    image = np.broadcast_to(np.array([0, 128, 255], np.uint8), (50, 70, 3)).copy()
    assert (preprocess(image, 128, fit) == [0, 128, 255]).all()


def test_aspect_does_not_stretch() -> None:
    """A disc in a 640x470 picture is a disc afterwards, although 470 to 640 is no ratio of 64s."""
    y, x = np.mgrid[:470, :640]
    disc = (y - 235) ** 2 + (x - 320) ** 2 < 150**2
    image = np.repeat(np.where(disc, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    out = preprocess(image, 512, "aspect")
    assert out.shape == (512, 704, 3)
    dark = out[..., 0] < 128
    assert abs(int(dark.any(0).sum()) - int(dark.any(1).sum())) <= 1


@pytest.mark.parametrize(
    ("width", "height", "size", "shape"),
    [
        (300, 300, 1024, (1024, 1024)),
        (1600, 1000, 1024, (1280, 768)),
        (1000, 1600, 1024, (768, 1280)),
        (400, 300, 1024, (1152, 896)),
        (900, 100, 1024, (2048, 512)),
        (400, 300, 512, (576, 448)),
    ],
)
def test_buckets_are_the_shapes_of_training(
    width: int, height: int, size: int, shape: tuple[int, int]
) -> None:
    assert preprocess(noise(height, width), size, "buckets").shape[1::-1] == shape
    with pytest.raises(UserError, match="with a side over"):
        preprocess(noise(100, 900), 1100, "buckets")


def test_aspect_leaves_a_picture_of_fitting_shape_alone() -> None:
    image = noise(64, 128)
    np.testing.assert_array_equal(preprocess(image, 64, "aspect"), image)


@pytest.mark.parametrize("size", [0, -1, MAX_SIDE + 1])
def test_impossible_sizes_are_refused(size: int) -> None:
    with pytest.raises(UserError, match=str(size)):
        preprocess(noise(8, 8), size)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5, 3), np.float32),
    ],
)
def test_only_uint8_rgb_is_a_picture(array: np.ndarray) -> None:
    with pytest.raises(UserError, match="uint8 of shape"):
        preprocess(array, 8)


# --- load_image: every kind of file ---


@pytest.mark.parametrize("name", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_are_read_exactly(name: str, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(encoded(noise(64, 64), name))
    np.testing.assert_array_equal(load_image(path, 64), noise(64, 64))


@pytest.mark.parametrize("name", ["JPEG", "WEBP", "GIF", "AVIF"])
def test_lossy_formats_are_read(name: str, tmp_path: Path) -> None:
    ramp = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[:, None, None], 64, axis=1)
    path = tmp_path / "picture"
    path.write_bytes(encoded(np.repeat(ramp, 3, axis=2), name))
    assert np.abs(load_image(path, 64).astype(int) - ramp).max() <= 8


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].swapaxes(0, 1)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_orientation_is_applied(orientation: int, upright: Any, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(noise(64, 64), "PNG", exif=exif))
    np.testing.assert_array_equal(load_image(path, 64), upright(noise(64, 64)))


def test_broken_exif_does_not_lose_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(noise(64, 64), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"))
    np.testing.assert_array_equal(load_image(path, 64), noise(64, 64))


def uniform(mode: str, value: Any) -> Image.Image:
    return Image.new(mode, (64, 64), value)


def palette(transparent: bool) -> tuple[Image.Image, dict[str, Any]]:
    image = uniform("P", 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return image, {"transparency": 1} if transparent else {}


@pytest.mark.parametrize(
    ("name", "image", "options", "expected"),
    [
        ("PNG", uniform("L", 77), {}, (77, 77, 77)),
        ("PNG", uniform("1", 1), {}, (255, 255, 255)),
        ("PNG", uniform("1", 0), {}, (0, 0, 0)),
        ("PNG", uniform("LA", (100, 255)), {}, (100, 100, 100)),
        ("PNG", uniform("LA", (100, 0)), {}, (255, 255, 255)),
        ("PNG", uniform("RGBA", (10, 20, 30, 255)), {}, (10, 20, 30)),
        ("PNG", uniform("RGBA", (10, 20, 30, 0)), {}, (255, 255, 255)),
        ("PNG", uniform("RGBA", (0, 0, 0, 51)), {}, (204, 204, 204)),
        ("PNG", uniform("RGB", (1, 2, 3)), {"transparency": (1, 2, 3)}, (255, 255, 255)),
        ("PNG", *palette(transparent=False), (10, 20, 30)),
        ("PNG", *palette(transparent=True), (255, 255, 255)),
        ("GIF", *palette(transparent=False), (10, 20, 30)),
        ("GIF", *palette(transparent=True), (255, 255, 255)),
        ("PNG", uniform("I;16", 0), {}, (0, 0, 0)),
        ("PNG", uniform("I;16", 257 * 90), {}, (90, 90, 90)),
        ("PNG", uniform("I;16", 65535), {}, (255, 255, 255)),
        ("TIFF", uniform("I;16B", 257 * 90), {}, (90, 90, 90)),
        ("TIFF", uniform("I", 257 * 90), {}, (90, 90, 90)),
        ("PPM", uniform("I", 257 * 90), {}, (90, 90, 90)),
        ("TIFF", uniform("F", 0.4), {}, (102, 102, 102)),
        ("TIFF", uniform("F", 102.0), {}, (102, 102, 102)),
        ("TIFF", uniform("F", 1e9), {}, (255, 255, 255)),
        ("TIFF", uniform("F", float("nan")), {}, (0, 0, 0)),
        ("TIFF", uniform("CMYK", (0, 255, 255, 0)), {}, (255, 0, 0)),
        ("JPEG", uniform("CMYK", (0, 0, 0, 255)), {}, (0, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb(
    name: str,
    image: Image.Image,
    options: dict[str, Any],
    expected: tuple[int, int, int],
    tmp_path: Path,
) -> None:
    path = tmp_path / "picture"
    image.save(path, name, **options)
    assert (load_image(path, 64) == expected).all()


def test_wide_integers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "picture.tif"
    uniform("I", 65536).save(path)
    assert "32-bit" in refusal(path)


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_of_several_frames_is_taken(name: str, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    options: dict[str, Any] = {"lossless": True} if name == "WEBP" else {}
    later = [uniform("RGB", "blue")]
    uniform("RGB", "red").save(path, name, save_all=True, append_images=later, **options)
    assert (load_image(path, 64) == (255, 0, 0)).all()


# --- load_image: colours ---

CURVE = struct.pack(">4sIIH", b"curv", 0, 1, round(2.19921875 * 256)) + bytes(2)
WHITE = (0.9642, 1.0, 0.8249)
ADOBE = {  # columns of Adobe RGB (1998)'s matrix to XYZ, adapted to D50
    b"rXYZ": (0.60974, 0.31111, 0.01947),
    b"gXYZ": (0.20528, 0.62567, 0.06087),
    b"bXYZ": (0.14919, 0.06322, 0.74457),
}


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(65536 * x)) for x in values)


def profile(kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of version 2 with these tags."""
    place, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", place + len(body), len(content))
        body += content
    size = place + len(body)
    head = struct.pack(">I4xI4s4s4s", size, 0x02100000, b"mntr", kind, b"XYZ ") + bytes(12)
    head += b"acsp" + bytes(28) + fixed(*WHITE)
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + body


def xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + fixed(*values)


ADOBE_RGB = profile(
    b"RGB ",
    {name: xyz(*x) for name, x in ADOBE.items()}
    | {b"wtpt": xyz(*WHITE), b"rTRC": CURVE, b"gTRC": CURVE, b"bTRC": CURVE},
)
GAMMA_1 = profile(b"GRAY", {b"wtpt": xyz(*WHITE), b"kTRC": struct.pack(">4sII", b"curv", 0, 0)})


def by_hand(rgb: tuple[int, int, int]) -> np.ndarray:
    """Adobe RGB to sRGB with the standards' own numbers."""
    to_xyz = np.array(list(ADOBE.values())).T
    from_xyz = np.array(  # sRGB's, from D50
        [[3.13386, -1.61687, -0.49062], [-0.97877, 1.91614, 0.03345], [0.07195, -0.22899, 1.40524]]
    )
    linear = from_xyz @ to_xyz @ (np.array(rgb) / 255) ** 2.19921875
    linear = linear.clip(0, 1)
    curved = np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return 255 * curved


@pytest.mark.parametrize("name", ["PNG", "TIFF", "WEBP", "AVIF", "JPEG"])
@pytest.mark.parametrize("rgb", [(200, 100, 50), (60, 140, 90), (90, 90, 90)])
def test_a_profile_is_followed(name: str, rgb: tuple[int, int, int], tmp_path: Path) -> None:
    path = tmp_path / "picture"
    options: dict[str, Any] = {"quality": 100} if name in ("AVIF", "JPEG", "WEBP") else {}
    uniform("RGB", rgb).save(path, name, icc_profile=ADOBE_RGB, **options)
    found = load_image(path, 64).astype(float)
    assert np.abs(found - by_hand(rgb)).max() <= (3 if options else 1.5)


def test_a_profile_is_followed_before_transparency_and_for_grey(tmp_path: Path) -> None:
    clear, grey = tmp_path / "clear.png", tmp_path / "grey.png"
    uniform("RGBA", (200, 100, 50, 51)).save(clear, icc_profile=ADOBE_RGB)
    over_white = 0.2 * by_hand((200, 100, 50)) + 0.8 * 255
    assert np.abs(load_image(clear, 64) - over_white).max() <= 1.5
    uniform("L", 55).save(grey, icc_profile=GAMMA_1)  # linear light: 0.2157 is 128 in sRGB
    assert np.abs(load_image(grey, 64).astype(int) - 128).max() <= 1


@pytest.mark.parametrize(
    "content", [srgb().tobytes(), b"broken", srgb().tobytes()[:200], GAMMA_1, b""]
)
def test_a_profile_of_srgb_or_broken_or_of_other_colours_changes_nothing(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(noise(64, 64), "PNG", icc_profile=content))
    np.testing.assert_array_equal(load_image(path, 64), noise(64, 64))


@pytest.mark.parametrize("kind", ["12 bits", "white is zero"])
def test_deep_grey_of_tiff_is_what_it_says(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.tif"
    values = (np.arange(64 * 64, dtype=np.uint16) % 4096).reshape(64, 64)
    if kind == "12 bits":
        # Two values in three bytes, as the standard packs them.
        pairs = values.reshape(-1, 2).astype(int)
        packed = np.stack(
            [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255],
            axis=1,
        )
        body, bits, photometric = packed.astype(np.uint8).tobytes(), 12, 1
        expected = np.rint(values / 4095 * 255)
    else:
        body, bits, photometric = (values * 16).tobytes(), 16, 0
        expected = np.rint(255 - values * 16 / 65535 * 255)
    tags = [(256, 64), (257, 64), (258, bits), (259, 1), (262, photometric), (273, 8)]
    tags += [(277, 1), (278, 64), (279, len(body))]
    place = 8 + len(body)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    path.write_bytes(struct.pack("<2sHI", b"II", 42, place) + body + directory)
    found = load_image(path, 64)
    assert np.abs(found - expected[..., None]).max() <= 1


# --- load_image: what lies around the pixels ---


def test_only_the_orientation_is_read_of_exif(tmp_path: Path) -> None:
    """A negative resolution cannot be written back, and need not."""
    entries = [(0x0112, 3, 6), (0x011A, 5, 38)]
    directory = b"".join(
        struct.pack(">HHI", tag, kind, 1) + struct.pack(">HH" if kind == 3 else ">I", *x)
        for tag, kind, x in ((t, k, (v, 0) if k == 3 else (v,)) for t, k, v in entries)
    )
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 2) + directory + bytes(4)
    exif += struct.pack(">ii", -72, 1)
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(noise(64, 64), "PNG", exif=exif))
    np.testing.assert_array_equal(load_image(path, 64), np.rot90(noise(64, 64), -1))


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(3_000_000))),
        png_chunk(b"zTXt", b"workflow\0\0" + b"no zlib"),
        png_chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(bytes(3_000_000))),
        png_chunk(b"tEXt", b"workflow\0" + bytes(2_000_000)),
        png_chunk(b"iCCP", b"large\0\0" + zlib.compress(bytes(200_000_000))),
        png_chunk(b"iCCP", b"broken\0\0" + b"no zlib"),
    ],
)
def test_texts_and_broken_profiles_of_png_do_not_matter(chunk: bytes, tmp_path: Path) -> None:
    whole = encoded(noise(64, 64), "PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(whole[:33] + chunk + whole[33:])
    np.testing.assert_array_equal(load_image(path, 64), noise(64, 64))


# --- load_image: every kind of bad file ---


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    assert "no ordinary file" in refusal(pipe)
    assert "no ordinary file" in refusal(Path("/dev/zero"))


def test_heic_is_read_upright(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs ie_jax[heic]")
    image = np.kron(noise(4, 6), np.ones((16, 16, 1))).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, options in (("a.heic", {}), ("turned.heic", {"exif": exif.tobytes()})):
        photo = pillow_heif.from_pillow(Image.fromarray(image))
        photo.save(tmp_path / name, quality=95, **options)
    plain, turned = (read_rgb(tmp_path / name, name) for name in ("a.heic", "turned.heic"))
    assert np.abs(plain.astype(int) - image).mean() < 2
    assert np.abs(turned.astype(int) - np.rot90(image, -1)).mean() < 2


def test_heic_says_what_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = tmp_path / "photo.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    assert "ie_jax[heic]" in refusal(path)


def test_unreadable_paths_are_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "missing.png")
    assert "directory" in refusal(tmp_path)
    assert "cannot be read" in refusal(Path("null\0byte.png"))
    assert "cannot be read" in refusal(tmp_path / ("long" * 100))


@pytest.mark.parametrize("content", [b"", b"hello", encoded(noise(9, 9), "EPS")])
def test_what_is_no_picture_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    assert "not a picture" in refusal(path)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100))
    chunks = (chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    "shape", [(8001, 8000), (10_000, 10_000), (30_000, 30_000), (2**31 - 1, 1)]
)
def test_enormous_pictures_are_refused_before_decoding(
    shape: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: Any) -> None:
        raise AssertionError("the pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(*shape))
    assert "megapixels" in refusal(path)


def test_a_picture_without_pixels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.png"
    path.write_bytes(png_header(0, 5))
    refusal(path)


def test_a_strip_cannot_keep_its_aspect(tmp_path: Path) -> None:
    path = tmp_path / "strip.png"
    path.write_bytes(encoded(noise(1, 300), "PNG"))
    with pytest.raises(UserError, match=r"strip\.png.*300x1"):
        load_image(path, 512, "aspect")
    assert load_image(path, 512).shape == (512, 512, 3)


WHOLE = {
    "PNG": encoded(noise(40, 30), "PNG"),
    "JPEG": encoded(noise(40, 30), "JPEG"),
    "progressive": encoded(noise(40, 30), "JPEG", progressive=True),
}


@settings(max_examples=150)
@given(name=st.sampled_from(sorted(WHOLE)), lost=st.integers(1, 4000))
@example(name="PNG", lost=1)
@example(name="JPEG", lost=1)
@example(name="progressive", lost=1)
def test_a_truncated_file_is_refused(
    name: str, lost: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = WHOLE[name].removesuffix(b"\xaeB`\x82")  # a PNG ends with a checksum of nothing
    path = tmp_path_factory.getbasetemp() / "truncated"
    path.write_bytes(whole[: max(0, len(whole) - lost)])
    refusal(path)


STARTS = [b"", *(encoded(noise(5, 4), name)[:40] for name in FORMATS)]


@settings(max_examples=300)
@given(start=st.sampled_from(STARTS), length=st.integers(0, 40), rest=st.binary(max_size=300))
def test_random_bytes_are_refused_or_read(
    start: bytes, length: int, rest: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    read_or_refuse(tmp_path_factory.getbasetemp() / "random", start[:length] + rest)


@settings(max_examples=300)
@given(
    name=st.sampled_from(FORMATS),
    flips=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_files_are_refused_or_read(
    name: str, flips: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(encoded(noise(12, 9), name))
    for place, value in flips:
        content[place % len(content)] = value
    read_or_refuse(tmp_path_factory.getbasetemp() / "damaged", bytes(content))


def read_or_refuse(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        image = load_image(path, 16)
    except UserError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    else:
        assert image.shape == (16, 16, 3) and image.dtype == np.uint8


def test_bytes_are_read_as_the_file_that_they_come_from(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(noise(9, 8), "PNG"))
    np.testing.assert_array_equal(read_rgb(path.read_bytes(), "row 3"), read_rgb(path, "a"))
    with pytest.raises(UserError, match=r"^row 3: is not a picture"):
        read_rgb(b"no picture", "row 3")


def test_threads_read_pictures_without_touching_other_warnings(tmp_path: Path) -> None:
    """Pillow's warning about this one's metadata stays hidden, all others are as before."""
    broken = encoded(noise(64, 64), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    with ThreadPoolExecutor(4) as pool:
        read = pool.map(lambda _: read_rgb(broken, "picture"), range(64))
        assert all((image == noise(64, 64)).all() for image in read)
    with pytest.warns(UserWarning, match="still shown"):
        warnings.warn("still shown", stacklevel=1)


@pytest.mark.parametrize(
    ("shape", "to", "height_first"),
    [((288, 192), (224, 224), True), ((213, 320), (224, 224), False), ((90, 40), (30, 20), True)],
)
def test_resizes_in_one_order_with_any_pillow(
    shape: tuple[int, int], to: tuple[int, int], height_first: bool
) -> None:
    picture, (h, w), (height, width) = noise(*shape), shape, to
    between = (w, height) if height_first else (width, h)
    how = Image.Resampling.BICUBIC
    expected = np.asarray(
        Image.fromarray(picture).resize(between, how).resize((width, height), how)
    )
    assert np.array_equal(resized(picture, to), expected)
