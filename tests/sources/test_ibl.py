"""IBL sessions: ONE in local mode on a folder of the true layout, and with an account on a server like Alyx."""

import hashlib
import json
import shutil
import uuid
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

import alf_folder
import numpy as np
import pandas as pd
import pytest

from workbench import open_catalog
from workbench.__main__ import main
from workbench.catalog import open_recording
from workbench.errors import BadRecording, NeedsAccount, NeedsExtra, NoNetwork, UnknownName
from workbench.sources import alf, ibl

pytest.importorskip("one.api")
NAME = "KS014_2019-12-03_001"
EID = str(uuid.uuid5(uuid.NAMESPACE_URL, NAME))
ENV = ("ALYX_LOGIN", "ALYX_PASSWORD", "ALYX_TOKEN", "WORKBENCH_DATA", "WORKBENCH_CATALOG")


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """A home of one's own: ONE keeps its parameters there."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ENV:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def truth(tmp_path):
    return alf_folder.write(tmp_path / "ONE")


def quietly(read, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read(*args, **options)


def spikes(session, unit: str) -> np.ndarray:
    row = session.units.index[session.units["id"] == unit][0]
    return session.spike_times[session.spike_units == row]


# Local mode


def test_one_and_the_plain_reader_of_folders_give_the_same_session(truth, same):
    same(quietly(ibl.read, truth.session, min_label=None, in_brain=False), quietly(alf.read, truth.session))


def test_units_are_filtered_by_label_and_region_and_the_share_that_is_kept_is_told(truth):
    with pytest.warns(UserWarning, match=r"5 of 10 units kept \(label >= 1: 7, region is not void or root: 8\)"):
        session = ibl.read(truth.session)
    assert list(session.units["id"]) == ["probe00/0", "probe00/2", "probe01/0", "probe01/1", "probe01/3"]
    assert "5 of 10 units kept" in session.description
    looser = quietly(ibl.read, truth.session, min_label=2 / 3)
    assert set(looser.units["id"]) - set(session.units["id"]) == {"probe00/1"}
    np.testing.assert_array_equal(spikes(session, "probe00/2"), alf_folder.spikes_of(truth, "probe00", 2))


def test_tables_that_tell_of_older_files_are_not_believed(truth):
    """A release's own tables list what was there then; without tables ONE answers nothing at all."""
    from one.alf.cache import make_parquet_db
    newest = next(truth.alf.glob("probe00/pykilosort/#2024*"))
    aside = truth.root / "aside"
    shutil.move(newest, aside)
    quietly(make_parquet_db, truth.root)
    shutil.move(aside, newest)
    session = quietly(ibl.read, truth.session, min_label=None, in_brain=False)
    np.testing.assert_array_equal(spikes(session, "probe00/0"), alf_folder.spikes_of(truth, "probe00", 0))


def test_the_newest_sorter_is_taken_and_another_can_be_asked_for(truth):
    newer = truth.alf / "probe00" / "iblsorter"
    shutil.copytree(truth.alf / "probe01" / "pykilosort", newer)
    session = quietly(ibl.read, truth.session, probes=["probe00"], min_label=None)
    np.testing.assert_array_equal(spikes(session, "probe00/1"), alf_folder.spikes_of(truth, "probe01", 1))
    older = quietly(ibl.read, truth.session, probes=["probe00"], sorters=["pykilosort"], min_label=None)
    np.testing.assert_array_equal(spikes(older, "probe00/1"), alf_folder.spikes_of(truth, "probe00", 1))
    with pytest.raises(BadRecording, match=r"probe01 was sorted by pykilosort and not by iblsorter"):
        ibl.read(truth.session, sorters=["iblsorter"])


