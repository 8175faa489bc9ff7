"""Decoding: every mode a picture comes in, and a reason for whatever cannot be read."""

import io
import math
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

Image = pytest.importorskip("PIL.Image")

from mora.data import images  # noqa: E402
from mora.data.images import BrokenImageError, decode  # noqa: E402


def encoded(image: "Image.Image", form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "colour", "form", "expected"),
    [
        ("RGB", (1, 2, 3), "PNG", (1, 2, 3)),
        ("RGBA", (1, 2, 3, 255), "PNG", (1, 2, 3)),
        ("RGBA", (1, 2, 3, 0), "PNG", (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), "PNG", (204, 204, 204)),
        ("LA", (7, 0), "PNG", (255, 255, 255)),
        ("L", 77, "PNG", (77, 77, 77)),
        ("1", 1, "PNG", (255, 255, 255)),
        ("I;16", 40 * 256 + 9, "PNG", (40, 40, 40)),
        ("I", 200, "TIFF", (200, 200, 200)),
        ("I", 65535, "TIFF", (255, 255, 255)),
        ("I;16B", 40 * 256 + 9, "TIFF", (40, 40, 40)),
        ("I;16", 30, "PPM", (0, 0, 0)),
        ("LA", (7, 128), "TIFF", (131, 131, 131)),
        ("CMYK", (0, 0, 0, 0), "JPEG", (255, 255, 255)),
        ("CMYK", (0, 0, 0, 255), "TIFF", (0, 0, 0)),
        ("P", 0, "GIF", (0, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb(mode: str, colour: object, form: str, expected: tuple) -> None:
    image = decode(encoded(Image.new(mode, (5, 4), colour), form), "here")
    assert (image.mode, image.size, image.getpixel((2, 2))) == ("RGB", (5, 4), expected)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(size: tuple[int, int], depth: int, kind: int, rows: bytes, transparent: bytes) -> bytes:
    """A PNG of any depth with a transparent colour, which Pillow does not write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"tRNS", transparent)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("depth", "row", "key", "expected"),
    [
        (16, struct.pack(">HH", 0x1234, 0x7FFF), 0x1234, (255, 127)),
        (16, struct.pack(">HH", 0x1234, 0x1235), 0x1234, (255, 18)),
        (8, b"\x12\x7f", 0x12, (255, 127)),
        (4, b"\x17", 1, (255, 119)),
        (2, b"\x70", 1, (255, 255)),
        (2, b"\x60", 1, (255, 170)),
        (1, b"\x40", 0, (255, 255)),
    ],
)
def test_the_transparent_grey_of_a_png_of_any_depth_is_white(depth: int, row: bytes, key: int, expected: tuple) -> None:
    image = decode(png((2, 1), depth, 0, b"\0" + row, struct.pack(">H", key)), "here")
    assert tuple(image.getpixel((place, 0))[0] for place in (0, 1)) == expected


def deep(values: list[int], bits: int, white_is_zero: bool = False) -> bytes:
    """A grey TIFF of one row whose pixels are of 12 or 16 bits."""
    if bits == 12:
        data = b"".join(
            bytes((a >> 4, (a & 15) << 4 | b >> 8, b & 255)) for a, b in zip(*[iter(values)] * 2, strict=True)
        )
    else:
        data = struct.pack(f"<{len(values)}H", *values)
    tags = [(256, len(values)), (257, 1), (258, bits), (259, 1), (262, 0 if white_is_zero else 1), (273, 8), (277, 1),
            (278, 1), (279, len(data))]  # fmt: skip
    data += b"\0" * (len(data) % 2)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_deep_pixels_are_scaled_by_their_depth() -> None:
    assert [decode(deep([0, 4095, 2048, 16], 12), "here").getpixel((x, 0))[0] for x in range(4)] == [0, 255, 128, 1]
    assert [decode(deep([0, 65535, 32768], 16), "here").getpixel((x, 0))[0] for x in range(3)] == [0, 255, 128]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encoded(Image.new("F", (5, 4), 0.5), "TIFF"), "its pixels are floating point, of which no file tells"),
        (encoded(Image.new("F", (5, 4), 200.0), "PPM"), "its pixels are floating point"),
        (
            encoded(Image.new("I", (5, 4), 70_000), "TIFF"),
            "its pixels go from 70,000 to 70,000, expected at most 16 bits",
        ),
        (encoded(Image.new("I", (5, 4), -1), "TIFF"), "its pixels go from -1 to -1, expected at most 16 bits"),
        (deep([1, 2], 16, white_is_zero=True), "its pixels are deeper than 8 bits and 0 is white"),
        (png((1, 1), 16, 2, bytes(7), bytes(6)), "it names a transparent colour of 16 bits a channel"),
    ],
)
def test_what_cannot_be_decoded_faithfully_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(BrokenImageError, match=f"^here: the image cannot be read: {reason}"):
        decode(data, "here")


def test_lab_is_decoded_as_it_is_meant() -> None:
    """Grey in CIELAB is grey: a wrong offset of a and b would be a bright colour."""
    for lightness, grey in ((0, 0), (255, 255), (136, 126)):
        image = decode(encoded(Image.new("LAB", (2, 2), (lightness, 128, 128)), "TIFF"), "here")
        assert all(abs(channel - grey) <= 4 for channel in image.getpixel((0, 0)))


def test_a_frame_of_an_animation_is_the_first() -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    for form in ("GIF", "PNG", "WEBP", "TIFF"):
        buffer = io.BytesIO()
        frames[0].save(buffer, form, save_all=True, append_images=frames[1:])
        red, _, blue = decode(buffer.getvalue(), "here").getpixel((2, 2))
        assert red > 200 and blue < 50


def test_more_bytes_than_the_bound_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LARGEST_IMAGE", 100)
    with pytest.raises(
        BrokenImageError, match="here: the image cannot be read: it is of .* bytes, expected at most 100"
    ):
        decode(encoded(Image.effect_noise((30, 30), 50)), "here")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16", "LA"])
def test_a_vast_picture_is_made_smaller_in_strips_as_it_would_be_whole(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = Image.effect_mandelbrot((500, 333), (-2, -1, 1, 1), 50).convert("RGB")
    if mode == "RGBA":
        picture.putalpha(Image.linear_gradient("L").resize((500, 333)))
    elif mode == "I;16":
        picture = Image.frombytes("I;16", (500, 333), bytes(range(250)) * 1332)
    else:
        picture = picture.convert(mode)
    data = encoded(picture)
    whole = decode(data, "here")
    monkeypatch.setattr(images, "LARGEST_WHOLE", 100_000)
    monkeypatch.setattr(images, "LARGEST_REDUCED", 30_000)
    monkeypatch.setattr(images, "SHORTEST_REDUCED", 10)
    monkeypatch.setattr(images, "STRIP", 5_000)
    smaller = decode(data, "here")
    assert smaller.size == (167, 111)
    assert smaller.tobytes() == whole.reduce(3).tobytes()
    monkeypatch.setattr(images, "SHORTEST_REDUCED", 1024)  # a short side is not made shorter
    assert decode(data, "here").tobytes() == whole.tobytes()


VAST = """
import io, resource, sys, zlib
from pathlib import Path
from mora.data.images import decode
data = Path(sys.argv[1]).read_bytes()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image = decode(data, "here")
print(image.size, image.getpixel((0, 0)), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("side", [int(os.environ.get("MORA_VAST_SIDE", "8400"))])  # 12000 takes a minute
def test_a_vast_picture_takes_little_more_than_its_pixels(tmp_path: Path, side: int) -> None:
    """Pillow holds four bytes a pixel in one piece; whole copies for the white behind it would be five times that."""
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(b"\0" + b"\x10\x20\x30\x80" * side) for _ in range(side)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0))
    (tmp_path / "vast.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    command = [sys.executable, "-W", "ignore", "-c", VAST, str(tmp_path / "vast.png")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    reduced = -(-side // math.ceil(side / 4096))
    assert result.stdout.startswith(f"({reduced}, {reduced}) (135, 143, 151) ")
    assert int(result.stdout.split()[-1]) < 1.7 * 4 * side**2 / 2**20


def test_an_opaque_picture_is_what_convert_makes_of_it() -> None:
    picture = Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 20).convert("RGB")
    for form in ("PNG", "JPEG", "WEBP", "BMP"):
        data = encoded(picture, form)
        assert decode(data, "here").tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def test_exif_rotation_is_not_applied() -> None:
    picture = Image.new("RGB", (6, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", exif=exif)
    assert decode(buffer.getvalue(), "here").size == (6, 4)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"text", "it is none of JPEG, PNG"),
        (b"<html>not found</html>", "it is none of JPEG, PNG"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "it is an SVG: save it as PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is none of JPEG, PNG"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, ""),
        (encoded(Image.new("RGB", (90, 90), "red"), "JPEG")[:500], ""),
        (encoded(Image.new("RGB", (90, 90), "red"), "PNG")[:-30], ""),
    ],
)
def test_what_cannot_be_read_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BrokenImageError, match=f"^here: the image cannot be read: {reason}"):
        decode(data, "here")


def test_the_limit_on_pixels_stays_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BrokenImageError, match="exceeds limit"):
        decode(encoded(Image.new("RGB", (20, 20))), "here")


def test_a_strip_that_preprocessing_would_blow_up_is_refused() -> None:
    """Resizing its short side to 224 pixels would make 5 billion pixels of 100 kB."""
    with pytest.raises(BrokenImageError, match=r"here: .* 100,000 x 1 pixels, expected sides within a factor of 1,000"):
        decode(encoded(Image.new("L", (100_000, 1))), "here")
    assert decode(encoded(Image.new("L", (1000, 1))), "here").size == (1000, 1)
