"""A real hub client against a server of this machine: what arrives is whole, and what fails leaves nothing behind."""

from __future__ import annotations

import doctest
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_resnet import build, configs, hub, preprocessing_of, save_weights_as
from keras_resnet.errors import InputError, UsageError
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.registry import WEIGHTS
from tests.layout import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONTENT = bytes(range(256)) * 800  # 200 kB: more than the buffers of a connection that breaks
REPOSITORY = "timm/resnet18.a1_in1k"
CONFIG = {"architecture": "resnet18", "num_classes": 1000, "pretrained_cfg": {"input_size": [3, 224, 224]}}

Answer = Callable[["Handler", bytes], None]


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


# What a server may do wrong ------------------------------------------------------------------------------------------


def status(code: int, **headers: str) -> Answer:
    return lambda handler, _: handler.reply(code, b"", {name.replace("_", "-"): text for name, text in headers.items()})


def breaks_off(handler: Handler, content: bytes) -> None:
    """Promise the rest, send half of it, hang up."""
    handler.reply(*handler.part(content), cut=True)


def breaks_off_and_starts_over(handler: Handler, content: bytes) -> None:
    handler.reply(200, content, {}, cut=True)


def stalls(handler: Handler, content: bytes) -> None:
    """Send half of what was promised, then nothing until the test says so."""
    handler.reply(200, content, {}, cut=True)
    handler.wfile.flush()
    handler.server.stalled.set()
    handler.server.released.wait(timeout=60)


