"""From an address to a file on disk that is proved whole: published weight sets, and any repository of the hub.

Takes a row of `registry` or an `hf://` address; gives a path, and what the repository's config.json says. Every file is
compared with its hash before its path is given, cached or not. What stands in a weights file is left to `weights`.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import huggingface_hub
from huggingface_hub import constants

from keras_resnet.errors import InputError, UsageError
from keras_resnet.files import check_space, replacing
from keras_resnet.registry import WEIGHTS, File, Source, WeightSet

TRIES = 4  # of a question, where asking again can help
DOWNLOADS = 2  # of a file; within one the hub's client takes a broken connection up five times
LONGEST_WAIT_S = 300  # for a server that asks for patience, in one transfer; the hub counts requests over 300 s
MOST_ANSWERS = 50  # to one transfer: a connection that breaks again and again ends there
MOST_CONFIG_BYTES = 1_000_000
WAIT: Callable[[float], None] = time.sleep

Result = TypeVar("Result")


class _DamagedError(InputError):
    """Bytes that are not those that were published."""


class _GaveUpError(InputError):
    """The server answers, but not within a time that anybody would wait."""


class _AbsentError(InputError):
    """The repository is there, the file is not."""


@dataclass(frozen=True)
class _Errand:
    """One file to fetch."""

    name: str  # what errors call it
    file: File
    address: str  # where its bytes are
    cache: Path
    variable: str = "HF_HOME"  # the environment variable that moves the cache
    repository: str = ""  # on the hub
    revision: str = ""
    note: str = ""  # one more thing to do about a failure


def fetch(what: WeightSet | Source, *, include_top: bool = True, progress: bool = True) -> Path:
    """The file of a published weight set, fetched or taken from the cache, and proved whole.

    what: a row of `registry.WEIGHTS`, or a source alone; include_top: False takes the file without the classifier where
    one is published; progress: whether a bar is shown on stderr. Returns the path: in the cache of huggingface_hub
    (HF_HOME), for Keras' own files in that of Keras (KERAS_HOME), where `keras.utils.get_file` finds them too.

    A source with a mirror is read there always: safetensors need no PyTorch and hold no code. The published hash is the
    original's, so the mirror's file is compared with the hub's hash of it. Where the server cannot be reached, a whole
    copy in the cache serves; with HF_HUB_OFFLINE no server is asked.

    Raises InputError, which names the set, the address and what to do; no damaged file then stays in the cache.
    """
    source = what if isinstance(what, Source) else what.source
    file = source.file if include_top or source.file_without_top is None else source.file_without_top
    name = f"weights {what.tag if isinstance(what, WeightSet) else source.address!r}"
    with _bars(progress):
        if source.mirror is not None:
            note = f"; the original, which needs torch, is {source.address}{file.name}"
            return _from_hub(name, source.mirror, File("model.safetensors"), note=note)
        if source.kind == "hub":
            return _from_hub(name, source.address, file, source.revision or constants.DEFAULT_REVISION)
        return _from_url(name, source, file)


def fetch_address(address: str, *, progress: bool = True) -> tuple[Path, dict[str, Any] | None]:
    """The weights of any repository of the hub, proved whole, and its config.json, None where it has none.

    address: `hf://OWNER/NAME[@REVISION][/FILE]`, where FILE is model.safetensors unless given. transformers keeps what
    images need in another file: its content becomes "preprocessor_config" of the config that comes back.
    Raises UsageError for an address that is none; InputError as `fetch` does, and for a config that is not JSON.
    """
    repository, revision, file = parse(address)
    name = f"weights {address!r}"
    with _bars(progress):
        weights = _from_hub(name, repository, File(file or constants.SAFETENSORS_SINGLE_FILE), revision)
        commit = weights.parents[(file or "").count("/")].name  # one commit's files, whatever comes meanwhile
        config = _json_from_hub(name, repository, "config.json", commit)
        if config is not None and "architectures" in config and "pretrained_cfg" not in config:
            config["preprocessor_config"] = _json_from_hub(name, repository, "preprocessor_config.json", commit)
    return weights, config


# Addresses -----------------------------------------------------------------------------------------------------------

_WORD = r"\w(?:[\w.-]{0,94}\w)?"
_MODEL = rf"(?!(?:models|datasets|spaces|kernels|buckets)/)(?P<repository>{_WORD}/{_WORD})"
_ADDRESS = re.compile(
    rf"hf://(?:models/)?{_MODEL}"
    r"(?:@(?P<revision>refs/pr/\d+|\w[\w.%+-]*))?(?:/(?P<file>[^\s\\]+))?",
    re.ASCII,
)
_PAGE = re.compile(rf"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/{_MODEL}", re.ASCII)


def parse(address: str) -> tuple[str, str, str | None]:
    """The repository, revision ("main" unless given) and file (None unless given) of an address on the hub.

    A slash within a revision is written %2F. Raises UsageError for what is not of that form.

    >>> parse("hf://timm/resnet50.a1_in1k@v1.0/model.safetensors")
    ('timm/resnet50.a1_in1k', 'v1.0', 'model.safetensors')
    """
    match = _ADDRESS.fullmatch(address)
    if match is not None and not re.search(r"--|\.\.|\.git$", match["repository"]):
        revision, file = unquote(match["revision"] or constants.DEFAULT_REVISION), match["file"]
        if not {"", ".", ".."}.intersection([*revision.split("/"), *(file or "file").split("/")]):
            return match["repository"], revision, file
    page = _PAGE.match(address)
    raise UsageError(
        f"weights={address!r} is not the address of a model on the hub, hf://OWNER/NAME[@REVISION][/FILE]: "
        f"give it as {f'hf://{page[1]}' if page else 'hf://timm/resnet50.a1_in1k'}"
    )


def _json_from_hub(name: str, repository: str, file: str, commit: str) -> dict[str, Any] | None:
    """A small file of names and values; None where the repository has none."""
    name = f"{file} of {name}"
    try:
        path = _from_hub(name, repository, File(file), commit, most_bytes=MOST_CONFIG_BYTES)
    except _AbsentError:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} ({path}) is not JSON: {_first_line(error)}; give a local weights file") from error
    if not isinstance(content, dict):
        raise InputError(f"{name} ({path}) is a {type(content).__name__}, not names and values; give a local file")
    return content


# The two ways --------------------------------------------------------------------------------------------------------

_COMMIT = re.compile(r"[0-9a-f]{40}")


def _from_hub(
    name: str, repository: str, file: File, revision: str = "main", *, most_bytes: int | None = None, note: str = ""
) -> Path:
    """A file of a repository, through the hub's own client and in its cache.

    Seen in huggingface_hub 2.4.0: it compares sizes only, when it downloads; a cached file it gives unseen, online too.
    But its blobs are called as the server calls them, by a hash of their bytes, so that a copy can be proved offline.
    (Without symbolic links, as on Windows, the name is lost and a copy is proved online only.) Without a copy it keeps
    asking a server that does not answer for minutes, so we ask first.
    """
    address = huggingface_hub.hf_hub_url(repository, file.name, revision=revision)
    errand = _Errand(name, file, address, Path(constants.HF_HUB_CACHE), "HF_HOME", repository, revision, note)
    known = huggingface_hub.try_to_load_from_cache(repository, file.name, revision=revision)
    copy = Path(known) if isinstance(known, str) else None
    problem = None if copy is None else _damage(copy, file, _hash_in_name(copy))
    if copy and problem is None and (file.sha256 or _COMMIT.fullmatch(revision)):  # which never change
        return copy
    if copy is None and known is not None and _COMMIT.fullmatch(revision):  # the client remembers what is not there
        raise _AbsentError(f"{name}: there is no {address}, as the cache in {errand.cache} has it: name another file")
    try:
        tries = 1 if copy and not problem else TRIES
        metadata = _persist(lambda: huggingface_hub.get_hf_file_metadata(address), tries)
        check_space(errand.cache, (metadata.size or 0) if copy is None or problem else 0)
    except _failures() as error:
        if copy is not None and problem is None and _is_passing(error):
            return copy
        explained = _explained(error, errand, copy, problem)
        if isinstance(explained, _AbsentError):  # asked for it, the client fails too, but remembers
            with contextlib.suppress(*_failures()):
                _persist(lambda: huggingface_hub.hf_hub_download(repository, file.name, revision=revision), 1)
        raise explained from error
    if most_bytes is not None and (metadata.size or 0) > most_bytes:
        raise InputError(
            f"{name} has {metadata.size:,} bytes at {address}, more than {most_bytes:,}: give a local file"
        )
    errand = replace(errand, file=replace(file, size_bytes=file.size_bytes or metadata.size))
    if copy is not None and metadata.commit_hash in copy.parts:
        problem = _damage(copy, errand.file, _hash_in_name(copy) or metadata.etag)
        if problem is None:
            return copy
    return _download(errand, metadata.etag, copy if problem else None)


def _download(errand: _Errand, etag: str | None, damaged: Path | None) -> Path:
    """Have the client download a file, or link what it has; damaged: the copy to replace.

    It is replaced in one step, for another process may be at it too; but without symbolic links the client leaves it.
    """
    repository, name, revision = errand.repository, errand.file.name, errand.revision

    def transfer() -> Path:
        nonlocal damaged
        if damaged is not None and not damaged.is_symlink():
            damaged.unlink(missing_ok=True)
        force = damaged is not None
        path = Path(huggingface_hub.hf_hub_download(repository, name, revision=revision, force_download=force))
        problem = _damage(path, errand.file, _hash_in_name(path) or etag)
        damaged = path if problem else None
        if problem is not None:
            raise _DamagedError(f"wrong bytes arrived: {problem}")
        return path

    try:
        return _persist(transfer, DOWNLOADS)
    except _failures() as error:
        if isinstance(error, _DamagedError) and damaged is not None:
            _remove(damaged)
        raise _explained(error, errand) from error


def _from_url(name: str, source: Source, file: File) -> Path:
    """One file at an address, through the hub client's downloader.

    Not through keras.utils.get_file, whose place in Keras' cache and whose hash are kept: it writes under the final
    name, so that a second process reads a half file, tries once, has no time limit and writes to stdout (Keras 3.15.1).
    """
    from huggingface_hub.file_download import http_get

    folder, variable = Path(constants.HF_ASSETS_CACHE, "keras_resnet", "weights"), "HF_HOME"
    if source.kind == "keras":
        folder, variable = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "models", "KERAS_HOME"
    errand = _Errand(name, file, source.address + file.name, folder, variable)
    target = folder / file.name
    problem = _damage(target, file) if target.is_file() else None
    if target.is_file() and problem is None:
        return target

    def transfer(scratch: Path) -> None:
        with scratch.open("wb") as handle:
            http_get(errand.address, handle, expected_size=file.size_bytes, displayed_filename=file.name)
        wrong = _damage(scratch, file)
        if wrong is not None:
            raise _DamagedError(f"wrong bytes arrived: {wrong}")

    try:
        check_space(folder, file.size_bytes or 0)
        with replacing(target) as (scratch,):
            _persist(lambda: transfer(scratch), DOWNLOADS)
    except _failures() as error:
        if isinstance(error, _DamagedError):
            target.unlink(missing_ok=True)
        raise _explained(error, errand, target if problem else None, problem) from error
    return target


# Proof ---------------------------------------------------------------------------------------------------------------

_HASHES = {64: ("sha256",), 40: ("git", "sha1")}  # what an etag is, by its length; some mirrors of the hub give a SHA-1
_DIGESTS: dict[tuple[int, int, int, int, str], str] = {}  # of the files that this process has read


def _damage(path: Path, file: File, etag: str | None = None) -> str | None:
    """What is wrong with the bytes of a file, by its published hashes and the server's; None: nothing."""
    etag = etag if etag and re.fullmatch(r"[0-9a-f]+", etag) else ""
    try:
        size = path.stat().st_size
        if file.size_bytes not in (None, size):
            return f"{size:,} bytes, not {file.size_bytes:,}"
        for digits, methods in (file.sha256, ("sha256",)), (file.md5, ("md5",)), (etag, _HASHES.get(len(etag), ())):
            found = [_digest(path, method) for method in methods if digits]
            if found and not any(digest.startswith(str(digits)) for digest in found):
                return f"{methods[0]} {found[0][:8]}, not {str(digits)[:8]}, of {size:,} bytes"
    except OSError as error:
        return _first_line(error)
    return None


