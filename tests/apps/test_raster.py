"""The raster dashboard: what it says about a view is true, what it draws are pixels, and a zoom changes them."""

import asyncio
import html
import re
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qsl, urlparse

import numpy as np
import pandas as pd
import panel as pn
import pytest
from bokeh.document import Document
from bokeh.events import SelectionGeometry
from bokeh.models import ColorBar, ColumnDataSource, LinearColorMapper, Plot, Range1d
from panel.models import HTML

from tests.apps.browsing import colours, serving, wait_for
from workbench import Series, Session, models
from workbench.analysis.raster import CountPyramid
from workbench.apps import _marks, _selection, _tokens
from workbench.apps._beneath import PARTS
from workbench.apps._picture import AXIS, Picture, blocks
from workbench.apps.raster import SHADES, STATE, Raster
from workbench.errors import UnknownName, WorkbenchError
from workbench.training.recipe import Recipe
from workbench.windows import split


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
    times, rates = Raster(recording(intervals=[[0, 20], [80, 100]])).beneath.population(0, 100)
    assert np.isnan(rates[(times > 20.5) & (times < 79.5)]).all()
    assert (rates[(times < 19.5) | (times > 80.5)] > 5).all()


def test_every_column_sorts_and_colours_the_rows():
    raster = Raster(recording(), series=[], window=(10, 20))
    drawn(raster)
    assert raster.param.sort.objects == ["table order", "region", "rate", "id", "depth", "snr"]
    for name in raster.param.sort.objects:
        raster.param.update(sort=name, color=name if name != "table order" else "none")
        seen = raster.look((-0.5, 11.5), 300, 200)
        assert seen.counts.sum() == CountPyramid(raster.session).view(10, 20, 300).spikes
        assert seen.shades.max() < len(raster.palette)
        assert ((seen.shades % SHADES > 0) == (seen.counts > 0)).all()


def test_the_rows_of_the_picture_are_the_units_in_order():
    raster = Raster(recording(), sort="rate", series=[])
    seen = raster.look((-0.5, 11.5), 300, 200)
    assert (seen.top, seen.bottom) == (-0.5, 11.5)
    assert seen.counts.sum(axis=1).tolist() == sorted(np.bincount(raster.session.spike_units, minlength=12),
                                                      reverse=True)


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
    root = drawn(raster)
    [picture] = raster._pictures
    plots = [picture.spikes, *(strip.plot for strip in picture.strips)]
    assert set(plots) == set(root.select({"type": Plot}))
    return plots


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
    height, names, _ = blocks(raster.names, False, 12)
    assert np.diff(list(names)).min() * (height - AXIS) / 12 >= 12
    assert list(names.values()) == [f"area {i}" for i in range(12)]


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
    chosen = {"tokens": "patches", "moments": "4:5,6:7.5", "chosen_units": "cell 3,cell 7"}
    for more in ({}, chosen):
        raster = Raster(session, recording="mine.nwb", sort="rate", color="snr", series=["hand_vel"], window=(3, 8.5),
                        **more)
        monkeypatch.setattr(workbench.catalog, "open_recording", {"mine.nwb": session}.__getitem__)
        *lines, last = raster.code().splitlines()
        names = {}
        exec("\n".join(lines), names)
        again = eval(last, names)
        assert all(getattr(again, p) == getattr(raster, p) for p in (*STATE, "status"))


def test_the_code_is_written_anew_while_it_is_looked_at():
    raster = Raster(recording())
    [card] = [card for card in raster.__panel__().select(pn.Card) if card.title == "As code"]
    said = lambda: html.unescape(card[0].object)
    raster.go(10, 20)
    assert "window=None" in said()
    card.collapsed = False
    assert "window=(10.0, 20.0)" in said()
    raster.sort = "rate"
    assert "sort='rate'" in said()


# Pan and zoom.


def test_a_zoom_changes_data_of_plots_and_nothing_else_of_them():
    raster, doc = Raster(recording(), series=["hand_vel", "emg"], tokens="bins"), Document()
    doc.add_root(drawn(raster))
    [picture] = raster._pictures
    counts, changed = picture._image.data["spikes"][0], []
    doc.on_change(changed.append)
    doc.hold("collect")
    raster.go(10, 12)
    doc.unhold()
    assert picture._image.data["spikes"][0].sum() < counts.sum()
    fitted = {strip.plot.y_range for strip in picture.strips}
    assert {type(event.model) for event in changed} == {ColumnDataSource, LinearColorMapper, Range1d, HTML}
    assert {event.model for event in changed if isinstance(event.model, Range1d)} <= {picture.time, *fitted}
    assert {event.attr for event in changed if isinstance(event.model, HTML)} == {"text"}


