"""Events and pictures of a session's tables, read as series."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from workbench import Session
from workbench.batch import Reader
from workbench.conditions import beside, picture_names, pictures, thumbnails
from workbench.errors import BadRecording, UnknownName


def recording(**changes) -> Session:
    trials = pd.DataFrame({"start": [0.0, 2.0, 4.0], "stop": [1.0, 3.0, 5.0], "go": [4.5, np.nan, 0.5],
                           "x": [1.0, 2.0, 3.0], "side": ["left", "right", "left"]})
    stimuli = pd.DataFrame({"start": [1.0, 2.0, 3.0], "stop": [1.5, 2.5, 3.5], "image": [1, -1, 0]})
    images = np.zeros((2, 20, 12, 3), np.uint8)
    images[1, :10] = 255
    return Session(**dict(id="events", spike_times=[0.1, 4.9], spike_units=[0, 0], units=pd.DataFrame({"id": ["u"]}),
                          intervals=[[0, 6]], trials=trials, stimuli=stimuli, load_images=lambda: images) | changes)


def test_events_come_in_order_of_time_with_what_the_table_says_of_them():
    go = recording().get_series("trials.go:x")
    assert go.times.tolist() == [0.5, 4.5] and go.values.tolist() == [[1, 3], [1, 1]]       # one never came
    assert recording().get_series("trials.go").values.tolist() == [[1], [1]]


def test_a_batch_carries_events_as_it_carries_series_and_does_without_where_there_are_none():
    without = recording(id="none", trials=pd.DataFrame({"start": [0.0], "stop": [1.0]}))
    batch = Reader([recording(), without], also=("trials.go:x",)).read([0, 0, 1], [0.0, 4.0, 0.0], 1.0)
    told = batch.targets["trials.go:x"]
    assert told.times.tolist() == [0.5, 0.5] and told.values[:, 1].tolist() == [3, 1]
    assert told.offsets.tolist() == [0, 1, 2, 2]


def test_pictures_are_those_that_were_shown_and_a_grey_screen_is_none():
    shown = recording().get_series("stimuli.start:pixels")
    assert shown.times.tolist() == [1.0, 3.0] and shown.values.shape == (2, 1 + 8 * 8 * 3)
    assert 0.4 < shown.values[0, 1:].mean() < 0.6 and (shown.values[1, 1:] == 0).all()
    np.testing.assert_array_equal(shown.values[0, 1:], thumbnails(recording().images)[1])
    mean = pictures(recording(), lambda images: images.mean((1, 2, 3)))
    assert mean.times.tolist() == [1.0, 3.0] and mean.values.tolist() == [[127.5], [0.0]]
    assert beside(recording(), brightness=mean).get_series("brightness").values.shape == (2, 1)


def test_small_pictures_keep_the_mean_of_any_size_and_of_grey():
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    np.testing.assert_allclose(thumbnails(images).mean(1), images.mean((1, 2, 3)) / 255)
    assert thumbnails(images[..., 0]).shape == (3, 64)


def test_what_is_not_there_gets_a_sentence():
    for name, told in (("trials.gone", "no column 'gone'"), ("trials.go:y", "no column 'y'"),
                       ("pupil.start", "no series 'pupil.start'")):
        with pytest.raises(UnknownName, match=told):
            recording().get_series(name)
    with pytest.raises(BadRecording, match="'side' holds no numbers"):
        recording().get_series("trials.go:side")
    counted = recording()
    counted = replace(counted, stimuli=counted.stimuli.assign(image=counted.stimuli["image"] + 1))
    with pytest.raises(BadRecording, match="its stimuli show picture 2 of 2; pictures count from 0"):
        counted.get_series("stimuli.start:pixels")
    with pytest.raises(BadRecording, match="pictures count from 0"):
        picture_names(counted)
    with pytest.raises(BadRecording, match="holds no pictures"):
        recording(load_images=None).get_series("stimuli.start:pixels")
