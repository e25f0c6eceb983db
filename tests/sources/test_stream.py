"""A file on a server is read by parts: few requests, few bytes, none twice; a network that fails is told as that."""

import json
import re
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import h5py
import numpy as np
import pytest

from benchmarks.recordings import poisson
from workbench.catalog import open_recording
from workbench.errors import BadRecording, DatasetNotAvailable, NeedsExtra, NoNetwork, UnknownName
from workbench.session import Session
from workbench.sources import download, stream

pytest.importorskip("remfile")

ASSET = "sub-A/sub-A_ses-1_ecephys.nwb"


class Server(ThreadingHTTPServer):
    """A file by ranges, at /file.nwb and as the asset of a dandiset, which redirects to an address that runs out.

    log: (first byte, bytes) of every range that was asked for. fail: after so many ranges the server is not there.
    """

    daemon_threads = True

    def __init__(self, path: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url, self.path = f"http://127.0.0.1:{self.server_port}", path
        self.log, self.asked, self.signature, self.ranges, self.fail, self.mark = [], [], 0, True, None, '"one"'

    @property
    def traffic(self) -> tuple[int, float]:
        """Requests, and megabytes."""
        return len(self.log), sum(size for _, size in self.log) / 1e6


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        server, url = self.server, urlparse(self.path)
        server.asked.append(self.path)
        if url.path == "/file.nwb" or (url.path == "/blob" and url.query == f"signature={server.signature}"):
            return self._file()
        if url.path == "/blob":
            return self._answer(403, b"expired")
        if url.path == "/api/assets/id1/download/":
            self.send_response(302)
            self.send_header("Location", f"{server.url}/blob?signature={server.signature}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if url.path == "/api/dandisets/000140/":
            return self._answer(200, json.dumps({"most_recent_published_version": {"version": "0.2"}}).encode())
        if url.path == "/api/dandisets/000140/versions/0.2/assets/":
            wanted = parse_qs(url.query).get("path", [""])[0]
            found = [{"asset_id": i, "path": p, "size": server.path.stat().st_size, "metadata": {}}
                     for i, p in (("id0", ASSET + ".txt"), ("id1", ASSET)) if p.startswith(wanted)]
            return self._answer(200, json.dumps({"results": found, "next": None}).encode())
        self._answer(404, b"{}")

    def _file(self):
        server, size = self.server, self.server.path.stat().st_size
        if server.fail is not None and len(server.log) >= server.fail:
            self.close_connection = True
            return None
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(wanted[1]), min(int(wanted[2]), size - 1)) if wanted and server.ranges else (0, size - 1)
        server.log.append((first, last + 1 - first))
        with open(server.path, "rb") as file:
            file.seek(first)
            body = file.read(last + 1 - first)
        return self._answer(206 if server.ranges else 200, body, {
            "Content-Range": f"bytes {first}-{last}/{size}", "ETag": server.mark} if server.ranges else {})

    def _answer(self, code, body, headers=None):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """140 MB as another lab would have written them: without the header that our own files have."""
    path = poisson("large", 200, 23.0, 3600.0, behavior_rate=50.0).to_nwb(tmp_path_factory.mktemp("far") / "file.nwb")
    with h5py.File(path, "r+") as file:
        del file["scratch"]
    assert path.stat().st_size > 135e6
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return poisson("small", 30, 20.0, 60.0).to_nwb(tmp_path_factory.mktemp("far") / "file.nwb")


@pytest.fixture
def serve(tmp_path, monkeypatch):
    servers = []

    def serve(path: Path) -> Server:
        server = Server(path)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("DANDI_API_URL", f"{server.url}/api")
        servers.append(server)
        return server

    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "BACK_OFF", 0.001)
    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


# Traffic


def spike_bytes(path: Path) -> list[tuple[int, int]]:
    """(first byte, bytes) of every chunk of the spike times in the file."""
    with h5py.File(path) as file:
        times = file["units/spike_times"].id
        chunks = [times.get_chunk_info(i) for i in range(times.get_num_chunks())]
        return [(c.byte_offset, c.size) for c in chunks] or [(times.get_offset(), times.get_storage_size())]


def test_one_unit_of_140_mb_comes_in_12_requests_and_6_mb_and_from_the_warm_cache_with_none(serve, large):
    server, address = serve(large), f"dandi:000140@0.2/{ASSET}"
    cold = open_recording(address, units=["u17"], series=[])
    requests, megabytes = server.traffic
    assert 0 < requests <= 12 and megabytes <= 6
    spikes = spike_bytes(large)
    assert any(a < b + m and b < a + n for a, n in server.log for b, m in spikes)
    server.log.clear()
    warm = open_recording(address, units=["u17"], series=[])
    assert server.log == []
    with h5py.File(large) as file:
        ends = file["units/spike_times_index"][:].astype(int)
        expected = file["units/spike_times"][ends[16]:ends[17]]
    for session in (cold, warm):
        np.testing.assert_array_equal(session.spike_times, expected)
        assert session.units["id"].tolist() == ["u17"] and session.series == {}


def test_a_second_unit_costs_only_its_own_spikes(serve, large):
    server = serve(large)
    open_recording(f"{server.url}/file.nwb", units=["u3"], series=[])
    server.log.clear()
    open_recording(f"{server.url}/file.nwb", units=["u150"], series=[])
    requests, megabytes = server.traffic
    assert requests <= 3 and megabytes < 2


