"""The raster dashboard: what it says about a view is true, what it draws are pixels, and a zoom changes them."""

import time

import numpy as np
import pandas as pd
import panel as pn
import pytest
from bokeh.models import ColorBar, Plot

from tests.apps.browsing import colours, serving, wait_for
from workbench import Series, Session
from workbench.analysis.raster import CountPyramid
from workbench.apps.raster import AXIS, SHADES, Raster
from workbench.errors import UnknownName, WorkbenchError


def recording(spikes=20_000, n=12, seconds=100.0, **more):
    rng = np.random.default_rng(1)
    times = np.arange(0, seconds, 0.02)
    starts = np.arange(1.0, seconds - 3, 4.0)
    units = pd.DataFrame({"id": [f"cell {i}" for i in range(n)], "region": np.where(np.arange(n) % 3, "M1", "PMd"),
                          "depth": rng.uniform(0, 2000, n), "snr": rng.uniform(1, 9, n)})
    return Session(**{"id": "test", "spike_times": np.sort(rng.uniform(0, seconds, spikes)),
                      "spike_units": (rng.beta(1, 3, spikes) * n).astype(np.int32), "units": units,
                      "intervals": [[0, seconds]],
                      "series": {"hand_vel": Series(times, rng.normal(size=(len(times), 2)), "m/s", ("x", "y")),
                                 "emg": Series(times, rng.normal(size=(len(times), 12)), "mV")},
                      "trials": pd.DataFrame({"start": starts, "stop": starts + 3, "target": "left"}), **more})


def drawn(raster: Raster):
    """The viewer as Panel would draw it, without a browser."""
    return raster.__panel__().get_root()


def test_the_status_counts_what_is_in_view():
    session = recording()
    raster = Raster(session, window=(10, 20))
    inside = ((session.spike_times >= 10) & (session.spike_times < 20)).sum()
    assert f"12 of 12 units · {inside:,} of 20,000 spikes in view · binned at 10 ms" in raster.status
    assert "10.00 to 20.00 s" in raster.status and "observed" not in raster.status
    assert "exact to 2 ms" in Raster(session, window=(10, 11)).status


def test_the_status_counts_the_seconds_that_were_observed():
    session = recording(intervals=[[0, 20.6], [75, 100]])
    assert "45.6 s observed of 100.0 s in view" in Raster(session).status
    assert "1.000 s observed of 4.000 s in view" in Raster(session, window=(72, 76)).status
    assert "observed" not in Raster(session, window=(80, 90)).status


def test_the_population_is_not_drawn_where_nothing_was_observed():
    curve = Raster(recording(intervals=[[0, 20], [80, 100]]))._population((0, 100), None).get(0)
    times, rates = curve.dimension_values(0), curve.dimension_values(1)
    assert np.isnan(rates[(times > 20.5) & (times < 79.5)]).all()
    assert (rates[(times < 19.5) | (times > 80.5)] > 5).all()


def test_every_column_sorts_and_colours_the_rows():
    raster = Raster(recording(), series=[])
    drawn(raster)
    assert raster.param.sort.objects == ["table order", "region", "rate", "id", "depth", "snr"]
    for name in raster.param.sort.objects:
        raster.param.update(sort=name, color=name if name != "table order" else "none")
        image = raster._image((10, 20), None, 300, 200, 1.0)
        counts, shades = image.dimension_values("spikes", flat=False), image.dimension_values("shade", flat=False)
        assert counts.sum() == CountPyramid(raster.session).view(10, 20, 300).spikes
        assert shades.max() < len(raster._palette)
        assert ((shades % SHADES > 0) == (counts > 0)).all()


def test_the_rows_of_the_picture_are_the_units_in_order():
    raster = Raster(recording(), sort="rate", series=[])
    image = raster._image((0, 100), None, 300, 200, 1.0)
    top_first = [image[0:100, row - 0.4:row + 0.4].dimension_values("spikes").sum() for row in range(12)]
    assert top_first == sorted(np.bincount(raster.session.spike_units, minlength=12), reverse=True)


@pytest.mark.parametrize("odd", [
    {"spike_times": [], "spike_units": []},
    {"spike_times": [], "spike_units": [], "units": pd.DataFrame({"id": []})},
    {"units": pd.DataFrame({"id": list("abcdefghijkl"), "snr": [np.nan] * 11 + [1.0], "quality": [None] * 12})},
    {"series": {}, "trials": pd.DataFrame({"start": [], "stop": []})},
    {"intervals": [[0, 10], [30, 40], [90, 100]]},
    {"series": {"still": Series(np.arange(0.0, 100), np.full((100, 1), np.nan))}},
])
def test_odd_recordings_are_drawn_too(odd):
    root = drawn(Raster(recording(**odd), series=list(odd.get("series", ["hand_vel"]))))
    assert list(root.select({"type": Plot}))


def test_a_real_recording_is_drawn_whole(real_data):
    session = Session.from_nwb(real_data / "m1_reach.nwb")
    raster = Raster(session)
    drawn(raster)
    n, total = len(session.units), f"{len(session.spike_times):,}"
    assert f"{n} of {n} units · {total} of {total} spikes in view · binned at" in raster.status
    assert raster.series == ["hand_pos", "hand_vel"]


def figures(raster: Raster) -> list:
    """The Bokeh figures of the viewer, top first."""
    root = drawn(raster).ref["id"]
    return [pane._models[root][0] for pane in raster._plots]


