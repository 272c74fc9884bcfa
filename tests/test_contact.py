"""No test contacts another machine: pyproject.toml has pytest-socket watch; gloo's ports are its own."""

import socket
import urllib.request

import pytest
from pytest_socket import SocketConnectBlockedError


def test_another_machine_is_out_of_reach():
    with pytest.raises(SocketConnectBlockedError):
        urllib.request.urlopen("http://192.0.2.1/clip.mp4", timeout=5)  # an address that is nobody's
    with pytest.raises(SocketConnectBlockedError):
        socket.create_connection(("192.0.2.1", 80), timeout=5)
