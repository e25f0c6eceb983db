"""Pictures of a folder as the stimuli of a session: by name or by number, of one size, read when asked for."""

import pickle

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from workbench.errors import BadRecording
from workbench.sources import pictures

RNG = np.random.default_rng(0)
PIXELS = {f"pic{i}.png": RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8) for i in (1, 2, 10)}


@pytest.fixture
def folder(tmp_path):
    for name, pixels in PIXELS.items():
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    return tmp_path


def with_stimuli(make_session, shown):
    n = len(shown)
    return make_session(load_images=None, stimuli=pd.DataFrame(
        {"start": np.arange(n) + 5.0, "stop": np.arange(n) + 5.5, "picture": shown}))


@pytest.mark.parametrize("shown", [["pic10", "pic1", None], ["pic10.png", "D:\\stim\\pic1.png", ""]])
def test_file_names_lead_to_the_pixels_that_were_shown(make_session, folder, shown):
    session = pictures.attach(with_stimuli(make_session, shown), folder, column="picture")
    assert list(session.stimuli["image"]) == [2, 0, -1]
    np.testing.assert_array_equal(session.images[session.stimuli["image"][0]], PIXELS["pic10.png"])
    assert session.images.shape == (3, 6, 8, 3) and session.images.dtype == np.uint8


def test_numbers_count_the_pictures_in_the_order_of_their_names(make_session, folder):
    from_one = pictures.attach(with_stimuli(make_session, [1, 3, np.nan]), folder, column="picture", first=1)
    assert list(from_one.stimuli["image"]) == [0, 2, -1]
    from_zero = pictures.attach(with_stimuli(make_session, [0, 2, 2]), folder, column="picture")
    assert list(from_zero.stimuli["image"]) == [0, 2, 2]


@pytest.mark.parametrize("shown", [pd.Series([0, None, 2], dtype=object), pd.Series([0, None, 2], dtype="Int64"),
                                   pd.Series([0, None, 2], dtype="category"), [b"pic1.png", None, b"pic10"]])
def test_numbers_and_names_are_known_in_whatever_way_a_table_keeps_them(make_session, folder, shown):
    session = pictures.attach(with_stimuli(make_session, shown), folder, column="picture")
    assert list(session.stimuli["image"]) == [0, -1, 2]


def test_a_column_of_trials_makes_the_stimuli(make_session, folder):
    session = make_session(load_images=None)
    session.trials["picture"] = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    shown = pictures.attach(session, folder, table="trials", column="picture")
    assert list(shown.stimuli["image"]) == list(session.trials["picture"])
    assert list(shown.stimuli["start"]) == list(session.trials["start"])


def test_pictures_of_several_sizes_need_a_size_and_keep_their_proportions(make_session, folder):
    Image.fromarray(np.tile(np.array([0, 255, 0], np.uint8), (10, 40, 1))).save(folder / "wide.jpg", quality=95)
    session = with_stimuli(make_session, ["wide", "pic1", "pic2"])
    with pytest.raises(BadRecording, match=r"2 sizes .* give size="):
        pictures.attach(session, folder, column="picture")
    images = pictures.attach(session, folder, column="picture", size=(12, 12)).images
    assert images.shape == (4, 12, 12, 3) and abs(images[3].astype(int) - [0, 255, 0]).max() < 8


def test_grey_pictures_stay_grey_and_deep_ones_are_refused(make_session, tmp_path):
    grey = RNG.integers(0, 256, (2, 5, 7), dtype=np.uint8)
    for i, pixels in enumerate(grey):
        Image.fromarray(pixels).save(tmp_path / f"g{i}.tif")
    session = pictures.attach(with_stimuli(make_session, ["g1", "g0"]), tmp_path, column="picture")
    np.testing.assert_array_equal(session.images, grey)
    Image.fromarray(grey[0].astype(np.uint16) * 200).save(tmp_path / "deep.png")
    with pytest.raises(BadRecording, match="more than 8 bits"):
        pictures.attach(session, tmp_path, column="picture")


def test_a_transparent_picture_and_a_stack_are_refused_and_an_opaque_alpha_is_not(make_session, tmp_path):
    pixels = RNG.integers(0, 256, (6, 8, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    session = pictures.attach(with_stimuli(make_session, ["a"]), tmp_path, column="picture")
    np.testing.assert_array_equal(session.images[0], pixels[..., :3])
    pixels[0, 0, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(BadRecording, match=r"a\.png can be seen through"):
        _ = pictures.attach(session, tmp_path, column="picture").images
    frame = Image.fromarray(pixels[..., 0])
    frame.save(tmp_path / "b.tif", save_all=True, append_images=[frame, frame])
    with pytest.raises(BadRecording, match=r"b\.tif has 3 frames"):
        pictures.attach(session, tmp_path, column="picture")


def test_nothing_is_read_until_it_is_asked_for_and_another_process_can_ask(make_session, folder, monkeypatch):
    monkeypatch.setattr(pictures.Image.Image, "convert", lambda *a: pytest.fail("decoded"))
    session = pictures.attach(with_stimuli(make_session, ["pic1"]), folder, column="picture")
    monkeypatch.undo()
    assert pickle.loads(pickle.dumps(session.load_images))().shape == (3, 6, 8, 3)


@pytest.mark.parametrize(("shown", "options", "words"), [
    (["pic1", "pic77"], {}, "names 'pic77', and there is no such picture"),
    ([0, 3], {}, "number 3, and .* has 3 pictures, counted from 0"),
    ([0, 1], {"first": 1}, "number 0"),
    (["faces/pic1.png", "houses/pic1.png"], {}, r"'pic1\.png' in two folders, faces and houses"),
    (["pic1"], {"column": "name"}, "no column 'name'.*start, stop, picture"),
    (["pic1"], {"table": "units"}, "not of 'units'"),
])
def test_what_does_not_fit_is_told_in_one_sentence(make_session, folder, shown, options, words):
    with pytest.raises(BadRecording, match=words) as told:
        pictures.attach(with_stimuli(make_session, shown), folder, **{"column": "picture"} | options)
    assert "\n" not in str(told.value)


def test_a_folder_without_pictures_and_a_damaged_picture_are_told(make_session, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    session = with_stimuli(make_session, ["pic1"])
    with pytest.raises(BadRecording, match="no picture"):
        pictures.attach(session, tmp_path / "empty", column="picture")
    data = (folder / "pic2.png").read_bytes()
    (folder / "pic2.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadRecording, match=r"pic2.png cannot be read"):
        _ = pictures.attach(session, folder, column="picture").images
    (folder / "pic2.png").write_bytes(b"no picture")
    with pytest.raises(BadRecording, match=r"pic2.png cannot be read"):
        pictures.attach(session, folder, column="picture")


def test_real_photographs_of_many_sizes_become_one_array(make_session, real_data):
    if not (real_data / "pictures").is_dir():
        pytest.skip("no pictures there")
    files = pictures.find(real_data / "pictures")[:12]
    images = pictures.load(files, (32, 32))
    assert images.shape[:3] == (12, 32, 32) and images.std(axis=(1, 2, 3)).min() > 5
