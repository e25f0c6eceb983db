"""With the network cut every dataset says so in its own words and soon; half a download is no recording."""

import shutil
import socket
import time

import pytest

from workbench import open_catalog
from workbench.__main__ import main
from workbench.errors import BadRecording, DatasetNotAvailable, NeedsAccount, NoNetwork
from workbench.session import Session
from workbench.sources import download
from workbench.sources.download import Remote
from workbench.sources.simulated import reach_sim

CATALOG = open_catalog()
FAR = [name for name, dataset in CATALOG.items() if not dataset.simulated]
LONGEST = 15.0                                                          # s that anybody waits for an answer


class Clock:
    """Time that passes only in what waits: tests of real timeouts take none."""

    def __init__(self):
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    for name in ("WORKBENCH_CATALOG", "WORKBENCH_DATA", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy",
                 "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(download, "time", clock)
    return clock


@pytest.fixture
def no_names(monkeypatch, clock):
    """The cable is out: no name of a host is known."""
    def getaddrinfo(*args, **options):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.fixture
def silence(monkeypatch, clock):
    """Packets are swallowed: each of a host's four addresses is waited for until the timeout."""
    def connect(self, address):
        clock.sleep(self.gettimeout() or 1e9)
        raise TimeoutError("timed out")

    addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"192.0.2.{i}", 443)) for i in range(1, 5)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: addresses)
    monkeypatch.setattr(socket.socket, "connect", connect)


def assert_tells(text: str, name: str, tmp_path) -> None:
    """What, where it was looked for, the size, how to get it, what there is instead."""
    dataset = CATALOG[name]
    assert "\n" not in text and f"dataset {name!r}" in text
    if dataset.access.method == "local":
        assert str(dataset.access.path[0]) in text and "correct the path" in text
        return
    assert f"looked in {tmp_path / 'cache' / name}" in text
    size = download.megabytes(round(dataset.size_gb * 1e9)) if dataset.size_gb else "size not stated"
    assert f"({size}" in text
    ways = {"manual": [getattr(dataset.access, "url", "")]}.get(dataset.access.method, ["prepare", "cannot reach"])
    assert any(way in text for way in ways) and "reach-sim" in text


@pytest.mark.parametrize("name", FAR)
def test_every_dataset_that_is_not_here_says_what_where_and_how_without_asking_the_network(name, tmp_path, monkeypatch):
    monkeypatch.setattr(download.requests, "get", lambda *a, **k: pytest.fail("asked the network"))
    with pytest.raises(DatasetNotAvailable) as told:
        open_catalog().open(name)
    assert_tells(str(told.value), name, tmp_path)
    if CATALOG[name].access.method not in ("manual", "local"):
        assert f"python -m workbench prepare {name}" in str(told.value)


@pytest.mark.parametrize("how", ["no_names", "silence"])
@pytest.mark.parametrize("name", FAR)
def test_every_dataset_that_is_wanted_without_a_network_answers_soon(name, how, tmp_path, request, clock, capsys):
    request.getfixturevalue(how)
    started = time.monotonic()
    with pytest.raises(DatasetNotAvailable) as told:
        open_catalog().open(name, download=True)
    assert clock.now + time.monotonic() - started <= LONGEST
    assert_tells(str(told.value), name, tmp_path)
    if CATALOG[name].needs_account and isinstance(told.value, NeedsAccount):
        assert "account" in str(told.value)                             # asked for before the network is
    elif CATALOG[name].access.method not in ("manual", "local"):
        assert isinstance(told.value, NoNetwork) and str(tmp_path / "cache" / name) in str(told.value).split("copy")[1]
    assert main(["prepare", name]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith(f"workbench: dataset {name!r}")


def test_simulated_datasets_need_no_network(no_names):
    assert open_catalog().open("reach-sim").simulated


def test_a_stream_without_a_network_answers_soon(silence, clock, monkeypatch):
    from workbench.catalog import open_recording
    for address in ("dandi:000140@0.220113.0408/sub-A/a.nwb", "dandi:000140/a.nwb", "https://example.org/a.nwb"):
        clock.now = 0.0
        with pytest.raises(NoNetwork, match="cannot reach"):
            open_recording(address)
        assert clock.now <= LONGEST


def test_a_server_that_fails_again_and_again_is_left_alone_after_three_tries(monkeypatch, clock):
    tries = []

    def get(*args, **options):
        tries.append(args)
        raise download.requests.ConnectionError("reset")

    monkeypatch.setattr(download.requests, "get", get)
    with pytest.raises(NoNetwork):
        download.ask("https://example.org/a")
    assert len(tries) == download.TRIES and clock.now <= LONGEST


# Half a file


@pytest.mark.parametrize("name", FAR)
def test_a_download_that_was_cut_is_not_taken_for_the_file(name, tmp_path, monkeypatch):
    catalog = open_catalog()
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "data"))
    files = [f for f in catalog._files(catalog[name]).values() if isinstance(f, Remote)]
    for folder in (tmp_path / "data" / name, tmp_path / "cache" / name / "files"):
        for file in [*files, Remote("any.nwb", "")]:
            part = folder / f"{file.path}.part"
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(5000))
    assert not catalog.available(name)
    with pytest.raises(DatasetNotAvailable):
        catalog.open(name)


@pytest.mark.parametrize("share", [0.001, 0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".nwb", ".h5"])
def test_half_a_file_under_its_full_name_is_refused(share, suffix, tmp_path):
    session = reach_sim(0, seconds=6, units=8)
    path = session.to_nwb(tmp_path / "a.nwb") if suffix == ".nwb" else session.save(tmp_path / "a.h5")
    half = shutil.copy(path, tmp_path / f"half{suffix}")
    with open(half, "r+b") as file:
        file.truncate(int(share * path.stat().st_size))
    with pytest.raises(BadRecording, match="half"):
        Session.from_nwb(half) if suffix == ".nwb" else Session.open(half)
