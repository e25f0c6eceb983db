"""Direction tuning finds what a simulation put in, and says what it cannot work on."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from workbench import Series, Session
from workbench.analysis.tuning import direction_tuning
from workbench.errors import BadRecording, UnknownName


def circling(preferred=(0.0, 2.0, -1.5), lead=0.1, seconds=400.0):
    """Units whose rates follow the cosine of a velocity that turns at a steady rate."""
    rng = np.random.default_rng(0)
    times = np.arange(0, seconds, 0.01)
    angle = 2 * np.pi * times / 4
    rates = 20 + 15 * np.cos(2 * np.pi * (times[None] + lead) / 4 - np.array(preferred)[:, None])
    units, at = np.nonzero(rng.random(rates.shape) < rates * 0.01)
    order = np.argsort(at, kind="stable")
    return Session(id="circling", spike_times=times[at[order]], spike_units=units[order],
                   units=pd.DataFrame({"id": ["a", "b", "c"]}),
                   series={"hand_vel": Series(times, np.stack([np.cos(angle), np.sin(angle)], 1), "m/s"),
                           "still": Series(times, np.zeros((len(times), 2))),
                           "speed": Series(times, np.ones((len(times), 1)))})


def test_preferred_direction_depth_and_rates_are_recovered():
    table = direction_tuning(circling(), lead=0.1)
    away = np.angle(np.exp(1j * (table["preferred"].to_numpy() - np.array([0.0, 2.0, -1.5]))))
    assert (np.abs(away) < 0.06).all()
    assert table["depth"].to_numpy() == pytest.approx(15, abs=1.5)      # a little less: sectors average the cosine
    assert (table["r2"] > 0.98).all()
    assert table.filter(like="rate_").to_numpy().mean() == pytest.approx(20, rel=0.05)


def test_rates_are_right_however_the_velocity_is_sampled():
    session, random = circling(), np.random.default_rng(1)
    velocity = session.series["hand_vel"]
    for kept in (random.random(len(velocity.times)) < 0.7, np.isin(np.arange(len(velocity.times)) % 4, (0, 1))):
        some = velocity._replace(times=velocity.times[kept], values=velocity.values[kept])
        table = direction_tuning(replace(session, series={"hand_vel": some}))
        assert table.filter(like="rate_").mean(axis=1).to_numpy() == pytest.approx(20, rel=0.05)
        assert table["depth"].to_numpy() == pytest.approx(15, rel=0.08)


def test_a_unit_that_never_fires_has_no_tuning_and_no_error():
    session = circling()
    silent = Session(id="s", spike_times=[], spike_units=[], units=session.units, series=session.series)
    table = direction_tuning(silent)
    assert (table["depth"] == 0).all() and (table["r2"] == 0).all()


@pytest.mark.parametrize(("series", "error", "says"), [("hand_velocity", UnknownName, "hand_vel"),
                                                       ("speed", BadRecording, "1 columns"),
                                                       ("still", BadRecording, "never moves")])
def test_a_series_without_direction_is_refused_in_one_sentence(series, error, says):
    with pytest.raises(error, match=says):
        direction_tuning(circling(), series)