def _digest(path: Path, method: str) -> str:
    """A file's hash, computed once in a process while the file stays as it is; "git" is Git's for a blob."""
    stat = path.stat()
    key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, method)
    if key not in _DIGESTS:
        digest = hashlib.new("sha1" if method == "git" else method, usedforsecurity=False)
        digest.update(b"blob %d\0" % stat.st_size if method == "git" else b"")
        with path.open("rb") as handle:
            _DIGESTS[key] = hashlib.file_digest(handle, lambda: digest).hexdigest()
    return _DIGESTS[key]


def _hash_in_name(path: Path) -> str | None:
    """What the server called the blob behind a name in the hub's cache; one step only, for a blob may be shared."""
    return path.readlink().name if path.is_symlink() else None


def _remove(path: Path) -> None:
    """Delete a name in the hub's cache and all that it leads to."""
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink(missing_ok=True)
        path = target
    path.unlink(missing_ok=True)


# Failures ------------------------------------------------------------------------------------------------------------

_PASSING = (408, 429, 500, 502, 503, 504)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
_NO_REPOSITORY = ("there is no such repository, or it is private", f"check the name{{nearest}}, or {_LOG_IN}")
_ANSWERS: Mapping[str, tuple[str, str]] = {  # by the hub's word for it, or the HTTP status: what it is, what to do
    "EntryNotFound": ("the repository has no such file", "name one that it has ({files})"),
    "RevisionNotFound": ("the repository has no such revision", "leave @REVISION out for the newest"),
    "RepoNotFound": _NO_REPOSITORY,
    "GatedRepo": ("the repository is gated", f"accept its terms on its page, then {_LOG_IN}"),
    "401": _NO_REPOSITORY,
    "403": ("access is refused", f"accept the repository's terms on its page, then {_LOG_IN}"),
    "429": ("the server takes no more requests for now", "try again later"),
    "404": ("there is no such file", "check the address{nearest}"),
}


