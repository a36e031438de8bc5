"""Where a run takes place: on one device, on all of a machine, or on many machines; and what goes wrong there."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_resnet.cores import use_all_cores
from keras_resnet.errors import KerasResnetError, UsageError, unknown
from keras_resnet.training.cluster import Cluster, answers, find_cluster

STRATEGIES = ("auto", "single", "mirrored", "workers", "tpu")
START_SECONDS = 45.0  # for all workers to come up
# What TensorFlow raises in the others where a worker is gone, frozen or restarted.
LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
    tf.errors.FailedPreconditionError,
    tf.errors.UnknownError,
)


class WorkerError(KerasResnetError, RuntimeError):
    """Another worker does not answer any more, or has other data."""


@dataclass(frozen=True)
class Place:
    """A strategy, None for one device without one, and the cluster that this process is a worker of, if any."""

    strategy: tf.distribute.Strategy | None = None
    cluster: Cluster | None = None

    @property
    def replicas(self) -> int:
        """Parts that a global batch is split into."""
        return 1 if self.strategy is None else int(self.strategy.num_replicas_in_sync)

    @property
    def workers(self) -> int:
        return 1 if self.cluster is None else len(self.cluster.addresses)

    @property
    def worker(self) -> int:
        return 0 if self.cluster is None else self.cluster.index

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run folder."""
        return self.worker == 0

    @property
    def devices(self) -> list[str]:
        """What this process computes on, for the run folder."""
        return [device.name for device in tf.config.get_visible_devices()]

    def name_of(self, workers: Sequence[int]) -> str:
        """The addresses of some workers."""
        return "this process" if self.cluster is None else ", ".join(self.cluster.addresses[i] for i in workers)

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Where variables must be made."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def batches(self, part: Callable[[int, int], tf.data.Dataset]) -> Any:
        """The replicas' parts of each global batch, for `iter` or `evaluate`; part: from (index, count) to a dataset.

        Cardinality is hidden: with several workers TensorFlow would agree on the end of the data at every step.
        """
        if self.strategy is None:
            return part(0, 1)
        here = self.replicas // self.workers

        def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
            parts = [part(context.input_pipeline_id * here + i, self.replicas) for i in range(here)]
            turns = tf.data.Dataset.range(here).repeat()
            data = parts[0] if here == 1 else tf.data.Dataset.choose_from_datasets(parts, turns)
            return data.repeat()

        return self.strategy.distribute_datasets_from_function(of_worker)

    def share(self, payload: bytes) -> bytes:
        """The chief's bytes, in every worker."""
        if self.cluster is None:
            return payload
        size = int(self._added_up(np.asarray([len(payload) if self.is_chief else 0], np.int64))[0])
        words = np.zeros(-(-size // 4), np.int32)
        if self.is_chief:
            words.view(np.uint8)[:size] = np.frombuffer(payload, np.uint8)
        return bytes(self._added_up(words).view(np.uint8)[:size].tobytes())

    def from_chief(self, say: Callable[[], bytes]) -> bytes:
        """What `say` gives in the chief, in every worker; what it raises, they raise too."""
        answer, raised = b"", None
        if self.is_chief:
            try:
                answer = b"+" + say()
            except KerasResnetError as error:
                answer, raised = b"-" + str(error).encode(), error
        answer = self.share(answer)
        if raised is not None:
            raise raised
        if answer.startswith(b"-"):
            raise WorkerError(f"{self.name_of([0])} says: {answer[1:].decode()}")
        return answer[1:]

    def check_equal(self, what: str, digest: bytes) -> None:
        """Raise WorkerError in every worker, naming addresses, where the digests, 32 bytes each, are not all equal."""
        if self.cluster is None:
            return
        rows = np.zeros([self.workers, 8], np.int32)
        rows[self.worker] = np.frombuffer(digest, np.int32)
        rows = self._added_up(rows)
        others = [a for a, row in zip(self.cluster.addresses, rows, strict=True) if (row != rows[0]).any()]
        if others:
            raise WorkerError(
                f"{', '.join(others)} has {what} other than {self.cluster.addresses[0]}: give every worker the same"
            )

    def wait_for_all(self) -> None:
        """Return when every worker is here."""
        self.check_equal("a place in the program", bytes(32))

    def _added_up(self, values: np.ndarray) -> np.ndarray:
        """The sum over the workers of an array of one shape."""
        assert self.strategy is not None
        here = self.replicas // self.workers

        def one(x: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            is_first = tf.equal(context.replica_id_in_sync_group % here, 0)
            return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.where(is_first, x, tf.zeros_like(x)))

        run = tf.function(lambda x: self.strategy.run(one, args=(x,)), autograph=False)
        with self.watched():
            return self.strategy.experimental_local_results(run(tf.constant(values)))[0].numpy()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Turn what TensorFlow says where a worker is lost into a WorkerError that names its address."""
        try:
            yield
        except LOST as error:
            lost = "" if self.cluster is None else _lost(self.cluster, str(error))
            if self.cluster is None or not lost:
                raise
            raise WorkerError(
                f"{lost} does not answer any more, so {self.cluster.address} stops: start "
                "all workers again, and the run goes on from its last checkpoint"
            ) from error


def open_place(name: str = "auto") -> Place:
    """The place that a name of `STRATEGIES` stands for.

    "auto": many machines where TF_CONFIG, Slurm or Kubernetes says so; all GPUs of this one; else one device, without
    a strategy. "tpu" was not run here. Raises UsageError for an unknown name, or for a place that is not there.
    """
    if name not in STRATEGIES:
        raise unknown("strategy", name, STRATEGIES, where="strategy=")
    use_all_cores()
    cluster = find_cluster(os.environ) if name in ("auto", "workers") else None
    if cluster is not None and len(cluster.addresses) > 1:
        return Place(_connect(cluster), cluster)
    if name == "workers":
        raise UsageError(
            "strategy='workers' finds no second worker: set TF_CONFIG, or start it under Slurm or Kubernetes as the "
            "files of examples/ do"
        )
    if name == "tpu":
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver()
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return Place(tf.distribute.TPUStrategy(resolver))
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if name == "mirrored" or (name == "auto" and len(devices) > 1):
        return Place(tf.distribute.MirroredStrategy([device.name for device in devices]))
    return Place()


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """The same bits from the same call, where there is no GPU: it would cost time there."""
    from tensorflow.python.framework import config  # what turns it off again is not public

    if config.is_op_determinism_enabled() or tf.config.list_physical_devices("GPU"):
        yield
        return
    tf.config.experimental.enable_op_determinism()
    try:
        yield
    finally:
        config.disable_op_determinism()


def _connect(cluster: Cluster) -> tf.distribute.Strategy:
    """The strategy of a cluster, made while somebody watches: its constructor waits for the others for ever."""
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.addresses)}),
        task_type="worker",
        task_id=cluster.index,
        rpc_layer="grpc",
    )
    with _watched_from_outside(cluster):
        try:
            return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
        except (RuntimeError, *LOST) as error:
            raise WorkerError(f"{cluster.address} cannot join the workers of {cluster.origin}: {error}") from error


@contextlib.contextmanager
def _watched_from_outside(cluster: Cluster) -> Iterator[None]:
    """End this process, with a message, where it stays inside for too long: no thread and no signal can do it.

    The constructor waits for the others for ever, and keeps Python's lock meanwhile.
    """
    arguments = [str(os.getpid()), str(START_SECONDS), str(cluster.index), cluster.origin, *cluster.addresses]
    command = [sys.executable, "-m", "keras_resnet.training.cluster", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as watcher:
        try:
            yield
        finally:
            watcher.kill()


def _lost(cluster: Cluster, message: str) -> str:
    """The addresses of the workers that an error of TensorFlow is about."""
    named = {int(task) for task in re.findall(r"/job:worker/replica:0/task:(\d+)", message)} - {cluster.index}
    named &= set(range(len(cluster.addresses)))
    silent = [i for i, a in enumerate(cluster.addresses) if i != cluster.index and not answers(a)]
    found = silent or sorted(named)
    return ", ".join(cluster.addresses[i] for i in found)
