"""Downloads, from a small server of the test's own that can be told to misbehave."""

from __future__ import annotations

import ast
import hashlib
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import fedmpi
from fedmpi.data import download, fetch
from fedmpi.data.datasets import cache_folder, describe_datasets, expected_files
from fedmpi.data.download import RemoteFile
from fedmpi.errors import ConfigError, DataError, OutputError

CONTENT = b"".join(zlib.crc32(bytes([i % 256, i // 256])).to_bytes(4, "little") for i in range(50_000))


@dataclass
class Answer:
    """What the server does with one address."""

    content: bytes = CONTENT
    status: int = 200
    has_ranges: bool = True
    has_length: bool = True
    cuts: list[int] = field(default_factory=list)  # bytes sent before the connection is cut, one a request
    content_type: str = "application/octet-stream"
    range_shift: int = 0
    stalls: bool = False


class Server:
    """Answers by path; `requests` keeps (path, Range header)."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.over = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                server.requests.append((self.path, wanted))
                answer = server.answers.get(self.path, Answer(b"no", status=404))
                start, status = 0, answer.status
                if status == 200 and wanted and answer.has_ranges:
                    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                    status = 206 if start < len(answer.content) else 416
                body = answer.content[start:] if status != 416 else b""
                self.send_response(status)
                self.send_header("Content-Type", answer.content_type)
                if answer.has_length:
                    self.send_header("Content-Length", str(len(body)))
                if status == 206:
                    first = start + answer.range_shift
                    self.send_header("Content-Range", f"bytes {first}-{len(answer.content) - 1}/{len(answer.content)}")
                self.end_headers()
                if answer.cuts:
                    body = body[: answer.cuts.pop(0)]
                self.wfile.write(body)
                self.wfile.flush()
                if answer.stalls:
                    server.over.wait(20)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self.over.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    server = Server()
    yield server
    server.close()


def offer(
    server: Server, monkeypatch: pytest.MonkeyPatch, *answers: Answer, wanted: bytes = CONTENT, algorithm: str = "md5"
) -> None:
    """Make `mnist` a data set of one file with one mirror for each answer."""
    server.answers = {f"/{i}/a.gz": answer for i, answer in enumerate(answers)}
    checksum = f"{algorithm}:{hashlib.new(algorithm, wanted).hexdigest()}"
    urls = tuple(server.url + path for path in server.answers)
    monkeypatch.setitem(fetch.SOURCES, "mnist", (RemoteFile("a.gz", checksum, urls),))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def get(folder: Path) -> tuple[Path, list[str]]:
    """Fetch and check what a success leaves behind; returns the file and what was reported."""
    lines: list[str] = []
    (path,) = fetch.fetch("mnist", folder=folder, report=lines.append)
    assert path == folder / "a.gz"
    assert path.read_bytes() == CONTENT
    assert names(folder) == ["a.gz"]
    return path, lines


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
@pytest.mark.parametrize("has_length", [True, False])
def test_a_file_comes_whole(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, algorithm: str, has_length: bool
) -> None:
    offer(server, monkeypatch, Answer(has_length=has_length), algorithm=algorithm)
    monkeypatch.setattr(download, "PROGRESS_S", 0.0)
    _, lines = get(tmp_path / "new" / "folder")
    assert server.requests == [("/0/a.gz", None)]
    assert ("of 0.2 MB" in "".join(lines)) == has_length
    assert len(lines) >= 3
    assert "checksum right" in lines[-1]


def test_the_default_folder_is_the_cache(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDMPI_CACHE", str(tmp_path))
    offer(server, monkeypatch, Answer())
    assert fetch.fetch("mnist", report=print) == [tmp_path / "mnist" / "a.gz"] == [cache_folder("mnist") / "a.gz"]


def test_a_right_file_is_left_alone(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    offer(server, monkeypatch, Answer())
    (tmp_path / "a.gz").write_bytes(CONTENT)
    before = (tmp_path / "a.gz").stat()
    _, lines = get(tmp_path)
    assert (tmp_path / "a.gz").stat().st_mtime_ns == before.st_mtime_ns
    assert (tmp_path / "a.gz").stat().st_ino == before.st_ino
    assert server.requests == []
    assert "present" in lines[0]


def test_a_wrong_file_is_replaced_when_the_right_one_has_come(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a.gz").write_bytes(b"wrong")
    offer(server, monkeypatch, Answer(status=503))
    with pytest.raises(DataError):
        get(tmp_path)
    assert (tmp_path / "a.gz").read_bytes() == b"wrong"
    offer(server, monkeypatch, Answer())
    _, lines = get(tmp_path)
    assert hashlib.md5(b"wrong").hexdigest() in lines[0]


def test_what_came_of_an_earlier_try_is_gone_on_from(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a.gz.part").write_bytes(CONTENT[:70_000])
    offer(server, monkeypatch, Answer())
    get(tmp_path)
    assert server.requests == [("/0/a.gz", "bytes=70000-")]


def test_a_whole_part_needs_no_more_bytes(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.gz.part").write_bytes(CONTENT)
    offer(server, monkeypatch, Answer())
    get(tmp_path)
    assert server.requests == [("/0/a.gz", f"bytes={len(CONTENT)}-")]


@pytest.mark.parametrize("nbytes", [1000, len(CONTENT), len(CONTENT) + 5])
def test_a_wrong_part_is_removed(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nbytes: int) -> None:
    (tmp_path / "a.gz.part").write_bytes(bytes(nbytes))
    offer(server, monkeypatch, Answer())
    _, lines = get(tmp_path)
    assert server.requests == [("/0/a.gz", f"bytes={nbytes}-"), ("/0/a.gz", None)]
    assert any("removed" in line for line in lines)


def test_a_server_without_ranges_starts_over(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.gz.part").write_bytes(bytes(len(CONTENT) + 70_000))
    offer(server, monkeypatch, Answer(has_ranges=False))
    get(tmp_path)
    assert len(server.requests) == 1


def test_a_cut_connection_is_taken_up_again(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """More cuts than attempts: each got further, so none counts."""
    offer(server, monkeypatch, Answer(cuts=[30_000] * 6))
    _, lines = get(tmp_path)
    assert [wanted for _, wanted in server.requests] == [None, *(f"bytes={30_000 * i}-" for i in range(1, 7))]
    assert f"cut off after 30000 of {len(CONTENT)} bytes" in "".join(lines)


def test_cuts_without_getting_further_end_in_the_next_mirror(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    offer(server, monkeypatch, Answer(has_ranges=False, cuts=[30_000] * 100), Answer())
    get(tmp_path)
    assert server.requests == [("/0/a.gz", None), *[("/0/a.gz", "bytes=30000-")] * 2, ("/1/a.gz", "bytes=30000-")]


def test_a_server_that_falls_silent_is_given_up(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(download, "TIMEOUT_S", 0.2)
    offer(server, monkeypatch, Answer(cuts=[30_000, 0, 0, 0], stalls=True), Answer())
    _, lines = get(tmp_path)
    assert "timed out" in "".join(lines)
    assert server.requests[-1] == ("/1/a.gz", "bytes=30000-")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (Answer(status=404), "HTTP status 404"),
        (Answer(status=500), "HTTP status 500"),
        (Answer(content=b"other"), f"got md5:{hashlib.md5(b'other').hexdigest()}"),
        (Answer(content=b"<html>", content_type="text/html; charset=utf-8"), "a web page came"),
    ],
    ids=["404", "500", "wrong", "page"],
)
def test_the_second_mirror_helps_out(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bad: Answer, words: str
) -> None:
    offer(server, monkeypatch, bad, Answer())
    _, lines = get(tmp_path)
    assert server.requests == [("/0/a.gz", None), ("/1/a.gz", None)]
    assert words in "".join(lines)


def test_a_web_page_or_a_wrong_range_does_not_cost_what_has_come(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a.gz.part").write_bytes(CONTENT[:1000])
    page = Answer(content=b"<html>", content_type="text/html", has_ranges=False)
    offer(server, monkeypatch, page, Answer(range_shift=1), Answer())
    get(tmp_path)
    assert server.requests == [(f"/{i}/a.gz", "bytes=1000-") for i in range(3)]


def test_content_that_stays_wrong(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    offer(server, monkeypatch, Answer(), wanted=b"another")
    (tmp_path / "a.gz.part").write_bytes(CONTENT[:1000])
    with pytest.raises(DataError) as caught:
        fetch.fetch("mnist", folder=tmp_path, report=print)
    words = str(caught.value)
    assert "a.gz: expected md5:" + hashlib.md5(b"another").hexdigest() in words
    assert "got md5:" + hashlib.md5(CONTENT).hexdigest() in words
    assert server.url in words
    assert [wanted for _, wanted in server.requests] == ["bytes=1000-", None]
    assert names(tmp_path) == []


def test_no_network(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(server, monkeypatch, Answer(), Answer())
    server.close()
    (tmp_path / "a.gz.part").write_bytes(b"some")
    with pytest.raises(DataError) as caught:
        fetch.fetch("mnist", folder=tmp_path, report=print)
    words = str(caught.value)
    assert caught.value.exit_status == 3
    for i in range(2):
        assert words.count(f"{server.url}/{i}/a.gz: cannot be reached (") == 1
    assert capsys.readouterr().out == ""  # the error says each address
    assert "Connection refused" in words
    assert f"download it elsewhere from one of these addresses and put it, as it is, into {tmp_path}" in words
    assert names(tmp_path) == ["a.gz.part"]


def test_a_folder_that_cannot_be_written(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    offer(server, monkeypatch, Answer())
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write into .*file/mnist"):
        fetch.fetch("mnist", folder=tmp_path / "file" / "mnist", report=print)


def test_a_full_disk_is_not_blamed_on_the_server(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    offer(server, monkeypatch, Answer(), Answer())
    (tmp_path / "a.gz.part").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="No space left"):
        fetch.fetch("mnist", folder=tmp_path, report=print)
    assert len(server.requests) == 1


@pytest.mark.parametrize("name", ["femnist", "shakespeare"])
def test_leafs_data_sets_are_explained(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        fetch.fetch(name, folder=tmp_path, report=print)
    for words in ("https://github.com/TalwalkarLab/leaf", f"data/{name}", "preprocess.sh", "train", str(tmp_path)):
        assert words in str(caught.value)


@pytest.mark.parametrize("name", ["fashion_mnist_mini", "play_mini", "synthetic"])
def test_some_need_no_fetching(name: str, tmp_path: Path) -> None:
    lines: list[str] = []
    assert fetch.fetch(name, folder=tmp_path / "none", report=lines.append) == []
    assert len(lines) == 1
    assert name in lines[0]
    assert not (tmp_path / "none").exists()


def test_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cifar10, .*emnist_byclass, .*femnist, .*synthetic, got 'imagenet'"):
        fetch.fetch("imagenet", folder=tmp_path / "none", report=print)
    assert not (tmp_path / "none").exists()


def test_every_data_set_has_an_answer_and_files_are_those_that_the_readers_look_for() -> None:
    known = {*fetch.SOURCES, *fetch._NO_NEED, *fetch._BY_LEAF}
    assert {info.name for info in describe_datasets()} == known
    for name, files in fetch.SOURCES.items():
        assert tuple(file.name for file in files) == expected_files(name)


def test_sources_are_well_formed() -> None:
    lengths = {"md5": 32, "sha256": 64}
    files = [file for files in fetch.SOURCES.values() for file in files]
    for file in files:
        algorithm, _, digest = file.checksum.partition(":")
        assert len(digest) == lengths[algorithm]
        assert int(digest, 16) > 0
        assert all(url.startswith(("https://", "http://")) and url.endswith("/" + file.name) for url in file.urls)
    assert len({file.checksum for file in files}) == 4 + 4 + 2 + 1  # EMNIST's two share their archive


def test_no_module_that_a_run_imports_imports_it() -> None:
    """Only `fedmpi.commands` does, inside a function, and a run loads neither module."""
    importers = set()
    for path in sorted(Path(fedmpi.__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text())
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        if any("fedmpi.data.fetch" in imported(node) for node in nodes):
            importers.add(path.name)
            assert not any("fedmpi.data.fetch" in imported(node) for node in tree.body)
    assert importers == {"commands.py"}
    code = "import fedmpi.cli, fedmpi.runner, sys; print(*(m for m in sys.modules if m.startswith('fedmpi.data')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    modules = done.stdout.split()
    assert "fedmpi.data.datasets" in modules
    assert not {"fedmpi.data.fetch", "fedmpi.data.download"} & set(modules)


def imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return set()