def _failures() -> tuple[type[Exception], ...]:
    """What the hub's client raises when a transfer fails. Each great version builds on another HTTP library."""
    from huggingface_hub.errors import HfHubHTTPError

    return OSError, RuntimeError, ValueError, HfHubHTTPError.__bases__[0]  # RuntimeError: hf_xet


def _persist(transfer: Callable[[], Result], tries: int) -> Result:
    """Run a transfer until it succeeds or trying again cannot help, with the pauses that the server asks for."""
    with _bounded():
        for attempt in range(1, tries + 1):
            try:
                return transfer()
            except _failures() as error:
                hopeless = constants.HF_HUB_OFFLINE or isinstance(error, _GaveUpError)
                if attempt == tries or hopeless or not (_is_passing(error) or isinstance(error, _DamagedError)):
                    raise
                WAIT(min(max(_asked_wait(_response(error)), 2 ** (attempt - 1)), LONGEST_WAIT_S))
    raise AssertionError("the last attempt returned or raised")


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """While this lasts, this thread's requests through the hub's client give up on a server that goes on for ever.

    huggingface_hub 2.4.0 sleeps as long as a server asks, five times (five hours, where it asks for one), and takes a
    download that breaks and starts over up again until Python's recursion ends it (484 times).
    """
    session: Any = huggingface_hub.get_session()
    hooks = getattr(session, "event_hooks", {"response": []})["response"]  # none before 1.0, which never waits long
    thread, answers, waited = threading.get_ident(), 0, 0

    def check(response: Any) -> None:
        nonlocal answers, waited
        if threading.get_ident() == thread:
            wait = _asked_wait(response) if response.status_code in _PASSING else 0
            answers, waited = answers + 1, waited + wait
            if waited > LONGEST_WAIT_S:
                raise _GaveUpError(f"the server (HTTP {response.status_code}) asks to be left alone for {wait} s")
            if answers > MOST_ANSWERS:
                raise _GaveUpError(f"{MOST_ANSWERS} requests brought no whole file")

    hooks.append(check)
    try:
        yield
    finally:
        hooks.remove(check)


