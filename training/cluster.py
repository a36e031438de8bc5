"""Which machines take part in a run, by what the launcher put into the environment. And whether they are there."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from keras_resnet.errors import UsageError

PORT = 12345
PROBE_SECONDS = 2.0


@dataclass(frozen=True)
class Cluster:
    """The workers' addresses, "host:port", the first being the chief; which one this is; and who said so."""

    addresses: tuple[str, ...]
    index: int
    origin: str

    @property
    def address(self) -> str:
        """Of this worker."""
        return self.addresses[self.index]


def find_cluster(environment: Mapping[str, str]) -> Cluster | None:
    """The cluster that the environment describes; None where it describes none.

    The first that is there counts: TF_CONFIG; Slurm's variables of a step; Kubernetes' of an indexed job. Raises
    UsageError for values that cannot be.
    """
    for resolve in (_from_tf_config, _from_slurm, _from_kubernetes):
        if (cluster := resolve(environment)) is not None:
            return _checked(cluster)
    return None


def _from_tf_config(environment: Mapping[str, str]) -> Cluster | None:
    text = environment.get("TF_CONFIG", "").strip()
    if not text:
        return None
    form = 'it must be {"cluster": {"worker": ["host1:12345", "host2:12345"]}, "task": {"type": "worker", "index": 0}}'
    try:
        said = json.loads(text)
    except ValueError as error:
        raise UsageError(f"TF_CONFIG is no JSON ({error}): {form}") from error
    cluster, task = (said.get(key) if isinstance(said, dict) else None for key in ("cluster", "task"))
    if not isinstance(cluster, dict) or not isinstance(task, dict):
        raise UsageError(f"TF_CONFIG={text!r} has no cluster or no task: {form}")
    if not set(cluster) <= {"chief", "worker"} or task.get("type") not in list(cluster):
        raise UsageError(
            f"TF_CONFIG has jobs {sorted(map(str, cluster))} and a task of type {task.get('type')!r}: jobs must be "
            "'worker', and 'chief' for the first of them, and the task of one of them"
        )
    jobs = {job: cluster.get(job, []) for job in ("chief", "worker")}
    for job, addresses in jobs.items():
        if not isinstance(addresses, list) or not all(isinstance(a, str) for a in addresses):
            raise UsageError(f"TF_CONFIG has {job}={addresses!r}: {form}")
    index = task.get("index")
    count = len(jobs[task["type"]])
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < count:
        raise UsageError(f"TF_CONFIG has task index {index!r}: it must be a whole number from 0 to {count - 1}")
    before = 0 if task["type"] == "chief" else len(jobs["chief"])
    return Cluster((*jobs["chief"], *jobs["worker"]), before + index, "TF_CONFIG")


def _from_slurm(environment: Mapping[str, str]) -> Cluster | None:
    """A step that `srun` started, a worker a task."""
    names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE")
    if not all(environment.get(name) for name in names) or environment["SLURM_STEP_NUM_TASKS"] == "1":
        return None
    # TensorFlow's own resolver puts n10 before n9, so that rank and address would not belong together.
    from tensorflow.python.distribute.cluster_resolver import slurm_cluster_resolver as slurm

    rank, _, nodes, tasks = (environment[name] for name in names)
    try:
        counts = dict(zip(slurm.expand_hostlist(nodes), slurm.expand_tasks_per_node(tasks), strict=True))
        addresses = tuple(f"{host}:{PORT + i}" for host, count in counts.items() for i in range(count))
        return Cluster(addresses, int(rank), "Slurm")
    except (RuntimeError, ValueError) as error:
        found = ", ".join(f"{name}={environment[name]}" for name in names)
        raise UsageError(f"Slurm's variables make no cluster ({error}): {found}") from error


def _from_kubernetes(environment: Mapping[str, str]) -> Cluster | None:
    """An indexed job: pod i is host JOB-i of a headless service, which the manifest names, with the number of pods."""
    index = environment.get("JOB_COMPLETION_INDEX")
    if index is None or "KERAS_RESNET_WORKERS" not in environment:
        return None
    count, host = environment["KERAS_RESNET_WORKERS"], environment.get("HOSTNAME", "")
    service = environment.get("KERAS_RESNET_SERVICE", "")
    job, _, last = host.rpartition("-")
    if not (index.isdigit() and count.isdigit() and last == index and job and service):
        raise UsageError(
            f"Kubernetes' variables make no cluster: JOB_COMPLETION_INDEX={index!r}, HOSTNAME={host!r} (must be "
            f"JOB-{index}), KERAS_RESNET_WORKERS={count!r}, KERAS_RESNET_SERVICE={service!r}: see "
            "examples/kubernetes.yaml"
        )
    return Cluster(tuple(f"{job}-{i}.{service}:{PORT}" for i in range(int(count))), int(index), "Kubernetes")


def _checked(cluster: Cluster) -> Cluster:
    for address in cluster.addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 2**16:
            raise UsageError(f"{cluster.origin} has worker {address!r}: it must be host:port, as in 'host1:{PORT}'")
    if twice := [address for address, count in Counter(cluster.addresses).items() if count > 1]:
        raise UsageError(f"{cluster.origin} has worker {twice[0]!r} more than once: each needs an address of its own")
    if not 0 <= cluster.index < len(cluster.addresses):
        raise UsageError(f"{cluster.origin} has {len(cluster.addresses)} workers, and this is number {cluster.index}")
    return cluster


def answers(address: str) -> bool:
    """Whether something listens at an address."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_SECONDS):
            return True
    except OSError:
        return False


def watch(process: int, seconds: float, cluster: Cluster) -> None:
    """Kill a process, and say which workers are missing, where it does not end this one, or itself, in time."""
    if select.select([sys.stdin], [], [], seconds)[0]:  # the end of its pipe: it is gone
        return
    silent = [address for address in cluster.addresses if not answers(address)] or ["a worker whose port is open"]
    print(
        f"keras-resnet: {', '.join(silent)} did not start within {seconds:.0f} s, so {cluster.address} stops: start "
        f"all of the workers in {cluster.origin}",
        file=sys.stderr,
        flush=True,
    )
    os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    watched, limit, index, origin, *addresses = sys.argv[1:]
    watch(int(watched), float(limit), Cluster(tuple(addresses), int(index), origin))
