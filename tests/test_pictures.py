"""The README's pictures: one of the hub and of every dashboard, small enough for a page."""

import io

import numpy as np
import pytest

from docs.pictures import MOST, OUT, PICTURES, WIDTH, small
from workbench.apps.main import DASHBOARDS

image = pytest.importorskip("PIL.Image")


def test_every_dashboard_has_a_picture():
    assert set(PICTURES) == {"hub", *DASHBOARDS}
    assert {path.stem for path in OUT.glob("*.png")} == set(PICTURES)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_small_and_not_blank(name):
    path = OUT / f"{name}.png"
    shown = image.open(path)
    assert path.stat().st_size <= MOST and shown.width <= WIDTH
    assert (np.asarray(shown.convert("L")) < 200).mean() > 0.005


def test_a_picture_of_many_colours_is_made_small_enough():
    noise = np.random.default_rng(0).integers(256, size=(25, WIDTH // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    told = io.BytesIO()
    image.fromarray(noise).save(told, "PNG")
    made = small(told.getvalue())
    assert len(made) <= MOST and image.open(io.BytesIO(made)).size == (WIDTH, 200)