def _asked_wait(response: Any) -> int:
    """The seconds that an answer asks to wait: by the usual header, or by the hub's own."""
    headers = {} if response is None else response.headers
    after = headers.get("Retry-After", "").strip()
    reset = re.search(r"\br=0\b.*\bt=(\d+)", headers.get("RateLimit", ""))
    return int(after) if after.isdecimal() else int(reset[1]) if reset else 0


def _in_chain(error: BaseException | None, attribute: str) -> Any:
    """An attribute of an error or of the first of its causes that has it; None where none has."""
    while error is not None:
        if (value := getattr(error, attribute, None)) is not None:
            return value
        error = error.__cause__
    return None


def _response(error: BaseException) -> Any:
    """The server's answer behind an error, None where there was none."""
    return _in_chain(error, "response")


def _is_passing(error: BaseException) -> bool:
    """Whether a failure is the connection's or the server's, so that the next try may succeed."""
    if (response := _response(error)) is not None:
        return response.status_code in _PASSING
    if isinstance(error, InputError):
        return isinstance(error, _GaveUpError)
    return _in_chain(error, "errno") not in _FULL and _in_chain(error, "filename") is None


def _explained(error: Exception, errand: _Errand, copy: Path | None = None, problem: str | None = None) -> InputError:
    """The error for the user: what was to be fetched, from where, why it failed, what to do."""
    response, line = _response(error), _first_line(error)
    code = "" if response is None else response.headers.get("X-Error-Code", "")
    if response is not None:
        status = response.status_code
        what, advice = _ANSWERS.get(code) or _ANSWERS.get(str(status)) or ("the server fails", "try again later")
        what += f" (HTTP {status})"
        near = ", ".join(difflib.get_close_matches(errand.repository or errand.file.name, WEIGHTS))
        files = _weights_of(errand) if "{files}" in advice else ""
        advice = advice.format(nearest=f" (nearest: {near})" if near else "", files=files)
    elif isinstance(error, (_DamagedError, _GaveUpError)):
        what, advice = line, "try again later, or give the path of a file that you have"
    elif not _is_passing(error):
        state = "is full" if _in_chain(error, "errno") in _FULL else "cannot be written"
        what = line if isinstance(error, InputError) else f"{errand.cache} {state} ({line})"
        advice = f"{errand.variable} sets another folder"
    elif constants.HF_HUB_OFFLINE:
        what, advice = "HF_HUB_OFFLINE is set", "unset it, or fetch it once where there is a network"
    else:
        what, advice = f"the transfer failed ({line})", "check the network, its proxy and HF_ENDPOINT, then try again"
    if _is_passing(error):
        what += f", and the copy {copy} is damaged ({problem})" if copy else f", and no copy is in {errand.cache}"
    elif copy and not problem:
        advice += f"; HF_HUB_OFFLINE=1 takes the copy {copy}"
    kind = _AbsentError if code == "EntryNotFound" else InputError
    return kind(f"{errand.name} could not be fetched from {errand.address}: {what}; {advice}{errand.note}")


def _weights_of(errand: _Errand) -> str:
    """The weights files of a repository, to offer where one is not there."""
    with contextlib.suppress(*_failures()):
        files = _persist(lambda: huggingface_hub.list_repo_files(errand.repository, revision=errand.revision), 1)
        weights = [file for file in files if file.endswith((".safetensors", ".bin", ".h5", ".keras", ".pth", ".th"))]
        return ", ".join(weights[:5]) or "no weights at all"
    return "its page lists them"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """Progress bars of the hub's client, unless the environment has decided on them."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
