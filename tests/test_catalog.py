"""Datasets by name: what is shipped, what a user adds, how files are found, fetched, converted and kept."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml

import workbench.catalog as catalog_module
from workbench import Session, open_catalog
from workbench.catalog import open_recording, open_recordings, prepare
from workbench.catalog_file import BadCatalog, Dataset
from workbench.errors import (
    BadRecording,
    DatasetNotAvailable,
    FileDamaged,
    ManualDownload,
    NeedsExtra,
    NoNetwork,
    UnknownName,
)
from workbench.sources import download
from workbench.sources.simulated import reach_sim


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """Every test has its own cache and working folder, and no catalogs or data folders of the user."""
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("WORKBENCH_CATALOG", raising=False)
    monkeypatch.delenv("WORKBENCH_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "BACK_OFF", 0.001)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def recordings(tmp_path_factory) -> Path:
    """A lab's folder: three NWB files and one of ours."""
    folder = tmp_path_factory.mktemp("lab")
    for k in range(3):
        reach_sim(k, seconds=6, units=8).to_nwb(folder / f"day_{k}.nwb")
    reach_sim(3, seconds=6, units=8).save(folder / "saved.h5")
    return folder


def catalog_file(path: Path, *datasets: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"schema_version": 1, "datasets": list(datasets)}), encoding="utf-8")
    return path


def local(path, id="lab", **more) -> dict:
    access = {"method": "local", "path": str(path)} | more.pop("access", {})
    return {"id": id, "title": "A lab", "access": access} | more


# What is shipped


def test_every_shipped_dataset_has_what_a_user_must_know_or_says_why_not():
    for name, dataset in open_catalog().items():
        assert dataset.title and dataset.license and dataset.species and dataset.access, name
        assert dataset.citation or dataset.simulated, name
        assert dataset.size_gb is not None or "Size: " in dataset.notes, name
        assert bool(dataset.sample) + dataset.simulated + ("No sample: " in dataset.notes) == 1, name


def test_samples_are_small_and_may_be_passed_on():
    samples = {name: dataset for name, dataset in open_catalog().items() if dataset.sample}
    assert {"mc_maze_small", "falcon_m2"} <= set(samples)
    for name, dataset in samples.items():
        assert dataset.redistribution == "allowed" and dataset.sample.size_mb <= 1000 * dataset.size_gb, name
    assert sum(dataset.sample.size_mb for dataset in samples.values()) < 100


def test_what_a_licence_allows_and_forbids_is_not_confused():
    for name, dataset in open_catalog().items():
        if dataset.redistribution == "allowed":                         # an open licence, named as SPDX does
            assert dataset.license in ("CC0-1.0", "CC-BY-4.0"), name
    assert open_catalog()["falcon_h1"].redistribution == "forbidden"    # its data use agreement, whatever else is said


def test_the_simulated_recording_opens_without_a_network_or_a_cache(tmp_path):
    session = open_catalog().open("reach-sim")
    assert session.simulated and session.dataset == "reach-sim" and len(session.units) == 90
    assert not (tmp_path / "cache").exists()


def test_simulated_sessions_are_days_of_one_animal():
    catalog = open_catalog()
    assert catalog.sessions("reach-sim") == ["day0", "day1", "day2", "day3"]
    days = catalog.open_all("reach_sim", "day[01]")
    assert len({s.subject for s in days}) == 1 and len({s.id for s in days}) == 2
    assert set(days[0].units["id"]) & set(days[1].units["id"])


def test_hyphens_and_underscores_are_the_same_in_a_name():
    assert open_catalog()["reach_sim"] is not None and "mc-maze-small" in open_catalog()
    assert open_catalog().sessions("mc-maze-small") == ["train", "test"]


def test_an_unknown_dataset_or_session_is_told_with_near_names():
    with pytest.raises(UnknownName, match="no dataset 'reach-sin' in the catalog; did you mean reach-sim"):
        open_catalog().open("reach-sin")
    with pytest.raises(UnknownName, match="no session 'day9' in dataset 'reach-sim'; did you mean day"):
        open_catalog().open("reach-sim", "day9")
    with pytest.raises(UnknownName, match=r"no session 'night\*'"):
        open_catalog().open_all("reach-sim", "night*")


