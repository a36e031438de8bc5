"""Proof that a run is what its recipe gives: some of its steps are taken again and compared, bit for bit."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_resnet.errors import InputError
from keras_resnet.training import checkpoint
from keras_resnet.training.checkpoint import Checkpoint
from keras_resnet.training.data import Data
from keras_resnet.training.runs import Run, check_same
from keras_resnet.training.session import open_session
from keras_resnet.training.strategy import Place, deterministic
from keras_resnet.training.trainer import describe, end_of_epoch, open_parts


@dataclass(frozen=True)
class Replay:
    """Steps `first` to `last` of a run taken again: how many values were compared, and the names of those that differ.

    Values are the checkpoint's, in its names, and the rows of the history as `history[epoch]`.
    """

    first: int
    last: int
    compared: int
    differing: tuple[str, ...]

    @property
    def is_equal(self) -> bool:
        return not self.differing


def verify_run(
    run: Run | str | os.PathLike[str],
    data: Data | None = None,
    *,
    validation: Data | None = None,
) -> Replay:
    """Take the steps between the last two checkpoints of a run again, and compare with what the run has stored.

    From the beginning, where there is one checkpoint only. data, validation: where the run's images lie now, if not
    where run.json says. Nothing is written. A run on another kind of processor, or on several, may differ in the last
    bits. Raises InputError for a folder without a whole checkpoint, or for other data than the run's.
    """
    run = run if isinstance(run, Run) else Run(Path(run))
    said = run.read()
    sources: dict[str, Any] = dict(said.get("sources", {}))
    sources |= {k: v for k, v in {"data": data, "validation": validation}.items() if v is not None}
    if "data" not in sources:
        raise InputError(f"run {str(run.folder)!r} does not say where its images came from: give data= (--data)")
    recipe = run.recipe
    before, stored = _last_two(run)
    parts = said.get("data", {})
    damaged = "skip" if any("skipped" in part for part in parts.values() if isinstance(part, dict)) else "error"
    training, held_out, _ = open_parts(sources["data"], sources.get("validation"), None, damaged)
    described = describe(training=training, validation=held_out)
    check_same(run, "data", described, parts)
    with deterministic():
        session = open_session(recipe, training, held_out, Place())
        step, rows = 0, []
        if before is not None:
            session.restore(before)
            step, rows = before.step, list(before.history)
        first, batches = step, session.batches(step)
        while True:
            if session.ends_epoch(step) and len(rows) < len(stored.history):
                rows.append(end_of_epoch(session, rows))
            if step == stored.step:
                break
            session.step(step, batches)
            step += 1
        found = session.captured(step, rows)
    differing = [name for name, value in stored.values.items() if value.tobytes() != found.values[name].tobytes()]
    differing += [f"history[{i}]" for i, row in enumerate(stored.history, 1) if row != found.history[i - 1]]
    return Replay(first, step, len(stored.values) + len(stored.history), tuple(differing))


def _last_two(run: Run) -> tuple[Checkpoint | None, Checkpoint]:
    """The newest two checkpoints, the first of which may be the beginning. Raises InputError where one is damaged."""
    paths = checkpoint.written(run.checkpoints)[-2:]
    if not paths:
        raise InputError(f"run {str(run.folder)!r} has no checkpoint yet: train it first")
    *before, newest = [checkpoint.read(path) for path in paths]
    return (before[0] if before else None), newest
