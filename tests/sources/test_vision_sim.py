"""The simulated visual recording: what is built into it can be found in it again, where and when it should be."""

import hashlib
import time

import numpy as np
import pytest
from scipy import linalg

from workbench import Session, open_catalog
from workbench.errors import BadRecording
from workbench.sources import drawn
from workbench.sources.simulated import DEAD
from workbench.sources.vision_sim import LATENCY, REGIONS, SHOWN, vision_sim

WINDOW = {"V1": (0.04, 0.14), "V4": (0.07, 0.17), "IT": (0.11, 0.26)}   # s after onset, where each region answers


@pytest.fixture(scope="module")
def recording() -> Session:
    return vision_sim()


@pytest.fixture(scope="module")
def spikes(recording) -> list[np.ndarray]:
    """Spike times of every unit."""
    order = np.argsort(recording.spike_units, kind="stable")
    edges = np.cumsum(np.bincount(recording.spike_units, minlength=len(recording.units)))[:-1]
    return np.split(recording.spike_times[order], edges)


def counts(recording: Session, spikes, start: float, stop: float) -> np.ndarray:
    """Spikes of every unit from `start` to `stop` seconds after every onset [presentations, N]."""
    onset = recording.stimuli["start"].to_numpy()
    edges = np.stack([onset + start, onset + stop])
    return np.stack([np.diff(np.searchsorted(times, edges), axis=0)[0] for times in spikes], axis=1)


def per_picture(recording: Session, values: np.ndarray) -> np.ndarray:
    """Mean over the presentations of each picture [pictures, N]."""
    image = recording.stimuli["image"].to_numpy()
    return np.stack([values[image == i].mean(axis=0) for i in range(image.max() + 1)])


def in_region(recording: Session, region: str) -> np.ndarray:
    return (recording.units["region"] == region).to_numpy()


def identified(x: np.ndarray, y: np.ndarray, folds: int = 5, penalty: float = 20.0) -> float:
    """Two-way identification of held-out pictures from ridge's prediction of y [pictures, D]; chance is 0.5."""
    fold, right = np.arange(len(x)) // len(drawn.CATEGORIES) % folds, []
    for k in range(folds):
        train, test = fold != k, fold == k
        mean, spread = x[train].mean(0), x[train].std(0) + 1e-6
        z, level = (x - mean) / spread, y[train].mean(0)
        map_ = linalg.solve(z[train].T @ z[train] + penalty * np.eye(z.shape[1]), z[train].T @ (y[train] - level))
        match = np.corrcoef(z[test] @ map_, y[test] - level)[:test.sum(), test.sum():]
        better = match.diagonal()[:, None] > match
        right.append(better.sum() / (len(better) * (len(better) - 1)))
    return float(np.mean(right))


def half_rise(rate: np.ndarray, baseline: float, bin_size: float, first: float) -> float:
    """When a rate [bins] first gets half-way from its baseline to its peak, seconds."""
    level = baseline + 0.5 * (rate.max() - baseline)
    i = int(np.flatnonzero(rate >= level)[0])
    before = rate[i - 1] if i else baseline
    return first + (i + 0.5 - (rate[i] - level) / max(rate[i] - before, 1e-9)) * bin_size


def test_a_default_session_takes_a_few_seconds(recording):
    begin = time.process_time()
    vision_sim(1, subject=1)
    assert time.process_time() - begin < 10


def test_latencies_lie_where_the_regions_have_them(recording):
    for region in REGIONS:
        latency = recording.truth["latency"][in_region(recording, region)]
        *_, least, most = LATENCY[region]
        assert least <= latency.min() and latency.max() <= most and latency.std() > 0.005