# The same session


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("units", [[4, 5, 6, 20], ["u29", "u0"], np.arange(30) % 2 == 0, "id != 'u3'", None, []])
def test_units_asked_for_are_those_of_the_whole_file(small, tmp_path, own, units):
    path = shutil.copy(small, tmp_path / "a.nwb")
    if not own:
        with h5py.File(path, "r+") as file:
            del file["scratch"]
    whole = Session.from_nwb(path)
    part = Session.from_nwb(path, units=units, series=[])
    expected = whole if units is None else whole.select(units)
    np.testing.assert_array_equal(part.spike_times, expected.spike_times)
    np.testing.assert_array_equal(part.spike_units, expected.spike_units)
    np.testing.assert_array_equal(part.intervals, whole.intervals)
    assert part.units.equals(expected.units) and not part.series and whole.series


def test_a_stream_is_the_session_that_the_file_is(serve, small, same):
    server = serve(small)
    same(open_recording(f"{server.url}/file.nwb"), Session.from_nwb(small))
    far = open_recording(f"dandi:000140/{ASSET}")                       # the newest version
    assert far.dataset == "DANDI:000140/0.2" and far.id == "small"


def test_only_the_series_asked_for_is_there(serve, small):
    address = f"{serve(small).url}/file.nwb"
    assert list(open_recording(address, series=["hand_vel"]).series) == ["hand_vel"]
    with pytest.raises(UnknownName, match=r"no series 'hand_pos'.* did you mean hand_vel"):
        open_recording(address, series=["hand_pos"])
    with pytest.raises(UnknownName, match="no unit 'u99'"):
        open_recording(address, units=["u99"])


def test_the_same_words_choose_from_a_file_and_from_a_dataset(small, tmp_path):
    saved = Session.from_nwb(small).save(tmp_path / "a.h5")
    for what in (small, saved):
        part = open_recording(what, units=["u1"], series=[])
        assert part.units["id"].tolist() == ["u1"] and not part.series
    part = open_recording("reach-sim", units=[0, 1], series=["hand_vel"])
    assert len(part.units) == 2 and list(part.series) == ["hand_vel"]


# What goes wrong


def test_an_address_that_runs_out_is_asked_for_anew(serve, small):
    server = serve(small)
    remote = stream.dandi.asset("000140", "0.2", ASSET)
    line = stream._Line(remote)
    first = line.get(remote.url, headers={"Range": "bytes=0-9"}).content
    server.signature += 1
    assert line.get(remote.url, headers={"Range": "bytes=0-9"}).content == first and line.failure is None
    line.close()


def test_a_block_that_was_cut_while_it_was_kept_is_fetched_again(serve, small, tmp_path):
    server = serve(small)
    whole = open_recording(f"{server.url}/file.nwb")
    blocks = sorted(p for p in (tmp_path / "cache").rglob("*") if p.is_file())
    for block in blocks:
        block.write_bytes(block.read_bytes()[:-1])
    server.log.clear()
    again = open_recording(f"{server.url}/file.nwb")
    np.testing.assert_array_equal(again.spike_times, whole.spike_times)
    assert server.traffic[1] > 0.9 * small.stat().st_size / 1e6


def test_blocks_of_a_file_that_changed_are_not_mixed_with_the_new_ones(serve, small, tmp_path):
    server = serve(small)
    open_recording(f"{server.url}/file.nwb")
    server.path, server.mark = poisson("small", 30, 20.0, 60.0, seed=1).to_nwb(tmp_path / "b.nwb"), '"two"'
    expected = Session.from_nwb(server.path)
    np.testing.assert_array_equal(open_recording(f"{server.url}/file.nwb").spike_times, expected.spike_times)


@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_a_network_cut_at_any_moment_is_told_as_that_and_never_as_a_poorer_session(serve, small, after):
    server = serve(small)
    server.fail = after
    with pytest.raises(NoNetwork, match=r"cannot reach 127\.0\.0\.1.*check the network") as told:
        open_recording(f"{server.url}/file.nwb")
    assert "\n" not in str(told.value)
    server.fail = None
    assert len(open_recording(f"{server.url}/file.nwb").units) == 30


def test_a_server_that_sends_no_parts_is_told_before_the_file_is_read(serve, small):
    server = serve(small)
    server.ranges = False
    with pytest.raises(DatasetNotAvailable, match=r"does not send parts of .*download the file"):
        open_recording(f"{server.url}/file.nwb")


def test_what_is_not_there_is_one_sentence(serve, small, tmp_path):
    server = serve(small)
    for what, error, says in [
        ("dandi:000140/sub-A/none.nwb", DatasetNotAvailable, "has no file 'sub-A/none.nwb'; its files are listed at"),
        ("dandi:000999/a.nwb", DatasetNotAvailable, "nothing at .*000999"),
        ("dandi:140/a.nwb", BadRecording, "write dandi:<six digits>/<path>"),
        (f"{server.url}/gone.nwb", DatasetNotAvailable, "nothing at .*gone.nwb"),
    ]:
        with pytest.raises(error, match=says):
            open_recording(what)
    server.path = tmp_path / "text.nwb"
    server.path.write_bytes(b"not a recording " * 1000)
    with pytest.raises(BadRecording, match=r"file.nwb: not an NWB file: it is not HDF5"):
        open_recording(f"{server.url}/file.nwb")


def test_without_remfile_the_package_to_install_is_named(serve, small, monkeypatch):
    monkeypatch.setitem(sys.modules, "remfile", None)
    with pytest.raises(NeedsExtra, match=r"pip install 'spike-workbench\[dandi\]'"):
        open_recording(f"{serve(small).url}/file.nwb")