def test_the_table_says_what_is_simulated_and_what_is_here():
    table = open_catalog().table()
    assert table.loc["reach-sim", ["simulated", "available"]].tolist() == [True, True]
    assert table.loc["mc_maze_small", ["simulated", "available"]].tolist() == [False, False]
    assert table.loc["mc_maze_small", "license"] == "CC-BY-4.0"


def test_nothing_is_downloaded_unless_asked_for(monkeypatch):
    monkeypatch.setattr(download.requests, "get", lambda *a, **k: pytest.fail("asked the network"))
    catalog = open_catalog()
    catalog.table()
    with pytest.raises(DatasetNotAvailable, match=r"not on this computer \(looked in .*\); run `python -m workbench "
                                                  r"prepare mc_maze_small` or open it with download=True"):
        catalog.open("mc_maze_small")
    with pytest.raises(DatasetNotAvailable, match=r"29\.9 MB"):
        open_recording("mc_maze_small/train")


def test_reading_the_catalog_imports_neither_torch_nor_pynwb():
    code = ("import sys, workbench; workbench.open_catalog().table(); "
            "print({'torch', 'pynwb', 'panel'} & set(sys.modules))")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


# What a user adds


def test_a_users_catalog_is_merged_over_the_shipped_one_and_later_files_win(tmp_path, recordings, monkeypatch):
    one = catalog_file(tmp_path / "one.yaml", local(recordings, title="first"), local(recordings, "reach_sim"))
    two = catalog_file(tmp_path / "two.yaml", local(recordings, title="second"))
    monkeypatch.setenv("WORKBENCH_CATALOG", os.pathsep.join([str(one), str(two)]))
    catalog = open_catalog()
    assert catalog["lab"].title == "second" and not catalog["reach-sim"].simulated
    assert sum(name.replace("_", "-") == "reach-sim" for name in catalog) == 1
    assert catalog.table().loc["lab", "catalog"] == str(two)
    assert open_catalog(catalog_file(tmp_path / "three.yaml", local(recordings, title="third")))["lab"].title == "third"


def test_paths_in_a_users_catalog_are_relative_to_that_file(tmp_path, recordings):
    shutil.copytree(recordings, tmp_path / "labs" / "rec")
    catalog = open_catalog(catalog_file(tmp_path / "labs" / "cat.yaml", local("rec/day_*.nwb")))
    assert catalog.sessions("lab") == ["day_0", "day_1", "day_2"]
    assert catalog.available("lab")


def test_a_folder_a_glob_and_a_list_of_files_make_sessions(tmp_path, recordings):
    paths = {"folder": str(recordings), "glob": f"{recordings}/**/day_[12].nwb",
             "several": [f"{recordings}/saved.h5", f"{recordings}/day_0.nwb"]}
    entries = [{"id": k, "title": k, "access": {"method": "local", "path": v}} for k, v in paths.items()]
    catalog = open_catalog(catalog_file(tmp_path / "c.yaml", *entries))
    assert catalog.sessions("folder") == ["day_0", "day_1", "day_2", "saved"]
    assert catalog.sessions("glob") == ["day_1", "day_2"]
    assert catalog.sessions("several") == ["saved", "day_0"]
    assert [s.id for s in catalog.open_all("several")] == [reach_sim(k, seconds=6, units=8).id for k in (3, 0)]


def test_files_of_the_same_name_in_two_folders_are_two_sessions(tmp_path, recordings):
    for rat in ("rat1", "rat2"):
        (tmp_path / rat).mkdir()
        shutil.copy(recordings / "day_0.nwb", tmp_path / rat / "day.nwb")
    catalog = open_catalog(catalog_file(tmp_path / "c.yaml", local("rat*/*.nwb")))
    assert catalog.sessions("lab") == ["rat1-day", "rat2-day"]


def test_an_environment_variable_can_name_the_folder(tmp_path, recordings, monkeypatch):
    file = catalog_file(tmp_path / "c.yaml", local("day_0.nwb", access={"env": "LAB_DATA"}))
    with pytest.raises(DatasetNotAvailable, match=r"no recording at day_0.nwb.*or name the folder in .*LAB_DATA"):
        open_catalog(file).open("lab")
    monkeypatch.setenv("LAB_DATA", str(recordings))
    assert open_catalog(file).open("lab").dataset == "lab"


