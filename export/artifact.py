"""What an export leaves: a file and its sidecars, which appear together or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_resnet.errors import InputError, UsageError
from keras_resnet.files import replacing


@dataclass(frozen=True)
class Artifact:
    """An exported file by its path, with the sidecars that lie beside it under the same stem; no labels, no file."""

    path: Path

    @property
    def labels(self) -> Path:
        return self.path.with_suffix(".labels.txt")

    @property
    def manifest(self) -> Path:
        return self.path.with_suffix(".json")

    @property
    def report(self) -> Path:
        return self.path.with_suffix(".html")

    def read(self) -> dict[str, Any]:
        """The manifest beside the file. Raises InputError where it is absent or damaged."""
        try:
            return dict(json.loads(self.manifest.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise InputError(f"{str(self.path)!r} has no readable manifest {self.manifest.name!r}: {error}") from error


def manifest_within(text: str | bytes | None, name: str) -> dict[str, Any] | None:
    """The manifest that an export put into a file of this name; None where there is none.

    Raises InputError where it is damaged.
    """
    if text is None:
        return None
    try:
        value = json.loads(text)
        made_of(value)
        return dict(value)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"the manifest inside {name!r} is damaged: {error}") from error


def made_of(manifest: Mapping[str, Any]) -> str:
    """What a manifest says its file is, in a line."""
    return f"{manifest['format']} of {manifest['model']['name']}, weights {manifest['model']['weights_sha256'][:12]}"


def check_target(path: str | os.PathLike[str], suffix: str) -> Path:
    """The path of an export that can be written.

    Raises UsageError for another suffix; InputError for a place that cannot be written, or where something lies that
    an export of the same name did not write.
    """
    target = Path(path)
    if target.suffix != suffix:
        raise UsageError(f"output {str(path)!r} must end in {suffix!r}")
    existing = next((parent for parent in target.parents if parent.exists()), Path("."))
    if not existing.is_dir():
        raise InputError(f"output {str(path)!r} cannot be written: {str(existing)!r} is a file")
    if not os.access(existing, os.W_OK):
        raise InputError(f"output {str(path)!r} cannot be written: no permission in {str(existing)!r}")
    artifact = Artifact(target)
    taken = [place for place in (target, artifact.labels, artifact.manifest, artifact.report) if place.exists()]
    if taken and not _wrote(artifact):
        raise InputError(
            f"output {str(path)!r}: {taken[0].name!r} is there already and does not belong to an export of that name; "
            "choose another name, or move it away"
        )
    return target


def _wrote(artifact: Artifact) -> bool:
    """Whether the manifest that lies there is that of this file, and all places hold what an export puts there."""
    if any(place.is_dir() for place in (artifact.labels, artifact.manifest, artifact.report)):
        return False
    if artifact.path.is_dir() != (artifact.path.suffix == ".mlpackage") and artifact.path.exists():
        return False
    try:
        return bool(artifact.read().get("file") == artifact.path.name)
    except InputError:
        return False


def write_artifact(
    path: Path,
    produce: Callable[[Path], None],
    labels: Sequence[str],
    manifest: Callable[[dict[str, Any]], dict[str, Any]],
    report: Callable[[dict[str, Any]], str],
) -> Artifact:
    """Write a file or package and its sidecars.

    produce: writes the file to the temporary path that it is given; manifest: from what is known of the written file
    (name, size_bytes, sha256) to the manifest; report: from the manifest to the page.
    """
    artifact = Artifact(path)
    places = [artifact.manifest, artifact.report, artifact.path, *([artifact.labels] if labels else [])]
    with replacing(*places) as (manifest_file, report_file, file, *labels_files):
        produce(file)
        for labels_file in labels_files:
            labels_file.write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
        value = manifest({"file": path.name, "size_bytes": size_of(file), "sha256": sha256_of(file)})
        manifest_file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        report_file.write_text(report(value), encoding="utf-8")
    if not labels:
        artifact.labels.unlink(missing_ok=True)  # of an earlier export of that name, which had classes
    return artifact


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a package."""
    return sum(file.stat().st_size for file in _files(path))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file; of a package, over the names and contents of its files in order."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for file in _files(path):
        digest.update(f"{file.relative_to(path).as_posix()}\n".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
