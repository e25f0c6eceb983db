"""FALCON's four layouts, each with its own clock, and a decoder in the hands of an evaluator that goes bin by bin."""

import re
from datetime import UTC, datetime
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from pynwb import NWBHDF5IO, NWBFile, TimeSeries
from pynwb.behavior import BehavioralTimeSeries
from pynwb.file import Subject

from workbench import models, open_catalog
from workbench.analysis.falcon_decoder import FalconDecoder
from workbench.batch import Reader
from workbench.errors import BadRecording, UnknownName
from workbench.sources import falcon

NAMES = {
    "M2": "sub-MonkeyN-held-in-calib_ses-2020-10-19-Run1_behavior+ecephys.nwb",
    "M1": "sub-MonkeyL-held-out-calib_ses-20121004_behavior+ecephys.nwb",
    "H1": "sub-HumanPitt-held-in-minival_ses-19250101T111740.nwb",
    "H2": "sub-T5-held-in-calib_ses-20220518.nwb",
}
BINS, CHANNELS = 600, {"M2": 96, "M1": 64, "H1": 176, "H2": 192}


def started(task, subject, split):
    file = NWBFile(f"{task} data", f"{subject}_10-19-13:00_{split}", datetime(2020, 10, 19, tzinfo=UTC),
                   experiment_description="movement")
    # What DANDI calls a subject is a split of the one subject.
    file.subject = Subject(subject_id=f"{subject}-{split}", species="Macaca mulatta")
    return file


def with_units(file, seed, channels, seconds, electrodes=True, drive=None):
    """Channels whose rates follow `drive` [T, 2], where there is one, and are sorted by channel."""
    rng = np.random.default_rng(seed)
    if electrodes:
        device = file.create_device("Utah")
        group = file.create_electrode_group("M1_array", "96 active", "M1", device)
    for unit in range(channels):
        if drive is None:
            spikes = np.sort(rng.uniform(0, seconds, rng.integers(20, 60)))
        else:
            rate = np.maximum(15 + 12 * drive @ rng.normal(size=2), 0) * 0.02
            at = np.repeat(np.arange(len(rate)), rng.poisson(rate))
            spikes = np.sort((at + rng.uniform(0.01, 0.99, len(at))) * 0.02)
        more = {}
        if electrodes:
            file.add_electrode(location="M1", group=group)
            more = {"electrodes": [unit], "obs_intervals": [[0.0, seconds]]}
        file.add_unit(id=unit, spike_times=spikes, **more)


def mask(times=None, n=BINS, **clock):
    kept = np.arange(n) % 10 != 0
    return TimeSeries(name="eval_mask", data=kept, unit="bool", **(clock or {"timestamps": times}))


def write(path, file):
    with NWBHDF5IO(path, "w") as io:
        io.write(file)
    return path


def m2(folder, name=NAMES["M2"], seed=0):
    file = started("M2", "MonkeyN", "held-in-calib")
    steps = np.arange(BINS)
    velocity = np.stack([np.sin(steps / 23 + seed), np.cos(steps / 31)], 1)
    with_units(file, seed, 96, BINS * 0.02, drive=velocity)
    for container, values in (("finger_pos", velocity.cumsum(0)), ("finger_vel", velocity)):
        behavior = BehavioralTimeSeries(name=container)
        for k, part in enumerate(("index", "mrs")):
            behavior.create_timeseries(name=part, data=values[:, k], unit="AU", timestamps=steps * 0.02)
        file.add_acquisition(behavior)
    file.add_acquisition(mask(steps * 0.02))
    file.add_trial_column("tgt_loc", "target")
    for start in (0.0, 6.0):
        file.add_trial(start_time=start, stop_time=start + 5.9, tgt_loc=[0.2, 0.8])
    return write(folder / name, file)


def m1(folder):
    file = started("M1", "MonkeyL", "held-out-calib")
    with_units(file, 1, 64, BINS * 0.02 + 0.02)
    emg, ends = BehavioralTimeSeries(name="preprocessed_emg"), np.arange(1, BINS + 1) * 0.02
    for k in range(16):
        emg.create_timeseries(name=f"m{k:02d}", data=np.full(BINS, float(k)), unit="V", timestamps=ends)
    file.add_acquisition(emg)
    file.add_acquisition(mask(ends))
    file.add_trial_column("gocue_time", "s")
    file.add_trial(start_time=0.5, stop_time=2.0, gocue_time=1.0)
    return write(folder / NAMES["M1"], file)


