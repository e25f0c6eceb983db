"""What is chosen in one dashboard lights up in the others, by way of the address."""

import re
from types import SimpleNamespace
from urllib.parse import quote

import numpy as np
import pandas as pd
import panel as pn
import pytest

from tests.analysis.test_attribution import Known
from tests.analysis.test_attribution import recording as with_conditions
from tests.analysis.test_latents import Counts, recording
from tests.apps.browsing import colours, lasso, settled, wait_for
from tests.apps.test_gallery import RESULT, SCORES, some
from workbench.analysis import driven
from workbench.apps import _shown_in
from workbench.apps._shown_in import shown_in
from workbench.apps.attribution import CHOSEN, UNITS, Attribution
from workbench.apps.gallery import Gallery
from workbench.apps.latents import Latents
from workbench.errors import UnknownName, WorkbenchError
from workbench.selection import parsed, within
from workbench.training import storage
from workbench.training.recipe import Recipe
from workbench.training.run import launch

BOTH = {"x": ["x"], "y": ["y"]}


@pytest.fixture
def hub_page(monkeypatch):
    monkeypatch.setattr(type(pn.state), "session_args", {"app": [b"latents"]})


def closed(view):
    view.close()
    return view


def test_a_lasso_is_written_and_brings_back_the_same_points():
    view = closed(Latents(Counts(), recording()))
    assert (view.moments, view.chosen_units, view.chosen_in) == ("", "", "")
    times = view.cloud.times
    view.select((times > 4) & (times < 6) | (times > 20) & (times < 20.5))
    assert view.moments == "4:6,20:20.500" and view.chosen_in == "one" and "moments='4:6,20:20.500'" in view.code()
    again = closed(Latents(Counts(), recording(), moments=view.moments, chosen_units="u1,u3"))
    assert list(again.selected["time"]) == list(view.selected["time"])
    assert again.chosen_units == "u1,u3" and list(again.selected_units["id"]) == ["u1", "u3"]
    view.select([])
    assert view.moments == ""
    few = closed(Latents(Counts(), recording(), most=60, moments="4.2:4.3"))            # between two points
    assert few.selected["time"].round(3).tolist() == [4.025, 4.525]


def test_of_two_sessions_the_one_that_is_meant_lights_up():
    both = [recording(), recording(id="two", seed=2)]
    view = closed(Latents(Counts(), both, moments="4:6", chosen_in="two", chosen_units="u2"))
    assert set(view.selected["session"]) == {"two"} and set(view.selected_units["session"]) == {"two"}
    with pytest.raises(UnknownName, match="three"):
        Latents(Counts(), both, moments="4:6", chosen_in="three")
    with pytest.raises(WorkbenchError, match="from:until"):
        Latents(Counts(), both, moments="four")


def test_attribution_takes_moments_as_a_phase_and_units_as_a_region():
    view = closed(Attribution(Known(), with_conditions(), modalities=BOTH, most=48, moments="200:204,210:214",
                              chosen_units="u0,u1").wait())
    assert (view.phase, view.region) == (CHOSEN, UNITS) and view._units.tolist() == [0, 1]
    assert within(view.origins[[view.window]] + view.model.horizon / 2, parsed("200:204")).all()
    inside = within(view.gains.times, parsed(view.moments))
    assert view.table()["spikes"].iloc[0] == view.gains.spikes[:, :2].sum(1)[inside].sum() > 0
    assert "moments='200:204,210:214'" in view.code() and not view._alerts


def test_attribution_says_that_no_window_of_held_out_time_lies_there():
    view = closed(Attribution(Known(), with_conditions(), modalities=BOTH, most=8, moments="1:2"))
    assert view.phase == "all" and CHOSEN not in view.param.phase.objects
    assert "none of the 8 windows" in view._alerts[0].object


