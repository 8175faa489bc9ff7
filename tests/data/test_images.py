"""Decoding: every mode a picture comes in, and a reason for whatever cannot be read."""

import io

import pytest

Image = pytest.importorskip("PIL.Image")

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
        ("CMYK", (0, 0, 0, 255), "TIFF", (0, 0, 0)),
        ("P", 0, "GIF", (0, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb(mode: str, colour: object, form: str, expected: tuple) -> None:
    image = decode(encoded(Image.new(mode, (5, 4), colour), form), "here")
    assert (image.mode, image.size, image.getpixel((2, 2))) == ("RGB", (5, 4), expected)


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