def test_the_catalog_fills_what_a_file_leaves_open_and_never_overrides_it(tmp_path, recordings):
    entry = local(recordings / "day_0.nwb", license="CC-BY-4.0", species="Macaca mulatta", citation="A. Nobody (2026)")
    session = open_catalog(catalog_file(tmp_path / "c.yaml", entry)).open("lab")
    own = Session.from_nwb(recordings / "day_0.nwb")
    assert session.dataset == "lab"
    for name, said in (("species", "Macaca mulatta"), ("license", "CC-BY-4.0"), ("citation", "A. Nobody (2026)")):
        assert getattr(session, name) == (getattr(own, name) or said)


BAD = {
    "octal": ({"access": {"method": "dandi", "dandiset": 0o140, "version": "0.1"}},
              r"dataset 'lab', key 'access.dandiset'.*not 96; quote it .*was it 0140\?"),
    "unknown key": ({"titel": "x"}, "dataset 'lab', key 'titel': is not a key of the schema"),
    "missing key": ({"title": None}, "dataset 'lab', key 'title'"),
    "method": ({"access": {"method": "carrier_pigeon"}}, "dataset 'lab', key 'access'.*'local'"),
    "no path": ({"access": {"method": "local"}}, "dataset 'lab', key 'access.path': is missing; add it"),
    "checksum": ({"access": {"method": "http", "base_url": "https://x.org", "files": {"a.nwb": {"sha256": "12"}}}},
                 "key 'access.files.a.nwb.sha256'"),
    "id": ({"id": "Our Lab"}, "dataset 'Our Lab', key 'id'"),
    "sample": ({"access": {"method": "http", "base_url": "https://x.org", "files": {"a.nwb": {}},
                           "sessions": {"a": "a.nwb"}},
                "sample": {"sessions": ["b"], "size_mb": 1, "license_ok": True}}, "sample names the session 'b'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_in_a_catalog_file_is_one_sentence_with_file_dataset_and_key(tmp_path, case):
    changes, says = BAD[case]
    file = catalog_file(tmp_path / "mine.yaml", local("x") | changes)
    with pytest.raises(BadCatalog, match=says) as told:
        open_catalog(file)
    assert str(file) in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("text, says", [
    ("schema_version: 2\ndatasets: []", "key 'schema_version'"),
    ("- just a list", "mine.yaml"),
    ("", "mine.yaml"),
    ("schema_version: 1\ndatasets: [7]", "dataset 'number 1'"),
    ("a: [1, 2", "is not YAML, at line 1"),
    ("schema_version: 1\ndatasets:\n- &a {id: x, title: t, access: {method: local, path: p}}\n- *a", "datasets 'x'"),
    ("schema_version: 1\ndatasets:\n- {id: x, title: t, access: {method: dandi, dandiset: 000140, version: v}}",
     "not 96; quote it"),
])
def test_a_file_that_is_no_catalog_is_one_sentence(tmp_path, text, says):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(BadCatalog, match=says) as told:
        open_catalog(tmp_path / "mine.yaml")
    assert "mine.yaml" in str(told.value) and "\n" not in str(told.value)


def test_a_catalog_file_that_is_not_there_is_told_with_the_variable_that_named_it(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_CATALOG", str(tmp_path / "gone.yaml"))
    with pytest.raises(BadCatalog, match=r"gone\.yaml .*check the path, and WORKBENCH_CATALOG"):
        open_catalog()


def test_a_dataset_that_needs_a_package_names_the_pip_line(tmp_path, recordings):
    entry = local(recordings / "day_0.nwb", extras=["no-such-reader>=3"])
    with pytest.raises(NeedsExtra, match=r"pip install 'no-such-reader>=3'"):
        open_catalog(catalog_file(tmp_path / "c.yaml", entry)).open("lab")


def test_a_dataset_fetched_by_hand_tells_the_steps_and_opens_once_it_is_there(tmp_path, recordings, monkeypatch):
    entry = {"id": "asked", "title": "By hand", "access": {"method": "manual", "url": "https://example.org/data",
                                                           "steps": "sign in, download day_0.nwb"}}
    file = catalog_file(tmp_path / "c.yaml", entry)
    with pytest.raises(ManualDownload, match=r"https://example\.org/data: sign in, download day_0\.nwb"):
        open_catalog(file).open("asked", download=True)
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "asked").mkdir(parents=True)
    shutil.copy(recordings / "day_0.nwb", tmp_path / "data" / "asked")
    assert open_catalog(file).open("asked").dataset == "asked"


# Names and paths


def test_one_name_for_catalog_sessions_files_and_folders(tmp_path, recordings, monkeypatch):
    shutil.copy(recordings / "day_0.nwb", tmp_path / "mine.nwb")
    assert open_recording("mine.nwb").id == open_recording(tmp_path / "mine.nwb").id == open_recording("./mine.nwb").id
    assert open_recording("reach-sim/day2").id == open_catalog().open("reach-sim", "day2").id
    assert len(open_recordings(recordings)) == 4
    assert len(open_recordings([f"{recordings}/day_*.nwb", recordings / "saved.h5"])) == 4
    monkeypatch.setenv("WORKBENCH_CATALOG", str(catalog_file(tmp_path / "c.yaml", local(recordings))))
    assert len(open_recordings("lab/day_*")) == 3 and len(open_recordings("lab")) == 1


def test_a_path_is_read_where_it_is_and_leaves_no_cache(tmp_path, recordings):
    open_recording(recordings / "day_0.nwb")
    open_recording(recordings / "saved.h5")
    assert not (tmp_path / "cache").exists()


def test_a_suffix_in_capital_letters_is_the_same_suffix(tmp_path, recordings):
    (tmp_path / "days").mkdir()
    shutil.copy(recordings / "day_0.nwb", tmp_path / "days" / "mine.NWB")
    shutil.copy(recordings / "saved.h5", tmp_path / "days" / "other.H5")
    expected = {Session.from_nwb(recordings / "day_0.nwb").id, Session.open(recordings / "saved.h5").id}
    assert open_recording("days/mine.NWB").id == Session.from_nwb(recordings / "day_0.nwb").id
    assert {s.id for s in open_recordings("days")} == {s.id for s in open_recordings("days/*")} == expected
    catalog = open_catalog(catalog_file(tmp_path / "c.yaml", local("days")))
    assert catalog.sessions("lab") == ["mine", "other"] and {s.id for s in catalog.open_all("lab")} == expected
    with pytest.raises(BadRecording, match=r"there is no file nowhere\.NWB"):
        open_recording("nowhere.NWB")


def test_what_an_operating_system_hides_in_a_folder_is_no_recording(tmp_path, recordings):
    shutil.copy(recordings / "day_0.nwb", tmp_path / "day_0.nwb")
    (tmp_path / "._day_0.nwb").write_bytes(b"\0\5\x16\7 not a recording")
    assert len(open_recordings(tmp_path)) == 1


def test_what_cannot_be_opened_is_one_sentence(tmp_path, recordings):
    (tmp_path / "empty").mkdir()
    for what, error, says in [
        ("nowhere.nwb", BadRecording, "there is no file nowhere.nwb"),
        ("empty", BadRecording, r"there is no recording \(\.nwb, \.h5, \.hdf5\) in empty"),
        ("./nothing*", BadRecording, "there is no recording"),
        (recordings, BadRecording, r"holds 4 recordings \(.*day_0.*choose one"),
        ("no_such_thing", UnknownName, "no dataset 'no_such_thing' in the catalog.*nor is there such a file or folder"),
        ("mc_maze_small/trian", UnknownName, "did you mean train"),
    ]:
        with pytest.raises(error, match=says):
            open_recording(what)


# The cache


def copies(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob("*.h5"))


@pytest.fixture
def lab(tmp_path, recordings):
    shutil.copy(recordings / "day_0.nwb", tmp_path / "day.nwb")
    return open_catalog(catalog_file(tmp_path / "c.yaml", local("day.nwb")))


def test_a_recording_is_converted_once_and_then_opened_from_the_cache(lab, tmp_path, monkeypatch):
    first = lab.open("lab")
    assert len(copies(tmp_path)) == 1
    monkeypatch.setattr(Session, "from_nwb", lambda *a, **k: pytest.fail("converted again"))
    again = lab.open("lab")
    assert np.array_equal(first.spike_times, again.spike_times) and first.units.equals(again.units)
    assert again.dataset == "lab" and list(again.series) == list(first.series)


def test_a_changed_source_is_converted_anew_and_the_old_copy_removed(lab, tmp_path, recordings):
    before = lab.open("lab").id
    old = copies(tmp_path)
    shutil.copy(recordings / "day_1.nwb", tmp_path / "day.nwb")
    assert lab.open("lab").id != before
    assert len(copies(tmp_path)) == 1 and copies(tmp_path) != old


def test_a_changed_catalog_entry_is_seen(tmp_path, recordings):
    def citation(**more):
        file = catalog_file(tmp_path / "c.yaml", local(recordings / "day_0.nwb", **more))
        return open_catalog(file).open("lab").citation

    own = Session.from_nwb(recordings / "day_0.nwb").citation
    assert citation() == own and citation(citation="B (2027)") == (own or "B (2027)")


def test_a_damaged_copy_is_told_and_made_anew(lab, tmp_path):
    whole = lab.open("lab")
    times = np.array(whole.spike_times)
    [copy] = copies(tmp_path)
    copy.write_bytes(copy.read_bytes()[:2000])
    with pytest.warns(UserWarning, match="converted copy of .* is damaged and made anew"):
        again = lab.open("lab")
    assert np.array_equal(again.spike_times, times)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(lab.open("lab").spike_times, times)


def test_a_cache_that_cannot_be_written_costs_time_but_no_recording(lab, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("a file where a folder is wanted")
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "taken"))
    with pytest.warns(UserWarning, match="no converted copy .*WORKBENCH_CACHE"):
        assert len(lab.open("lab").units) == 8


def test_a_conversion_that_fails_leaves_nothing_half_written(tmp_path):
    (tmp_path / "day.nwb").write_bytes(b"not a recording at all")
    with pytest.raises(BadRecording):
        open_catalog(catalog_file(tmp_path / "c.yaml", local("day.nwb"))).open("lab")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_loader_options_reach_the_reader_and_wrong_ones_are_told(tmp_path, recordings):
    entry = local(recordings / "day_0.nwb", loader_options={"no_such_option": 1})
    with pytest.raises(BadRecording, match=r"dataset 'lab' does not take its loader_options .*no_such_option"):
        open_catalog(catalog_file(tmp_path / "c.yaml", entry)).open("lab")


# Downloads


@pytest.fixture
def server(recordings):
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *a: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=recordings))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def on_server(server, **files) -> dict:
    return {"id": "far", "title": "Far", "license": "CC0-1.0", "size_gb": 0.001,
            "access": {"method": "http", "base_url": f"http://127.0.0.1:{server.server_port}",
                       "files": files or {"day_0.nwb": {}, "day_1.nwb": {}}}}


