"""Law: no test reads the network. `conftest.py` refuses every connection that leaves the machine."""

import socket
import urllib.error
import urllib.request

import pytest


def test_outside_addresses_are_refused():
    with pytest.raises(RuntimeError, match="tried to reach"), socket.socket() as client:
        client.connect(("192.0.2.1", 80))
    with pytest.raises(RuntimeError, match="tried to reach"), socket.socket() as client:
        client.connect_ex(("192.0.2.1", 80))


def test_outside_names_are_refused():
    with pytest.raises(RuntimeError, match="tried to reach"):
        socket.create_connection(("huggingface.co", 443), timeout=1)
    with pytest.raises(RuntimeError, match="tried to reach"):
        urllib.request.urlopen("http://huggingface.co", timeout=1)


def test_a_server_on_this_machine_is_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname(), timeout=5) as client:
            accepted, _ = server.accept()
            accepted.sendall(b"here")
            accepted.close()
            assert client.recv(4) == b"here"
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        urllib.request.urlopen(f"http://localhost:{server_port_that_is_free()}", timeout=1)


def server_port_that_is_free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_hub_client_is_offline():
    """Processes that tests start inherit the setting; the library then answers from files or raises."""
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE
