"""ALF folders without ONE: revisions, probes, flat folders, behaviour, and files that do not fit together."""

import warnings
from pathlib import Path

import alf_folder
import numpy as np
import pandas as pd
import pytest

from workbench.catalog import open_recording, open_recordings
from workbench.errors import BadRecording, UnknownName
from workbench.sources import alf


@pytest.fixture
def truth(tmp_path):
    pytest.importorskip("pyarrow")
    return alf_folder.write(tmp_path)


@pytest.fixture
def flat(tmp_path):
    """One folder of plain files, as older data sets have it: no probes, no clusters, no parquet."""
    rng = np.random.default_rng(1)
    folder = tmp_path / "Cori_2016-12-14"
    times = np.sort(rng.uniform(0, 30, 400))
    alf_folder.save(folder, spikes__times=times[:, None], spikes__clusters=rng.choice([3, 8, 20], 400)[:, None],
                    trials__intervals=np.array([[1.0, 2], [5, 6]]), trials__feedbackType=np.array([1, -1]),
                    wheel__position=np.linspace(0, 3, 2500)[:, None],
                    wheel__timestamps=np.array([[0, 0], [2499, 25.0]]))
    return folder


def quietly(read, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read(*args, **options)


def test_probes_are_merged_on_one_clock_with_ids_that_stay_unique(truth):
    session = quietly(alf.read, truth.session)
    assert (session.id, session.subject) == ("KS014_2019-12-03_001", "KS014")
    assert session.units["id"].is_unique and len(session.units) == 10
    for row, (probe, cluster) in enumerate(session.units[["probe", "cluster"]].itertuples(index=False)):
        np.testing.assert_array_equal(session.spike_times[session.spike_units == row],
                                      alf_folder.spikes_of(truth, probe, cluster))


def test_regions_are_acronyms_and_metrics_find_their_cluster_in_any_order(truth):
    units = quietly(alf.read, truth.session).units
    for probe in ("probe00", "probe01"):
        rows = units[units["probe"] == probe]
        assert list(rows["region"]) == alf_folder.ACRONYMS[probe]
        np.testing.assert_allclose(rows["label"], alf_folder.LABELS[probe])
        np.testing.assert_array_equal(rows["firing_rate"], rows["cluster"] + 0.5)
    assert alf.acronyms()[385] == "VISp" and len(alf.acronyms()) == 1328


def test_the_newest_revision_of_each_file_is_read(truth):
    trials = quietly(alf.read, truth.session).trials
    np.testing.assert_array_equal(trials["choice"], truth.trials["choice"][:8])
    assert set(trials["quiescencePeriod"]) == {0.5} and trials["contrastLeft"].isna().sum() == 3


def test_a_trial_without_an_end_and_a_camera_that_lost_frames_are_left_out_and_told(truth):
    with pytest.warns(UserWarning) as told:
        session = alf.read(truth.session)
    said = " ".join(str(w.message) for w in told)
    assert "1 of 9 trials" in said and "rightCamera has 300 times and 299 values" in said
    assert len(session.trials) == 8 and "right_motion_energy" not in session.series
    np.testing.assert_array_equal(session.series["left_motion_energy"].values[:, 0], np.arange(300.0))
    np.testing.assert_array_equal(session.series["licks"].times, [2, 3, 9])


def test_the_wheel_is_interpolated_before_its_velocity_is_taken(truth):
    session = quietly(alf.read, truth.session, wheel_rate=100)
    position, velocity = session.series["wheel_position"], session.series["wheel_velocity"]
    assert position.rate == 100 and position.unit == "rad" and velocity.unit == "rad/s"
    np.testing.assert_allclose(position.values[:, 0], 0.25 * position.times)
    np.testing.assert_allclose(velocity.values, 0.25)
    with pytest.raises(BadRecording, match="wheel_rate is 0"):
        quietly(alf.read, truth.session, wheel_rate=0)


def test_the_session_its_alf_folder_and_one_probe_open_as_they_are(truth, monkeypatch):
    whole = quietly(open_recording, truth.session)
    assert quietly(open_recording, truth.alf).id == whole.id and len(whole.trials) == 8
    one = quietly(open_recording, truth.alf / "probe01" / "pykilosort")
    assert len(one.units) == 4 and len(one.spike_times) == 600
    assert quietly(open_recordings, truth.root / "cortexlab" / "Subjects" / "KS014" / "*" / "*")[0].id == whole.id


def test_a_flat_folder_without_clusters_or_regions_is_a_session_too(flat):
    session = open_recording(flat)
    assert list(session.units["id"]) == ["3", "8", "20"] and set(session.units["region"]) == {"unknown"}
    assert list(session.trials["feedbackType"]) == [1, -1] and list(session.trials["stop"]) == [2, 6]
    np.testing.assert_allclose(session.series["wheel_velocity"].values, 3 / 25.0, rtol=1e-6)


@pytest.mark.parametrize("first", [0, 1])
def test_samples_of_the_wheel_may_be_counted_from_nought_or_from_one(flat, first):
    alf_folder.save(flat, wheel__timestamps=np.array([[first, 0], [first + 2499, 24.99]]),
                    wheel__position=np.arange(2500.0)[:, None])
    position = quietly(alf.read, flat).series["wheel_position"]
    np.testing.assert_allclose(position.values[:, 0], 100 * position.times, atol=1e-9)


def test_files_with_the_uuids_of_the_archive_in_their_names_are_the_same_files(truth, same):
    before = quietly(alf.read, truth.session)
    for i, file in enumerate([*truth.alf.rglob("*.npy"), *truth.alf.rglob("*.pqt")]):
        file.rename(file.with_name(f"{file.stem}.{i:08x}-0000-4000-8000-000000000000{file.suffix}"))
    same(quietly(alf.read, truth.session), before)


def replace(file: Path, values) -> None:
    np.save(file, values, allow_pickle=True)


@pytest.mark.parametrize(("damage", "words"), [
    (lambda home: replace(home / "#2024-05-06#" / "spikes.clusters.npy", np.zeros(7, int)),
     "600 spikes.times and 7 spikes.clusters"),
    (lambda home: replace(home / "#2024-05-06#" / "spikes.clusters.npy", np.full(600, 77)), "names cluster 77"),
    (lambda home: replace(home / "#2024-05-06#" / "spikes.clusters.npy", np.full(600, -1)), "names cluster -1"),
    (lambda home: replace(home / "channels.brainLocationIds_ccf_2017.npy", np.array([385])), "names channel"),
    (lambda home: replace(home / "#2024-05-06#" / "spikes.times.npy", np.array([{}] * 600)), "Python objects"),
    (lambda home: replace(home / "#2024-05-06#" / "spikes.times.npy", np.arange(600.0) * 3e4), "probably samples"),
    (lambda home: (home / "clusters.metrics.pqt").write_bytes(b"PAR1"), "cannot be read"),
    (lambda home: pd.DataFrame({"cluster_id": [0, 0]}).to_parquet(home / "clusters.metrics.pqt"), "which is whose"),
    (lambda home: pd.DataFrame({"label": [1.0, 1]}).to_parquet(home / "clusters.metrics.pqt"), "2 rows for 6 clusters"),
])
def test_files_that_do_not_fit_together_are_told_in_one_sentence(truth, damage, words):
    damage(truth.alf / "probe00" / "pykilosort")
    with pytest.raises(BadRecording, match=words) as told:
        quietly(alf.read, truth.session)
    assert "\n" not in str(told.value) and "KS014" in str(told.value)


def test_a_folder_that_is_no_recording_and_a_probe_that_is_not_there_are_told(truth, tmp_path):
    (tmp_path / "notes").mkdir()
    with pytest.raises(BadRecording, match=r"nor a folder of Phy .* or of ALF files"):
        open_recording(tmp_path / "notes")
    with pytest.raises(BadRecording, match=r"has no spikes\.times"):
        alf.read(tmp_path / "notes")
    with pytest.raises(UnknownName, match="no probe 'probe7'"):
        alf.read(truth.session, probes=["probe7"])


def test_the_electrode_sites_of_a_probe_count_before_the_channels_of_its_sorter(truth):
    alf_folder.save(truth.alf / "probe00", electrodeSites__brainLocationIds_ccf_2017=np.full(6, 672))
    units = quietly(alf.read, truth.session).units
    assert set(units["region"][units["probe"] == "probe00"]) == {"CP"}


def test_units_whose_region_no_file_says_are_counted_in_a_warning(truth):
    (truth.alf / "probe01" / "electrodeSites.brainLocationIds_ccf_2017.npy").unlink()
    with pytest.warns(UserWarning, match="region of 4 of 10 units"):
        units = alf.read(truth.session).units
    assert set(units["region"][units["probe"] == "probe01"]) == {"unknown"}


def test_the_folder_of_one_probe_is_read_once_and_not_by_each_of_its_sorters(truth):
    assert quietly(open_recording, truth.alf / "probe01").units["probe"].tolist() == [""] * 4
    session = quietly(alf.read, truth.alf / "probe00")
    assert list(session.units["id"]) == list("012345") and len(session.spike_times) == 600


def test_a_folder_of_several_sessions_is_not_merged_into_one(flat):
    with pytest.raises(BadRecording, match="give one session's folder"):
        alf.read(flat.parent)


def test_clusters_without_spikes_keep_their_row_and_depth(flat):
    alf_folder.save(flat, clusters__depths=np.arange(24.0)[:, None])
    units = quietly(alf.read, flat).units
    assert len(units) == 24 and units["depth"][20] == 20
    alf_folder.save(flat, clusters__channels=np.zeros(23, int))
    with pytest.raises(BadRecording, match=r"clusters\.channels.*different revisions"):
        alf.read(flat)


def test_a_probe_without_quality_labels_is_named_where_labels_are_asked_for(truth):
    (truth.alf / "probe01" / "pykilosort" / "clusters.metrics.pqt").unlink()
    with pytest.raises(BadRecording, match=r"probe01 has no quality labels.*min_label=None"):
        quietly(alf.read, truth.session, min_label=1.0)
    assert len(quietly(alf.read, truth.session, min_label=1.0, probes=["probe00"]).units) == 4


def test_trials_of_a_second_task_and_trials_without_intervals_are_left_out_and_told(truth, flat):
    alf_folder.save(truth.alf / "task_01", _ibl_trials__intervals=np.array([[60.0, 61]]))
    with pytest.warns(UserWarning, match="those in alf are read"):
        assert len(alf.read(truth.session).trials) == 8
    (flat / "trials.intervals.npy").unlink()
    with pytest.warns(UserWarning, match=r"no intervals \(only feedbackType\)"):
        assert not len(alf.read(flat).trials)


def test_the_table_of_trials_has_the_say_over_older_files_beside_it(truth):
    alf_folder.save(truth.alf, _ibl_trials__intervals=np.zeros((5, 2)), _ibl_trials__choice=np.zeros(5))
    trials = quietly(alf.read, truth.session).trials
    assert list(trials["start"]) == list(truth.trials["intervals_0"][:8])
    assert list(trials["choice"]) == list(truth.trials["choice"][:8])