def test_download_true_fetches_converts_and_afterwards_needs_no_network(tmp_path, server, monkeypatch):
    catalog = open_catalog(catalog_file(tmp_path / "c.yaml", on_server(server)))
    assert catalog.sessions("far") == ["day_0", "day_1"] and not catalog.available("far")
    assert catalog.open("far", "day_1", download=True).dataset == "far"
    monkeypatch.setattr(download.requests, "get", lambda *a, **k: pytest.fail("asked the network"))
    assert catalog.open("far", "day_1").dataset == "far"
    with pytest.raises(DatasetNotAvailable, match="session 'day_0'"):
        catalog.open("far")


def test_a_file_that_a_person_put_into_the_data_folder_is_used(tmp_path, server, recordings, monkeypatch):
    catalog = open_catalog(catalog_file(tmp_path / "c.yaml", on_server(server)))
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "far").mkdir(parents=True)
    shutil.copy(recordings / "day_0.nwb", tmp_path / "data" / "far")
    assert catalog.available("far") and catalog.open("far").dataset == "far"


def test_prepare_tells_size_and_licence_then_fetches_the_sample(tmp_path, server, capsys, monkeypatch, recordings):
    size = (recordings / "day_1.nwb").stat().st_size
    entry = on_server(server, **{"day_0.nwb": {}, "day_1.nwb": {"bytes": size}})
    entry["sample"] = {"sessions": ["day_1"], "size_mb": 1, "license_ok": True}
    entry["access"]["sessions"] = {"day_0": "day_0.nwb", "day_1": "day_1.nwb"}
    monkeypatch.setenv("WORKBENCH_CATALOG", str(catalog_file(tmp_path / "c.yaml", entry)))
    prepare("far")
    said = capsys.readouterr().out.splitlines()
    assert f"1 of 2 sessions, {size / 1e6:.1f} MB to download; licence CC0-1.0" in said[0]
    assert said[1].startswith("day_1: Session")
    prepare("far")
    assert "all of it here" in capsys.readouterr().out
    prepare("far/day_0")
    assert open_catalog().open("far", "day_0").dataset == "far"


