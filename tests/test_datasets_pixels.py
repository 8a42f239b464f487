"""Images of more than 8 bits are scaled by the white level that the file declares, or refused; it is never guessed."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from knobctl.data.datasets.images import decode_image
from knobctl.data.errors import DatasetError

TWELVE_BITS = np.array([[0, 1, 2048, 4095]], np.uint16)
TWELVE_BITS_SCALED = [0, 0, 128, 255]


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(values, *, significant=None):
    """A 16-bit PNG of values [height, width] or [height, width, channels], with an sBIT chunk if one is given."""
    channels = values.shape[2] if values.ndim == 3 else 1
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    sbit = b"" if significant is None else chunk(b"sBIT", bytes([significant] * channels))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + sbit
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def tiff(values, *, bits, sample_format=1, photometric=1, maximum=None, data=None, order="<"):
    """A TIFF of one strip with exactly these tags; `data` holds packed samples and replaces `values`."""
    height, width, *rest = values.shape
    channels = rest[0] if rest else 1
    data = values.tobytes() if data is None else data
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: channels, 278: height}
    tags |= {279: len(data), 339: sample_format} | ({} if maximum is None else {281: maximum})
    start = 8 + 2 + 12 * (len(tags) + 1) + 4
    extra = struct.pack(f"{order}{channels}H", *[bits] * channels) if channels > 2 else b""
    tags[273] = start + len(extra)
    entries = b""
    for tag, value in sorted(tags.items()):
        if tag == 258 and extra:
            entries += struct.pack(f"{order}HHII", tag, 3, channels, start)
        elif tag in (273, 279):
            entries += struct.pack(f"{order}HHII", tag, 4, 1, value)
        else:
            entries += struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + struct.pack(f"{order}I", 0) + extra + data


def grey(data):
    pixels = decode_image(data, "x")
    assert (pixels[..., :1] == pixels).all()
    return pixels[..., 0].tolist()


FULL = np.array([[0, 257, 32768, 65535]], np.uint16)
FULL_SCALED = [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(png(FULL), FULL_SCALED, id="png"),
        pytest.param(tiff(FULL, bits=16), FULL_SCALED, id="tiff"),
        pytest.param(tiff(FULL.astype(">u2"), bits=16, order=">"), FULL_SCALED, id="tiff-big-endian"),
        pytest.param(tiff(FULL, bits=16, photometric=0), [255, 254, 127, 0], id="tiff-white-is-zero"),
        pytest.param(tiff(np.array([[0, 32767]], np.int16), bits=16, sample_format=2), [0, 255], id="tiff-int16"),
        pytest.param(tiff(np.array([[0, 2**32 - 1]], np.uint32), bits=32), [0, 255], id="tiff-uint32"),
        pytest.param(tiff(np.array([[0, 2**31 - 1]], np.int32), bits=32, sample_format=2), [0, 255], id="tiff-int32"),
        pytest.param(b"P5 4 1 65535\n" + FULL.astype(">u2").tobytes(), FULL_SCALED, id="pgm"),
    ],
)
def test_values_that_use_all_bits_are_scaled_by_their_type(data, expected):
    assert grey(data) == [expected]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(png(TWELVE_BITS, significant=12), TWELVE_BITS_SCALED, id="png-low-bits"),
        pytest.param(png(TWELVE_BITS << 4, significant=12), TWELVE_BITS_SCALED, id="png-high-bits"),
        pytest.param(png(TWELVE_BITS << 4 | TWELVE_BITS >> 8, significant=12), TWELVE_BITS_SCALED, id="png-repeated"),
        pytest.param(png(np.array([[0, 2570]], np.uint16), significant=16), [0, 10], id="png-dark"),
        pytest.param(tiff(TWELVE_BITS, bits=16, maximum=4095), TWELVE_BITS_SCALED, id="tiff-maximum"),
        pytest.param(
            tiff(TWELVE_BITS.astype(np.int32), bits=32, sample_format=2, maximum=4095), TWELVE_BITS_SCALED, id="int32"
        ),
        pytest.param(
            tiff(np.array([[0, 0.5, 1]], np.float32), bits=32, sample_format=3, maximum=1), [0, 128, 255], id="float"
        ),
        pytest.param(
            tiff(TWELVE_BITS, bits=12, data=0x000_001_800_FFF.to_bytes(6, "big")), TWELVE_BITS_SCALED, id="tiff-12-bit"
        ),
        pytest.param(b"P5 4 1 4095\n" + TWELVE_BITS.astype(">u2").tobytes(), TWELVE_BITS_SCALED, id="pgm"),
    ],
)
def test_a_declared_range_is_used(data, expected):
    assert grey(data) == [expected]


LOW = np.array([[0, 100, 255]])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(png(LOW.astype(np.uint16)), "brightest pixel is 255 of a possible 65,535", id="png-8-of-16"),
        pytest.param(png(TWELVE_BITS), "brightest pixel is 4,095 of a possible 65,535", id="png-12-of-16"),
        pytest.param(png(TWELVE_BITS & 0xFF0, significant=12), "white level is unknown", id="png-high-or-low-bits"),
        pytest.param(png(TWELVE_BITS, significant=8), "white level is unknown", id="png-wrong-sbit"),
        pytest.param(tiff(LOW.astype(np.uint16), bits=16), "255 of a possible 65,535", id="tiff-8-of-16"),
        pytest.param(tiff(TWELVE_BITS, bits=16, maximum=255), "4,095 of a possible 65,535", id="tiff-wrong-maximum"),
        pytest.param(tiff(LOW.astype(">u2"), bits=16, order=">"), "255 of a possible 65,535", id="tiff-big-endian"),
        pytest.param(tiff(LOW.astype(np.int16), bits=16, sample_format=2), "255 of a possible 32,767", id="int16"),
        pytest.param(
            tiff(LOW.astype(np.int32), bits=32, sample_format=2), "255 of a possible 2,147,483,647", id="int32"
        ),
        pytest.param(
            tiff(FULL.astype(np.int32), bits=32, sample_format=2), "65,535 of a possible 2,147,483,647", id="16-of-32"
        ),
        pytest.param(tiff(LOW.astype(np.uint32), bits=32), "255 of a possible 4,294,967,295", id="uint32"),
        pytest.param(tiff(-LOW.astype(np.int32), bits=32, sample_format=2), "negative pixels", id="negative"),
        pytest.param(tiff(LOW.astype(np.float32), bits=32, sample_format=3), "no known range", id="float"),
        pytest.param(tiff(LOW * np.float32("nan"), bits=32, sample_format=3), "not finite", id="nan"),
        pytest.param(png(np.full((2, 2, 3), 4095, np.uint16)), "16-bit colour", id="rgb"),
        pytest.param(png(np.full((2, 2, 3), 255, np.uint16)), "16-bit colour", id="rgb-8-of-16"),
        pytest.param(png(np.full((2, 2, 2), [[[255, 65535]]], np.uint16)), "16-bit colour", id="grey-and-alpha"),
        pytest.param(tiff(np.full((2, 2, 3), 4095, np.uint16), bits=16, photometric=2), "16-bit colour", id="tiff-rgb"),
    ],
)
def test_an_unknown_range_is_refused_with_advice(data, reason):
    with pytest.raises(DatasetError, match=f"image x cannot be used: .*{reason}.*convert it to 8 bits"):
        decode_image(data, "x")


def test_16_bit_colour_that_uses_all_bits_keeps_its_high_bytes():
    values = np.array([[[0, 0x1234, 0xFFFF]]], np.uint16)
    for data in (png(values), tiff(values, bits=16, photometric=2)):
        assert decode_image(data, "x").tolist() == [[[0, 0x12, 0xFF]]]
    dark = np.array([[[0, 0x0101, 0x0202]]], np.uint16)
    assert decode_image(png(dark, significant=16), "x").tolist() == [[[0, 1, 2]]]


def test_an_image_of_zeros_is_black():
    assert grey(png(np.zeros((1, 2), np.uint16))) == [[0, 0]]


@pytest.mark.parametrize(("bits", "data"), [(1, b"\x40"), (2, b"\x1b"), (4, b"\x0f\x3c")])
def test_few_bits_are_scaled_to_the_whole_range(bits, data):
    expected = {1: [0, 255, 0, 0], 2: [0, 85, 170, 255], 4: [0, 255, 51, 204]}[bits]
    assert grey(tiff(np.zeros((1, 4)), bits=bits, data=data)) == [expected]
    one_line = io.BytesIO()
    Image.fromarray(np.array([[False, True]])).save(one_line, "PNG")
    assert grey(one_line.getvalue()) == [[0, 255]]