def test_latencies_can_be_read_off_the_psths(recording, spikes):
    image, truth, bin_size = recording.stimuli["image"].to_numpy(), recording.truth, 0.005
    onset, found = recording.stimuli["start"].to_numpy(), np.full(len(spikes), np.nan)
    for unit, times in enumerate(spikes):
        liked = np.isin(image, np.argsort(truth["tuning"][unit])[-40:])
        edges = np.arange(-0.1, 0.3 + bin_size / 2, bin_size)
        inside = np.searchsorted(times, onset[liked, None] + edges)
        rate = np.diff(inside, axis=1).mean(axis=0) / bin_size
        smooth = np.convolve(rate, np.ones(3) / 3, mode="same")
        baseline = rate[:24].mean()
        if smooth[24:].max() - baseline > 20:
            found[unit] = half_rise(smooth[24:], baseline, bin_size, first=0.02)
    median = {}
    for region in REGIONS:
        clear = in_region(recording, region) & np.isfinite(found)
        error = found[clear] - truth["latency"][clear]
        median[region] = np.median(found[clear])
        assert clear.sum() >= 20, region
        assert np.median(np.abs(error)) < 0.008, region
        assert abs(median[region] - np.median(truth["latency"][clear])) < 0.008, region
        assert np.corrcoef(found[clear], truth["latency"][clear])[0, 1] > 0.7, region
    assert median["V1"] + 0.02 < median["V4"] and median["V4"] + 0.02 < median["IT"]


@pytest.mark.parametrize("region", REGIONS)
def test_unseen_pictures_are_told_apart_in_each_regions_window_and_not_before_it(recording, spikes, region):
    pixels = recording.images.reshape(-1, 8, 8, 8, 8, 3).mean(axis=(2, 4)).reshape(len(recording.images), -1) / 255
    what = (recording.truth["picture_category"][:, None] == recording.truth["category_names"]).astype(float)
    y = np.hstack([(pixels - pixels.mean(0)) / pixels.std(), (what - what.mean(0)) / what.std()])
    mine = [times for times, here in zip(spikes, in_region(recording, region), strict=True) if here]
    start, stop = WINDOW[region]
    least = LATENCY[region][2]
    right, early = (identified(per_picture(recording, counts(recording, mine, *window)), y)
                    for window in ((start, stop), (least - 0.02 - (stop - start), least - 0.02)))
    assert right > 0.7 and 0.4 < early < 0.6


def test_it_knows_categories_best_and_v1_places(recording, spikes):
    what = (recording.truth["picture_category"][:, None] == recording.truth["category_names"]).astype(float)
    grey = recording.images.mean(axis=3).reshape(-1, 16, 4, 16, 4).mean(axis=(2, 4))
    edges = np.abs(np.diff(grey, axis=1))[:, :, :15] + np.abs(np.diff(grey, axis=2))[:, :15]
    score = {}
    for region in ("V1", "IT"):
        mine = [times for times, here in zip(spikes, in_region(recording, region), strict=True) if here]
        x = per_picture(recording, counts(recording, mine, *WINDOW[region]))
        score[region] = identified(x, what), identified(x, edges.reshape(len(edges), -1))
    assert score["IT"][0] > score["V1"][0] + 0.03 and score["V1"][1] > score["IT"][1] + 0.03


def test_running_raises_the_gain_as_much_as_the_truth_says(recording, spikes):
    speed, onset = recording.series["running_speed"], recording.stimuli["start"].to_numpy()
    near = np.searchsorted(speed.times, onset + 0.1)
    fast, still = (speed.values[near, 0] > 5), (speed.values[near, 0] == 0)
    assert fast.sum() > 100 and still.sum() > 100
    answers = counts(recording, spikes, 0.0, SHOWN)
    truth, image = recording.truth, recording.stimuli["image"].to_numpy()
    # What each presentation would evoke without running; 0.12 s is how long a unit of middling latency answers in it.
    usual = (SHOWN * truth["baseline"][:, None] + 0.12 * truth["peak"][:, None] * truth["tuning"][:, image]).T
    more = {}
    for region in REGIONS:
        mine = in_region(recording, region)
        running, resting = (answers[when][:, mine].sum() / usual[when][:, mine].sum() for when in (fast, still))
        more[region] = running / resting - 1
    assert more["V1"] > more["V4"] + 0.1 and more["V4"] > more["IT"] + 0.05
    pace = speed.values[near[fast], 0]
    for region in REGIONS:
        pushed = recording.truth["run_gain"][in_region(recording, region)].mean() * (pace / (pace + 5)).mean()
        assert abs(more[region] - pushed) < 0.1, region