def test_prepare_of_a_simulation_says_that_there_is_nothing_to_do(capsys):
    prepare("reach-sim")
    assert "simulated" in capsys.readouterr().out


def test_a_file_with_another_checksum_is_never_opened(tmp_path, server):
    entry = on_server(server, **{"day_0.nwb": {"sha256": "0" * 64}})
    with pytest.raises(FileDamaged):
        open_catalog(catalog_file(tmp_path / "c.yaml", entry)).open("far", download=True)
    assert not list((tmp_path / "cache").rglob("*.nwb"))


def test_no_network_is_told_in_one_sentence(tmp_path, server):
    catalog = open_catalog(catalog_file(tmp_path / "c.yaml", on_server(server)))
    server.shutdown()
    server.server_close()
    with pytest.raises(NoNetwork, match="check the network"):
        catalog.open("far", download=True)


def test_a_dandiset_without_named_sessions_is_listed_once_and_then_known(tmp_path, recordings, server, monkeypatch):
    files = [download.Remote(f"sub-A/{p.name}", f"http://127.0.0.1:{server.server_port}/{p.name}", p.stat().st_size)
             for p in sorted(recordings.glob("*.nwb"))]
    asked = []
    monkeypatch.setattr("workbench.places.dandi.assets", lambda *a: asked.append(a) or files)
    entry = {"id": "d", "title": "D", "access": {"method": "dandi", "dandiset": "000999", "version": "0.1"}}
    catalog = open_catalog(catalog_file(tmp_path / "c.yaml", entry))
    assert catalog.sessions("d") == [] and not asked
    assert catalog.open("d", "day_1", download=True).dataset == "d"
    assert catalog.sessions("d") == ["day_0", "day_1", "day_2"]
    catalog.open("d", "day_2", download=True)
    assert asked == [("000999", "0.1", "*.nwb")]