def h1(folder):
    """`offset` is the end of the first bin and `rate` the step: neither is what NWB means by it."""
    file = started("H1", "HumanPitt", "held-in-minival")
    with_units(file, 2, 176, BINS * 0.02, electrodes=False)
    clock = {"rate": 0.02, "offset": 5.0}
    for name in ("OpenLoopKinematics", "OpenLoopKinematicsVelocity"):
        file.add_acquisition(TimeSeries(name=name, data=np.tile(np.arange(7.0), (BINS - 250, 1)), unit="a.u.",
                                        description="tx,ty,tz,rx,g1,g2,g3", **clock))
    file.add_acquisition(TimeSeries(name="TrialNum", data=np.repeat([1.0, 2, 5], [100, 150, 100]), unit="n", **clock))
    file.add_acquisition(mask(n=BINS - 250, **clock))
    file.add_epoch(start_time=5.0, stop_time=6.0, tags=["reach"], timeseries=[file.acquisition["TrialNum"]])
    return write(folder / NAMES["H1"], file)


def h2(folder):
    file = started("H2", "T5", "held-in-calib")
    times = np.concatenate([np.arange(100), 150 + np.arange(80)]) * 0.02
    counts = np.random.default_rng(3).poisson(0.4, (180, 192)).astype(np.int64)
    file.add_acquisition(TimeSeries(name="binned_spikes", data=counts, unit="int", timestamps=times))
    file.add_acquisition(mask(times, n=180))
    file.add_trial_column("cue", "sentence")
    file.add_trial_column("block_num", "block")
    for start, stop, cue in ((0.0, 1.98, "a>fox"), (3.0, 4.58, "the>dog")):
        file.add_trial(start_time=start, stop_time=stop, cue=cue, block_num=2)
    return write(folder / NAMES["H2"], file), counts, times


def binned(session, centres):
    """Counts [T, N] of the 20 ms bins with these centres."""
    edges = np.append(centres - 0.01, centres[-1] + 0.01)
    return np.stack([np.histogram(session.spike_times[session.spike_units == k], edges)[0]
                     for k in range(len(session.units))], axis=1)


def expected(path, ends):
    """Counts as the evaluator bins them: from `units` of the file, bins that end at `ends`."""
    edges = np.append(ends[0] - 0.02, ends)
    with NWBHDF5IO(path, "r") as io:
        return np.stack([np.histogram(t[:], edges)[0] for t in io.read().units["spike_times"]], axis=1)


def test_m2_times_are_bin_starts(tmp_path):
    path = m2(tmp_path)
    session = falcon.read(path)
    velocity = session.get_series("finger_vel")
    assert (velocity.columns, velocity.values.shape, velocity.unit) == (("index", "mrs"), (BINS, 2), "AU")
    np.testing.assert_array_equal(binned(session, velocity.times), expected(path, (np.arange(BINS) + 1) * 0.02))
    assert (session.id, session.subject) == ("MonkeyN-held-in-calib_ses-2020-10-19-Run1", "MonkeyN")
    assert session.trials["split"].tolist() == ["held_in_calib"] * 2 and set(session.units["region"]) == {"M1"}


def test_m1_times_are_bin_ends(tmp_path):
    path = m1(tmp_path)
    session = falcon.read(path)
    emg = session.get_series("preprocessed_emg")
    assert emg.values.shape == (BINS, 16) and emg.values[0].tolist() == list(range(16)) and emg.columns[3] == "m03"
    np.testing.assert_array_equal(binned(session, emg.times), expected(path, np.arange(1, BINS + 1) * 0.02))
    assert session.trials["split"].tolist() == ["held_out_calib"] and session.trials["gocue_time"].tolist() == [1.0]


def test_h1_offset_is_a_time_and_rate_a_step(tmp_path):
    path = h1(tmp_path)
    session = falcon.read(path)
    velocity = session.get_series("OpenLoopKinematicsVelocity")
    assert velocity.values[0].tolist() == list(range(7)) and velocity.columns[-1] == "g3"    # 5 was not added to them
    np.testing.assert_allclose(velocity.times[[0, -1]], [4.99, 4.99 + 349 * 0.02])
    ends = 5.0 + np.arange(350) * 0.02
    np.testing.assert_array_equal(binned(session, velocity.times), expected(path, ends))
    np.testing.assert_allclose(session.trials[["start", "stop", "trial_num"]],
                               [[4.98, 6.98, 1], [6.98, 9.98, 2], [9.98, 11.98, 5]])
    np.testing.assert_allclose(session.intervals, [[4.98, 11.98]])
    assert len(session.units) == 176 and session.trials["split"].unique().tolist() == ["held_in_minival"]