def test_answers_vary_more_than_poisson_and_together_within_a_region(recording, spikes):
    speed, image = recording.series["running_speed"], recording.stimuli["image"].to_numpy()
    pace = speed.values[np.searchsorted(speed.times, recording.stimuli["start"].to_numpy() + 0.1), 0]
    answers = counts(recording, spikes, 0.05, 0.30)
    expected = per_picture(recording, answers)[image]
    driven = expected.max(0) > 4                                        # where the gain is more than Poisson noise
    fano = ((answers - expected) ** 2).sum(0) / expected.sum(0) * 5 / 4             # five repeats share one mean
    assert driven.sum() > 50 and np.median(fano[driven]) > 1.05
    push = np.c_[np.ones(len(pace)), pace / (pace + 5)]
    noise = answers - expected
    noise -= push @ np.linalg.lstsq(push, noise, rcond=None)[0]         # running moves all regions at once
    noise = np.stack([noise[:, driven & in_region(recording, region)].sum(axis=1) for region in REGIONS])
    gains = recording.truth["shared_gain"] - recording.truth["shared_gain"].mean(0)
    match = np.corrcoef(noise, gains.T)[:3, 3:]
    assert (match.diagonal() > 0.3).all() and np.abs(match[~np.eye(3, dtype=bool)]).max() < 0.15


def test_v1_units_prefer_the_orientation_of_their_filter(recording):
    truth = recording.truth
    stripes = recording.truth["picture_category"] == "grating"
    turn = drawn.descriptions(len(recording.images))["turn"].to_numpy()[stripes]
    complex_ = np.flatnonzero(truth["kind"] == "complex")
    tuning = truth["tuning"][complex_][:, stripes]
    found = np.angle(tuning @ np.exp(2j * turn)) / 2
    off = np.abs(np.angle(np.exp(2j * (found - truth["orientation"][complex_])))) / 2
    assert np.median(off) < np.radians(20)
    assert truth["filters"].shape == (in_region(recording, "V1").sum(), 64, 64, 3)


def test_no_unit_fires_within_its_refractory_period_and_rates_are_those_of_cortex(recording, spikes):
    assert min(np.diff(times).min() for times in spikes) >= DEAD - 1e-9
    rates = recording.rates()
    assert 2 < np.median(rates) < 12 and rates.max() < 60 and rates.min() > 0.1


def test_the_same_arguments_give_the_same_session_and_others_another():
    a, b, c, d = (vision_sim(session, subject=subject, pictures=20, repeats=1, units=20)
                  for session, subject in ((1, 2), (1, 2), (0, 2), (1, 0)))
    assert np.array_equal(a.spike_times, b.spike_times) and np.array_equal(a.spike_units, b.spike_units)
    assert a.units.equals(b.units) and a.stimuli.equals(b.stimuli) and np.array_equal(a.images, b.images)
    assert all(np.array_equal(a.truth[k], b.truth[k], equal_nan=a.truth[k].dtype.kind == "f") for k in a.truth)
    for other in (c, d):
        assert not np.array_equal(a.spike_times[:50], other.spike_times[:50])
        assert np.array_equal(a.images, other.images)                   # every animal sees the same pictures
    assert not set(a.units["id"]) & set(d.units["id"])


def test_sessions_of_one_subject_share_most_units_and_these_stay_what_they_are():
    one, two = (vision_sim(k, pictures=26, repeats=1) for k in (0, 1))
    shared = sorted(set(one.units["id"]) & set(two.units["id"]))
    assert 0.6 < len(shared) / len(one.units) < 0.9
    rows = [s.units.reset_index().set_index("id").loc[shared, "index"].to_numpy() for s in (one, two)]
    for name in ("latency", "tuning", "run_gain", "peak"):
        np.testing.assert_array_equal(one.truth[name][rows[0]], two.truth[name][rows[1]])