def sends_half(handler: Handler, content: bytes) -> None:
    handler.reply(200, content[: len(content) // 2], {})


def sends_wrong_bytes(handler: Handler, content: bytes) -> None:
    handler.reply(200, content[:-1] + bytes([content[-1] ^ 1]), {})


@dataclass
class Fault:
    method: str
    answer: Answer
    times: int


class Handler(BaseHTTPRequestHandler):
    """What huggingface_hub asks of the hub for a file: its metadata, its bytes elsewhere; and plain files."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.server.log.append((self.command, self.path, self.headers.get("authorization")))
        content = self.server.content_at(self.path)
        if self.server.together and len(self.server.log) <= 2:
            self.server.together.wait(timeout=60)
        for fault in self.server.faults:
            if fault.times and fault.method == self.command and "/api/" not in self.path:
                fault.times -= 1
                return fault.answer(self, content or b"")
        if self.path.startswith("/api/models/"):
            listed = [{"type": "file", "path": name, "oid": "0", "size": 1} for _, name in self.server.files]
            return self.reply(200, json.dumps(listed).encode(), {"Content-Type": "application/json"})
        if "/resolve/" in self.path and not self.path.startswith("/cdn/"):
            return self.resolve(content)
        if content is None:
            return self.reply(404, b"", {})
        self.reply(*self.part(content))

    def resolve(self, content: bytes | None) -> None:
        repository, _, rest = self.path[1:].partition("/resolve/")
        revision, _, _ = rest.partition("/")
        if repository not in {owner for owner, _ in self.server.files}:
            return self.reply(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        if revision not in ("main", COMMIT):
            return self.reply(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        commit = {"X-Repo-Commit": COMMIT}
        if content is None:
            return self.reply(404, b"", {**commit, "X-Error-Code": "EntryNotFound"})
        if not self.path.endswith((".safetensors", ".bin")):  # kept in Git
            return self.reply(200, content, {**commit, "ETag": f'"{git_hash(content)}"'})
        etag = hashlib.sha256(content).hexdigest()
        linked = {"ETag": f'"{etag}"', "X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        elsewhere = f"http://localhost:{self.server.server_port}/cdn{self.path}"
        self.reply(302, b"", {**commit, **linked, "Location": elsewhere})

    def part(self, content: bytes) -> tuple[int, bytes, dict[str, str]]:
        wanted = self.headers.get("Range")
        if wanted is None:
            return 200, content, {}
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        return 206, content[start:], {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}

    def reply(self, code: int, content: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
        self.send_response(code)
        for name, text in headers.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = self.close_connection or cut

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[tuple[str, str], bytes] = {}
        self.faults: list[Fault] = []
        self.stalled, self.released = threading.Event(), threading.Event()
        self.together: threading.Barrier | None = None  # the first two requests are answered at the same time
        self.log: list[tuple[str, str, str | None]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def content_at(self, path: str) -> bytes | None:
        owner, _, file = path.removeprefix("/cdn")[1:].partition("/resolve/")
        if file:
            return self.files.get((owner, file.partition("/")[2]))
        owner, _, file = owner.rpartition("/")
        return self.files.get((owner, file))

    def fault(self, method: str, answer: Answer, times: int = 1_000_000) -> None:
        self.faults.append(Fault(method, answer, times))

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def asked(self, method: str) -> int:
        return sum(entry[0] == method for entry in self.log)

    def handle_error(self, *_: object) -> None:  # a client that hung up
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.stop()
        thread.join()


# Clients -------------------------------------------------------------------------------------------------------------

CLIENT = """
import dataclasses, hashlib, json, resource, sys, time

real_sleep, naps, real_digest, digests = time.sleep, [], hashlib.file_digest, []
def nap(seconds):
    naps.append(seconds)
    real_sleep(0.005)
def digest(*arguments):
    digests.append(arguments)
    return real_digest(*arguments)
time.sleep, hashlib.file_digest = nap, digest  # the hub's client sleeps too

from keras_resnet import hub
from keras_resnet.errors import InputError
from keras_resnet.registry import WEIGHTS, File

hub.WAIT = nap
hub.constants.DOWNLOAD_CHUNK_SIZE = 10_000  # a broken connection loses the chunk that it was at
base, expression = sys.argv[1:]
check_space = hub.check_space

def row(tag, address, **of_file):
    row = WEIGHTS[tag]
    file = dataclasses.replace(row.source.file, **of_file)
    return dataclasses.replace(row, source=dataclasses.replace(row.source, address=address, file=file))

def outcome():
    try:
        return {"value": eval(expression)}
    except InputError as error:
        return {"error": str(error)}

result = outcome()
result["naps"] = list(naps)
hub.constants.HF_HUB_OFFLINE = True
result["offline"] = outcome()
result["digests"] = len(digests)
print(json.dumps(result, default=str))
"""


@dataclass
class Client:
    """A process of its own with its own caches, for the hub's client reads its settings when it is imported."""

    home: Path
    address: str
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, expression: str) -> subprocess.Popen[str]:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "HF_HOME": str(self.home / "hf"),
            "KERAS_HOME": str(self.home / "keras"),
            "HF_ENDPOINT": self.address,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "*",
            **self.environment,
        }
        return subprocess.Popen(
            [sys.executable, "-c", CLIENT, self.address, expression],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def fetch(self, expression: str) -> dict[str, Any]:
        return result_of(self.start(expression))

    def files(self) -> list[Path]:
        """The files in both caches that hold more than a name or a lock."""
        found = (path for path in self.home.rglob("*") if path.is_file() and not path.is_symlink())
        return [path for path in found if path.stat().st_size > 1000]


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return {**json.loads(out.splitlines()[-1]), "stderr": err}


@pytest.fixture
def client(server: Server, tmp_path: Path) -> Client:
    return Client(tmp_path, server.address)


@dataclass
class Kind:
    """One kind of source: what is fetched, under which name errors speak of it."""

    tag: str
    file: tuple[str, str]  # as the server keeps it
    expression: str


SHA256, MD5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()
AKAMASTER, KERAS = "akamaster/cifar_resnet20", "keras/resnet50"
KINDS = {
    "hub": Kind(REPOSITORY, (REPOSITORY, "model.safetensors"), f"hub.fetch(WEIGHTS[{REPOSITORY!r}])"),
    "url": Kind(
        AKAMASTER,
        ("files", WEIGHTS[AKAMASTER].source.file.name),
        f"hub.fetch(row({AKAMASTER!r}, base + '/files/', sha256={SHA256!r}, size_bytes={len(CONTENT)}))",
    ),
    "keras": Kind(
        KERAS, ("files", WEIGHTS[KERAS].source.file.name), f"hub.fetch(row({KERAS!r}, base + '/files/', md5={MD5!r}))"
    ),
}


@pytest.fixture(params=["hub", "url"])
def kind(request: pytest.FixtureRequest, server: Server) -> Kind:
    """A kind whose file the server has. Keras' files come as plain ones do, but for the hash and the place."""
    chosen = KINDS[request.param]
    server.files[chosen.file] = CONTENT
    return chosen


def assert_fetched(result: dict[str, Any]) -> Path:
    assert "value" in result, result
    path = Path(result["value"])
    assert path.read_bytes() == CONTENT
    assert result["offline"] == {"value": str(path)}
    return path


def assert_refused(result: dict[str, Any], kind: Kind, client: Client, *expected: str) -> None:
    """The error names the set, the address and what is expected; nothing stays that a later fetch would load."""
    assert "error" in result, result
    assert f"weights {kind.tag!r}" in result["error"]
    assert f"{client.address}/{kind.file[0]}/" in result["error"]
    for words in expected:
        assert words in result["error"], result["error"]
    assert "error" in result["offline"], result["offline"]
    assert client.files() == []


def damage(path: Path, way: str) -> None:
    """Truncate a cached file, or change one of its bits."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if way == "truncated" else bytes([content[0] ^ 1]) + content[1:])


# Fetching ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_a_file_is_fetched_once_and_its_hash_computed_once(kind, client, server):
    result = client.fetch(kind.expression)
    assert_fetched(result)
    assert result["digests"] == 1  # for two fetches, the second one without a network
    asked = server.asked("GET")
    assert asked == 1
    assert_fetched(client.fetch(kind.expression))
    assert server.asked("GET") == asked


def test_a_mirror_is_read_in_place_of_the_original(client, server):
    server.files["timm/resnet50.tv2_in1k", "model.safetensors"] = CONTENT
    assert_fetched(client.fetch("hub.fetch(WEIGHTS['torchvision/resnet50.IMAGENET1K_V2'])"))


def test_an_error_about_a_mirror_names_the_original(client):
    result = client.fetch("hub.fetch(WEIGHTS['torchvision/resnet50.IMAGENET1K_V2'])")
    assert "'torchvision/resnet50.IMAGENET1K_V2'" in result["error"]
    assert "needs torch, is https://download.pytorch.org/models/resnet50-11ad3fa6.pth" in result["error"]


def test_without_the_top_the_file_without_it_is_fetched(client, server):
    bare = WEIGHTS[KERAS].source.file_without_top
    server.files["files", bare.name] = CONTENT
    result = client.fetch(
        f"hub.fetch(dataclasses.replace(WEIGHTS[{KERAS!r}].source, address=base + '/files/', "
        f"file_without_top=File({bare.name!r}, md5={MD5!r})), include_top=False)"
    )
    assert assert_fetched(result).name == bare.name


def test_keras_finds_what_was_fetched_for_it(client, server):
    import keras

    kind = KINDS["keras"]
    server.files[kind.file] = CONTENT
    path = assert_fetched(client.fetch(kind.expression))
    found = keras.utils.get_file(
        kind.file[1],
        f"{server.address}/files/{kind.file[1]}",
        cache_dir=client.home / "keras",
        cache_subdir="models",
        file_hash=MD5,
    )
    assert Path(found) == path
    assert server.asked("GET") == 1


def test_the_token_goes_to_the_hub_and_nowhere_else(client, server):
    client.environment["HF_TOKEN"] = "hf_secret"
    for kind in (KINDS["hub"], KINDS["url"]):
        server.files[kind.file] = CONTENT
        assert_fetched(client.fetch(kind.expression))
    for _, path, token in server.log:
        assert token == ("Bearer hf_secret" if path.startswith(f"/{REPOSITORY}/resolve/") else None)


@pytest.mark.parametrize("shown", [True, False])
def test_a_bar_is_shown_if_wanted(client, server, shown):
    kind = KINDS["hub"]
    server.files[kind.file] = CONTENT
    client.environment["TQDM_POSITION"] = "-1"  # or the client shows none where stderr is no terminal
    result = client.fetch(kind.expression[:-1] + f", progress={shown})")
    assert_fetched(result)
    assert ("100%" in result["stderr"]) is shown


# Connections ---------------------------------------------------------------------------------------------------------


def test_a_broken_connection_is_taken_up_where_it_broke(kind, client, server):
    server.fault("GET", breaks_off, times=3)
    assert_fetched(client.fetch(kind.expression))
    assert server.asked("GET") == 4


def test_a_broken_connection_starts_over_where_the_server_cannot_resume(kind, client, server):
    server.fault("GET", breaks_off_and_starts_over, times=3)
    assert_fetched(client.fetch(kind.expression))


def test_a_connection_that_breaks_for_ever_is_given_up(kind, client, server):
    server.fault("GET", breaks_off_and_starts_over)
    assert_refused(client.fetch(kind.expression), kind, client, "50 requests brought no whole file", "try again later")


@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize(("kind", "method"), [("hub", "HEAD"), ("hub", "GET"), ("url", "GET")], indirect=["kind"])
def test_a_server_that_asks_for_patience_gets_it(kind, client, server, method, code):
    server.fault(method, status(code, Retry_After="7"), times=1)
    result = client.fetch(kind.expression)
    assert_fetched(result)
    assert [seconds in (7, 8) for seconds in result["naps"]] == [True]  # the hub's client adds a second


def test_a_server_that_asks_for_too_much_patience_is_given_up(kind, client, server):
    server.fault("GET", status(429, Retry_After="3600"))
    result = client.fetch(kind.expression)
    assert_refused(result, kind, client, "asks to be left alone for 3600 s")
    assert sum(result["naps"]) < 60


def test_the_hubs_own_header_for_patience_is_read(client, server):
    kind = KINDS["hub"]
    server.files[kind.file] = CONTENT
    server.fault("HEAD", status(429, RateLimit='"resolvers";r=0;t=1200'))
    assert_refused(client.fetch(kind.expression), kind, client, "asks to be left alone for 1200 s")


def test_a_server_that_stays_busy_is_given_up(kind, client, server):
    server.fault("HEAD" if kind is KINDS["hub"] else "GET", status(503))
    result = client.fetch(kind.expression)
    assert_refused(result, kind, client, "the server fails (HTTP 503)", "no copy is in")
    assert sum(result["naps"]) < 30


def test_without_a_network_and_without_a_copy_the_error_says_both(kind, client, server):
    server.stop()
    result = client.fetch(kind.expression)
    assert_refused(result, kind, client, "onnection refused", "no copy is in", "check the network")
    assert sum(result["naps"]) < 30


def test_without_a_network_a_whole_copy_serves_at_once(kind, client, server):
    client.fetch(kind.expression)
    server.stop()
    result = client.fetch(kind.expression)
    assert_fetched(result)
    assert result["naps"] == []


def test_offline_mode_asks_no_server(client, server):
    kind = KINDS["hub"]
    server.files[kind.file] = CONTENT
    client.environment["HF_HUB_OFFLINE"] = "1"
    assert_refused(client.fetch(kind.expression), kind, client, "HF_HUB_OFFLINE is set", "no copy is in", "unset it")
    assert server.log == []
    del client.environment["HF_HUB_OFFLINE"]
    assert_fetched(client.fetch(kind.expression))
    server.log.clear()
    client.environment["HF_HUB_OFFLINE"] = "1"
    assert_fetched(client.fetch(kind.expression))
    assert server.log == []


# Bytes ---------------------------------------------------------------------------------------------------------------


def test_a_file_shorter_than_announced_is_refused(kind, client, server):
    server.fault("GET", sends_half)
    assert_refused(client.fetch(kind.expression), kind, client, "should be of size 204800 but has size 102400")


@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_wrong_bytes_under_a_known_hash_are_fetched_again_once_and_refused(kind, client, server):
    server.fault("GET", sends_wrong_bytes)
    hashed = ("md5 ", MD5[:8]) if kind is KINDS["keras"] else ("sha256 ", SHA256[:8])
    assert_refused(client.fetch(kind.expression), kind, client, "wrong bytes arrived", *hashed)
    assert server.asked("GET") == 2


def test_wrong_bytes_are_forgiven_once(kind, client, server):
    server.fault("GET", sends_wrong_bytes, times=1)
    assert_fetched(client.fetch(kind.expression))


def test_a_hub_that_holds_another_file_than_the_published_one_is_refused(client, server):
    kind = KINDS["hub"]
    server.files[kind.file] = CONTENT
    result = client.fetch(f"hub.fetch(row({kind.tag!r}, {kind.tag!r}, sha256='{'0' * 64}'))")
    assert_refused(result, kind, client, f"sha256 {SHA256[:8]}, not 00000000")


@pytest.mark.parametrize("way", ["truncated", "changed"])
def test_a_damaged_copy_is_fetched_again(kind, client, server, way):
    path = assert_fetched(client.fetch(kind.expression))
    damage(path, way)
    assert assert_fetched(client.fetch(kind.expression)) == path
    assert server.asked("GET") == 2


def test_a_damaged_copy_is_refused_without_a_network(kind, client, server):
    path = assert_fetched(client.fetch(kind.expression))
    damage(path, "truncated")
    server.stop()
    result = client.fetch(kind.expression)
    for error, reason in (result["error"], "onnection refused"), (result["offline"]["error"], "HF_HUB_OFFLINE is set"):
        assert reason in error
        assert f"the copy {path} is damaged" in error
        assert kind.tag in error


@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_a_damaged_copy_does_not_stay_where_no_better_one_comes(kind, client, server):
    damage(assert_fetched(client.fetch(kind.expression)), "changed")
    server.fault("GET", sends_wrong_bytes)
    assert_refused(client.fetch(kind.expression), kind, client, "wrong bytes arrived")


def test_without_symbolic_links_a_damaged_copy_is_found_online(client, server):
    client.environment["HF_HUB_DISABLE_SYMLINKS"] = "1"
    kind = KINDS["hub"]
    server.files[kind.file] = CONTENT
    path = assert_fetched(client.fetch(kind.expression))
    assert not path.is_symlink()
    damage(path, "changed")
    assert_fetched(client.fetch(kind.expression))


@pytest.mark.parametrize("before", ["nothing", "a damaged copy"])
def test_two_processes_at_once_both_get_the_file(kind, client, server, before):
    if before == "a damaged copy":
        damage(assert_fetched(client.fetch(kind.expression)), "changed")
        server.log.clear()
    server.together = threading.Barrier(2)
    processes = [client.start(kind.expression) for _ in range(2)]
    first, second = (assert_fetched(result_of(process)) for process in processes)
    assert first == second
    assert len(client.files()) == 1


def test_a_process_that_is_killed_leaves_nothing_under_the_final_name(kind, client, server):
    path = assert_fetched(client.fetch(kind.expression))
    shutil.rmtree(client.home / "hf")
    server.fault("GET", stalls, times=1)
    with client.start(kind.expression) as process:
        assert server.stalled.wait(timeout=60)
        process.kill()
    server.released.set()
    assert not path.exists()
    assert assert_fetched(client.fetch(kind.expression)) == path


def test_a_full_disk_is_an_error_that_names_the_folder(kind, client):
    limited = f"(resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, -1)), {kind.expression})[1]"
    assert_refused(client.fetch(limited), kind, client, str(client.home), "is full", "_HOME sets another folder")


def test_too_little_room_is_said_before_the_download(client, server):
    huge = "(setattr(hub, 'check_space', lambda folder, size: check_space(folder, size * 10**9)), {})[1]"
    for kind in (KINDS["hub"], KINDS["url"]):
        server.files[kind.file] = CONTENT
        result = client.fetch(huge.format(kind.expression))
        assert_refused(result, kind, client, "no disk space for", "HF_HOME sets another folder")
    assert server.asked("GET") == 0


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(kind, client):
    for name in ("hf", "keras"):
        (client.home / name).write_text("no folder")
    result = client.fetch(kind.expression)
    assert_refused(result, kind, client, f"{client.home}/", "cannot be written", "_HOME sets another folder")
    assert result["naps"] == []


# Answers -------------------------------------------------------------------------------------------------------------


def test_a_repository_that_is_not_there_is_an_error_with_the_nearest_names(client, server):
    kind = Kind("timm/resnet18.a1_in2k", ("timm/resnet18.a1_in2k", ""), "")
    result = client.fetch(f"hub.fetch(row({REPOSITORY!r}, {kind.tag!r}).source)")
    assert_refused(result, kind, client, "no such repository, or it is private (HTTP 401)", REPOSITORY, "HF_TOKEN")


def test_a_file_that_is_not_there_is_an_error_with_those_that_are(client, server):
    server.files |= {(REPOSITORY, "pytorch_model.bin"): CONTENT, (REPOSITORY, "README.md"): CONTENT}
    result = client.fetch(KINDS["hub"].expression)
    assert_refused(result, KINDS["hub"], client, "no such file (HTTP 404)", "(pytorch_model.bin)")


def test_a_plain_file_that_is_not_there_is_an_error_with_the_nearest_names(client, server):
    kind = KINDS["url"]
    assert_refused(client.fetch(kind.expression), kind, client, "no such file (HTTP 404); check the address")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (status(404, X_Error_Code="RevisionNotFound"), "no such revision (HTTP 404); leave @REVISION out"),
        (status(403, X_Error_Code="GatedRepo"), "is gated (HTTP 403); accept its terms"),
        (status(401), "or it is private (HTTP 401); check the name"),
        (status(403), "access is refused (HTTP 403)"),
        (status(404), "there is no such file (HTTP 404)"),
        (status(418), "the server fails (HTTP 418)"),
    ],
    ids=["revision", "gated", "private", "forbidden", "a hub without words", "anything"],
)
def test_an_answer_is_an_error_that_says_what_to_do(client, server, answer, expected):
    kind = KINDS["hub"]
    server.files[kind.file] = CONTENT
    server.fault("HEAD", answer)
    result = client.fetch(kind.expression)
    assert_refused(result, kind, client, expected)
    assert result["naps"] == []


def test_a_refusal_is_no_reason_to_take_the_copy_but_names_it(client, server):
    kind = KINDS["hub"]
    server.files[kind.file] = CONTENT
    path = assert_fetched(client.fetch(kind.expression))
    server.fault("HEAD", status(403))
    result = client.fetch(kind.expression)
    assert f"HF_HUB_OFFLINE=1 takes the copy {path}" in result["error"]
    assert result["offline"] == {"value": str(path)}


# Addresses and configs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("hf://timm/resnet50.a1_in1k", ("timm/resnet50.a1_in1k", "main", None)),
        ("hf://models/a/b", ("a/b", "main", None)),
        ("hf://a/b@v1.0", ("a/b", "v1.0", None)),
        (f"hf://a/b@{COMMIT}/c/d--e.pth", ("a/b", COMMIT, "c/d--e.pth")),
        ("hf://a/b@refs/pr/12/c.safetensors", ("a/b", "refs/pr/12", "c.safetensors")),
        ("hf://a/b@wip%2Fnew", ("a/b", "wip/new", None)),
    ],
)
def test_an_address_has_three_parts(address, expected):
    assert hub.parse(address) == expected


@pytest.mark.parametrize(
    "address",
    [
        *("", "hf://", "hf://a", "hf:/a/b", "hf://a/b@", "hf://a/b/", "hf://a/b/../c", "hf://a/b/c/./d", "hf://a/b//c"),
        *("hf://a/b@..", "hf://a/b@..%2F..%2Fc", "hf://a/b@%2Fc", "hf://../b", "hf://a--b/c", "hf://a/b.git"),
        *("hf://a/ b", "hf://a/b c", "hf://datasets/a/b", "hf://é/b", f"hf://a/{'b' * 97}", "hf://a/b\\c", "hf://a/b-"),
    ],
)
def test_what_is_no_address_is_an_error_with_an_example(address):
    with pytest.raises(UsageError, match=r"weights=.* is not the address .* give it as hf://timm/resnet50.a1_in1k"):
        hub.parse(address)


def test_the_address_of_a_page_is_an_error_that_gives_the_right_one():
    with pytest.raises(UsageError, match=r"give it as hf://microsoft/resnet-50$"):
        hub.parse("https://huggingface.co/microsoft/resnet-50/tree/main")


def timm_config(**settings: Any) -> dict[str, Any]:
    """As timm 1.0.31 writes it (`save_config_for_hf`); settings of None are left out."""
    shared = {"custom_load": False, "fixed_input_size": False, "crop_mode": "center", "num_classes": 1000}
    imagenet = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    merged = {**shared, **imagenet, "input_size": [3, 224, 224], "interpolation": "bicubic", **settings}
    pretrained = {name: setting for name, setting in merged.items() if setting is not None}
    return {"architecture": "resnet50", "num_classes": 1000, "num_features": 2048, "pretrained_cfg": pretrained}


A1 = timm_config(crop_pct=0.95, test_input_size=[3, 288, 288], test_crop_pct=1.0)
A3 = timm_config(input_size=[3, 160, 160], crop_pct=0.95, test_input_size=[3, 224, 224], test_crop_pct=0.95)
TV2 = timm_config(
    input_size=[3, 176, 176],
    interpolation="bilinear",
    crop_pct=0.875,
    test_input_size=[3, 224, 224],
    test_crop_pct=0.965,
)

# As microsoft/resnet-50 has it, and as transformers 5.23.0 writes it.
PIXELS = {
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": 224,
}
NEW_PIXELS = {
    **{name: value for name, value in PIXELS.items() if name != "feature_extractor_type"},
    "image_processor_type": "ConvNextImageProcessor",
    "do_rescale": True,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 224},
}
CLIP_PIXELS = {
    **NEW_PIXELS,
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
}
TRANSFORMERS = {"architectures": ["ResNetForImageClassification"], "id2label": {"0": "tench", "1": "goldfish"}}


def transformers_config(pixels: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**TRANSFORMERS, "preprocessor_config": {**pixels, **changes}}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (A1, Preprocessing(288, 288, "bicubic")),
        (A3, Preprocessing(235, 224, "bicubic")),
        (TV2, Preprocessing(232, 224, "bilinear")),
        (timm_config(interpolation="bilinear", crop_pct=0.875), Preprocessing(256, 224, "bilinear")),
        (
            timm_config(mean=[0.5] * 3, std=[0.5] * 3, crop_pct=0.9),
            Preprocessing(248, 224, "bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        ),
        (timm_config(mean=None, std=None, interpolation=None), Preprocessing(256, 224, "bicubic")),
        ({"architecture": "resnet50", **A1["pretrained_cfg"]}, Preprocessing(288, 288, "bicubic")),
        (transformers_config(PIXELS), Preprocessing(256, 224, "bicubic")),
        (transformers_config(NEW_PIXELS), Preprocessing(256, 224, "bicubic")),
        (transformers_config(CLIP_PIXELS), Preprocessing(256, 224, "bicubic")),
        (transformers_config(CLIP_PIXELS, do_center_crop=False, resample=2), Preprocessing(256, 0, "bilinear")),
        (
            transformers_config(PIXELS, do_normalize=False, do_rescale=False),
            Preprocessing(256, 224, "bicubic", scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3),
        ),
    ],
    ids=[
        *("timm a1", "timm a3", "timm tv2", "timm tv", "timm ra4", "timm's defaults", "timm before 0.8"),
        *("microsoft/resnet-50", "transformers 5", "with a crop", "without a crop", "raw pixels"),
    ],
)
def test_a_config_says_what_images_need(config, expected):
    assert configs.preprocessing_from_config(config) == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "no 'input_size'"),
        (TRANSFORMERS, "no 'input_size'"),
        ({"pretrained_cfg": 7}, "config.json"),
        (timm_config(input_size=[3, 224, 256]), r"\[3, 224, 256\]"),
        (timm_config(input_size=[1, 28, 28]), "mean"),
        (timm_config(input_size="large"), "config.json"),
        (timm_config(input_size=[3, 10**9, 10**9]), "pixels a side"),
        (timm_config(crop_mode="squash"), "squash"),
        (timm_config(crop_pct=-1), "crop_pct -1"),
        (timm_config(crop_pct=float("nan")), "crop_pct nan"),
        (timm_config(crop_pct=1e-320), "config.json"),
        (timm_config(interpolation="random"), "random"),
        (timm_config(mean=["a", 0, 0]), "config.json"),
        (timm_config(std=[0.0, 0.0, 0.0]), "above 0"),
        (timm_config(std=[float("nan")] * 3), "finite"),
        (transformers_config(PIXELS, size=384), "384"),
        (transformers_config(CLIP_PIXELS, size={"height": 224, "width": 224}), "no 'shortest_edge'"),
        (transformers_config(PIXELS, resample=4), "box"),
        (transformers_config(PIXELS, resample=77), "77"),
        (transformers_config(NEW_PIXELS, rescale_factor=0), "preprocessor_config.json"),
    ],
)
def test_a_config_that_says_what_cannot_be_is_an_error(config, expected):
    with pytest.raises(InputError, match=expected):
        configs.preprocessing_from_config(config)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (A1, 1000),
        ({"pretrained_cfg": {"num_classes": 10}}, 10),
        (TRANSFORMERS, 2),
        ({"num_labels": 5}, 5),
        ({}, None),
        ({"num_classes": 0}, None),
        ({"num_classes": "many", "pretrained_cfg": 3, "id2label": []}, None),
    ],
)
def test_a_config_says_how_many_classes_there_are(config, expected):
    assert configs.classes_from_config(config) == expected


def test_an_address_brings_weights_and_config_of_one_commit(client, server):
    server.files |= {("a/b", "sub/w.safetensors"): CONTENT, ("a/b", "config.json"): json.dumps(A1).encode()}
    result = client.fetch("hub.fetch_address('hf://a/b/sub/w.safetensors')")
    path, config = result["value"]
    assert Path(path).read_bytes() == CONTENT
    assert config == A1
    assert result["offline"]["value"] == [path, config]
    asked = len(server.log)
    assert client.fetch("hub.fetch_address('hf://a/b/sub/w.safetensors')")["value"] == [path, config]
    assert server.log[asked:] == [("HEAD", "/a/b/resolve/main/sub/w.safetensors", None)]  # nothing else can change


def test_a_network_is_built_from_an_address_with_its_classes_and_preprocessing(client, server, tmp_path):
    small = {"depths": (1, 1), "widths": (8, 16), "input_shape": (64, 64, 3)}
    theirs = build("resnet18", classes=7, **small)
    save_weights_as(theirs, tmp_path / "model.safetensors")
    config = {"pretrained_cfg": {**A1["pretrained_cfg"], "num_classes": 7, "input_size": [3, 64, 64]}}
    del config["pretrained_cfg"]["test_input_size"]
    server.files |= {
        ("a/b", "model.safetensors"): (tmp_path / "model.safetensors").read_bytes(),
        ("a/b", "config.json"): json.dumps(config).encode(),
    }
    built = f"__import__('keras_resnet').build('resnet18', weights='hf://a/b', **{small})"
    ask = "lambda m: [m.predict(__import__('numpy').ones((1, 64, 64, 3)), verbose=0).tolist(), m.layers[1].name]"
    result = client.fetch(f"({ask})({built})")
    for scores, carrier in (result["value"], result["offline"]["value"]):
        assert np.abs(np.asarray(scores) - theirs.predict(np.ones((1, 64, 64, 3)), verbose=0)).max() <= 1e-6
        assert carrier == configs.preprocessing_from_config(config).layer_name
    assert preprocessing_of(theirs).layer_name != carrier


def test_a_commit_in_the_cache_is_taken_without_asking(client, server):
    server.files |= {("a/b", "model.safetensors"): CONTENT, ("a/b", "config.json"): json.dumps(A1).encode()}
    expression = f"hub.fetch_address('hf://a/b@{COMMIT}')"
    value = client.fetch(expression)["value"]
    server.log.clear()
    assert client.fetch(expression)["value"] == value
    assert server.log == []


def test_transformers_second_file_comes_along(client, server):
    server.files |= {
        ("a/b", "model.safetensors"): CONTENT,
        ("a/b", "config.json"): json.dumps(TRANSFORMERS).encode(),
        ("a/b", "preprocessor_config.json"): json.dumps(PIXELS).encode(),
    }
    _, config = client.fetch("hub.fetch_address('hf://a/b')")["value"]
    assert config == transformers_config(PIXELS)


def test_a_repository_without_a_config_stays_one_without_a_network(client, server):
    server.files["a/b", "model.safetensors"] = CONTENT
    result = client.fetch("hub.fetch_address('hf://a/b')")
    assert result["value"][1] is None
    assert result["offline"] == {"value": result["value"]}


def test_a_config_that_was_never_seen_is_an_error_without_a_network(client, server):
    server.files |= {("a/b", "model.safetensors"): CONTENT, ("a/b", "config.json"): b"{}"}
    client.fetch("hub.fetch(row('timm/resnet18.a1_in1k', 'a/b'))")
    server.stop()
    assert "config.json of weights 'hf://a/b'" in client.fetch("hub.fetch_address('hf://a/b')")["error"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is not JSON"),
        (b'{"a": 1', "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[1]", "is a list"),
        (b"[" * 100_000, "is not JSON"),
        (b" " * 1_000_001, "has 1,000,001 bytes"),
    ],
    ids=["empty", "cut", "binary", "list", "deep", "large"],
)
def test_a_config_that_is_none_is_an_error(client, server, content, expected):
    server.files |= {("a/b", "model.safetensors"): CONTENT, ("a/b", "config.json"): content}
    result = client.fetch("hub.fetch_address('hf://a/b')")
    assert "config.json of weights 'hf://a/b'" in result["error"]
    assert expected in result["error"]


def test_a_damaged_config_is_fetched_again(client, server):
    server.files |= {("a/b", "model.safetensors"): CONTENT, ("a/b", "config.json"): json.dumps(A1).encode()}
    path = Path(client.fetch("hub.fetch_address('hf://a/b')")["value"][0]).with_name("config.json")
    path.write_text(path.read_text().replace("0.485", "0.486"))
    assert client.fetch("hub.fetch_address('hf://a/b')")["value"][1] == A1


# The room ------------------------------------------------------------------------------------------------------------


def test_the_example_in_a_docstring_holds():
    found = doctest.testmod(hub)
    assert (found.attempted, found.failed) == (1, 0)


def test_the_room_loads_without_what_is_heavy():
    heavy = {"keras", "tensorflow", "torch", "httpx2", "requests"}
    program = f"import sys, keras_resnet.hub; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
