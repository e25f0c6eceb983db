"""The masking dashboard: its mask is training's, its pictures are what it says, and a box drawn on it is a mask."""


import numpy as np
import panel as pn
import pytest
import torch
from bokeh.events import SelectionGeometry
from bokeh.models import Plot

from tests.analysis.test_filling import recording, small
from tests.apps.browsing import colours, serving, sideways
from workbench import models
from workbench.apps.masking import DRAWN, MODES, Masking
from workbench.errors import UnknownName, WorkbenchError
from workbench.masking import Controller


def said(view) -> str:
    """Everything that the alerts say."""
    return " ".join(pane.object for pane in view._alerts)


def picture(view, name: str) -> np.ndarray:
    """The numbers that are drawn, in the order of the unit table."""
    drawn = np.empty_like(view._sources["images"].data[name][0])
    drawn[view._grid.order] = view._sources["images"].data[name][0]
    return drawn


def test_the_modes_are_those_that_training_draws():
    assert set(MODES) == set(Controller.RATIOS)


@pytest.mark.parametrize("mode", MODES)
def test_the_mask_on_the_page_is_the_one_of_training(mode):
    session = recording()
    model = small(session)
    view = Masking(session, model, mode=mode, ratio=0.6, seed=7)
    torch.manual_seed(7)
    trained = model.draw(view.filler.read([view.start], 0.5), mode, 0.6)
    assert np.array_equal(picture(view, "mask") > 0, trained.hidden[0]) and trained.hidden.any()
    assert np.array_equal(picture(view, "mask") == 2, trained.scored[0])
    with torch.no_grad():
        rates = model.reconstruct(view.batch, trained).log_rates.exp()[0]
    assert np.allclose(picture(view, "rates"), rates, rtol=1e-4)


def test_the_spikes_drawn_are_the_windows_and_those_in_the_mask_are_hidden():
    session = recording()
    view = Masking(session, mode="temporal", start=10, length=2)
    inside = (session.spike_times >= 10) & (session.spike_times < 12)
    times = np.concatenate([view._sources[name].data["time"] for name in ("seen", "hidden")])
    assert np.allclose(np.sort(times), session.spike_times[inside], atol=1e-6)
    mask = view._sources["images"].data["mask"][0]
    for name, hides in (("seen", False), ("hidden", True)):
        drawn = view._sources[name].data
        at = np.clip(((drawn["time"] - 10) / 2 * mask.shape[1] + 1e-3).astype(int), 0, mask.shape[1] - 1)
        assert len(at) and ((mask[drawn["row"], at] > 0) == hides).all()
    hidden = len(view._sources["hidden"].data["time"])
    assert view._figures[0].title.text == f"{hidden:,} of {inside.sum():,} spikes hidden"


def test_the_loss_is_drawn_where_it_is_scored_and_adds_up_to_the_bits():
    session = recording()
    view = Masking(session, small(session), mode="neuron", ratio=0.4)
    gains, scored = picture(view, "gain"), picture(view, "mask") == 2
    assert np.array_equal(np.isfinite(gains).any(1), scored.any(1))
    bits, spikes = view.scores
    assert bits["neurobridge"] == pytest.approx(np.nansum(gains) / spikes, abs=1e-4)
    for said in (f"this window, {spikes:,} spikes", f"{bits['neurobridge']:+.3f}"):
        assert said in view._meter.object


def test_without_a_model_it_says_so_and_shows_the_simple_fills():
    view = Masking(recording())
    assert "no model" in view.status and "neurobridge" not in view.rates and not said(view)
    assert view.shown == "neighbours in time"
    before = picture(view, "rates")
    view.shown = "mean rate"
    assert not np.allclose(before, picture(view, "rates")) and np.allclose(np.nan_to_num(picture(view, "gain")), 0)


def test_every_change_draws_another_mask_or_window():
    view = Masking(recording(), length=1.0, ratio=0.3)
    seen = []
    for change in ({}, {"seed": 1}, {"ratio": 0.7}, {"mode": "neuron"}, {"length": 2.0}, {"start": 3.0}):
        view.param.update(**change)
        seen.append((view.start, view.length, view._sources["images"].data["mask"][0].tobytes()))
    assert len(set(seen)) == len(seen) and not said(view)
    view._go(1)
    assert view.start == 5.0
    view._go(0)
    assert view.filler.part_of(view.start, view.length) == "test"
    view.start = 1e6                                                    # as far as there is recording
    assert view.start == pytest.approx(58.0)


def test_the_first_window_is_held_out_and_the_status_says_which_part_it_is():
    view = Masking(recording(simulated=True))
    assert "test part of the default split" in view.status and "SIMULATED" in view.status
    view.start = 3.0
    assert "train part" in view.status


