"""Pixels out of encoded images: every mode becomes RGB, damage and bombs become one clear error."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from knobctl.data.datasets import decode_image
from knobctl.data.datasets import images as images_module
from knobctl.data.errors import DatasetError


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(mode="RGB", size=(7, 5)):
    values = np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3)
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "1"])
def test_every_mode_becomes_rgb(mode):
    image = gradient(mode)
    pixels = decode_image(encoded(image), "a.png")
    assert pixels.dtype == np.uint8
    assert pixels.shape == (5, 7, 3)
    np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))


def test_a_palette_gives_its_colours_and_transparency_is_dropped():
    image = gradient().convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode_image(encoded(image), "p.png"), expected)
    transparent = encoded(image, transparency=bytes(range(0, 160, 10)))
    np.testing.assert_array_equal(decode_image(transparent, "p.png"), expected)


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    pixels = decode_image(encoded(Image.fromarray(values)), "deep.png")
    np.testing.assert_array_equal(pixels[0, :, 0], [0, 1, 128, 255])
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_cmyk_jpeg_keeps_its_colour():
    red = Image.new("RGB", (16, 16), (255, 0, 0)).convert("CMYK")
    pixels = decode_image(encoded(red, "JPEG", quality=95), "c.jpg")
    np.testing.assert_allclose(pixels[8, 8], [254, 0, 0], atol=6)


def test_exif_rotation_is_ignored_as_the_model_does():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    assert decode_image(encoded(gradient(), "JPEG", exif=exif), "turned.jpg").shape == (5, 7, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_truncated_image_is_an_error_with_its_name(kind):
    data = encoded(gradient(size=(64, 64)), kind)
    with pytest.raises(DatasetError, match=r"image val/7\.x cannot be decoded .*--skip-bad"):
        decode_image(data[: len(data) * 2 // 3], "val/7.x")


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"<svg></svg>", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_an_error(data):
    with pytest.raises(DatasetError, match="image x"):
        decode_image(data, "x")


def test_a_bomb_is_refused_before_it_is_decoded():
    """A PNG of 60000 x 60000 pixels in a few bytes: the header alone must be enough to refuse it."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for side in (60_000, 9_000):  # above Pillow's own limit, and below it
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
        with pytest.raises(DatasetError, match=r"image bomb\.png"):
            decode_image(data, "bomb.png")


def test_encoded_size_is_bounded(monkeypatch):
    data = encoded(gradient())
    monkeypatch.setattr(images_module, "MAX_IMAGE_BYTES", len(data) - 1)
    with pytest.raises(DatasetError, match="is the limit"):
        decode_image(data, "large.png")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM"]), st.data())
def test_damage_never_raises_anything_else(kind, data):
    damaged = bytearray(encoded(gradient(size=(24, 16)), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = decode_image(bytes(damaged), "x")
    except DatasetError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
