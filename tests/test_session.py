"""A session: what its cuts keep, how they combine, and every recording that it refuses, in one sentence."""

import warnings
from dataclasses import FrozenInstanceError

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import BadRecording, UnknownName, WorkbenchError
from workbench.session import Series, Session, inside, overlap


def session_of(times=(0.1, 0.2, 0.2, 1.5, 3.0), rows=(0, 1, 0, 2, 1), n=3, **changes) -> Session:
    units = pd.DataFrame({"id": [f"u{i}" for i in range(n)], "region": ["M1", "PMd", "M1", "V1"][:n]})
    return Session(**{"id": "s", "spike_times": times, "spike_units": rows, "units": units} | changes)


@st.composite
def sessions(draw) -> Session:
    seed, n, spikes = draw(st.integers(0, 999)), draw(st.integers(1, 8)), draw(st.integers(0, 200))
    rng = np.random.default_rng(seed)
    edges = np.sort(rng.uniform(0, 100, 6)).reshape(-1, 2)
    start = np.sort(rng.uniform(0, 100, 9))
    return Session(
        id="drawn",
        spike_times=np.sort(rng.uniform(0, 100, spikes)),
        spike_units=rng.integers(0, n, spikes),
        units=pd.DataFrame({"id": range(n), "region": rng.choice(["a", "b"], n), "snr": rng.random(n)}),
        intervals=edges,
        series={"x": Series(np.arange(0, 100, 0.5), rng.normal(size=(200, 2)), "m")},
        trials=pd.DataFrame({"start": start, "stop": start + rng.uniform(0, 9, 9), "n": range(9)}),
    )