def test_what_is_not_there_is_told_in_one_sentence(truth, tmp_path, monkeypatch):
    def told(error, *args, **options) -> str:
        with pytest.raises(error) as raised:
            quietly(ibl.read, *args, **options)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "no probe 'probe07'" in told(UnknownName, truth.session, probes=["probe07"])
    assert "<subject>/<yyyy-mm-dd>/<nnn>" in told(BadRecording, tmp_path)
    empty = tmp_path / "lab" / "Subjects" / "s" / "2020-01-01" / "001"
    (empty / "alf").mkdir(parents=True)
    assert str(empty) in told(BadRecording, empty)
    times = next(truth.alf.glob("probe00/pykilosort/#2024*/spikes.times.npy"))
    times.write_bytes(times.read_bytes()[:200])
    assert "fetch the session again" in told(BadRecording, truth.session)
    (truth.alf / "probe01" / "pykilosort" / "clusters.metrics.pqt").unlink()
    (truth.alf / "probe00" / "pykilosort" / "clusters.metrics.pqt").unlink()
    assert "min_label=None" in told(BadRecording, truth.session, probes=["probe01"])
    monkeypatch.setitem(__import__("sys").modules, "one.api", None)
    assert "pip install" in told(NeedsExtra, truth.session)


def test_a_session_without_its_lab_above_it_is_a_session_and_two_files_of_one_thing_are_told(truth, tmp_path):
    plain = tmp_path / "mine" / "KS014" / "2019-12-03" / "001"
    shutil.copytree(truth.session, plain)
    assert len(quietly(ibl.read, plain).units) == 5
    metrics = plain / "alf" / "probe00" / "pykilosort" / "clusters.metrics.pqt"
    pd.read_parquet(metrics).to_csv(metrics.with_suffix(".csv"), index=False)
    with pytest.raises(BadRecording, match=r"two files hold the same of 'clusters'.*keep the one"):
        quietly(ibl.read, plain)


