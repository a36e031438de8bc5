"""What the tests stand on: no network, and a warning of our own is an error."""

from __future__ import annotations

import socket
import warnings

import pytest

from tests.conftest import NetworkInTestError


def test_a_connection_to_another_machine_is_refused():
    with socket.socket() as client, pytest.raises(NetworkInTestError, match=r"192\.0\.2\.1"):
        client.connect(("192.0.2.1", 80))  # an address kept for documents: RFC 5737


def test_a_connection_to_this_machine_is_made():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), timeout=10) as client,
    ):
        assert client.getpeername() == server.getsockname()


@pytest.mark.parametrize("module", ["keras_resnet.models", "keras_resnet.training.data", "tests.test_models"])
def test_a_warning_of_our_own_code_is_an_error(module):
    with pytest.raises(UserWarning, match="planted"):
        warnings.warn_explicit("planted", UserWarning, "planted.py", 1, module=module)


def test_a_deprecation_in_somebody_elses_code_is_not_an_error():
    with warnings.catch_warnings(record=True) as shown:
        warnings.warn_explicit("planted", DeprecationWarning, "planted.py", 1, module="tensorflow.python")
    assert shown == []
