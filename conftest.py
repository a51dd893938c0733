"""Shared by every test: no network, the same seed, `ross3d` importable even where it is not installed."""

import atexit
import importlib.util
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path


# Set before torch and the Hub client are imported: tests compare numbers and read nothing from outside.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Code that tests load with trust_remote_code is copied here, not among the user's models; kernels of DeepSpeed are
# built here, where no build that was killed has left a lock. Each process of pytest-xdist has a copy of the code.
if "HF_MODULES_CACHE" not in os.environ or "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="ross3d_modules_")
    atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)
if "TORCH_EXTENSIONS_DIR" not in os.environ:
    os.environ["TORCH_EXTENSIONS_DIR"] = tempfile.mkdtemp(prefix="ross3d_kernels_")
    atexit.register(shutil.rmtree, os.environ["TORCH_EXTENSIONS_DIR"], ignore_errors=True)

import pytest
import torch


ROOT = Path(__file__).resolve().parent
LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0", "::")


def register_checkout(root: Path = ROOT) -> None:
    """Makes `import ross3d` find this checkout where `pip install -e .` was not run."""
    if importlib.util.find_spec("ross3d") is not None:
        return
    spec = importlib.util.spec_from_file_location(
        "ross3d", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules["ross3d"] = package
    spec.loader.exec_module(package)


register_checkout()


def is_local(address) -> bool:
    """True for Unix sockets and for loopback addresses, the only ones a test may connect to."""
    if not isinstance(address, tuple):
        return True
    return str(address[0]).startswith(LOOPBACK)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any connection that leaves this machine fails the test that opened it."""
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def refuse(address):
        raise RuntimeError(f"a test tried to reach {address!r}: tests read no network, give them files or a fake")

    def guarded_connect(self, address):
        return connect(self, address) if is_local(address) else refuse(address)

    def guarded_connect_ex(self, address):
        return connect_ex(self, address) if is_local(address) else refuse(address)

    def guarded_getaddrinfo(host, *args, **kwargs):
        is_own = host is None or is_local((host, 0)) or host == socket.gethostname()
        return getaddrinfo(host, *args, **kwargs) if is_own else refuse(host)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)


@pytest.fixture(autouse=True)
def same_seed():
    """Every test starts from the same random state, whichever tests ran before it."""
    torch.manual_seed(0)