def test_modes_by_region_are_off_where_there_are_no_regions():
    session = recording(regions=("unknown",))
    with pytest.raises(WorkbenchError, match="two known regions"):
        Masking(session, mode="inter_region")
    view = Masking(session)
    choice = next(select for select in view.__panel__().select(pn.widgets.Select) if "neuron" in select.values)
    assert choice.disabled_options == ["intra_region", "inter_region"]
    assert any("switched off" in str(pane.object) and pane.visible for pane in view.__panel__().select(pn.pane.HTML))
    view = Masking(session)
    view.mode = "inter_region"                                          # from code
    assert "two known regions" in said(view)


def test_a_box_dragged_on_the_raster_is_the_mask_and_the_model_fills_it_in():
    session = recording()
    view = Masking(session, small(session), start=20.0)
    drag = SelectionGeometry(view._figures[0], geometry={"type": "rect", "x0": 20.3, "x1": 20.1, "y0": 1.2, "y1": 3.9},
                             final=True)
    view._figures[0]._trigger_event(drag)
    assert view.mode == DRAWN and view.box == (0.1, 0.3, 1, 4)
    rows, bins = np.nonzero(view._sources["images"].data["mask"][0])
    assert set(rows) == {1, 2, 3, 4} and (bins.min(), bins.max()) == (10, 29)
    with torch.no_grad():
        filled = view.filler.model.reconstruct(view.batch, view.mask).log_rates.exp()[0]
    assert np.allclose(picture(view, "rates"), filled, rtol=1e-4)
    again = Masking(session, small(session), start=20.0, box=view.box)
    assert again.mode == DRAWN and np.array_equal(picture(again, "gain"), picture(view, "gain"), equal_nan=True)
    view.mode = "neuron"
    assert view._sources["images"].data["mask"][0].any(0).all()         # units over the whole window again
    with pytest.raises(WorkbenchError, match="needs a box"):
        Masking(session, mode=DRAWN)


def test_the_meter_over_many_held_out_windows():
    session = recording()
    view = Masking(session, small(session))
    view._measure(None)
    [(name, (bits, spikes))] = view._over_many
    assert "held-out windows" in name and set(bits) == set(view.rates) and spikes > 5 * view.scores[1]
    assert f"{spikes:,} spikes" in view._meter.object
    view.seed = 3                                                       # another mask: no longer true
    assert not view._over_many and "held-out windows" not in view._meter.object


def test_shares_by_region_and_over_time_are_those_of_the_mask():
    view = Masking(recording(), mode="inter_region")
    hidden = picture(view, "mask") > 0
    regions = view.session.units["region"].to_numpy()
    assert sorted(hidden[regions == name].mean() for name in ("M1", "PMd")) == [0, 1]
    assert "100%" in view._regions.object and "0%" in view._regions.object
    view.mode = "causal"
    shares = view._sources["shares"].data["hidden"]
    assert shares[-1] == 1 and shares[0] == 0 and (np.diff(shares) >= 0).all()


def test_another_masked_model_fills_in_what_the_mask_leaves_of_the_spikes():
    session = recording()
    torch.manual_seed(0)
    model = models.build("ndt1", [session], dim=16, depth=1, bin_size=0.05)
    view = Masking(session, model, mode="neuron", seed=2)
    assert not model.training or view.shown == "ndt1"
    with torch.no_grad():
        rates = model.eval()(view.mask.of_spikes(view.batch)).log_rates.exp()[0]
    assert np.allclose(picture(view, "rates"), rates, rtol=1e-4) and "bins of 50 ms" in view.status


def test_a_model_that_has_never_met_the_units_is_told_and_the_simple_fills_stay():
    view = Masking(recording(id="new"), small(recording()))
    assert "the model has never seen it" in said(view) and "neurobridge" not in view.rates
    assert view.shown == "neighbours in time" and np.isfinite(picture(view, "rates")).all()


def test_a_folder_of_weights_fills_in_and_a_wrong_one_is_told(tmp_path):
    session = recording()
    small(session).save_pretrained(tmp_path / "weights")
    view = Masking(session, tmp_path / "weights")
    assert view.shown == "neurobridge" and str(tmp_path / "weights") in view.status
    view.run = str(tmp_path)
    assert "there is no run at" in said(view)
    view.run = ""
    assert "no model" in view.status and "neurobridge" not in view.rates and not said(view)
    view.run = str(tmp_path / "weights")
    assert view.shown == "neurobridge"


@pytest.mark.parametrize(("wrong", "says"), [
    ({"mode": "neurons"}, "neuron"), ({"ratio": 0.0}, "0.01 to 1"), ({"seed": -1}, "0 or more"),
    ({"shown": "magic"}, "mean rate"), ({"box": (0.2, 0.2, 0, 3)}, "draw a larger one"),
    ({"run": "/nowhere"}, "no run at /nowhere")])
def test_what_cannot_be_shown_is_refused_in_a_sentence(wrong, says):
    with pytest.raises((UnknownName, WorkbenchError), match=says):
        Masking(recording(), **wrong)


@pytest.mark.parametrize("odd", [
    {"spike_times": [], "spike_units": []}, {"n": 1}, {"intervals": [[0, 0.4], [10, 10.4], [20, 20.4], [30, 60]]},
    {"seconds": 1.0, "spikes": 50}, {"resolution": 0.05}, {"intervals": [[0, 0.12], [5, 5.12]]}])
