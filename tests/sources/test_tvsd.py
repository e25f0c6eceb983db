"""TVSD in its true layout: MATLAB 7.3 with reversed axes, UTF-16 text behind references, a channel map of MATLAB 5."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from scipy.io import savemat

from workbench import open_catalog
from workbench.catalog_file import BadCatalog
from workbench.errors import BadRecording
from workbench.sources import read_beside, tvsd

TRAIN, TEST, REPS = 12, 3, 4
CLOCK = np.arange(-100.0, 200)                                          # ms
SWAPS = np.arange(1024).reshape(-1, 2)[:, ::-1].ravel()                 # its own inverse, and not the identity
CYCLE = np.roll(np.arange(1024), 1)                                     # a permutation that is not


def matlab(path, **arrays):
    """A 7.3 file: HDF5 with the axes of MATLAB's arrays in reverse, behind a header of 512 bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=np.asarray(values).T)
    return path


def companions(folder, order=SWAPS):
    logs = folder / "_logs"
    logs.mkdir(parents=True, exist_ok=True)
    savemat(logs / "1024chns_mapping_20220105.mat", {"mapping": order[None] + 1.0})
    with h5py.File(logs / "things_imgs.mat", "w", userblock_size=512) as file:
        for part, n in (("train_imgs", TRAIN), ("test_imgs", TEST)):
            for field in ("class", "things_path", "local_path"):
                refs = file.create_dataset(f"{part}/{field}", (n, 1), dtype=h5py.ref_dtype)
                for k in range(n):
                    text = f"aardvärk{k}" if field == "class" else f"{part}\\aardvärk{k}\\{k:02d}b.jpg"
                    code = np.frombuffer(text.encode("utf-16-le"), np.uint16)
                    refs[k, 0] = file.create_dataset(f"#refs#/{part}{field}{k}", data=code[:, None]).ref
    return folder


def norm(folder, monkey="F"):
    """Channel c answers training picture k with 1000 k + c, test picture j with -(1000 j + c) - repetition / 8."""
    companions(folder / f"monkey{monkey}")
    c = np.arange(1024)[:, None]
    test = -(1000 * np.arange(TEST)[None] + c)[..., None] - np.arange(REPS) / 8
    noise = np.random.default_rng(0).normal(size=(1024, 6))
    noise[5, 0] = np.nan
    return matlab(folder / f"monkey{monkey}" / "THINGS_normMUA.mat", train_MUA=1000 * np.arange(TRAIN)[None] + c,
                  test_MUA=test.mean(2), test_MUA_reps=test, reliab=noise, SNR=np.abs(noise[:, :2]))


