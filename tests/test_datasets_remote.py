"""Parquet files at an address: a local server counts the bytes that are fetched."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from knobctl.data.datasets.image_refs import ImageRoots, image_from_ref
from knobctl.data.datasets.remote_images import hub_location
from knobctl.data.datasets.sample_set import load_samples
from knobctl.data.errors import DatasetError
from knobctl.tests.support.dataset_files import png, rows, write_parquet

SIDE = 64


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """Serves a mirror of 120 images in row groups of 10; returns its address, its size and the bytes sent so far."""
    monkeypatch.setenv("KNOBCTL_IMAGE_CACHE", str(tmp_path / "images"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    images = [{"bytes": png(i, (SIDE, SIDE)), "path": None} for i in range(120)]
    path = write_parquet(tmp_path / "validation-0.parquet", rows(120, questions_per_image=1, image=images), 10)
    sent: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.reply(with_body=False)

        def do_GET(self):
            self.reply(with_body=True)

        def reply(self, with_body):
            data = path.read_bytes() if self.path.endswith("/validation-0.parquet") else None
            start, stop = self.wanted(len(data or b""))
            body = b"" if data is None else data[start:stop]
            self.send_response(404 if data is None else 206 if "Range" in self.headers else 200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
            if "Range" in self.headers:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data or b'')}")
            self.end_headers()
            if with_body:
                sent.append(len(body))
                self.wfile.write(body)

        def wanted(self, size):
            match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "bytes=0-"))
            first, last = match.groups()
            if not first:
                return max(0, size - int(last)), size
            return int(first), min(size, int(last) + 1 if last else size)

        def log_message(self, *args):
            """Keeps the output of the test clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/validation-0.parquet", path.stat().st_size, sent
    server.shutdown()
    thread.join()
    server.server_close()


def test_drawing_samples_fetches_no_images(mirror):
    address, size, sent = mirror
    loaded = load_samples("text_vqa", source=address, limit=5, check_images=False)
    assert len(loaded.samples) == 5
    assert sum(sent) < size / 4


def test_one_image_fetches_its_row_group_and_only_once(mirror):
    address, size, sent = mirror
    sample = load_samples("text_vqa", source=address, limit=1, check_images=False).samples[0]
    sent.clear()
    assert sample.image.read_bytes() == png(int(sample.image_id), (SIDE, SIDE))
    assert 0 < sum(sent) < size / 3  # a row group is a twelfth; the footer is fetched in a block of 256 KB
    sent.clear()
    assert sample.image.read_bytes() == png(int(sample.image_id), (SIDE, SIDE))
    assert (
        image_from_ref(sample.image.ref, ImageRoots("text_vqa", None, None)).read_bytes() == sample.image.read_bytes()
    )
    assert sent == []


def test_checked_images_are_fetched_together_and_cached(mirror):
    address, size, sent = mirror
    loaded = load_samples("text_vqa", source=address)
    assert sum(sent) < 2 * size  # fetched one by one, 120 rows would cost 120 row groups, ten times the file
    sent.clear()
    for sample in loaded.samples:
        assert sample.image.read_bytes() == png(int(sample.image_id), (SIDE, SIDE))
    assert sent == []


def test_an_address_without_a_file_is_named(mirror):
    address, _, _ = mirror
    with pytest.raises(DatasetError, match=r"nowhere\.parquet cannot be read .*check the URL"):
        load_samples("text_vqa", source=address.replace("validation-0", "nowhere"))


def test_an_image_that_cannot_be_cached_is_an_error(mirror, tmp_path, monkeypatch):
    address, _, _ = mirror
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("KNOBCTL_IMAGE_CACHE", str(tmp_path / "file"))
    with pytest.raises(DatasetError, match="KNOBCTL_IMAGE_CACHE"):
        load_samples("text_vqa", source=address, limit=1)


@pytest.mark.parametrize(
    ("address", "location"),
    [
        ("https://huggingface.co/datasets/a/b/resolve/main/data/x.parquet", "hf://datasets/a/b/data/x.parquet"),
        ("https://huggingface.co/datasets/a/b/resolve/v1/x.parquet", "hf://datasets/a/b@v1/x.parquet"),
        ("https://example.org/datasets/x.parquet", "https://example.org/datasets/x.parquet"),
    ],
)
def test_hub_addresses_become_hf_locations(address, location):
    assert hub_location(address) == location
