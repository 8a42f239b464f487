"""What an unreadable image file looks like, from its first bytes: for error messages, not for decoding."""

from __future__ import annotations

import re

from ..printable import printable

# (offset, signature, description). The first match is used.
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"version https://git-lfs", "a Git LFS pointer (fetch the file with `git lfs pull`)"),
    (0, b"oid sha256:", "a Git LFS pointer (fetch the file with `git lfs pull`)"),
    (0, b"/annex/objects/", "a git-annex pointer (fetch the file with `git annex get`)"),
    (0, b"\xff\xd8\xff", "a JPEG image, damaged or cut short"),
    (0, b"\x89PNG", "a PNG image, damaged or cut short"),
    (0, b"GIF8", "a GIF image, damaged or cut short"),
    (8, b"WEBP", "a WebP image, damaged or cut short"),
    (0, b"II*\0", "a TIFF image of a kind that is not supported, or damaged"),
    (0, b"MM\0*", "a TIFF image of a kind that is not supported, or damaged"),
    (0, b"II+\0", "a BigTIFF image"),
    (0, b"MM\0+", "a BigTIFF image"),
    (4, b"ftypavi", "an AVIF image"),
    (4, b"ftyphei", "a HEIC image"),
    (4, b"ftyphev", "a HEIC image"),
    (4, b"ftypmif1", "a HEIC or AVIF image"),
    (4, b"ftypmsf1", "a HEIC or AVIF image"),
    (4, b"ftyp", "an MP4 or QuickTime video"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"\xff\xd8", "a JPEG image, damaged or cut short"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"v/1\x01", "an OpenEXR image"),
    (0, b"#?RADIANCE", "a Radiance HDR image"),
    (0, b"DDS ", "a DDS texture"),
    (0, b"\0\0\1\0", "an icon file"),
    (128, b"DICM", "a DICOM file"),
    (0, b"SIMPLE  =", "a FITS file"),
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript file"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ", "an xz archive"),
    (0, b"(\xb5/\xfd", "a Zstandard archive"),
    (257, b"ustar", "a tar archive"),
    (8, b"AVI ", "an AVI video"),
    (0, b"\x1aE\xdf\xa3", "a WebM or Matroska video"),
    (0, b"\x80\x04\x95", "a Python pickle"),
    (0, b"BM", "a BMP image, damaged or cut short"),
)
_TEXTS: tuple[tuple[str, str], ...] = (
    (r"<!doctype html|<html|<head|<body", "an HTML page, perhaps from a failed download"),
    (r"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!doctype svg[^>]*>\s*)?<svg", "an SVG drawing"),
    (r"<\?xml|<error|<[a-z]", "an XML document, perhaps from a failed download"),
    (r"data:", "a data URI: decode it to bytes"),
    (r"b'|b\"|bytearray\(", "the Python representation of bytes: store the bytes themselves"),
    (r"[{\[]", "JSON"),
)
# First characters of JPEG, PNG, GIF, WebP, TIFF and BMP files in base64.
_BASE64_IMAGE = re.compile(r"(/9j/|iVBORw0KGgo|R0lGOD|UklGR|SUkqA|TU0AK|Qk[0-3])[\w+/=\s-]*")
_BASE64 = re.compile(r"[\w+/\s-]{80,}={0,2}\s*", re.ASCII)


def describe_bytes(data: bytes) -> str:
    """Returns a clause that describes `data`: "it looks like ..." or "it begins with ..."."""
    for offset, mark, what in _SIGNATURES:
        if data.startswith(mark, offset):
            return f"it looks like {what}"
    if not any(data[:4096]):
        return "it begins with zero bytes"
    try:
        text = data[:1024].decode("utf-8-sig", errors="ignore" if len(data) > 1024 else "strict").strip()
    except UnicodeDecodeError:
        return f"it begins with the bytes {data[:8].hex(' ')}"
    for pattern, what in _TEXTS:
        if re.match(pattern, text, re.IGNORECASE | re.DOTALL):
            return f"it looks like {what}"
    if looks_like_base64(text):
        return "it looks like base64: decode it to bytes"
    if not text.replace("\n", "").replace("\r", "").replace("\t", "").isprintable():
        return f"it begins with the bytes {data[:8].hex(' ')}"
    return f"it is text that begins with {printable(text, 40)!r}"


def looks_like_base64(text: str) -> bool:
    """Returns whether a text is an image in base64 rather than a file name."""
    return (len(text) >= 20 and _BASE64_IMAGE.fullmatch(text) is not None) or _BASE64.fullmatch(text) is not None


def describe_name(name: str) -> str | None:
    """Returns a clause that describes a file name that is really something else; None if it looks like a name."""
    if name.lower().startswith("data:") or looks_like_base64(name):
        return "it looks like base64 or a data URI: store the bytes in Parquet, or files and their paths"
    if re.match(r"[a-z][a-z0-9+]+:/", name, re.IGNORECASE):
        return "it looks like a URL: download the images and store their paths"
    return None