def test_the_gallery_marks_what_was_shown_then():
    view = Gallery(RESULT, SCORES, moments="2:6,30:31", chosen_in="one")
    items = RESULT.items
    lit = within(items["start"].to_numpy(), parsed("2:6,30:31")) & (items["session"] == "one").to_numpy()
    assert 0 < lit.sum() < 5 and f"{lit.sum()} of 30 items" in view._head.object
    view.where = {"chosen": "yes"}
    assert sorted(view.order) == np.flatnonzero(lit).tolist()
    assert view._tiles.content.count("class='lit'") == lit.sum()
    assert "moments='2:6,30:31'" in view.code()
    assert "0 of 30 items" in Gallery(RESULT, SCORES, moments="2:6", chosen_in="elsewhere")._head.object


def test_links_lead_only_to_what_knows_the_recording(tmp_path, monkeypatch, hub_page):
    run = tmp_path / "runs" / "a run"
    Recipe.preset("demo").with_(model={"name": "neurohorizon", "conditions": ["hand_vel"]}, data="day").save(
        run / "recipe.yaml")
    (run / "model").mkdir()
    day = str(recording().save(tmp_path / "day.h5"))
    Recipe.load(run / "recipe.yaml").with_(data=day).save(run / "recipe.yaml")
    storage.write_json(run / "resolved.json", {"recordings": [{"id": "one"}]})
    told = lambda **more: re.findall(r"app=(\w+)", shown_in("latents", **{"data": "one", "session": "one",
                                                                          "moments": "4:6", "run": str(run)} | more))
    assert told() == ["attribution", "masking", "raster"]
    assert f"data={quote(day, safe='')}" in shown_in("latents", "one", "one", "4:6", run=str(run))       # not its id
    assert told(session="another", data=day) == ["masking", "raster"] and told(moments="") == []
    assert told(session="another", data="another") == []                # which nothing opens
    assert told(data=day, run=str(tmp_path / "weights"), session="another") == ["masking", "raster"]
    some().save(tmp_path / "runs" / "pictures")
    assert told() == ["attribution", "gallery", "masking", "raster"]
    assert told(session="three", data=day) == ["masking", "raster"]
    monkeypatch.setattr(_shown_in.pn, "state", SimpleNamespace(session_args={}))
    assert told() == []                                                 # a cell, or a page without a hub


def test_a_lasso_in_latents_lights_up_in_raster_gallery_and_attribution(hub, page, tmp_path):
    start = 200.0 + np.arange(30)
    session = with_conditions(stimuli=pd.DataFrame({"start": start, "stop": start + 0.25, "picture": np.arange(30)}))
    data = str(session.save(tmp_path / "known.h5"))
    recipe = Recipe.preset("neurohorizon").with_(
        data=data, model={"name": "neurohorizon", "conditions": ["x", "y"], **driven.SMALL, "horizon": 0.5},
        budget={"steps": 2, "eval_every": 2}, target=None, baselines=[])
    run = launch(recipe, on="here", run=tmp_path / "runs" / "small")
    report = some()
    report.items["session"], report.items["start"] = "known", start
    report.save(tmp_path / "runs" / "pictures")

    page.goto(f"{hub}/apps?app=latents&run={quote(str(run.path))}&session={quote(data)}")
    cloud = page.locator(".bk-Figure").first
    cloud.wait_for()
    page.locator("text=nearest points").wait_for()
    lasso(page, cloud, (0.15, 0.1), (0.95, 0.1), (0.95, 0.85), (0.15, 0.85))
    page.locator("text=Show what is chosen in").wait_for()
    page.wait_for_url("**moments=**")
    here = settled(page, lambda: page.url, 3)                           # what a lasso holds is sent while it is drawn

    page.locator('a[href*="app=gallery"]').click()
    page.locator("text=were shown in the").wait_for()
    lit = page.locator(".lit").first
    lit.wait_for()
    red, green, blue = np.moveaxis(colours(lit.screenshot()), 2, 0)
    assert ((red > 200) & (green > 140) & (green < 200) & (blue < 90)).mean() > 0.3        # orange
    page.goto(here)                                                     # the address brings the choice back
    page.locator('a[href*="app=attribution"]').click()
    wait_for(lambda: CHOSEN in [select.input_value() for select in page.locator("select").all()])
    page.goto(here)
    page.locator('a[href*="app=raster"]').click()
    page.locator("text=chosen moment").first.wait_for()