def test_sessions_of_a_folder_open_by_name_and_are_read_anew_when_a_file_is_revised(truth, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    truth.root.rename(tmp_path / "ibl_brain_wide_map")
    catalog = open_catalog()
    assert catalog.sessions("ibl_brain_wide_map") == [NAME] and catalog.available("ibl_brain_wide_map")
    first = quietly(open_recording, f"ibl_brain_wide_map/{NAME}")
    assert (first.dataset, first.license, first.subject) == ("ibl_brain_wide_map", "CC-BY-4.0", "KS014")
    newer = tmp_path / "ibl_brain_wide_map" / alf_folder.SESSION / "alf" / "probe00" / "pykilosort" / "#2026-01-01#"
    alf_folder.save(newer, spikes__times=np.array([1.0, 2.0]), spikes__clusters=np.array([0, 2]))
    again = quietly(open_recording, f"ibl_brain_wide_map/{NAME}")
    assert list(spikes(again, "probe00/0")) == [1.0] and len(spikes(first, "probe00/0")) > 20


# With an account


class Alyx(BaseHTTPRequestHandler):
    """What ONE-api 3.6 asks of Alyx and of its file server, for one session; the password is 'right'."""

    truth, served, cut = None, None, ""

    def log_message(self, *args):
        pass

    def do_POST(self):
        said = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        right = said.get("password") == ["right"]
        self.answer({"token": "t0ken"} if right else {"non_field_errors": ["no"]}, 200 if right else 400)

    def do_GET(self):
        url = urlsplit(self.path)
        path, asked = unquote(url.path), parse_qs(url.query)
        if path.startswith("/public/"):
            return self.file(path)
        if path == "/":
            return self.answer({})
        if self.headers.get("Authorization") != "Token t0ken":
            return self.answer({"detail": "no"}, 401)
        if path == "/me":
            return self.answer({"username": "me"})
        if path == "/api/schema":
            some = [{"name": n, "schema": {}} for n in ("subject", "date_range", "number", "laboratory", "django")]
            return self.answer({"paths": {"/sessions": {"get": {"parameters": some}},
                                          "/sessions/{id}": {"get": {"parameters": []}}}})
        about = {"id": EID, "url": f"/sessions/{EID}", "subject": "KS014", "start_time": "2019-12-03T10:00:00",
                 "lab": "cortexlab", "number": 1, "task_protocol": "", "projects": []}
        if path == "/sessions":
            like = {"id": str(uuid.uuid5(uuid.NAMESPACE_URL, "like")), "subject": "KS0140"}
            like["url"] = f"/sessions/{like['id']}"
            return self.answer([s for s in (about | like, about) if asked.get("django") == [f"pk,{s['id']}"]
                                or asked.get("subject", ["?"])[0] in s["subject"]])
        if path == f"/sessions/{EID}":
            return self.answer(about | {"data_dataset_session_related": [
                {"id": str(uuid.uuid5(uuid.NAMESPACE_URL, str(f))), "file_size": f.stat().st_size,
                 "hash": hashlib.md5(f.read_bytes()).hexdigest(), "qc": "NOT_SET",
                 "default_revision": str(not any((f.parent / r / f.name).exists() for r in revisions(f))
                                         and "#2023" not in str(f)),
                 "data_url": f"http://127.0.0.1/public/{f.relative_to(self.truth.root).as_posix()}"}
                for f in sorted(self.truth.alf.rglob("*.*"))]})
        self.answer({"detail": "Not found."}, 404)

    def file(self, path: str) -> None:
        parts = path.removeprefix("/public/").split(".")
        name = ".".join([*parts[:-2], parts[-1]])                       # without the UUID
        data = (self.truth.root / name).read_bytes()
        self.served.append(name)
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.cut and self.cut in name:
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self.wfile.write(data)

    def answer(self, what, status: int = 200) -> None:
        data = json.dumps(what).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def revisions(file: Path) -> list[str]:
    return [] if file.parent.name.startswith("#") else [p.name for p in file.parent.glob("#*#")]


@pytest.fixture
def alyx(truth, tmp_path):
    handler = type("Handler", (Alyx,), {"truth": truth, "served": [], "cut": ""})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    handler.url = f"http://127.0.0.1:{server.server_port}"
    # ONE's own parameter file, which says where the files are served.
    from one import params
    params.setup(client=handler.url, silent=True)
    own = params.get(client=handler.url, silent=True)
    params.save(own.set("HTTP_DATA_SERVER", f"{handler.url}/public"), handler.url)
    yield handler
    server.shutdown()
    server.server_close()


def catalog_of(alyx, tmp_path, monkeypatch) -> None:
    """The shipped entry, with the address of the server of this test."""
    entry = open_catalog()["ibl_brain_wide_map"].model_dump(mode="json", exclude_defaults=True)
    entry["access"] = {"method": "one", "base_url": alyx.url}
    import yaml
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"schema_version": 1, "datasets": [entry]}))
    monkeypatch.setenv("WORKBENCH_CATALOG", str(tmp_path / "mine.yaml"))


def test_with_an_account_a_session_is_fetched_by_name_and_only_what_is_read_travels(alyx, truth, tmp_path, monkeypatch,
                                                                                     capsys):
    catalog_of(alyx, tmp_path, monkeypatch)
    monkeypatch.setenv("ALYX_LOGIN", "me")
    monkeypatch.setenv("ALYX_PASSWORD", "right")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["prepare", f"ibl_brain_wide_map/{NAME}"]) in (0, None)
    assert "5 units" in capsys.readouterr().out
    served = " ".join(alyx.served)
    assert "spikes.amps" not in served and "#2023" not in served and "#2024-05-06#/spikes.times" in served
    asked = len(alyx.served)
    session = quietly(open_recording, f"ibl_brain_wide_map/{NAME}")
    np.testing.assert_array_equal(spikes(session, "probe00/2"), alf_folder.spikes_of(truth, "probe00", 2))
    assert len(alyx.served) == asked and (session.trials["choice"] < 5).all()
    kept = [p for p in (tmp_path / "home").rglob("*") if p.is_file()]
    assert kept and not any("right" in p.read_text() or "t0ken" in p.read_text() for p in kept)