spans = st.lists(st.floats(0, 100), min_size=2, max_size=8, unique=True).map(
    lambda edges: np.sort(edges)[: len(edges) // 2 * 2].reshape(-1, 2)
)


def facts(session: Session) -> list:
    """Everything that a cut may change, for comparison."""
    return [
        session.spike_times.tolist(),
        session.units["id"].iloc[session.spike_units].tolist(),
        session.units.to_dict(),
        session.intervals.tolist(),
        [(s.times.tolist(), s.values.tolist()) for s in session.series.values()],
        session.trials.to_dict(),
    ]


def cut(session: Session, intervals) -> Session | None:
    try:
        return session.within(intervals)
    except BadRecording as error:
        assert "no valid recording" in str(error)


# Cuts


@settings(max_examples=60, deadline=None)
@given(session=sessions(), intervals=spans)
def test_a_part_holds_exactly_what_lies_in_its_intervals(session, intervals):
    part = cut(session, intervals)
    if part is None:
        return

    def within(times):
        return ((times[:, None] >= intervals[:, 0]) & (times[:, None] < intervals[:, 1])).any(axis=1)

    keep = within(session.spike_times)
    assert part.spike_times.tolist() == session.spike_times[keep].tolist()
    assert part.spike_units.tolist() == session.spike_units[keep].tolist()
    assert part.series["x"].values.tolist() == session.series["x"].values[within(session.series["x"].times)].tolist()
    whole = [
        ((a >= intervals[:, 0]) & (b <= intervals[:, 1])).any() for a, b in session.trials[["start", "stop"]].to_numpy()
    ]
    assert part.trials["n"].tolist() == session.trials["n"][whole].tolist()
    assert len(part.units) == len(session.units)


@settings(max_examples=60, deadline=None)
@given(session=sessions(), a=spans, b=spans)
def test_a_part_of_a_part_is_the_part_in_both(session, a, b):
    both = overlap(a, b)
    first = cut(session, a)
    twice = cut(first, b) if first is not None else None
    once = cut(session, both) if len(both) else None
    assert (twice is None) == (once is None)
    if once is not None:
        assert facts(twice)[:5] == facts(once)[:5]


@settings(max_examples=40, deadline=None)
@given(session=sessions(), intervals=spans, seed=st.integers(0, 99))
def test_selecting_units_and_cutting_time_can_be_done_in_any_order(session, intervals, seed):
    mask = np.random.default_rng(seed).random(len(session.units)) < 0.6
    part = cut(session, intervals)
    if part is not None:
        assert facts(part.select(mask)) == facts(cut(session.select(mask), intervals))


@settings(max_examples=60, deadline=None)
@given(a=spans, b=spans)
def test_overlap_is_where_both_are(a, b):
    both = overlap(a, b)
    points = np.random.default_rng(0).uniform(0, 100, 400)

    def on(rows):
        return ((points[:, None] >= rows[:, 0]) & (points[:, None] < rows[:, 1])).any(axis=1)

    assert (on(both) == (on(a) & on(b))).all()
    assert (both[:, 0] < both[:, 1]).all() and (both[1:, 0] >= both[:-1, 1]).all()
    assert both.tolist() == overlap(b, a).tolist()


def test_between_is_half_open_and_keeps_the_clock():
    part = session_of().between(0.2, 3.0)
    assert part.spike_times.tolist() == [0.2, 0.2, 1.5] and (part.start, part.stop) == (0.2, 3.0)


def test_a_cut_of_one_interval_copies_nothing():
    session = session_of()
    assert np.shares_memory(session.between(0.15, 2).spike_times, session.spike_times)
    assert inside(session.spike_times, np.array([[0.15, 2]])) == slice(1, 4)


def test_mapped_arrays_stay_maps_through_between(tmp_path):
    np.arange(0, 10, 0.01).tofile(tmp_path / "times")
    np.zeros(1000, np.int32).tofile(tmp_path / "rows")
    times, rows = np.memmap(tmp_path / "times", np.float64, "r"), np.memmap(tmp_path / "rows", np.int32, "r")
    part = session_of(times, rows).between(2, 3)
    assert np.shares_memory(part.spike_times, times) and np.shares_memory(part.spike_units, rows)
    assert len(part.spike_times) == 100


def test_an_empty_window_says_where_the_recording_is():
    with pytest.raises(
        BadRecording, match=r"s: no valid recording inside \[\[50.0, 60.0\]\] s; it is valid from 0.100 to 3"
    ):
        session_of().between(50, 60)
    with pytest.raises(BadRecording, match="no valid recording"):
        session_of(intervals=[[0, 1], [2, 4]]).between(1.2, 1.9)


@pytest.mark.parametrize(
    "wanted", [[True, False, True], [0, 2], [2, 0, 0], ["u0", "u2"], "region == 'M1'", np.array([0, 2])]
)
def test_units_are_selected_by_mask_row_id_or_query(wanted):
    part = session_of().select(wanted)
    assert part.units["id"].tolist() == ["u0", "u2"] and part.units.index.tolist() == [0, 1]
    assert part.spike_times.tolist() == [0.1, 0.2, 1.5] and part.spike_units.tolist() == [0, 0, 1]


def test_no_units_can_be_selected():
    part = session_of().select([])
    assert len(part.units) == 0 and len(part.spike_times) == 0 and part.duration == session_of().duration


def test_wrong_selections_name_what_there_is():
    for wanted, said in (
        ([True], "mask of 1 for 3"),
        ([0, 3], "run from 0 to 2"),
        ("depth > 3", "has columns id, region"),
    ):
        with pytest.raises(BadRecording, match=said):
            session_of().select(wanted)
    with pytest.raises(UnknownName, match="no unit 'u7' in session 's'; did you mean"):
        session_of().select(["u0", "u7"])


def test_sessions_with_other_units_share_them_by_id():
    monday, tuesday = session_of(), session_of(units=pd.DataFrame({"id": ["u2", "u9", "u0"], "region": "M1"}))
    shared = [unit for unit in monday.units["id"] if unit in set(tuesday.units["id"])]
    assert monday.select(shared).units["id"].tolist() == ["u0", "u2"]
    assert tuesday.select(shared).units["id"].tolist() == ["u2", "u0"]  # in the order of its own table
    with pytest.raises(UnknownName):
        monday.select(["u9"])


def test_a_slow_unit_can_be_selected_from_a_valid_session():
    slow = np.arange(0, 3000, 2.0) + 0.25
    fast = np.arange(0, 3000, 0.1) + 0.01
    times = np.r_[slow, fast]
    order = np.argsort(times)
    session = session_of(times[order], np.r_[np.zeros(len(slow)), np.ones(len(fast))].astype(int)[order])
    assert len(session.select(["u0"]).spike_times) == 1500


def test_columns_that_are_cells_are_selected_with_the_units():
    traces = Series(np.arange(5.0), np.arange(15.0).reshape(5, 3), "dF/F", ("u0", "u1", "u2"))
    speed = Series(np.arange(5.0), np.zeros((5, 3)))
    part = session_of(series={"dF/F": traces, "speed": speed}).select(["u0", "u2"])
    assert part.series["dF/F"].columns == ("u0", "u2") and part.series["dF/F"].values[1].tolist() == [3, 5]
    assert part.series["speed"].values.shape == (5, 3)


# What a session says of itself


def test_a_session_is_frozen_and_says_what_it_holds():
    session = session_of(simulated=True, series={"vel": Series(np.arange(3.0), np.zeros((3, 2)))})
    with pytest.raises(FrozenInstanceError):
        session.id = "other"
    for said in ("(simulated)", "3 units in 2 regions", "5 spikes", "vel [2]"):
        assert said in repr(session)


def test_rates_are_spikes_over_valid_seconds():
    assert session_of(intervals=[[0, 1], [2, 5]]).rates().tolist() == [0.5, 0.5, 0.0]    # the third spikes at 1.5 s
    assert session_of(intervals=[[0, 1], [2, 5]]).duration == 4


@settings(max_examples=40, deadline=None)
@given(session=sessions(), seed=st.integers(0, 99), most=st.floats(1, 5))
def test_at_other_rates_every_unit_fires_at_its_rate_and_only_spikes_of_that_unit_come_and_go(session, seed, most):
    whole = session.within(session.intervals)
    own, random = whole.rates(), np.random.default_rng(seed)
    factor = random.choice([0.25, 1.0, 1.7, 6.0], len(own))
    rates = np.where(own > 0, own * factor, 1.0)                        # a silent unit is heard
    found, again = whole.at_rates(rates, most=most), whole.at_rates(rates, most=most)
    np.testing.assert_allclose(found.rates() * found.duration, rates * found.duration, atol=1.5)
    assert found.spike_times.tolist() == again.spike_times.tolist() and (np.diff(found.spike_times) >= 0).all()
    assert found.units.equals(whole.units) and found.series == whole.series
    assert len(found.within(found.intervals).spike_times) == len(found.spike_times)      # none fills a gap
    for unit, wanted in enumerate(factor):
        before, after = (s.spike_times[s.spike_units == unit].tolist() for s in (whole, found))
        if wanted == 1 or not before:
            assert after == before or not before
        elif wanted < 1:
            assert set(after) <= set(before) and len(after) == len(set(after))
        else:
            copies = [after.count(time) for time in before]             # what is not a copy lies in between
            assert set(copies) <= {int(min(wanted, most)), int(np.ceil(min(wanted, most)))}


def test_a_part_can_say_what_the_rates_were_and_wrong_rates_are_refused():
    times = np.sort(np.concatenate([np.arange(0, 10, 0.1), np.arange(10, 20, 0.05)]) + 0.01)
    session = session_of(times, np.zeros(len(times), int), n=2, intervals=[[0, 20]])
    own = session.between(0, 10).rates()
    halved = session.at_rates([5.0, 0.0], own=own)                      # the later part stays twice as fast
    assert own.tolist() == [10, 0] and halved.between(0, 10).rates()[0] == 5 and halved.between(10, 20).rates()[0] == 10
    assert halved.spike_times.tolist() == times[1::2].tolist() or halved.spike_times.tolist() == times[::2].tolist()
    for wrong in ([5.0], [5.0, -1.0], [np.nan, 1.0]):
        with pytest.raises(BadRecording, match=r"rates are to be one finite number a unit, 0 or more, for 2 units"):
            session.at_rates(wrong)


def test_without_intervals_a_session_is_valid_from_the_first_to_the_last_sample():
    session = session_of(series={"x": Series(np.array([-1.0, 0.0, 1.0]), np.zeros((3, 1)))})
    assert session.start == -1 and session.stop > 3 and session.between(-1, 4).spike_times[-1] == 3
    assert session_of([], []).duration == 0


def test_ids_are_text_and_regions_are_never_missing():
    session = session_of(units=pd.DataFrame({"id": [4, 5, 6], "region": ["M1", None, "V1"]}, index=[7, 8, 9]))
    assert session.units["id"].tolist() == ["4", "5", "6"] and session.units["region"].tolist() == [
        "M1",
        "unknown",
        "V1",
    ]
    assert session_of(units=pd.DataFrame({"id": [4, 5, 6]})).units["region"].tolist() == ["unknown"] * 3


@pytest.mark.parametrize("rate", [20, 29.97, 1000, 30, 2.1, 1 / 3])
def test_the_rate_of_regular_samples_is_found_and_of_others_is_none(rate):
    times = 7.5 + np.arange(5000) / rate
    assert Series(times, times[:, None]).rate == pytest.approx(rate, rel=1e-12)
    assert Series(np.delete(times, 100), times[1:, None]).rate is None
    assert Series(times[:1], times[:1, None]).rate is None


def test_a_wanted_series_that_is_not_there_lists_those_that_are():
    session = session_of(series={"hand_vel": Series(np.arange(3.0), np.zeros((3, 2)))})
    with pytest.raises(UnknownName, match="no series 'hand_pos' in session 's'; did you mean hand_vel"):
        session.get_series("hand_pos")
    with pytest.raises(UnknownName, match="there are hand_vel"):
        session.get_series("emg")
    with pytest.raises(UnknownName, match="there are none"):
        session_of().get_series("emg")


# What a session refuses

RNG = np.random.default_rng(1)
TRAIN = np.sort(np.concatenate([np.cumsum(0.002 + RNG.exponential(0.1, 1000)) for _ in range(3)]))
ROWS = np.arange(len(TRAIN)) % 3

REFUSED = {
    "unsorted": ({"times": [0.1, 0.5, 0.3, 1, 2]}, r"not sorted \(0.3 s follows 0.5 s at spike 2\); sort them"),
    "nan": (
        {"times": [0.1, np.nan, 0.3, 1, 2]},
        r"1 of 5 spike times are not finite \(the first at spike 1, of unit row 1",
    ),
    "inf": ({"times": [0.1, 0.2, 0.3, 1, np.inf]}, "not finite"),
    "lengths": ({"rows": [0, 1]}, r"\(5,\) and spike_units \(2,\) must be two lists of the same length"),
    "no row": ({"rows": [0, 1, 0, 3, 1]}, "unit row 3, but the unit table has 3 rows"),
    "negative row": ({"rows": [0, -1, 0, 2, 1]}, "unit row -1"),
    "list a unit": ({"times": [[0.1], [0.2, 0.3]]}, "one flat list of numbers"),
    "text": ({"times": list("abcde")}, "one flat list of numbers"),
    "no id": ({"units": pd.DataFrame({"region": ["a"] * 3})}, "no column 'id'"),
    "same id": ({"units": pd.DataFrame({"id": ["a", "b", "a"]})}, "two units share the id 'a'"),
    "a short recording in milliseconds": ({"times": TRAIN * 1e3 / 7.3, "rows": ROWS, "intervals": [[0, 20]]},
                                          "milliseconds, not seconds"),
    "milliseconds": ({"times": TRAIN * 1e3, "rows": ROWS}, "milliseconds, not seconds"),
    "samples": ({"times": TRAIN * 3e4, "rows": ROWS}, "over 48 hours"),
    "few samples": ({"times": np.arange(200) * 30, "rows": np.zeros(200, int)}, "whole numbers"),
    "series shape": ({"series": {"x": Series(np.arange(3.0), np.zeros((4, 1)))}}, r"series 'x' has times \(3,\)"),
    "series flat": ({"series": {"x": Series(np.arange(3.0), np.zeros(3))}}, r"times \[T\] and values \[T, D\]"),
    "series text": ({"series": {"x": Series(np.arange(1.0), np.array([["a"]]))}}, "give numbers"),
    "series clock": ({"series": {"x": Series([0.0, 0.0], np.zeros((2, 1)))}}, "times of series 'x' do not increase"),
    "series ms": ({"series": {"x": Series(np.arange(3) * 1e6, np.zeros((3, 1)))}}, "series 'x' span 2,000,000 's'"),
    "series names": ({"series": {"x": Series([0.0], np.zeros((1, 2)), "m", ("a",))}}, "2 columns and 1 column names"),
    "trials": ({"trials": pd.DataFrame({"begin": [1.0]})}, "the table 'trials' needs the columns 'start' and 'stop'"),
    "trials ms": ({"trials": pd.DataFrame({"start": [0.0, 1e6], "stop": [1, 2]})}, "start times of trials span"),
    "interval back": ({"intervals": [[3, 2]]}, "an interval ends before it starts"),
    "interval nan": ({"intervals": [[0, np.nan]]}, "not finite"),
    "intervals overlap": ({"intervals": [[0, 2], [1, 3]]}, "interval 1 starts before interval 0 ends"),
    "intervals shape": ({"intervals": [[0, 2, 3]]}, r"\[start, stop\] rows"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_impossible_recording_is_refused_in_one_sentence(name):
    changes, said = REFUSED[name]
    with pytest.raises(BadRecording, match=said) as caught:
        session_of(**changes)
    assert str(caught.value).startswith("s: ") and "\n" not in str(caught.value)
    assert isinstance(caught.value, WorkbenchError) and isinstance(caught.value, ValueError)


def test_the_same_trains_in_seconds_are_welcome():
    assert len(session_of(TRAIN, ROWS).spike_times) == 3000
    assert len(session_of(TRAIN + 1.5e9, ROWS).spike_times) == 3000  # on a clock that began in 1970


# pynapple


def test_pynapple_gets_the_same_spikes_samples_and_trials():
    pytest.importorskip("pynapple", reason='pynapple is not installed (pip install "spike-workbench[pynapple]")')
    velocity = Series(np.arange(40) / 10, np.random.default_rng(0).normal(size=(40, 2)), "m/s", ("x", "y"))
    trials = pd.DataFrame({"start": [0.0, 2.0], "stop": [1.0, 3.0], "result": ["R", "F"]})
    session = session_of(series={"vel": velocity}, trials=trials, intervals=[[0, 4]])
    found = session.to_pynapple()
    assert [len(found["units"][i]) for i in range(3)] == [2, 2, 1]
    assert found["units"][1].t.tolist() == [0.2, 3.0] and list(found["units"]["region"]) == ["M1", "PMd", "M1"]
    np.testing.assert_allclose(found["vel"].values, velocity.values)
    assert list(found["vel"].columns) == ["x", "y"] and list(found["trials"]["result"]) == ["R", "F"]
    assert found["trials"].start.tolist() == [0, 2]


def test_without_pynapple_the_pip_line_is_given(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynapple", None)
    with pytest.raises(WorkbenchError, match=r'pip install "spike-workbench\[pynapple\]"'):
        session_of().to_pynapple()


def test_clocks_that_differ_a_thousandfold_are_refused_either_way():
    times = np.linspace(0, 100, 2000)
    spikes = dict(times=times, rows=np.arange(2000) % 3)
    series = {"x": Series(1000 * np.arange(0, 100, 0.1), np.zeros((1000, 1)))}
    with pytest.raises(BadRecording, match=r"times of series 'x' span .* where spikes span 100.0 s.*milliseconds"):
        session_of(**spikes, series=series)
    trials = pd.DataFrame({"start": [0.0, 90_000.0], "stop": [500.0, 90_500.0]})
    with pytest.raises(BadRecording, match=r"start times of trials span .* where spikes span 100.0 s"):
        session_of(**spikes, trials=trials)


def test_what_lies_outside_the_valid_recording_altogether_is_told():
    trials = pd.DataFrame({"start": [0.5], "stop": [1.0]})
    with pytest.warns(UserWarning) as told:
        session_of(intervals=[[1000, 1100]], trials=trials)
    assert [str(w.message).split(" begins")[0] for w in told] == ["s: none of 5 spikes", "s: none of 1 trials"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session_of(intervals=[[-10, 0.15], [50, 60]], trials=trials.assign(start=50.0, stop=51.0))


def test_rows_that_stop_before_they_start_are_refused():
    for key in ("trials", "stimuli"):
        with pytest.raises(BadRecording, match=rf"1 of 2 rows of {key} stop before they start \(row 1 at 0.5 s"):
            session_of(**{key: pd.DataFrame({"start": [0.1, 2.0], "stop": [0.4, 0.5]})})


@pytest.mark.parametrize("changes", [
    {"units": ["u0", "u1", "u2"]}, {"trials": [(0, 1)]}, {"rows": [0, 1, 0.5, 2, 1]}, {"rows": [0, 1, 0, 2, 2**32]},
    {"rows": [0, 1, 0, 2, np.nan]}, {"trials": pd.DataFrame({"start": ["soon"], "stop": ["later"]})}])
def test_what_is_no_table_and_no_number_is_one_sentence(changes):
    with pytest.raises(BadRecording, match=r"must be (a pandas DataFrame|whole numbers|numbers, in seconds)"):
        session_of(**changes)