def test_a_file_of_a_dandiset_that_a_person_brought_opens_before_the_archive_was_asked(
        tmp_path, recordings, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "d" / "sub-A").mkdir(parents=True)
    shutil.copy(recordings / "day_1.nwb", tmp_path / "data" / "d" / "sub-A")
    monkeypatch.setattr("workbench.places.dandi.assets", lambda *a: pytest.fail("the archive was asked"))
    entry = {"id": "d", "title": "D", "access": {"method": "dandi", "dandiset": "000999", "version": "0.1"}}
    catalog = open_catalog(catalog_file(tmp_path / "c.yaml", entry))
    assert catalog.sessions("d") == ["day_1"] and catalog.open("d").dataset == "d"


def test_a_file_without_its_folders_counts_only_where_its_name_is_the_only_one(tmp_path, server, recordings,
                                                                                monkeypatch):
    """Else one file would answer for the sessions of two animals, one of them trained on and one tested on."""
    entry = on_server(server, **{"rat1/day.nwb": {}, "rat2/day.nwb": {}, "rat2/other.nwb": {}})
    catalog = open_catalog(catalog_file(tmp_path / "c.yaml", entry))
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "far" / "rat2").mkdir(parents=True)
    for k, name in enumerate(("day.nwb", "other.nwb", "rat2/day.nwb")):
        shutil.copy(recordings / f"day_{k}.nwb", tmp_path / "data" / "far" / name)
    assert catalog.sessions("far") == ["rat1-day", "rat2-day", "other"]
    assert catalog.sessions("far", here=True) == ["rat2-day", "other"]
    found = catalog.open("far", "rat2-day"), Session.from_nwb(recordings / "day_2.nwb")
    assert np.array_equal(found[0].spike_times, found[1].spike_times)