def test_h1_bins_without_a_number_are_of_no_trial(tmp_path):
    path = h1(tmp_path)
    with h5py.File(path, "a") as file:
        file["acquisition/TrialNum/data"][:] = np.repeat([np.nan, 1, np.nan, 2, 3], [20, 100, 30, 100, 100])
    trials = falcon.read(path).trials
    assert trials["trial_num"].tolist() == [1, 2, 3]
    np.testing.assert_allclose(trials["start"], 4.98 + 0.02 * np.array([20, 150, 250]))
    np.testing.assert_allclose(trials["stop"], 4.98 + 0.02 * np.array([120, 250, 350]))


def test_h2_counts_become_spikes_that_are_known_to_20_ms(tmp_path):
    path, counts, times = h2(tmp_path)
    session = falcon.read(path)
    first = binned(session, times[:100] + 0.01)
    np.testing.assert_array_equal(first, counts[:100])
    np.testing.assert_array_equal(binned(session, times[100:] + 0.01), counts[100:])
    assert session.resolution == 0.02 and session.trials["cue"].tolist() == ["a>fox", "the>dog"]
    np.testing.assert_allclose(session.intervals, [[0, 2], [3, 4.6]])


@pytest.mark.parametrize("make", [m2, m1, h1, lambda folder: h2(folder)[0]])
def test_every_task_says_which_bins_are_scored(tmp_path, make):
    scored = falcon.read(make(tmp_path)).get_series("eval_mask")
    assert scored.values[:21, 0].tolist() == ([0] + [1] * 9) * 2 + [0]


def test_a_file_that_the_user_has_opens_by_name_and_brings_its_licence(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "falcon_m2").mkdir(parents=True)
    m2(tmp_path / "data" / "falcon_m2")
    session = open_catalog().open("falcon_m2")
    assert (session.id, session.license) == ("MonkeyN-held-in-calib_ses-2020-10-19-Run1", "CC-BY-4.0")


@pytest.mark.parametrize("make", [m2, h1, lambda folder: h2(folder)[0]])
def test_sessions_survive_being_saved(tmp_path, make, same):
    session = falcon.read(make(tmp_path))
    same(session, type(session).open(session.save(tmp_path / "copy.h5")))


@pytest.mark.parametrize("make", [m2, m1, lambda folder: h2(folder)[0]])
def test_the_mask_counts_bins_and_needs_no_clock_of_its_own(tmp_path, make):
    """The evaluator takes the mask by place; whether a file gives it timestamps, or others, changes nothing."""
    path = make(tmp_path)
    before = falcon.read(path).get_series("eval_mask")
    with h5py.File(path, "a") as file:
        del file["acquisition/eval_mask/timestamps"]
        start = file["acquisition/eval_mask"].create_dataset("starting_time", data=0.0)
        start.attrs["rate"], start.attrs["unit"] = 50.0, "seconds"
    after = falcon.read(path).get_series("eval_mask")
    np.testing.assert_array_equal(after.times, before.times)
    np.testing.assert_array_equal(after.values, before.values)


@pytest.mark.parametrize("make", [m2, m1])
def test_a_file_that_does_not_say_when_it_was_observed_was_while_it_has_bins(tmp_path, make):
    path = make(tmp_path)
    with h5py.File(path, "a") as file:
        del file["units/obs_intervals"], file["units/obs_intervals_index"]
        file["units"].attrs["colnames"] = [name for name in file["units"].attrs["colnames"] if name != "obs_intervals"]
    session = falcon.read(path)
    bins = session.get_series("eval_mask").times
    np.testing.assert_allclose(session.intervals, [[bins[0] - 0.01, bins[-1] + 0.01]])