def test_one_raster_shown_twice_shows_the_same_seconds_twice():
    raster = Raster(recording())
    roots = [drawn(raster) for _ in range(2)]
    assert len(roots) == len(raster._pictures) == 2
    one, two = raster._pictures
    one.time.update(start=20, end=30)
    one._moved(None)
    assert (two.time.start, two.time.end) == raster.window == (20, 30)
    assert two._image.data["x"] == one._image.data["x"] == [20]
    raster.window = None
    assert (one.time.start, one.time.end) == (two.time.start, two.time.end) == (0, 100)
    one.rows.update(start=5.5, end=1.5)
    for asked, units in ((one, 4), (two, 12), (one, 4)):                # status is of what was asked
        asked.time.update(start=30, end=asked.time.end - 1)
        asked._moved(None)
        assert "4 of 12 units" in one.status.object and "12 of 12 units" in two.status.object
        assert f"{units} of 12 units" in raster.status
    raster.tokens = "bins"
    assert "4 of 12 units" in one.status.object and "12 of 12 units" in two.status.object
    assert "to see tokens" in one.status.object


def test_only_the_last_view_of_a_wheel_that_turns_on_is_drawn(monkeypatch):
    raster, doc, drawn_ = Raster(recording()), Document(), []
    doc.add_root(drawn(raster))
    [picture] = raster._pictures
    monkeypatch.setattr(Picture, "show", lambda picture: drawn_.append(raster.window))

    async def turn():
        for start in (10, 20, 30):
            picture.time.update(start=start, end=50)
            picture._moved(None)
        picture._resized("inner_width", 1000, 1100)
        assert not drawn_
        await asyncio.sleep(0.2)

    with ThreadPoolExecutor(1) as apart:                                # the browser of other tests keeps a loop here
        apart.submit(asyncio.run, turn()).result()
    assert drawn_ == [(30, 50)] and picture.size == {"width": 1100, "height": 400}


def test_a_view_of_nothing_changes_nothing():
    raster = Raster(recording(), window=(10, 20))
    for nothing in ((200, 300), (5, 5), (7, 3)):
        assert not raster.go(*nothing) and raster.window == (10, 20)


def test_a_window_set_later_is_checked_too():
    raster = Raster(recording(), window=(10, 20))
    raster.window = (-5, 30)
    assert raster.window == (0, 30) and "0.00 to 30.00 s" in raster.status
    with pytest.raises(WorkbenchError, match="choose one inside 0 to 100 s"):
        raster.window = (200, 300)
    assert raster.window is None and "0.00 to 100.00 s" in raster.status


def test_rows_out_of_view_are_not_counted():
    raster = Raster(recording())
    figures(raster)
    [picture] = raster._pictures
    picture.rows.update(start=5.5, end=1.5)                             # rows 2 to 5
    picture._moved(None)
    assert "4 of 12 units" in raster.status and picture._image.data["spikes"][0].shape[0] == 4
    assert (picture._image.data["y"], picture._image.data["dh"]) == ([1.5], [4])


# The split.


def strip(raster: Raster) -> dict[str, np.ndarray]:
    """Part → its boxes (from, until) as drawn."""
    boxes = pd.DataFrame(raster.beneath.split(0, 100))
    return {name: boxes.loc[boxes["part"] == name, ["left", "right"]].to_numpy() for name in PARTS}


def test_the_strip_shows_the_parts_of_the_default_split_and_leaves_gaps_empty():
    session = recording(intervals=[[0, 20.6], [75, 100]])
    drawn = strip(Raster(session))
    for name, rows in split(session).items():
        assert np.allclose(drawn[name], rows) and len(rows)
    assert sum(np.diff(rows).sum() for rows in drawn.values()) == pytest.approx(45.6)
    assert not any(((rows[:, 0] < 75) & (rows[:, 1] > 20.6)).any() for rows in drawn.values())


def run_of(session, folder, **recipe):
    """A folder that looks like a run's, with a recipe and no model."""
    Recipe(**{"model": "gru", "data": "reach-sim", **recipe}).save(folder / "recipe.yaml")
    return str(folder)


def test_a_run_brings_its_own_split_and_time_of_no_part_stays_empty(tmp_path):
    session = recording()
    how = {"by": "trial", "test": 0.3, "valid": 0.2, "seed": 5}
    raster = Raster(session, run=run_of(session, tmp_path, split=how))
    drawn = strip(raster)
    for name, rows in split(session, **how).items():
        assert np.allclose(drawn[name], rows)
    trials = 3.0 * len(session.trials)
    assert sum(np.diff(rows).sum() for rows in drawn.values()) == pytest.approx(trials)
    assert "by trial" in raster._split.object and f"{100 - trials:,.4g} s in no part" in raster._split.object
    raster.run = ""
    assert np.allclose(strip(raster)["train"], split(session)["train"])