def table(columns=7):
    """ALLMAT: trial, train_idx, test_idx, rep, count, (correct,) day; two days, with training and test in both."""
    rows = [(k + 1, 0, 1, 1) for k in range(TRAIN)] + [(0, k % TEST + 1, k // TEST + 1, 1) for k in range(TEST * REPS)]
    order = np.random.default_rng(1).permutation(len(rows))
    rows = np.array([rows[i] for i in order])
    day = np.where(np.arange(len(rows)) < len(rows) // 2, 3, 7)
    trial, correct = np.arange(len(rows)) + 1, np.ones(len(rows))
    return np.column_stack([trial, rows[:, :3], rows[:, 3], *([correct] if columns == 7 else []), day])


def trials(folder, monkey="N", columns=7, order=SWAPS, recorded=None, about=None):
    """MUA [1024, trials, 300] in *recording* order; by default noise of another scale and level on each day."""
    companions(folder / f"monkey{monkey}", order)
    about = table(columns) if about is None else about
    if recorded is None:
        recorded = mua(about)
    return matlab(folder / f"monkey{monkey}" / "THINGS_MUA_trials.mat", ALLMUA=recorded, ALLMAT=about,
                  tb=CLOCK[None])


def mua(about):
    """Noise, the test presentations far louder than those of training."""
    rng = np.random.default_rng(2)
    loud = np.where(about[:, 2] > 0, 9.0, 1.0)[None, :, None]
    level = about[:, -1][None, :, None] * 10
    return (level + loud * rng.normal(size=(1024, len(about), 300))).astype(np.float32)


# What is where


@pytest.mark.parametrize(("monkey", "areas"), [("N", ["V1"] * 512 + ["V4"] * 256 + ["IT"] * 256),
                                               ("F", ["V1"] * 512 + ["IT"] * 320 + ["V4"] * 192)])
@pytest.mark.filterwarnings("ignore:.*test presentations")
def test_each_monkey_has_its_own_areas(tmp_path, monkey, areas):
    session = tvsd.read(norm(tmp_path, monkey))
    assert session.units["region"].tolist() == areas and session.subject == monkey
    assert session.units["array"].value_counts().tolist() == [64] * 16


@pytest.mark.filterwarnings("ignore:.*test presentations")
def test_normalised_activity_is_turned_round_and_pictures_are_named(tmp_path):
    session = tvsd.read(norm(tmp_path))
    signal = session.get_series("mua")
    assert signal.values.shape == (TRAIN + TEST * REPS, 1024) and signal.unit == "MUA (released)"
    shown, channels = session.stimuli, np.arange(1024)
    assert (shown["split"] == "train").sum() == TRAIN
    for k, row in shown.iterrows():
        picture = row["image"] if row["split"] == "train" else row["image"] - TRAIN
        expected = 1000 * picture + channels
        expected = expected if row["split"] == "train" else -expected - (row["rep"] - 1) / 8
        np.testing.assert_allclose(signal.values[k], expected)
        assert row["start"] <= signal.times[k] < row["stop"]
        assert row["image_class"] == f"aardvärk{picture}"
        assert row["image_path"].endswith(f"_imgs/aardvärk{picture}/{picture:02d}b.jpg")
    assert np.isfinite(session.units["reliability"]).all() and len(session.spike_times) == 0


def test_the_leak_of_the_released_normalisation_is_told_and_cannot_be_wished_away(tmp_path):
    path = norm(tmp_path)
    with pytest.warns(UserWarning, match=r"leaks the test set.*THINGS_MUA_trials.mat"):
        assert "uses test presentations" in tvsd.read(path).description
    with pytest.raises(BadRecording, match=r"normalise='train' cannot be had from it.*THINGS_MUA_trials.mat"):
        tvsd.read(path, normalise="train")


@pytest.mark.parametrize("columns", [6, 7])
def test_presentations_are_told_apart_with_six_columns_and_with_seven(tmp_path, columns):
    session = tvsd.read(trials(tmp_path, columns=columns), normalise="none", bin_size=0.1)
    about = table()
    assert session.stimuli["day"].tolist() == about[:, -1].tolist()
    assert session.stimuli["split"].tolist() == np.where(about[:, 1] > 0, "train", "test").tolist()
    image = np.where(about[:, 1] > 0, about[:, 1] - 1, TRAIN + about[:, 2] - 1)
    assert session.stimuli["image"].tolist() == image.tolist()
    assert ("correct" in session.stimuli) == (columns == 7)


def test_time_courses_come_in_physical_order_with_time_from_onset(tmp_path):
    about = table()
    ramp = np.broadcast_to(CLOCK, (1024, len(about), 300)) + 1000.0 * np.arange(1024)[:, None, None]
    session = tvsd.read(trials(tmp_path, recorded=ramp.astype(np.float32)), normalise="none", bin_size=0.02)
    signal, shown = session.get_series("mua"), session.stimuli
    assert signal.values.shape == (len(about) * 15, 1024) and signal.columns == tuple(session.units["id"])
    onset = np.repeat(shown["start"].to_numpy(), 15)
    # The mean of 1 ms samples lies half a sample before the middle of the bin.
    after = 1000 * (signal.times - onset) - 0.5
    np.testing.assert_allclose(signal.values - 1000.0 * SWAPS, np.tile(after[:, None], 1024), atol=0.3)
    np.testing.assert_allclose(session.intervals[:, 0], shown["start"] - 0.1)
    np.testing.assert_allclose(session.intervals[:, 1], shown["start"] + 0.2)
    assert signal.values.dtype == np.float32


def test_one_value_a_presentation_is_the_mean_over_the_window_of_its_area(tmp_path):
    about = table()
    ramp = np.broadcast_to(CLOCK, (1024, len(about), 300)).astype(np.float32)
    session = tvsd.read(trials(tmp_path, recorded=ramp), normalise="none", bin_size=None)
    found = session.get_series("mua").values
    for area, middle in (("V1", 74.5), ("V4", 99.5), ("IT", 124.5)):
        np.testing.assert_allclose(found[:, session.units["region"] == area], middle)


@pytest.mark.parametrize(("order", "text"), [(CYCLE, r"not its own inverse \(1024 channels, the first 1\)"),
                                             (np.zeros(1024, int), "no order of channels 1 to 1024")])
def test_a_map_that_is_not_its_own_inverse_stops_the_reader(tmp_path, order, text):
    with pytest.raises(BadRecording, match=text):
        tvsd.read(trials(tmp_path, order=order))


# What is known of the test


def test_normalisation_knows_training_presentations_alone(tmp_path):
    about = table()
    loud = mua(about)
    session = tvsd.read(trials(tmp_path / "a", recorded=loud))
    other = loud + np.where(about[:, 2] > 0, 500, 0)[None, :, None].astype(np.float32)
    again = tvsd.read(trials(tmp_path / "b", recorded=other))
    train = np.repeat(session.stimuli["split"] == "train", 15).to_numpy()
    one, two = (s.get_series("mua").values for s in (session, again))
    np.testing.assert_array_equal(one[train], two[train])               # whatever the test holds
    day = np.repeat(session.stimuli["day"], 15).to_numpy()
    for which in (3, 7):
        rows = train & (day == which)
        np.testing.assert_allclose(one[rows].mean(0), 0, atol=1e-3)
        np.testing.assert_allclose(one[rows].std(0), 1, atol=1e-3)
    assert one[~train].std() > 5 and session.get_series("mua").unit == "MUA (train)"


def test_a_dead_channel_and_a_missing_presentation_spoil_nothing_else(tmp_path):
    about = table()
    recorded = mua(about)
    recorded[100] = 7.0                                                 # of physical channel 101
    lost = int(np.flatnonzero(about[:, 1] > 0)[0])
    recorded[200, lost] = np.nan                                        # of physical channel 201
    session = tvsd.read(trials(tmp_path, recorded=recorded))
    found = session.get_series("mua").values.reshape(len(about), 15, 1024)
    assert (found[..., 101] == 0).all()
    assert np.isnan(found[lost, :, 201]).all() and np.isfinite(np.delete(found[..., 201], lost, axis=0)).all()
    known = (about[:, 1] > 0) & (about[:, -1] == about[lost, -1]) & (np.arange(len(about)) != lost)
    np.testing.assert_allclose([found[known][..., 201].mean(), found[known][..., 201].std()], [0, 1], atol=1e-3)


def test_a_day_of_test_alone_cannot_be_normalised(tmp_path):
    about = table()
    about[about[:, 2] > 0, -1] = 9
    path = trials(tmp_path, about=about)
    with pytest.raises(BadRecording, match="day 9 has fewer than two training presentations"):
        tvsd.read(path)
    assert tvsd.read(path, normalise="none").get_series("mua").unit == "MUA (none)"


# Pseudo-events


def test_events_are_asked_for_labelled_and_where_the_activity_rises(tmp_path, same):
    about = table()
    recorded = np.random.default_rng(0).normal(size=(1024, len(about), 300)).astype(np.float32)
    np.clip(recorded, -2, 2, out=recorded)
    # Channel 6 of the recording is physical channel 7: it rises for 3 ms at +40 ms in every presentation.
    recorded[6, :, 140:143] = 50
    session = tvsd.read(trials(tmp_path, recorded=recorded), events=3.0)
    assert session.id == "monkeyN-trials-pseudo-events" and session.units["derived_events"].all()
    assert "no spikes: one each time the MUA rises above 3 sd" in session.description
    assert set(session.spike_units) == {7}
    np.testing.assert_allclose(session.spike_times, session.stimuli["start"] + 0.040)
    same(session, type(session).open(session.save(tmp_path / "copy.h5")))


def test_without_being_asked_for_there_are_no_events(tmp_path):
    session = tvsd.read(trials(tmp_path))
    assert len(session.spike_times) == 0 and "derived_events" not in session.units


# What goes wrong


def test_a_monkey_is_known_from_inside_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(trials(tmp_path).parent)
    assert tvsd.read("THINGS_MUA_trials.mat", bin_size=0.1).subject == "N"


def test_a_download_that_broke_off_is_one_sentence(tmp_path):
    path = trials(tmp_path)
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    with pytest.raises(BadRecording, match=r"only a part of the file .*download it again"):
        tvsd.read(path)


def test_files_that_are_not_as_released_are_refused(tmp_path):
    path = trials(tmp_path)
    for change, options, text in (
            (None, {"bin_size": 0.007}, "bins of 0.007 s do not divide the 300 ms"),
            (None, {"monkey": "Q"}, "give monkey='F' or 'N', not 'Q'"),
            (None, {"normalise": "test"}, "normalise='test' cannot be had"),
            ({"ALLMAT": np.zeros((24, 5))}, {}, "ALLMAT must have 6 or 7 columns and has 5"),
            ({"ALLMUA": np.zeros((300, 24, 1024))}, {},
             "ALLMUA must be 1024 × 24 × 300 in MATLAB's order and is 300 × 24 × 1024"),
            ({"ALLMAT": np.zeros((0, 7)), "ALLMUA": np.zeros((1024, 0, 300))}, {}, "and has 7, with 0 presentations")):
        if change:
            whole = {"ALLMAT": table(), "ALLMUA": np.zeros((1024, 24, 300), np.float32), "tb": CLOCK[None]} | change
            matlab(path, **whole)
        with pytest.raises(BadRecording, match=text):
            tvsd.read(path, **options)
    (path.parent / "_logs" / "things_imgs.mat").unlink()
    with pytest.raises(BadRecording, match=r"its companion .*things_imgs.mat is missing; download"):
        tvsd.read(path)
    stray = matlab(tmp_path / "elsewhere" / "THINGS_normMUA.mat", train_MUA=np.zeros((1024, 2)))
    with pytest.raises(BadRecording, match=r"whose is it.*monkeyF or monkeyN"):
        tvsd.read(stray)


# By name


@pytest.mark.filterwarnings("ignore:.*test presentations")
def test_a_session_fetched_by_name_brings_its_list_of_pictures_along(tmp_path, monkeypatch, capsys):
    norm(tmp_path / "gin")
    catalog = yaml.safe_load((Path(tvsd.__file__).parents[2] / "data_catalog.yaml").read_text(encoding="utf-8"))
    entry = next(d for d in catalog["datasets"] if d["id"] == "tvsd")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "gin")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        entry["access"]["base_url"] = f"http://127.0.0.1:{server.server_port}"
        (tmp_path / "catalog.yaml").write_text(yaml.safe_dump({"schema_version": 1, "datasets": [entry]}))
        monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("WORKBENCH_DATA", raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        open_catalog(tmp_path / "catalog.yaml").prepare("tvsd", ["monkeyF"])
        server.shutdown()
    assert "files of unknown size (390.0 MB in the whole dataset) to download" in capsys.readouterr().out
    session = open_catalog(tmp_path / "catalog.yaml").open("tvsd")       # the server is gone
    assert (session.id, session.dataset, session.license) == ("monkeyF-norm", "tvsd", "CC-BY-4.0")
    assert session.stimuli["image_class"].iloc[0] == "aardvärk0"


def test_a_file_beside_a_session_must_be_among_the_files(tmp_path):
    access = {"method": "http", "base_url": "http://127.0.0.1", "files": {"a.nwb": {}}, "beside": {"a": ["b.mat"]}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(
        {"schema_version": 1, "datasets": [{"id": "x", "title": "x", "access": access}]}))
    with pytest.raises(BadCatalog, match=r"`beside` names the file 'b.mat', which `files` does not"):
        open_catalog(tmp_path / "c.yaml")


def test_what_is_read_beside_the_file_is_known_to_the_cache(tmp_path):
    path = norm(tmp_path)
    assert read_beside("tvsd", path) == [path.parent / tvsd.IMAGES, path.parent / tvsd.MAP]
    (path.parent / tvsd.MAP).unlink()
    assert read_beside("tvsd", path) == [path.parent / tvsd.IMAGES]