def test_text_kept_as_bytes_is_read_as_text(tmp_path):
    path = h1(tmp_path)
    with h5py.File(path, "a") as file:
        file["acquisition/OpenLoopKinematics"].attrs["description"] = np.bytes_(b"tx,ty,tz,rx,g1,g2,g3")
    assert falcon.read(path).get_series("OpenLoopKinematics").columns[0] == "tx"


def test_a_download_that_broke_off_is_one_sentence(tmp_path):
    for path in (m2(tmp_path), h2(tmp_path)[0]):
        path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
        with pytest.raises(BadRecording, match=r"damaged .*download it again"):
            falcon.read(path)


def test_files_of_other_layouts_are_refused(tmp_path):
    other = write(tmp_path / "other.nwb", started("X", "A", "b"))
    with pytest.raises(BadRecording, match="no file of FALCON's M1, M2, H1 or H2: its acquisition has nothing"):
        falcon.read(other)
    broken = m2(tmp_path)
    with h5py.File(broken, "a") as file:
        del file["acquisition/eval_mask"]
    with pytest.raises(BadRecording, match=r"layout of FALCON M2 is incomplete .*eval_mask"):
        falcon.read(broken)
    with h5py.File(broken, "a") as file:
        file["acquisition/eval_mask/data"] = np.ones(BINS - 1, bool)
    with pytest.raises(BadRecording, match="eval_mask has 599 values for 600 bins"):
        falcon.read(broken)
    with h5py.File(broken, "a") as file:
        del file["acquisition/finger_vel/mrs/data"]
        file["acquisition/finger_vel/mrs/data"] = np.zeros(3)
    with pytest.raises(BadRecording, match="finger_vel has no parts of one length"):
        falcon.read(broken)


# The decoder

CONFIG = SimpleNamespace(n_channels=96, out_dim=2, bin_size_ms=20,
                         hash_dataset=lambda file: "Run" + re.search(r"-Run(\d)_", str(file))[1])


def evaluate(decoder, recordings, batch_size):
    """Predictions [T, outputs] of every file, asked for as the evaluator does: a reset a batch, then bin after bin.

    Rows that end early are filled with silence, and the last batch may have fewer rows.
    """
    found = []
    for first in range(0, len(recordings), batch_size):
        batch = recordings[first:first + batch_size]
        decoder.reset(dataset_tags=[path for path, _ in batch])
        longest = max(len(counts) for _, counts in batch)
        padded = np.stack([np.pad(c, ((0, longest - len(c)), (0, 0))) for _, c in batch], axis=1).astype(np.uint8)
        steps = []
        for counts in padded:
            steps.append(decoder.predict(counts))
            assert steps[-1].shape == (len(batch), CONFIG.out_dim)
            decoder.on_done(np.zeros(len(batch), bool))
        found += [np.stack(steps)[:len(counts), row] for row, (_, counts) in enumerate(batch)]
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("m2")
    paths = [m2(folder, NAMES["M2"].replace("Run1", f"Run{k}"), seed=k) for k in (1, 2, 3)]
    sessions = [falcon.read(path) for path in paths]
    model = models.build("ridge", sessions, target="finger_vel")
    model.fit(sessions, [np.array([[0.0, 8.0]])] * 3, [np.array([[8.0, 10.0]])] * 3)
    recordings = [(path, binned(s, s.get_series("finger_vel").times)) for path, s in zip(paths, sessions, strict=True)]
    return model, sessions, recordings


def decoder_of(trained, batch_size):
    model, sessions, _ = trained
    return FalconDecoder(CONFIG, model, "finger_vel", {f"Run{k}": s for k, s in enumerate(sessions, 1)}, batch_size)


def test_bin_after_bin_the_decoder_says_what_the_model_says_of_the_whole_recording(trained):
    model, sessions, recordings = trained
    found = evaluate(decoder_of(trained, 2), recordings, 2)
    reader = Reader(sessions, ("finger_vel",))
    for row, predicted in enumerate(found):
        starts = np.arange(0.0, 10.9, 0.5)
        batch = reader.read(np.full(len(starts), row), starts, model.window)
        last = batch.targets["finger_vel"].offsets[1:] - 1
        whole = model(batch).behavior.detach().numpy()[last]
        np.testing.assert_allclose(predicted[49::25][:len(starts)], whole, rtol=1e-4, atol=1e-4)
        truth = sessions[row].get_series("finger_vel").values
        late = slice(510, BINS)
        assert 1 - ((predicted[late] - truth[late]) ** 2).sum() / ((truth[late] - truth[late].mean(0)) ** 2).sum() > 0.5