def test_a_split_that_cannot_be_is_told_and_the_rest_is_drawn(tmp_path):
    session = recording(trials=pd.DataFrame({"start": [], "stop": []}))
    raster = Raster(session, run=run_of(session, tmp_path, split={"by": "trial"}), series=[])
    assert "no recording is left for the train part" in raster._split.object
    assert "spikes in view" in raster.status and [plot.height for plot in figures(raster)][1:] == [84 + 46]
    with pytest.raises(WorkbenchError, match="there is no run"):
        Raster(session, run="/nowhere")
    raster.run = "/nowhere"
    assert "there is no run" in raster._alerts[0].object


# Tokens.


def lines(layer, color: str) -> np.ndarray:
    """The times of the lines of that colour, which go from top to bottom."""
    assert all(line[0] == line[2] and line[1] == -0.5 and line[3] == 11.5 for line in layer.draw(12).lines)
    return np.array([line[0] for line in layer.draw(12).lines if line[4] == color])


def test_the_views_of_tokens_are_those_of_the_analysis():
    from workbench.analysis.tokens import VIEWS
    assert ("none", *VIEWS) == _tokens.CHOICES
    with pytest.raises(UnknownName, match="patches"):
        Raster(recording(), tokens="patch")
    with pytest.raises(UnknownName, match="model"):
        Raster(recording(), tokens="model")


def test_the_lines_drawn_are_the_edges_of_bins_that_hold_the_spikes_in_view():
    session = recording()
    raster = Raster(session, tokens="bins", window=(10.003, 12.501))
    found = raster._layers.at("bins", 10.003, 12.501, raster.order)
    edges, tokens = lines(found, _tokens.LINE), found.tokens
    assert edges[0] == pytest.approx(10.0) and edges[-1] == pytest.approx(12.52) and len(edges) == 127
    assert (np.histogram(session.spike_times, edges)[0] == tokens.counts[:, 0]).all()
    assert "126 tokens</b> in view · a token holds the counts of all units in 20 ms" in raster.status


