"""What every test gets: quiet TensorFlow, a seed, a clean Keras afterwards, no network; and the shared data, if any.

`KERAS_RESNET_TEST_SEED` sets another seed; `KERAS_RESNET_DATA` names the folder of real images and weights.
"""

from __future__ import annotations

import gc
import ipaddress
import os
import random
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.layout import ROOT

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when TensorFlow is imported, so before any test module

# Side by side, each process of pytest-xdist keeps to one core: threads of several that all want every core wait for one
# another more than they compute.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if WORKER and hasattr(os, "sched_setaffinity"):
    CORES = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {CORES[int(WORKER.removeprefix("gw")) % len(CORES)]})

# A shell lets what it starts in the background ignore Ctrl-C, and all that this starts would inherit it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

GROWTH = 1 << 30  # bytes that tests may leave behind before the collector runs, which takes 0.3 s and more
SEED = int(os.environ.get("KERAS_RESNET_TEST_SEED", "0"))


class NetworkInTestError(RuntimeError):
    """A test reached for another machine; no OSError, which the code under test could take for a failed download."""


def is_local(family: int, address: Any) -> bool:
    """Whether a socket address stays on this machine."""
    if family not in (socket.AF_INET, socket.AF_INET6):
        return True
    host = address[0]
    try:
        return host in ("localhost", "") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Python's sockets connect to this machine only."""

    def guarded(connect: Any) -> Any:
        def only_local(self: socket.socket, address: Any) -> Any:
            if not is_local(self.family, address):
                raise NetworkInTestError(f"a test tried to connect to {address!r}: tests run without a network")
            return connect(self, address)

        return only_local

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, guarded(getattr(socket.socket, name)))
        yield


@pytest.fixture(autouse=True)
def seeded_and_clean() -> Iterator[None]:
    """The same random numbers in every test, in any order; Keras' global state does not outlive the test.

    Keras is never imported here: where a test imports it first, Keras draws its seeds from `random`.
    """
    random.seed(SEED)
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(SEED)
    yield
    if "keras" in sys.modules:
        sys.modules["keras"].backend.clear_session(free_memory=False)  # which costs 0.3 s: once a file, below


@pytest.fixture(scope="module", autouse=True)
def freed() -> Iterator[None]:
    """The networks of one test file are gone before the next: they are cycles, which only the collector frees."""
    yield
    gc.collect()


def resident_bytes() -> int:
    """What this process holds in memory; 0 where the system does not say so in a file."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else 0


@pytest.fixture(scope="session")
def floor() -> list[int]:
    """One number: the bytes that this process held when the collector last ran for want of memory."""
    return [0]


@pytest.fixture(autouse=True)
def freed_in_time(floor: list[int]) -> Iterator[None]:
    """Large networks are gone sooner: a file that compares many of them came to 15 GB."""
    yield
    if resident_bytes() > floor[0] + GROWTH:
        gc.collect()
        floor[0] = resident_bytes()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images, weights and measured figures, which is not in the repository."""
    named = os.environ.get("KERAS_RESNET_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if folder.is_dir():
        return folder
    if named:
        pytest.fail(f"KERAS_RESNET_DATA={named!r} is not a folder")
    pytest.skip("needs real images and weights: name their folder in KERAS_RESNET_DATA")