def test_odd_recordings_are_shown_too(odd):
    view = Masking(recording(**odd))
    assert list(view.__panel__().get_root().select({"type": Plot})) and np.isfinite(picture(view, "rates")).all()
    view._measure(None)
    view.mode = "neuron"
    assert not said(view)


def test_the_code_makes_the_same_view(monkeypatch, tmp_path):
    import workbench.catalog
    session = recording()
    small(session).save_pretrained(tmp_path)
    monkeypatch.setattr(workbench.catalog, "open_recording", {"mine.nwb": session}.__getitem__)
    drawn = {"box": (0.1, 0.3, 2, 6), "shown": "mean rate"}
    for how in ({"mode": "neuron", "ratio": 0.35, "seed": 4, "start": 7.0}, drawn):
        view = Masking(session, tmp_path, recording="mine.nwb", **how)
        *lines, last = view.code().splitlines()
        names = {}
        exec("\n".join(lines), names)
        again = eval(last, names)
        assert all(getattr(again, p) == getattr(view, p) for p in ("mode", "start", "length", "shown", "status", "run"))
        assert np.array_equal(picture(again, "mask"), picture(view, "mask"))


# In a browser.

@pytest.fixture(scope="module")
def address():
    made, session = [], recording()
    model = small(session)

    def build():
        made.append(Masking(session, model))
        return made[-1]

    with serving(build) as url:
        yield url, made


def test_pixels_are_drawn_and_a_box_dragged_with_the_mouse_becomes_the_mask(address, page):
    url, made = address
    page.goto(url)
    pictures = page.locator(".bk-Figure")
    page.locator("text=scored in bins of 10 ms").wait_for()
    pictures.nth(2).wait_for()
    page.wait_for_timeout(1500)
    before = [colours(pictures.nth(i).screenshot()) for i in range(3)]
    assert all((shot.std(axis=2) > 15).mean() > 0.03 for shot in before)                   # more than black on white
    box = pictures.first.bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.6 * box["height"], steps=5)
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.7 * box["height"], steps=5)
    page.mouse.up()
    page.wait_for_timeout(2500)
    assert made[-1].mode == DRAWN and made[-1].box is not None
    assert (np.abs(colours(pictures.nth(2).screenshot()) - before[2]).max(axis=2) > 30).mean() > 0.02
    page.get_by_role("button", name="Draw again").wait_for()
    page.get_by_role("button", name="Later").click()
    page.wait_for_timeout(2500)
    ends = page.evaluate("""() => [...Bokeh.documents].flatMap(d => [...d._all_models.values()]).filter(
        m => m.type == "Range1d" && m.bounds && m.bounds[0] > 0).map(m => m.end - m.start)""")
    assert ends and min(ends) > 0, "the next window is drawn, not a range of no seconds"
    assert all((colours(pictures.nth(i).screenshot()).std(axis=2) > 15).mean() > 0.03 for i in range(3))


def test_the_address_brings_back_the_view_and_draw_again_changes_it(hub, page, tmp_path):
    session = recording(id="two regions")
    session.save(tmp_path / "two.h5")
    small(session).save_pretrained(tmp_path / "weights")
    page.goto(f"{hub}/apps?app=masking&session={tmp_path / 'two.h5'}&run={tmp_path / 'weights'}&mode=intra_region"
              "&ratio=0.6&length=1.5&start=4&seed=3")
    page.locator("text=4.00 to 5.50 s").wait_for()
    page.locator("text=filled in by neurobridge").wait_for()
    page.get_by_role("button", name="Draw again").click()
    page.wait_for_url("**seed=4**")
    for part in ("mode=intra_region", "ratio=0.6", "length=1.5", "start=4.0", "shown=neurobridge"):
        assert part in page.url
    assert [sideways(page, width) for width in (600, 400)] == [0, 0]


@pytest.mark.parametrize(("query", "says"), [
    ("run=/nowhere", "there is no run at /nowhere"), ("box=1,2", "write four numbers")])
def test_a_bad_address_gets_a_sentence_and_a_view(hub, page, tmp_path, query, says):
    page.goto(f"{hub}/apps?app=masking&data={recording().save(tmp_path / 'one.h5')}&{query}")
    page.get_by_role("alert").filter(has_text=says).wait_for()


def test_a_real_recording_of_many_regions(hub, page, real_data):
    page.goto(f"{hub}/apps?app=masking&data={real_data / 'steinmetz' / 'steinmetz_01.nwb'}&mode=inter_region")
    page.locator("text=734 units").wait_for()
    page.locator("text=no model").wait_for()
    page.wait_for_timeout(2000)
    page.locator("text=VISp").first.wait_for()                         # in the table of shares by region
    shot = colours(page.locator(".bk-Figure").first.screenshot())
    assert (shot.std(axis=2) > 10).mean() > 0.008                       # the region that is drawn may be a small one