def test_patches_are_drawn_where_their_units_are_sorted_to():
    session = recording()
    raster = Raster(session, tokens="patches", sort="depth", window=(10, 11))
    boxes = raster._layers.at("patches", 10, 11, raster.order).draw(12).under
    tint_of = {row: tint[:7] for _, first, _, last, tint, _ in boxes
               for row in range(int(first + 0.5), int(last + 0.5))}
    assert [tint_of[row] for row in range(12)] == [_tokens.TINTS[unit // 8] for unit in raster.order]
    assert "those of one colour are one patch" in raster.status
    raster.sort = "table order"
    assert "of one colour" not in raster.status
    assert len(raster._layers.at("patches", 10, 11, raster.order).draw(12).under) == 2


@pytest.mark.parametrize("sort", ["rate", "region", "table order"])
def test_the_marks_are_in_the_figure_however_rows_are_sorted(sort):
    plot = figures(Raster(recording(), sort=sort, tokens="bins", moments="10:11", window=(10, 12)))[0]
    assert plot.y_range.start > plot.y_range.end                        # the first row on top
    [lines] = [source.data for source in plot.select({"type": ColumnDataSource}) if "x0" in source.data]
    assert sum(color == _tokens.LINE for color in lines["color"]) == 101


@pytest.mark.parametrize("view", ["spikes", "events"])
def test_single_spikes_are_marked_where_they_are(view):
    session = recording()
    raster = Raster(session, tokens=view, window=(10, 11))
    times, rows = raster.marks(12).points
    inside = (session.spike_times >= 10) & (session.spike_times < 11)
    assert np.allclose(times, session.spike_times[inside], atol=1e-5)
    assert (raster.order[rows] == session.spike_units[inside]).all()
    assert f"{inside.sum():,} tokens</b> in view" in raster.status


def test_tokens_too_many_to_tell_apart_are_not_drawn_and_it_says_how_far_to_zoom_in():
    raster = Raster(recording(), tokens="bins")
    drawn(raster)
    assert "zoom in to 4 s to see tokens" in raster.status
    assert raster._layers.at("bins", 0, 100, raster.order).draw(12) == _marks.Drawn()
    assert "zoom in" not in Raster(recording(), tokens="bins", window=(10, 14)).status


def test_the_tokens_of_a_model_are_those_it_reads(tmp_path):
    session = recording()
    how = dict(patch=4, dim=32, depth=1, decoder_depth=1, heads=2, inner=32, bin_size=0.05, window=0.5)
    models.build("ndt2", [session], **how).save_pretrained(tmp_path / "ndt2")
    raster = Raster(session, run=tmp_path / "ndt2", tokens="model", window=(10, 12))
    assert "NDT2 reads windows of 0.5 s" in raster.status
    assert "4 neighbouring units of the table in 50 ms" in raster.status
    found = raster._layers.at("model", 10, 12, raster.order)
    assert np.allclose(lines(found, "#000000"), [10, 10.5, 11, 11.5, 12]) and len(lines(found, _tokens.LINE)) == 41
    models.build("poyo", [session], target="hand_vel", dim=32, depth=1, latents=2).save_pretrained(tmp_path / "poyo")
    raster.run = str(tmp_path / "poyo")
    assert "POYO reads windows of 1 s, in steps of 125 ms" in raster.status and "one spike" in raster.status
    found = raster._layers.at("model", 10, 12, raster.order)
    assert np.allclose(lines(found, _tokens.STEP), np.arange(10, 12.1, 0.125))
    raster.run = run_of(session, tmp_path)                              # which has no model yet
    assert raster.tokens == "none" and "no final weights yet" in raster._alerts[0].object


# What is chosen.


def test_the_window_opens_on_the_first_chosen_moment_and_shows_it_well():
    raster = Raster(recording(), moments="40:41,80:81", chosen_units="cell 5")
    assert raster.window == (39, 42) and "2 chosen moments, 2 s; 1 chosen unit" in raster.status
    assert Raster(recording(), moments="40:41", window=(0, 10)).window == (0, 10)
    assert Raster(recording(), moments="0:0.1").window == (0, 2)
    with pytest.raises(WorkbenchError, match="none of the chosen moments"):
        Raster(recording(), moments="400:410")
    with pytest.raises(WorkbenchError, match="write seconds"):
        Raster(recording(), moments="soon")
    with pytest.raises(UnknownName, match="cell 5"):
        Raster(recording(), chosen_units="cell 55")


def test_chosen_moments_are_bands_and_other_units_are_pale():
    raster = Raster(recording(), sort="rate", moments="40:41,80:81", chosen_units="cell 5", window=(0, 100))
    shown, at = raster.marks(12), int(np.flatnonzero(raster.order == 5)[0])
    assert np.allclose([box[:4:2] for box in shown.under if box[5] == _selection.EDGE], [[40, 41], [80, 81]])
    pale = np.array([box[1:4:2] for box in shown.over if box[4] == _selection.PALE])
    assert np.diff(pale).sum() == 11 and not ((pale[:, 0] < at) & (pale[:, 1] > at)).any()
    raster.param.update(moments="", chosen_units="")
    shown = raster.marks(12)
    assert not shown.under and not shown.over and "chosen" not in raster.status


def test_a_box_chooses_moments_and_units_and_one_over_all_rows_no_units():
    def drag(*corners, final=True):
        raster.boxed(SelectionGeometry(None, {"type": "rect", **dict(zip(("x0", "y0", "x1", "y1"), corners,
                                                                         strict=True))}, final))

    raster = Raster(recording(), sort="rate")
    drag(20.5, 4.4, 30.25, 1.6, final=False)
    assert not raster.moments
    drag(20.5, 4.4, 30.25, 1.6)
    assert raster.moments == "20.500:30.250" and (
        set(raster.chosen_units.split(",")) == {f"cell {unit}" for unit in raster.order[2:5]})
    assert "1 chosen moment, 9.75 s; 3 chosen units" in raster.status
    drag(-5, -0.5, 30, 11.5)
    assert raster.moments == "0:30" and raster.chosen_units == ""


def test_zoom_redraws_ten_million_spikes_at_once():
    raster = Raster(recording(10_000_000, 300, 3_600.0, series={}), series=[])
    drawn(raster)
    for window in [(0, 3500), (100, 1000), (100, 110)]:
        begun = time.perf_counter()
        raster.go(*window)
        assert time.perf_counter() - begun < 1                          # 0.05 s on an idle core


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A file that is drawn in no time."""
    return recording(3_000, 6, 200.0, series={}).save(tmp_path_factory.mktemp("small") / "small.h5")


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


def test_a_zoom_out_never_leaves_the_recording_and_a_zoom_in_stops_at_ten_milliseconds(page):
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
        for _ in range(40):
            page.mouse.wheel(0, -240)
            page.wait_for_timeout(60)
        page.wait_for_timeout(1000)
        assert np.diff(made[-1].window) == pytest.approx(0.01, rel=0.01)
        [picture] = [one for one in made[-1]._pictures if one.spikes.document]
        assert (picture.time.start, picture.time.end) == made[-1].window


def test_two_visitors_of_one_raster_see_the_same_seconds_and_reset_brings_all_back(browser, page):
    raster = Raster(recording(20_000, 12, 300.0), series=[])
    with serving(lambda: raster) as url:
        other = browser.new_page()
        try:
            for one in (other, page):
                one.goto(url)
                one.locator("text=0.00 to 300.00 s").wait_for()
                one.wait_for_timeout(1000)
            page.bring_to_front()
            box = page.locator(".bk-Figure").first.bounding_box()
            page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            page.mouse.wheel(0, -240)
            page.locator("text=0.00 to 300.00 s").wait_for(state="detached")
            said = f"{raster.window[0]:,.2f} to {raster.window[1]:,.2f} s"
            for one in (page, other):
                one.locator(f"text={said}").wait_for()
            page.locator("[title='Reset']").first.click()
            for one in (page, other):
                one.locator("text=0.00 to 300.00 s").wait_for()
            assert raster.window is None
        finally:
            other.close()


def test_a_person_zooms_in_sees_the_tokens_draws_a_box_and_follows_a_link(hub, page, small):
    page.goto(f"{hub}/apps?app=raster&data={small}")
    canvas = page.locator(".bk-Figure").first
    canvas.wait_for()
    page.locator("text=spikes in view").wait_for()
    page.wait_for_timeout(500)
    box = canvas.bounding_box()
    at = lambda x, y: (box["x"] + x * box["width"], box["y"] + y * box["height"])
    page.mouse.move(*at(0.5, 0.6))
    page.get_by_label("Tokens").select_option("bins")
    page.locator("text=zoom in to 4 s to see tokens").wait_for()
    while page.locator("text=to see tokens").count():                   # ever closer, until they can be told apart
        page.mouse.move(*at(0.5, 0.6))
        page.mouse.wheel(0, -240)
        page.wait_for_timeout(1000)
    page.locator("text=a token holds the counts of all units in 20 ms").wait_for()
    page.mouse.move(2, 2)                                               # no tooltip

    def lines() -> int:
        """Columns of pixels that are grey from the top of the frame to its bottom."""
        shot = colours(canvas.screenshot())[70:230]
        grey = (np.ptp(shot, axis=2) < 8) & (shot.max(axis=2) < 235)
        return (grey.mean(axis=0) > 0.7).sum()

    tokens = int(re.search(r"(\d+) tokens", page.locator("text=a token holds").inner_text())[1])
    wait_for(lambda: lines() >= 0.8 * tokens)                           # one a bin
    page.get_by_label("Tokens").select_option("none")
    page.locator("text=a token holds").wait_for(state="detached")
    wait_for(lambda: lines() <= 4)

    yellow = lambda: ((shot := colours(canvas.screenshot()))[..., :2].min(axis=2) - shot[..., 2] > 40).mean()
    assert yellow() < 0.01
    page.locator("[title*='Choose moments and units']").first.click()
    page.mouse.move(*at(0.3, 0.5))
    page.mouse.down()
    for x, y in ((0.45, 0.6), (0.6, 0.7)):
        page.mouse.move(*at(x, y), steps=5)
    page.mouse.up()
    page.locator("text=/1 chosen moment, .* s; \\d chosen unit/").wait_for()
    wait_for(lambda: yellow() > 0.05)
    moments, units = (dict(parse_qsl(urlparse(page.url).query)).get(key) for key in ("moments", "chosen_units"))
    start, stop = (float(t) for t in moments.split(":"))
    assert 0 <= start < stop <= 200 and 1 <= len(units.split(",")) < 6

    link = page.get_by_role("link", name="Masking")
    assert dict(parse_qsl(urlparse(link.get_attribute("href")).query)) == {
        "app": "masking", "data": str(small), "start": moments.split(":")[0]}
    page.get_by_role("button", name="Clear").click()
    link.wait_for(state="hidden")
    wait_for(lambda: yellow() < 0.01)
    wait_for(lambda: "moments=&" in page.url)
    page.goto(f"{hub}/apps?app=raster&data={small}&moments={moments}&chosen_units={units}")
    page.locator("text=/1 chosen moment, .* s; \\d chosen unit/").wait_for()
    page.get_by_role("link", name="Masking").click()
    page.locator("text=Share hidden by region").first.wait_for()
    assert "app=masking" in page.url