def test_rows_of_a_batch_do_not_know_of_each_other_and_reset_forgets(trained):
    _, _, recordings = trained
    short = [(path, counts[:120]) for path, counts in recordings]
    decoder = decoder_of(trained, 3)
    together, again = evaluate(decoder, short, 3), evaluate(decoder, short, 3)
    alone = evaluate(decoder_of(trained, 1), short, 1)
    for one, two, three in zip(together, again, alone, strict=True):
        np.testing.assert_allclose(one, three, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(one, two)


def test_observed_bins_count_as_history(trained):
    _, _, recordings = trained
    path, counts = recordings[0]
    one, two = decoder_of(trained, 1), decoder_of(trained, 1)
    for decoder in (one, two):
        decoder.reset([path])
    for row in counts[:60]:
        one.predict(row[None])
        two.observe(row[None])
    np.testing.assert_array_equal(one.predict(counts[60][None]), two.predict(counts[60][None]))


def test_a_recording_without_a_session_and_a_session_without_channels_are_refused(trained):
    model, sessions, _ = trained
    with pytest.raises(UnknownName, match=r"no recording 'Run9' in the sessions that this decoder was given"):
        decoder_of(trained, 1).reset(["sub-N_ses-2020-10-19-Run9_x.nwb"])
    with pytest.raises(BadRecording, match="40 units, but recordings of tag 'Run1' have 96 channels"):
        FalconDecoder(CONFIG, model, "finger_vel", {"Run1": sessions[0].select(np.arange(40))})


def test_counts_that_are_not_a_row_a_recording_are_refused(trained):
    """Rows would otherwise be broadcast: one recording's counts decoded as those of all."""
    decoder, path = decoder_of(trained, 2), trained[2][0][0]
    with pytest.raises(BadRecording, match=r"counts \[2, 96\] was shown where 0 recordings.*call reset"):
        decoder.predict(np.zeros((2, 96), np.uint8))
    decoder.reset([path, path])
    with pytest.raises(BadRecording, match=r"counts \[1, 96\] was shown where 2 recordings of 96 channels"):
        decoder.predict(np.zeros((1, 96), np.uint8))


def test_the_batch_goes_to_where_the_model_is(trained):
    class Elsewhere(torch.nn.Module):
        window = 1.0

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1, device="meta"))

        def forward(self, batch):
            assert batch.times.device == self.weight.device
            return SimpleNamespace(behavior=torch.zeros(len(batch), 2))

    _, sessions, recordings = trained
    decoder = FalconDecoder(CONFIG, Elsewhere(), "finger_vel", {"Run1": sessions[0]})
    decoder.reset([recordings[0][0]])
    assert decoder.predict(recordings[0][1][:1]).shape == (1, 2)


def test_the_evaluator_itself_takes_the_decoder_where_it_is_installed(trained, tmp_path, monkeypatch):
    evaluator = pytest.importorskip("falcon_challenge.evaluator")
    from falcon_challenge.config import FalconConfig, FalconTask
    from falcon_challenge.dataloaders import load_nwb

    model, sessions, recordings = trained
    held_in = evaluator.DATASET_HELDINOUT_MAP["m2"]["held_in"]
    folder = tmp_path / "000953" / "sub-MonkeyN-held-in-minival"
    folder.mkdir(parents=True)
    config, tags = FalconConfig(FalconTask.m2), {}
    for tag in held_in:
        run, day = tag.split("_")
        file = folder / f"sub-MonkeyN-held-in-minival_ses-{day[:4]}-{day[4:6]}-{day[6:]}-{run}_behavior+ecephys.nwb"
        file.write_bytes(recordings[0][0].read_bytes())
        tags[config.hash_dataset(file)] = sessions[0]
    assert set(tags) == set(held_in)
    np.testing.assert_array_equal(load_nwb(file, FalconTask.m2)[0], recordings[0][1])
    monkeypatch.setenv("EVAL_DATA_PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    judge = evaluator.FalconEvaluator(eval_remote=False, split="m2", dataloader_workers=0)
    result = judge.evaluate(FalconDecoder(config, model, "finger_vel", tags, batch_size=7), phase="minival")
    assert next(iter(result["result"][0].values()))["Held In R2 Mean"] > 0.5