def test_without_a_login_the_steps_to_one_are_told(alyx, tmp_path, monkeypatch):
    for env, words in (({}, "has no login"), ({"ALYX_LOGIN": "me", "ALYX_PASSWORD": "wrong"}, "refused the login")):
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(NeedsAccount, match=f"{words}.*signup.*ALYX_LOGIN") as told:
            ibl.fetch(NAME, tmp_path / "files", alyx.url)
        assert "wrong" not in str(told.value)
    with pytest.raises(NeedsAccount, match=r"prepare ibl_brain_wide_map/<session>"):
        open_catalog().open("ibl_brain_wide_map", download=True)
    assert not [p for p in (tmp_path / "files").rglob("*") if p.is_file()]


def test_a_token_alone_is_a_login(alyx, tmp_path, monkeypatch):
    monkeypatch.setenv("ALYX_TOKEN", "t0ken")
    with pytest.raises(UnknownName):                                    # it was let in, and searched
        quietly(ibl.fetch, "XX_2019-12-03_001", tmp_path / "files", alyx.url)
    monkeypatch.setenv("ALYX_TOKEN", "old")
    with pytest.raises(NeedsAccount, match="refused the login"):
        quietly(ibl.fetch, "XX_2019-12-03_001", tmp_path / "files", alyx.url)


def test_an_unknown_session_and_a_silent_server_are_told_apart(alyx, tmp_path, monkeypatch):
    monkeypatch.setenv("ALYX_LOGIN", "me")
    monkeypatch.setenv("ALYX_PASSWORD", "right")
    for session in ("XX_2019-12-03_001", str(uuid.uuid4()), "not a session"):
        with pytest.raises(UnknownName, match="no session"):
            quietly(ibl.fetch, session, tmp_path / "files", alyx.url)
    with pytest.raises(NoNetwork, match="does not answer"):
        ibl.fetch(NAME, tmp_path / "files", "http://127.0.0.1:9")


def test_a_session_of_behaviour_alone_is_told_as_one_without_spikes(alyx, truth, tmp_path, monkeypatch):
    monkeypatch.setenv("ALYX_TOKEN", "t0ken")
    for file in list(truth.alf.rglob("spikes.*")):
        file.unlink()
    with pytest.raises(BadRecording, match="has no spikes"):
        quietly(ibl.fetch, NAME, tmp_path / "files", alyx.url)


def test_a_fetch_that_was_cut_is_no_session_and_goes_on(alyx, truth, tmp_path, monkeypatch):
    monkeypatch.setenv("ALYX_LOGIN", "me")
    monkeypatch.setenv("ALYX_PASSWORD", "right")
    alyx.cut = "probe01/pykilosort/#2024-05-06#/spikes.times"
    with pytest.raises((BadRecording, NoNetwork)):
        quietly(ibl.fetch, NAME, tmp_path / "files", alyx.url)
    from workbench.places import recordings_at
    assert recordings_at(tmp_path / "files" / "**" / "*") == []
    alyx.cut, before = "", len(alyx.served)
    folder = quietly(ibl.fetch, NAME, tmp_path / "files", alyx.url)
    again = alyx.served[before:]
    assert not any("probe00" in name for name in again) and any("probe01" in name for name in again)
    before = len(alyx.served)
    assert quietly(ibl.fetch, NAME, tmp_path / "files", alyx.url) == folder and len(alyx.served) == before
    session = quietly(ibl.read, folder, min_label=None, in_brain=False)
    np.testing.assert_array_equal(spikes(session, "probe01/3"), alf_folder.spikes_of(truth, "probe01", 3))
    assert isinstance(session.units, pd.DataFrame) and folder.name == "001"