def test_pictures_are_many_kinds_and_a_longer_set_begins_with_the_shorter():
    few, many = drawn.pictures(13), drawn.pictures(39)
    assert few.shape == (13, 64, 64, 3) and few.dtype == np.uint8
    np.testing.assert_array_equal(few, many[:13])
    assert not np.array_equal(few, drawn.pictures(13, seed=1))
    assert sorted(drawn.descriptions(39)["category"].value_counts()) == [3] * 13
    differ = np.abs(many[:, None].astype(int) - many[None]).mean(axis=(2, 3, 4))
    assert differ[np.triu_indices(39, 1)].min() > 4                     # no picture twice
    assert many.reshape(39, -1).std(axis=1).min() > 8                   # none is blank


def test_every_picture_is_shown_equally_often_in_a_random_order(recording):
    image = recording.stimuli["image"].to_numpy()
    assert (np.bincount(image) == 5).all() and len(recording.images) == image.max() + 1
    assert abs(np.corrcoef(image[1:], image[:-1])[0, 1]) < 0.15
    gaps = recording.stimuli["start"].to_numpy()[1:] - recording.stimuli["stop"].to_numpy()[:-1]
    assert gaps.min() > 0.19 and gaps.max() < 0.31


def test_simulated_pictures_and_truth_survive_saving(tmp_path):
    made = vision_sim(pictures=13, repeats=1, units=20)
    read = Session.open(made.save(tmp_path / "sim.h5"))
    assert read.simulated and "simulated" in read.description and "simulated" in repr(read)
    np.testing.assert_array_equal(read.images, made.images)
    assert list(read.stimuli["category"]) == list(made.stimuli["category"])
    for name, values in made.truth.items():
        np.testing.assert_array_equal(read.truth[name], values)


def test_the_catalog_opens_several_sessions_of_several_subjects_by_name():
    catalog = open_catalog()
    names = catalog.sessions("vision-sim")
    assert len(names) >= 4
    last = catalog.open("vision_sim", names[-1])
    assert last.simulated and last.dataset == "vision-sim" and last.id == "vision-sim-0-2-1"
    assert len({made["subject"] for made in catalog["vision-sim"].access.sessions.values()}) == 3


def test_impossible_sizes_are_refused_in_one_sentence():
    for bad in ({"session": -1}, {"subject": -1}, {"units": 5}, {"pictures": 3}, {"repeats": 0}):
        with pytest.raises(BadRecording, match="needs session and subject >= 0"):
            vision_sim(**bad)


def test_a_session_is_the_one_it_always_was():
    made = vision_sim(1, pictures=26, repeats=1, units=20)
    spikes = hashlib.sha256(made.spike_times.tobytes() + made.spike_units.tobytes()).hexdigest()
    assert spikes.startswith("4297bd4fbc4ecee4")


def test_driven_regions_are_v1_v4_and_it_like_by_turns_and_evenly_large():
    made = vision_sim(pictures=13, repeats=1, units=42, drives={name: (1, 1) for name in "ABCDE"})
    assert made.units["region"].value_counts().to_dict() == {"A": 9, "B": 9, "C": 8, "D": 8, "E": 8}
    for name, like in zip("ABCDE", ("V1", "V4", "IT", "V1", "V4"), strict=True):
        latency, (*_, least, most) = made.truth["latency"][in_region(made, name)], LATENCY[like]
        assert least <= latency.min() and latency.max() <= most, name
    assert len(made.truth["filters"]) == 17 and len(made.truth["category_weights"]) == 8
    assert "category_weights" not in vision_sim(pictures=13, repeats=1, units=10, drives={"A": (1, 1)}).truth


