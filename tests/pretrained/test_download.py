"""Downloads: continued after a cut, checked before they get their name, and plain-spoken when they fail."""

from __future__ import annotations

import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from threedgp.errors import WeightsError
from threedgp.pretrained.download import download_file

CONTENT = np.random.RandomState(0).bytes(700_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class CountingProgress:
    def __init__(self):
        self.done, self.finished, self.notes = 0, 0, []

    def start(self, label, total=None, unit="images"):
        self.total, self.unit = total, unit

    def advance(self, count=1):
        self.done += count

    def note(self, text):
        self.notes.append(text)

    def finish(self):
        self.finished += 1


@pytest.fixture
def server():
    """A file server with the manners of real ones: ranges, cuts, error codes, chosen by path."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_GET(self):
            self.server.requests.append((self.path, self.headers.get("Range")))
            wanted = self.headers.get("Range")
            start = int(wanted[6:-1]) if wanted and self.path != "/norange" else 0
            if self.path == "/missing":
                return self.send_error(404)
            if self.path == "/busy" and len(self.server.requests) < 3:
                return self.send_error(503)
            if start >= len(CONTENT):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
                return self.end_headers()
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
            body = CONTENT[start:]
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.path == "/cut" and len(self.server.requests) < 4:
                body = body[:200_000]
            if self.path == "/dead":
                body = b""
            return self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests = []
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_file_arrives_whole_with_progress(server, tmp_path):
    progress = CountingProgress()
    download_file(server.address + "/f", tmp_path / "a" / "w.pth", size=len(CONTENT), sha256=DIGEST, progress=progress)
    assert (tmp_path / "a" / "w.pth").read_bytes() == CONTENT
    assert (progress.done, progress.total, progress.unit, progress.finished) == (len(CONTENT), len(CONTENT), "bytes", 1)
    assert not (tmp_path / "a" / "w.pth.part").exists()


def test_a_cut_connection_is_continued_not_restarted(server, tmp_path):
    progress = CountingProgress()
    download_file(server.address + "/cut", tmp_path / "w.pth", sha256=DIGEST, progress=progress, pause_seconds=0)
    assert (tmp_path / "w.pth").read_bytes() == CONTENT
    assert [r for _, r in server.requests] == [None, "bytes=200000-", "bytes=400000-", "bytes=600000-"]
    assert progress.done == len(CONTENT)


def test_a_killed_download_continues_from_its_part_file(server, tmp_path):
    (tmp_path / "w.pth.part").write_bytes(CONTENT[:123_456])
    download_file(server.address + "/f", tmp_path / "w.pth", size=len(CONTENT), sha256=DIGEST)
    assert (tmp_path / "w.pth").read_bytes() == CONTENT
    assert server.requests == [("/f", "bytes=123456-")]


def test_a_whole_part_file_only_needs_its_name(server, tmp_path):
    (tmp_path / "w.pth.part").write_bytes(CONTENT)
    download_file(server.address + "/f", tmp_path / "w.pth", size=len(CONTENT), sha256=DIGEST)
    assert (tmp_path / "w.pth").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_thrown_away(server, tmp_path):
    (tmp_path / "w.pth.part").write_bytes(CONTENT + b"tail")
    download_file(server.address + "/f", tmp_path / "w.pth", sha256=DIGEST, pause_seconds=0)
    assert (tmp_path / "w.pth").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_over(server, tmp_path):
    progress = CountingProgress()
    (tmp_path / "w.pth.part").write_bytes(b"x" * 1000)
    download_file(server.address + "/norange", tmp_path / "w.pth", sha256=DIGEST, progress=progress)
    assert (tmp_path / "w.pth").read_bytes() == CONTENT
    assert progress.done == len(CONTENT)


def test_a_busy_server_is_asked_again(server, tmp_path):
    download_file(server.address + "/busy", tmp_path / "w.pth", sha256=DIGEST, pause_seconds=0)
    assert len(server.requests) == 3


def test_a_wrong_checksum_leaves_nothing_behind(server, tmp_path):
    with pytest.raises(WeightsError, match=f"SHA-256 {DIGEST}, expected {'0' * 64}"):
        download_file(server.address + "/f", tmp_path / "w.pth", sha256="0" * 64)
    assert not list(tmp_path.glob("w.pth*"))


def test_a_wrong_size_leaves_nothing_behind(server, tmp_path):
    with pytest.raises(WeightsError, match="700,000 bytes instead of 5"):
        download_file(server.address + "/f", tmp_path / "w.pth", size=5)
    assert not list(tmp_path.glob("w.pth*"))


def test_not_found_is_said_at_once(server, tmp_path):
    with pytest.raises(WeightsError, match="answered 404"):
        download_file(server.address + "/missing", tmp_path / "w.pth", pause_seconds=60)
    assert len(server.requests) == 1


def test_a_connection_that_never_brings_bytes_ends(server, tmp_path):
    with pytest.raises(WeightsError, match="continues where it stopped"):
        download_file(server.address + "/dead", tmp_path / "w.pth", pause_seconds=0)
    assert len(server.requests) == 5


def test_no_server_names_the_ways_out(tmp_path):
    with socket.socket() as free:  # a port that nobody listens on
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(WeightsError, match=r"could not be downloaded .*fetch the file on another machine"):
        download_file(f"http://127.0.0.1:{port}/f", tmp_path / "w.pth", pause_seconds=0)


def test_a_target_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WeightsError, match="could not be written"):
        download_file(server.address + "/f", tmp_path / "file" / "w.pth")


def test_two_downloads_at_once_do_not_mix(server, tmp_path):
    target = tmp_path / "w.pth"
    threads = [
        threading.Thread(target=download_file, args=(server.address + "/f", target), kwargs={"sha256": DIGEST})
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_bytes() == CONTENT
    assert len(server.requests) == 1
