"""Presentations, ridge beside them, and the scores: which picture was it?"""

import numpy as np
import pytest

from tests.models.test_neurobridge_pictures import TARGET, A, B, build
from workbench.errors import BadRecording
from workbench.images import identify
from workbench.windows import split


@pytest.fixture(scope="module")
def parts():
    return [split(s, by="picture") for s in (A, B)]


def each(parts, name):
    return [part[name] for part in parts]


def test_presentations_are_those_of_the_part_and_pictures_are_shared(parts):
    shown = identify.presented([A, B], each(parts, "test"), TARGET, 0.3)
    assert len(shown.start) == 12 * len(shown.vectors)                  # six repeats in each of two sessions
    for session, start, which in zip(shown.session, shown.start, shown.which, strict=True):
        row = np.searchsorted([A, B][session].series[TARGET].times, start - 1e-9)
        assert np.array_equal([A, B][session].series[TARGET].values[row], shown.vectors[which])
    with pytest.raises(BadRecording, match="no presentation lies whole"):
        identify.presented([A], [np.array([[0.0, 0.5]])], TARGET, 0.3)


def test_a_model_and_ridge_tell_held_out_pictures_apart_and_shuffled_ones_not(parts):
    model = build(sessions=[A.within(parts[0]["train"]), B.within(parts[1]["train"])], readout=False)
    found = identify.held_out(model, [A, B], *(each(parts, name) for name in ("train", "valid", "test")))
    assert found["two_way"] > 0.8 and found["ridge"]["two_way"] > 0.8
    low, high = found["two_way_interval"]
    assert low < found["two_way"] < high and found["over_ridge"][1] < found["over_ridge"][0] < found["over_ridge"][2]
    test = identify.presented([A, B], each(parts, "test"), TARGET, 0.3)
    wrong = identify.scores(np.random.default_rng(0).normal(size=(len(test.start), 6)), test, model.mean.numpy())
    assert abs(wrong["two_way"] - 0.5) < 0.1


def test_contrast_is_lower_for_a_model_that_knows_more(parts):
    knows, blind = build(readout=False), build(votes=False)
    told = [identify.contrast(model, [A], [parts[0]["valid"]]) for model in (knows, blind)]
    assert told[0] < told[1] - 0.3


def test_contrast_of_every_session_is_told_beside_that_of_all(parts):
    model, told = build(sessions=[A, B], readout=False), {}
    whole = identify.contrast(model, [A, B], each(parts, "valid"), each=told)
    shown = identify.presented([A, B], each(parts, "valid"), TARGET, model.window)
    assert whole == identify.contrast(model, [A, B], each(parts, "valid"))
    share = np.bincount(shown.session) / len(shown.session)
    assert share @ [told["a"], told["b"]] == pytest.approx(whole, rel=1e-5) and told["a"] != told["b"]


def test_ridge_wants_presentations_to_fit_and_to_choose_by(parts):
    test = identify.presented([A, B], each(parts, "test"), TARGET, 0.3)
    train = identify.presented([A, B], [parts[0]["train"], np.empty((0, 2))], TARGET, 0.3)
    with pytest.raises(BadRecording, match="b has presentations to test and none to fit"):
        identify.ridge([A, B], train, train, test, train.vectors, train.vectors, 0.1)