def test_what_is_here_opens_without_asking_anybody_even_where_a_download_is_allowed(tmp_path, recordings, monkeypatch,
                                                                                    capsys):
    def silent(*asked):
        raise NoNetwork("cannot reach the archive")

    monkeypatch.setattr("workbench.places.dandi.assets", silent)
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "d" / "sub-A").mkdir(parents=True)
    shutil.copy(recordings / "day_1.nwb", tmp_path / "data" / "d" / "sub-A")
    access = {"method": "dandi", "dandiset": "000999", "version": "draft",
              "sessions": {"one": "sub-A/day_1.nwb", "two": "sub-A/day_2.nwb"}}
    entry = {"id": "d", "title": "D", "access": access, "sample": {"sessions": ["one"], "size_mb": 1,
                                                                  "license_ok": True}}
    monkeypatch.setenv("WORKBENCH_CATALOG", str(catalog_file(tmp_path / "c.yaml", entry)))
    catalog = open_catalog()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for session in (None, "one"):
            assert catalog.open("d", session, download=True).dataset == "d"
        prepare("d")
        prepare("d/one")
    assert "all of it here" in capsys.readouterr().out
    with pytest.raises(NoNetwork, match=r"session 'two'.* cannot reach the archive"):
        catalog.open("d", "two", download=True)
    with pytest.warns(UserWarning, match="only what is on this computer is known of dataset 'd': cannot reach"):
        assert len(catalog.open_all("d", "o*", download=True)) == 1


def test_a_size_that_the_catalog_does_not_know_is_asked_for_and_told(tmp_path, server, monkeypatch, capsys):
    monkeypatch.setattr(catalog_module, "sized", lambda remote: remote._replace(size=3_000_000))
    monkeypatch.setenv("WORKBENCH_CATALOG", str(catalog_file(tmp_path / "c.yaml", on_server(server))))
    prepare("far")
    assert "2 of 2 sessions, 6.0 MB to download" in capsys.readouterr().out


def test_matlab_files_of_a_folder_are_its_recordings_where_the_loader_reads_them(tmp_path):
    folder = tmp_path / "lab [2024]" / "data"
    folder.mkdir(parents=True)
    for name in ("a.mat", "b.mat", "c.nwb"):
        (folder / name).write_bytes(b"x")
    for path in ("data", "data/", "data/*", "data/*.mat"):
        catalog = open_catalog(catalog_file(tmp_path / "lab [2024]" / "c.yaml", local(path, loader="mat")))
        assert catalog.sessions("lab") == ["a", "b"]
    catalog = open_catalog(catalog_file(tmp_path / "lab [2024]" / "c.yaml", local("data/*")))
    assert catalog.sessions("lab") == ["c"]


@pytest.mark.parametrize("name", ["a.mat", "a.csv"])
def test_a_file_of_another_kind_is_told_how_it_can_be_opened(tmp_path, name):
    (tmp_path / name).write_bytes(b"1,2,3")
    with pytest.raises(BadRecording, match=r"is not \.nwb, \.h5 or \.hdf5; .*`loader:`"):
        open_recording(tmp_path / name)


# The package


def test_the_shipped_catalog_is_found_beside_the_repository_and_inside_an_installed_package(tmp_path, monkeypatch):
    assert catalog_module._shipped().is_file()
    inside = tmp_path / "site" / "workbench"
    inside.mkdir(parents=True)
    shutil.copy(catalog_module._shipped(), inside / "data_catalog.yaml")
    monkeypatch.setattr(catalog_module, "__file__", str(inside / "catalog.py"))
    assert catalog_module._shipped() == inside / "data_catalog.yaml"
    assert "reach-sim" in open_catalog()


def test_the_catalog_in_the_docstring_works():
    text = catalog_module.__doc__.split("separated as in PATH):\n\n")[1].split("\n\nPaths are")[0]
    entries = [Dataset.model_validate(entry) for entry in yaml.safe_load(text)["datasets"]]
    assert entries and all(entry.access.method == "local" for entry in entries)


# Real recordings, as any lab's own


def test_real_recordings_open_through_a_users_catalog(tmp_path, real_data):
    one, two = sorted(real_data.glob("*.nwb"), key=lambda p: p.stat().st_size)[:2]
    catalog = open_catalog(catalog_file(tmp_path / "lab.yaml", local(f"{real_data}/*.nwb", species="a species")))
    assert {one.stem, two.stem} <= set(catalog.sessions("lab"))
    with contextlib.chdir(real_data), warnings.catch_warnings():
        warnings.simplefilter("ignore")                                 # what the reader says of these files
        for path in (one, two):
            by_name, by_path = catalog.open("lab", path.stem), open_recording(path.name)
            assert by_name.dataset == "lab" and by_name.species and not by_name.simulated
            assert by_name.id == by_path.id and by_name.units.equals(by_path.units)
            assert np.array_equal(by_name.spike_times, by_path.spike_times)
            assert {n: s.values.shape for n, s in by_name.series.items()} == {
                n: s.values.shape for n, s in by_path.series.items()}