def test_more_columns_than_lines_can_show_become_a_picture_with_a_scale_and_the_first_on_top():
    plot = figures(Raster(recording(), series=["emg"]))[-1]
    assert plot.y_range.start > plot.y_range.end
    assert [bar.title for bar in plot.select(type=ColorBar)] == ["mV"]


def test_one_line_needs_no_legend_and_two_have_their_names():
    times = np.arange(0.0, 100, 0.1)
    session = recording(series={"speed": Series(times, np.sin(times)[:, None], "cm/s"),
                                "hand": Series(times, np.zeros((len(times), 2)), "cm", ("x", "y"))})
    one, two = figures(Raster(session, series=["speed", "hand"]))[-2:]
    assert not one.legend and [item.label.value for item in two.legend[0].items] == ["x", "y"]
    assert not one.title.text and not two.title.text


def test_names_of_regions_are_whole_where_there_is_room():
    session = recording()
    session.units["region"] = np.where(np.arange(12) < 6, "Primary visual area", "Anterior cingulate area, dorsal part")
    raster, *_, last = figures(Raster(session, sort="region"))
    assert set(raster.yaxis[0].major_label_overrides.values()) == {"Primary visual area", "Anterior cingulate area…"}
    assert raster.min_border_left == last.min_border_left >= 150        # so that times stay aligned


def test_names_of_regions_do_not_overlap_without_spikes():
    session = recording(spike_times=[], spike_units=[])
    session.units["region"] = [f"area {i}" for i in range(12)]
    raster = Raster(session, sort="region")
    height, ticks, _ = raster._blocks(130)
    assert np.diff([at for at, _ in ticks]).min() * (height - AXIS) / 12 >= 12
    assert [name for _, name in ticks] == [f"area {i}" for i in range(12)]


@pytest.mark.parametrize(("wrong", "says"), [({"sort": "dept"}, "depth"), ({"color": "ratee"}, "rate"),
                                             ({"series": ["hand_velocity"]}, "hand_vel")])
def test_an_unknown_name_is_answered_with_the_near_ones(wrong, says):
    with pytest.raises(UnknownName, match=says):
        Raster(recording(), **wrong)


def test_a_window_outside_the_recording_is_refused_in_one_sentence():
    with pytest.raises(WorkbenchError, match="choose one inside 0 to 100 s"):
        Raster(recording(), window=(200, 300))


def test_simulated_is_said_wherever_the_raster_is_shown():
    raster = Raster(recording(simulated=True))
    assert "SIMULATED" in raster.status
    assert any("SIMULATED" in str(pane.object) for pane in raster.__panel__().select(pn.pane.HTML))


def test_the_code_makes_the_same_view(monkeypatch):
    import workbench.catalog
    session = recording()
    raster = Raster(session, recording="mine.nwb", sort="rate", color="snr", series=["hand_vel"], window=(3, 8.5))
    monkeypatch.setattr(workbench.catalog, "open_recording", {"mine.nwb": session}.__getitem__)
    *lines, last = raster.code().splitlines()
    names = {}
    exec("\n".join(lines), names)
    again = eval(last, names)
    assert all(getattr(again, p) == getattr(raster, p) for p in ("sort", "color", "series", "window", "status"))


def test_zoom_redraws_ten_million_spikes_at_once():
    raster = Raster(recording(10_000_000, 300, 3_600.0, series={}), series=[])
    for window in [(0, 3600), (100, 1000), (100, 110)]:
        begun = time.perf_counter()
        raster._image(window, None, 1200, 500, 1.0)
        assert time.perf_counter() - begun < 1                          # 0.05 s on an idle core


@pytest.fixture(scope="module")
def address():
    made = []

    def build():
        made.append(Raster(recording(200_000, 60, 300.0)))
        return made[-1]

    with serving(build) as url:
        yield url, made


def test_pixels_are_drawn_and_a_zoom_changes_them(address, page):
    url, made = address
    said = []
    page.on("console", lambda message: said.append(message.text) if "nonexistent field" in message.text else None)
    page.goto(url)
    canvas = page.locator(".bk-Figure").first
    canvas.wait_for()
    page.locator("text=spikes in view").wait_for()
    wait_for(lambda: (colours(canvas.screenshot()).std(axis=2) > 20).mean() > 0.1)         # M1 blue, PMd vermilion
    page.wait_for_timeout(500)
    before, window = colours(canvas.screenshot()), made[-1].window
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    for _ in range(10):
        page.mouse.wheel(0, -240)
        page.wait_for_timeout(40)
    start, stop = wait_for(lambda: made[-1].window)
    assert window is None and 0 <= start < stop <= 300 and stop - start < 250
    page.wait_for_timeout(1500)
    assert not said, said
    assert (np.abs(colours(canvas.screenshot()) - before).max(axis=2) > 40).mean() > 0.05
    page.locator("text=60 of 60 units").first.wait_for()


def test_a_zoom_out_never_leaves_the_recording(page):
    made = []

    def build():
        made.append(Raster(recording(20_000, 12, 300.0), series=[]))
        return made[-1]

    with serving(build) as url:
        page.goto(url)
        canvas = page.locator(".bk-Figure").first
        canvas.wait_for()
        page.locator("text=spikes in view").wait_for()
        box = canvas.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        for turn in [-240] * 4 + [240] * 30:
            page.mouse.wheel(0, turn)
        page.wait_for_timeout(2500)
        assert "0.00 to 300.00 s" in made[-1].status and made[-1].window is None