def test_drive_is_exactly_zero_where_its_strength_is_and_grows_with_it():
    told = np.array([vision_sim(pictures=13, repeats=4, units=18, drives={"A": (x, 0), "B": (0, x), "C": (0, 0)}
                                ).truth["drive"] for x in (0.25, 0.5, 1, 2)])       # [strengths, regions, 2]
    assert (told[:, [0, 1, 2, 2], [1, 0, 0, 1]] == 0).all()
    assert (told[0, [0, 1], [0, 1]] > 0).all() and (np.diff(told[:, [0, 1], [0, 1]], axis=0) > 0).all()


@pytest.fixture(scope="module")
def driven() -> Session:
    return vision_sim(pictures=39, repeats=6, units=120, seed=2, drives={
        "shown": (1, 0), "run": (0, 1.5), "neither": (0, 0), "both": (1, 1.5)})


def test_a_driven_region_answers_to_what_drives_it_and_to_nothing_else(driven):
    speed, onset = driven.series["running_speed"], driven.stimuli["start"].to_numpy()
    pace = speed.values[np.searchsorted(speed.times, onset), 0]
    answers, pushes = {}, {}
    for name in driven.truth["drive_names"]:
        times = driven.spike_times[in_region(driven, name)[driven.spike_units]]
        answer, before = counts(driven, [times], 0.05, 0.3).mean(), counts(driven, [times], -0.15, 0.0)[:, 0]
        answers[name] = answer / 0.25 / (before.mean() / 0.15)
        pushes[name] = before[pace > 5].mean() / before[pace == 0].mean()
    assert (pace > 5).sum() > 30 and (pace == 0).sum() > 30
    assert min(answers["shown"], answers["both"]) > 1.5 and max(abs(answers[k] - 1) for k in ("run", "neither")) < 0.1
    assert min(pushes["run"], pushes["both"]) > 1.4 and max(abs(pushes[k] - 1) for k in ("shown", "neither")) < 0.15
    assert list(driven.truth["drive_modalities"]) == ["picture", "running"]
    assert ((driven.truth["drive"] > 0) == [[True, False], [False, True], [False, False], [True, True]]).all()


def test_driven_regions_fire_alike_whatever_drives_them(driven):
    rates = [driven.rates()[in_region(driven, name)].mean() for name in driven.truth["drive_names"]]
    assert min(rates) > 4 and max(rates) < 8
    # Seed 8 runs about as much as is usual; shorter sessions may run hardly at all.
    still, shown, run = (vision_sim(pictures=13, repeats=9, units=40, seed=8, drives={"A": both}).rates().mean()
                         for both in ((0, 0), (2, 0), (0, 3)))
    assert abs(shown / still - 1) < 0.15 and abs(run / still - 1) < 0.15


def test_drives_survive_saving_and_units_stay_what_they_are_over_sessions(tmp_path):
    drives = {"A": (1, 0), "B": (0.5, 2)}
    one, two = (vision_sim(k, pictures=13, repeats=1, units=20, drives=drives) for k in (0, 1))
    read = Session.open(one.save(tmp_path / "driven.h5"))
    assert list(read.truth["drive_names"]) == ["A", "B"] and np.array_equal(read.truth["drive"], one.truth["drive"])
    _, first, second = np.intersect1d(one.truth["unit"], two.truth["unit"], return_indices=True)
    assert len(first) > 10
    for name in ("baseline", "peak", "run_gain"):
        np.testing.assert_array_equal(one.truth[name][first], two.truth[name][second])


@pytest.mark.parametrize("bad", [{}, {"A": (1, -0.5)}, {"A": (1,)}, {"A": ("much", 1)}])
def test_drives_that_are_not_two_strengths_a_region_are_refused_in_one_sentence(bad):
    with pytest.raises(BadRecording, match=r"drives names 1 to 20 .* two numbers >= 0, picture and running, as in"):
        vision_sim(pictures=13, repeats=1, units=20, drives=bad)
