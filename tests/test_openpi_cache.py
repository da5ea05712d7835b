"""What is on this machine and what would be fetched, without openpi and without the network."""

import socket
import threading
import time
from pathlib import Path

import pytest

from preflight.runs.openpi.cache import cache_folder, cached, fetch_command
from preflight.telemetry import network


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path / "openpi"))
    return tmp_path / "openpi"


def test_an_address_lies_below_its_host(home):
    url = "gs://openpi-assets/checkpoints/pi0_base/params"
    assert cached(url) is None
    assert not home.exists()  # looking makes nothing, where openpi's own function makes the folder
    place = home / "openpi-assets" / "checkpoints" / "pi0_base" / "params"
    place.mkdir(parents=True)
    assert cached(url) == cached(f"{url}/") == place
    assert cached("s3://openpi-assets/checkpoints/pi0_base/params") == place  # the scheme is no part of the place
    assert cached("gs://openpi-assets/checkpoints/pi0_base") == place.parent
    assert cached("gs://other-bucket/checkpoints/pi0_base/params") is None


def test_a_path_is_itself(home, tmp_path, monkeypatch):
    (tmp_path / "params").mkdir()
    monkeypatch.chdir(tmp_path)
    assert cached("./params") == cached(str(tmp_path / "params")) == tmp_path / "params"
    assert cached("./other") is None


def test_openpi_expands_no_tilde(home, tmp_path, monkeypatch):
    # pathlib does not, and openpi then says that the file is not found.
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "params").mkdir()
    assert cached("~/params") is None


def test_the_cache_is_where_openpi_has_it(monkeypatch, tmp_path):
    monkeypatch.delenv("OPENPI_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "openpi"
    monkeypatch.setenv("OPENPI_DATA_HOME", "~/data")
    assert cache_folder() == Path(tmp_path / "data")


def test_the_command_that_fetches_is_python():
    command = fetch_command("gs://bucket/file")
    assert command == "python -c \"from openpi.shared import download; download.maybe_download('gs://bucket/file')\""


def test_a_machine_that_answers_is_reachable():
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert network.unreachable(*server.getsockname()) is None


def test_a_closed_port_says_why():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    assert "refused" in network.unreachable(*address).lower()


def test_a_look_up_that_hangs_is_not_waited_for(monkeypatch):
    hold = threading.Event()

    def hang(*args, **kwargs):
        hold.wait(20)
        raise OSError("given up")

    monkeypatch.setattr(network, "PING_S", 0.1)
    monkeypatch.setattr(socket, "create_connection", hang)
    start = time.monotonic()
    assert network.unreachable("storage.example", 443) == "no answer"
    assert time.monotonic() - start < 5
    hold.set()


def test_a_connection_that_takes_too_long_is_given_up(monkeypatch):
    def slow(address, timeout):
        time.sleep(timeout)
        raise TimeoutError("timed out")

    monkeypatch.setattr(network, "PING_S", 0.1)
    monkeypatch.setattr(socket, "create_connection", slow)
    assert network.unreachable("10.255.255.1", 443) in ("timed out", "no answer")


def test_an_unknown_host_is_unreachable(monkeypatch):
    def unknown(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", unknown)
    assert "Name or service not known" in network.unreachable("nowhere.invalid", 443)
