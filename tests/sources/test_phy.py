"""Folders of Kilosort and Phy: samples to seconds, whose label counts, trials by hand, and a hostile params.py."""

import warnings

import numpy as np
import pytest

from workbench.catalog import open_recording, open_recordings
from workbench.errors import BadRecording
from workbench.sources import phy

PARAMS = "dat_path = r'C:\\data\\raw.bin'\nn_channels_dat = 385\ndtype = 'int16'\nsample_rate = 30000.  # Hz\n"


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "day1"
    folder.mkdir()
    (folder / "params.py").write_text(PARAMS)
    np.save(folder / "spike_times.npy", np.sort(rng.integers(0, 600_000, 1000)).astype(np.uint64)[:, None])
    np.save(folder / "spike_clusters.npy", rng.choice([0, 2, 5, 9], 1000).astype(np.int32))
    np.save(folder / "spike_templates.npy", np.zeros(1000, np.uint32))
    (folder / "cluster_KSLabel.tsv").write_text("cluster_id\tKSLabel\n0\tgood\n1\tgood\n2\tmua\n5\tgood\n9\tmua\n")
    (folder / "cluster_group.tsv").write_text("cluster_id\tgroup\n5\tnoise\n")
    return folder


def quietly(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return phy.read(*args, **options)


def test_samples_become_seconds_and_clusters_units(folder):
    session = quietly(folder)
    times, clusters = np.load(folder / "spike_times.npy").ravel(), np.load(folder / "spike_clusters.npy")
    assert session.id == "day1" and list(session.units["id"]) == ["0", "2", "9"] and not len(session.trials)
    for row, cluster in enumerate([0, 2, 9]):
        np.testing.assert_array_equal(session.spike_times[session.spike_units == row], times[clusters == cluster] / 3e4)
    assert session.resolution == 1 / 3e4 and set(session.units["region"]) == {"unknown"}


def test_a_label_by_hand_counts_before_the_sorters_and_what_is_kept_is_told(folder):
    with pytest.warns(UserWarning, match=r"3 of 4 units kept, all but noise \(2 mua, 1 good, 1 noise\)"):
        assert list(phy.read(folder).units["label"]) == ["good", "mua", "mua"]
    (folder / "cluster_info.tsv").write_text("cluster_id\tgroup\tKSLabel\tdepth\n0\tnoise\tgood\t20\n2\tgood\tmua\t40\n"
                                             "5\t\tgood\t60\n9\tmua\tmua\t80\n")
    session = quietly(folder, labels=["good"])
    assert list(session.units["id"]) == ["2", "5"] and list(session.units["depth"]) == [40, 60]
    with pytest.raises(BadRecording, match="0 of 4 units kept, great"):
        phy.read(folder, labels=["great"])


def test_unsorted_is_no_label_by_hand_and_units_csv_has_the_last_word(folder):
    (folder / "cluster_info.tsv").write_text("cluster_id\tgroup\tKSLabel\n0\tunsorted\tgood\n2\tUnsorted\tmua\n"
                                             "5\tunsorted\tgood\n9\tgood\tmua\n")
    assert list(quietly(folder, labels=["good"]).units["id"]) == ["0", "5", "9"]
    (folder / "units.csv").write_text("cluster_id,label\n0,mua\n5,\n")
    assert list(quietly(folder).units["label"]) == ["mua", "mua", "good", "good"]


def test_spikes_in_no_order_are_sorted_with_their_units(folder):
    np.save(folder / "spike_times.npy", np.array([90_000, 30_000, 60_000]))
    np.save(folder / "spike_clusters.npy", np.array([0, 9, 2]))
    session = quietly(folder)
    assert list(session.spike_times) == [1, 2, 3] and list(session.units["id"][session.spike_units]) == ["9", "2", "0"]


def test_a_recording_in_which_nothing_was_found_is_a_session_without_units(folder):
    np.save(folder / "spike_times.npy", np.empty((0, 1), np.uint64))
    np.save(folder / "spike_clusters.npy", np.empty(0, np.int32))
    assert len(quietly(folder).units) == 0


def test_regions_come_from_units_csv_and_without_clusters_templates_are_units(folder):
    (folder / "units.csv").write_text("cluster_id,region,snr\n0,V4,3.5\n9,IT,1.5\n")
    session = quietly(folder)
    assert list(session.units["region"]) == ["V4", "unknown", "IT"] and session.units["snr"][2] == 1.5
    (folder / "spike_clusters.npy").unlink()
    assert list(quietly(folder).units["id"]) == ["0"]


def test_trials_are_in_seconds_or_in_samples(folder):
    (folder / "trials.csv").write_text("start,end,picture\n4,5,b.png\n1,2,a.png\n")
    trials = quietly(folder).trials
    assert list(trials["start"]) == [1, 4] and list(trials["stop"]) == [2, 5]
    assert list(trials["picture"]) == ["a.png", "b.png"]
    (folder / "trials.csv").write_text("start_sample,stop_sample\n30000,45000\n")
    assert quietly(folder).trials.to_numpy().tolist() == [[1.0, 1.5]]
    for text in ("start,stop\n", "start,stop\n,\n"):                    # a spreadsheet leaves empty rows
        (folder / "trials.csv").write_text(text)
        assert not len(quietly(folder).trials)
    (folder / "trials.csv").write_text("start,stop\n1,2\n3,\n,6\n")
    with pytest.warns(UserWarning, match="2 of 3 trials"):
        assert phy.read(folder).trials.to_numpy().tolist() == [[1, 2]]
    for text, words in (("begin,end\n1,2\n", "column of numbers start"), ("start,stop\n2,1\n", "stops before it")):
        (folder / "trials.csv").write_text(text)
        with pytest.raises(BadRecording, match=words):
            quietly(folder)


@pytest.mark.parametrize("line", ["sample_rate = __import__('os').system('touch ran')",
                                  "sample_rate = open('ran', 'w')",
                                  "sample_rate = 'fast'", "sample_rate = True", "sample_rate = -30000", "rate = 3e4",
                                  "sample_rate = " + "(" * 5000])
def test_params_py_is_never_run(folder, monkeypatch, line):
    monkeypatch.chdir(folder)
    (folder / "params.py").write_text(f"import os; os.system('touch ran')\nopen('ran', 'w')\n{line}\n")
    with pytest.raises(BadRecording, match="sample_rate") as told:
        phy.read(folder)
    assert "\n" not in str(told.value) and not (folder / "ran").exists()


def test_a_folder_is_known_by_what_is_in_it(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert open_recording(folder).id == "day1"
        assert [s.id for s in open_recordings(folder.parent)] == ["day1"]
    (folder / "params.py").unlink()
    with pytest.raises(BadRecording, match=r"Phy \(params.py and spike_times.npy\)"):
        open_recording(folder)
    with pytest.raises(BadRecording, match=r"it needs params\.py"):
        phy.read(folder)


@pytest.mark.parametrize(("name", "values", "words"), [
    ("spike_clusters.npy", np.zeros(3, int), "1,000 spikes in spike_times.npy and 3"),
    ("spike_times.npy", np.linspace(0, 20, 1000) + 0.1, "whole numbers"),
    ("spike_times.npy", np.zeros((1000, 2), int), "one number a spike"),
    ("spike_clusters.npy", np.array([{}] * 1000), "Python objects"),
])
def test_arrays_that_do_not_fit_are_told(folder, name, values, words):
    np.save(folder / name, values, allow_pickle=True)
    with pytest.raises(BadRecording, match=words) as told:
        quietly(folder)
    assert str(folder) in str(told.value) and "\n" not in str(told.value)


def test_a_table_of_units_that_names_none_of_the_clusters_is_told(folder):
    (folder / "units.csv").write_text("cluster_id,region\nu0,M1\nu2,M1\n")
    with pytest.warns(UserWarning, match=r"units\.csv: none of its 2 rows names a cluster"):
        assert set(phy.read(folder).units["region"]) == {"unknown"}
