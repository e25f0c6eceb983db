"""Listing and downloading from an archive, against a small server on this machine that behaves well and badly."""

import hashlib
import json
import shutil
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

import pytest

from workbench.errors import DatasetNotAvailable, FileDamaged, NeedsAccount, NoNetwork
from workbench.sources import dandi, download
from workbench.sources.download import Remote, fetch

BODY = bytes(range(256)) * 4000                                         # about 1 MB
SHA = hashlib.sha256(BODY).hexdigest()


class Archive(ThreadingHTTPServer):
    """Files by asset id, two assets a page. `cut`: bytes after which a connection is closed, once for each entry."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/api"
        self.assets = {f"id{i}": (f"sub-A/sub-A_ses-{i}.{suffix}", BODY) for i, suffix in
                       enumerate(["nwb", "nwb", "txt", "nwb", "nwb"])}
        self.cut, self.ranges, self.status, self.honours_ranges, self.etag = [], [], {}, True, ""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        url, archive = urlparse(self.path), self.server
        parts = url.path.strip("/").split("/")
        asset = parts[2] if parts[1:2] == ["assets"] else None
        if archive.status.get(asset):
            self._answer(archive.status[asset].pop() if isinstance(archive.status[asset], list)
                         else archive.status[asset], b"no")
        elif asset in archive.assets:
            self._file(archive.assets[asset][1])
        elif parts == ["api", "dandisets", "000140", "versions", "0.1", "assets"]:
            self._page(parse_qs(url.query))
        else:
            self._answer(404, b"{}")

    def _page(self, query):
        page = int(query.get("page", ["1"])[0])
        chosen = list(self.server.assets.items())[2 * page - 2:2 * page]
        results = [{"asset_id": i, "path": path, "size": len(body), "blob": i, "zarr": None}
                   | ({"metadata": {"digest": {"dandi:sha2-256": SHA}}} if query.get("metadata") == ["true"] else {})
                   for i, (path, body) in chosen]
        more = f"{self.server.url}/dandisets/000140/versions/0.1/assets/?metadata=true&page={page + 1}"
        self._answer(200, json.dumps({"count": len(self.server.assets), "previous": None, "results": results,
                                      "next": more if 2 * page < len(self.server.assets) else None}).encode())

    def _file(self, body):
        archive, wanted = self.server, self.headers.get("Range")
        archive.ranges.append(wanted)
        asked = wanted if archive.honours_ranges else None
        first, last = (asked or "bytes=0-").removeprefix("bytes=").split("-")
        if int(first) >= len(body):
            return self._answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
        rest = body[int(first):int(last or len(body)) + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(rest)))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(rest) - 1}/{len(body)}")
        if archive.etag:
            self.send_header("ETag", archive.etag)
        self.end_headers()
        if archive.cut:
            self.wfile.write(rest[:archive.cut.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(rest)

    def _answer(self, code, body, headers=None):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def archive(monkeypatch):
    server = Archive()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("DANDI_API_URL", server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "BACK_OFF", 0.001)
    yield server
    server.shutdown()
    server.server_close()


def test_all_pages_are_listed_and_only_matching_files_kept(archive):
    files = dandi.assets("000140", "0.1")
    assert [f.path for f in files] == [f"sub-A/sub-A_ses-{i}.nwb" for i in (0, 1, 3, 4)]
    assert all(f.size == len(BODY) and f.sha256 == SHA for f in files)
    assert [f.path for f in dandi.assets("000140", "0.1", "sub-A/*-3.nwb")] == ["sub-A/sub-A_ses-3.nwb"]


def test_a_version_that_does_not_exist_or_has_no_such_file_is_told_in_one_sentence(archive):
    with pytest.raises(DatasetNotAvailable, match=r"nothing at .*000999.*correct the catalog entry"):
        dandi.assets("000999", "0.1")
    with pytest.raises(DatasetNotAvailable, match=r"000140 version 0.1 has no file like '\*.h5'"):
        dandi.assets("000140", "0.1", "*.h5")


def test_a_server_that_is_no_archive_is_told_as_that(archive, monkeypatch):
    monkeypatch.setattr(dandi, "get_json", lambda *_: {"error": "sign in first"})
    with pytest.raises(NoNetwork, match=r"127\.0\.0\.1.* is not a DANDI archive.*DANDI_API_URL"):
        dandi.asset("000140", "0.1", "a.nwb")


def test_a_download_is_whole_checked_and_leaves_nothing_beside_it(archive, tmp_path):
    target = fetch(dandi.assets("000140", "0.1")[0], tmp_path / "deep" / "a.nwb")
    assert target.read_bytes() == BODY
    assert [p.name for p in target.parent.iterdir() if not p.name.startswith(".")] == ["a.nwb"]


def test_what_is_there_is_not_downloaded_again(archive, tmp_path):
    file = dandi.assets("000140", "0.1")[0]
    fetch(file, tmp_path / "a.nwb")
    fetch(file, tmp_path / "a.nwb")
    assert len(archive.ranges) == 1


def test_a_cut_connection_is_continued_from_where_it_was(archive, tmp_path):
    archive.cut = [300_000, 200_000]
    target = fetch(dandi.assets("000140", "0.1")[0], tmp_path / "a.nwb")
    assert target.read_bytes() == BODY
    assert archive.ranges[0] is None and len(archive.ranges) == 3
    starts = [int(r[len("bytes="):-1]) for r in archive.ranges[1:]]
    assert 0 < starts[0] <= 300_000 and starts[0] < starts[1] <= 500_000


def test_a_part_kept_by_an_earlier_call_is_continued(archive, tmp_path):
    (tmp_path / "a.nwb.part").write_bytes(BODY[:400_000])
    assert fetch(dandi.assets("000140", "0.1")[0], tmp_path / "a.nwb").read_bytes() == BODY
    assert archive.ranges == ["bytes=400000-"]


def test_a_server_that_ignores_ranges_makes_the_download_start_anew(archive, tmp_path):
    archive.honours_ranges = False
    (tmp_path / "a.nwb.part").write_bytes(BODY[:400_000])
    assert fetch(dandi.assets("000140", "0.1")[0], tmp_path / "a.nwb").read_bytes() == BODY


def test_a_connection_that_brings_nothing_is_given_up_and_what_arrived_is_kept(archive, tmp_path):
    archive.cut = [300_000, 0, 0, 0, 0]
    with pytest.raises(NoNetwork, match="what has arrived is kept"):
        fetch(dandi.assets("000140", "0.1")[0], tmp_path / "a.nwb")
    assert not (tmp_path / "a.nwb").exists()
    kept = (tmp_path / "a.nwb.part").read_bytes()
    assert kept and BODY.startswith(kept)


def test_a_wrong_checksum_removes_the_file_and_names_both_sums(archive, tmp_path):
    file = dandi.assets("000140", "0.1")[0]._replace(sha256="0" * 64)
    with pytest.raises(FileDamaged, match=f"sha256 {SHA}, not {'0' * 64}"):
        fetch(file, tmp_path / "a.nwb")
    assert [p for p in tmp_path.iterdir() if not p.name.startswith(".")] == []


def test_a_file_of_another_size_is_damaged(archive, tmp_path):
    file = dandi.assets("000140", "0.1")[0]._replace(size=len(BODY) - 10, sha256="")
    with pytest.raises(FileDamaged, match="bytes"):
        fetch(file, tmp_path / "a.nwb")


def test_a_file_of_unknown_size_and_sum_is_still_continued_after_a_cut(archive, tmp_path):
    archive.cut = [300_000]
    file = Remote("a.nwb", f"{archive.url}/assets/id0/download/")
    assert fetch(file, tmp_path / "a.nwb").read_bytes() == BODY


@pytest.mark.parametrize("etag, whole", [('"one"', BODY), ('"two"', BODY[::-1])])
def test_a_part_is_continued_only_with_the_version_that_it_is_of(archive, tmp_path, etag, whole):
    archive.cut, archive.etag = [300_000, 0, 0, 0], '"one"'
    file = Remote("a.nwb", f"{archive.url}/assets/id0/download/")
    with pytest.raises(NoNetwork, match="what has arrived is kept"):
        fetch(file, tmp_path / "a.nwb")
    archive.assets["id0"], archive.etag, before = ("a.nwb", whole), etag, len(archive.ranges)
    assert fetch(file, tmp_path / "a.nwb").read_bytes() == whole
    assert [asked is None for asked in archive.ranges[before:]] == ([False] if whole is BODY else [False, True])
    assert not [p.name for p in tmp_path.iterdir() if "part" in p.name]


@pytest.mark.parametrize("kept, asked", [(BODY, ["bytes=1024000-"]), (BODY + b"old", ["bytes=1024003-", None])])
def test_a_part_that_is_the_whole_file_of_unknown_size_is_not_fetched_again(archive, tmp_path, kept, asked):
    (tmp_path / "a.nwb.part").write_bytes(kept)                         # the process ended before it had its name
    file = Remote("a.nwb", f"{archive.url}/assets/id0/download/")
    assert fetch(file, tmp_path / "a.nwb").read_bytes() == BODY
    assert archive.ranges == asked


def test_a_failing_server_is_asked_three_times(archive, tmp_path):
    archive.status["id0"] = [503, 503]
    assert fetch(dandi.assets("000140", "0.1")[0], tmp_path / "a.nwb").read_bytes() == BODY
    archive.status["id1"] = 503
    with pytest.raises(NoNetwork, match="HTTP 503"):
        fetch(dandi.assets("000140", "0.1")[1], tmp_path / "b.nwb")


def test_a_server_that_asks_who_is_there_is_told_as_an_account_that_is_needed(archive, tmp_path):
    archive.status["id0"] = 401
    with pytest.raises(NeedsAccount, match="HTTP 401"):
        fetch(dandi.assets("000140", "0.1")[0], tmp_path / "a.nwb")


def test_no_network_is_told_in_one_sentence_with_a_way_out(archive, monkeypatch):
    archive.shutdown()
    archive.server_close()
    with pytest.raises(NoNetwork, match=r"cannot reach 127\.0\.0\.1:\d+ \(no connection\).*reach-sim"):
        dandi.assets("000140", "0.1")


def test_a_full_disk_is_told_before_anything_is_downloaded(archive, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, download.SPARE + 1000))
    with pytest.raises(DatasetNotAvailable, match=r"needs 1\.0 MB more and .* has 200\.0 MB free; make room"):
        fetch(dandi.assets("000140", "0.1")[0], tmp_path / "a.nwb")
    assert archive.ranges == []


def test_two_who_want_the_same_file_download_it_once(archive, tmp_path):
    file = dandi.assets("000140", "0.1")[0]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda _: fetch(file, tmp_path / "a.nwb").read_bytes(), range(4)))
    assert got == [BODY] * 4 and len(archive.ranges) == 1


def test_a_folder_that_cannot_be_written_is_told_in_one_sentence(archive, tmp_path):
    (tmp_path / "taken").write_text("a file where a folder is wanted")
    with pytest.raises(DatasetNotAvailable, match=r"cannot write .*WORKBENCH_CACHE"):
        fetch(dandi.assets("000140", "0.1")[0], tmp_path / "taken" / "a.nwb")


def test_a_page_to_sign_in_is_never_taken_for_the_file(archive, tmp_path, monkeypatch):
    page = {"Content-Type": "text/html; charset=utf-8"}
    monkeypatch.setattr(Handler, "_file", lambda self, body: self._answer(200, b"<html>", page))
    for remote in (dandi.assets("000140", "0.1")[0], Remote("a.nwb", f"{archive.url}/assets/id0/")):
        with pytest.raises(NoNetwork, match=r"answers with a page to read in place of .*nwb.*sign in"):
            fetch(remote, tmp_path / "a.nwb")
    assert not [p for p in tmp_path.iterdir() if not p.name.startswith(".")]


def test_room_is_asked_for_as_soon_as_a_server_tells_the_size(archive, tmp_path, monkeypatch):
    disk = namedtuple("Disk", "free")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: disk(download.SPARE + len(BODY) - 1))
    with pytest.raises(DatasetNotAvailable, match=r"a\.nwb needs 1\.0 MB more"):
        fetch(Remote("a.nwb", f"{archive.url}/assets/id0/"), tmp_path / "a.nwb")
    assert not (tmp_path / "a.nwb").exists()


def test_a_size_is_asked_of_the_server_where_nobody_knows_it(archive):
    known = dandi.assets("000140", "0.1")[0]
    unknown = known._replace(size=None)
    assert download.sized(known) is known and download.sized(unknown).size == len(BODY)
    archive.honours_ranges = False
    assert download.sized(unknown).size is None
    archive.status["id0"] = 401
    with pytest.raises(NeedsAccount):
        download.sized(unknown)
