"""The latents dashboard: what is drawn and chosen is what it says, and the page answers while a UMAP is on its way."""

import os
import sys
from urllib.parse import quote

import numpy as np
import pandas as pd
import panel as pn
import pytest
from bokeh.models import GlyphRenderer, Plot

from tests.analysis.test_latents import Counts, recording
from tests.analysis.test_projection import STANDIN
from tests.apps.browsing import colours, lasso, serving, sideways, wait_for
from tests.apps.conftest import ROOT
from tests.models.small import SMALL
from workbench import Session, models
from workbench.analysis import projection
from workbench.apps import latents
from workbench.apps.latents import Latents
from workbench.errors import UnknownName, WorkbenchError
from workbench.training.recipe import Recipe


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def standin(tmp_path, monkeypatch):
    """A quick UMAP that waits for a file to appear: its path."""
    (tmp_path / "umap.py").write_text(STANDIN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("GO", str(tmp_path / "go"))
    monkeypatch.setitem(sys.modules, "umap", None)
    monkeypatch.setattr(projection, "find_spec", lambda name: name)
    return tmp_path / "go"


@pytest.fixture
def make():
    """Dashboards that end what they began."""
    made = []

    def build(model=None, session=None, **settings):
        made.append(Latents(model or Counts(), session or recording(), **settings))
        return made[-1]

    yield build
    for one in made:
        one.close()


def mtm(session):
    return models.build("mtm", [session], **SMALL["mtm"])


def said(view: Latents) -> str:
    return " ".join(str(pane.object) for pane in view.__panel__().select(pn.pane.HTML))


def test_it_says_how_many_points_of_what(make):
    text = said(make(session=recording(simulated=True)))
    assert "<b>Counts</b> on one <b>SIMULATED</b> · 600 points, one every 50 ms · 6 dimensions · windows of 1 s" in text
    assert "150 of 600 points, evenly chosen: one of every 4 bins of 50 ms" in said(make(most=150))


def test_pca_is_drawn_at_once_and_every_label_colours_it(make):
    view = make(mtm(recording()))
    root = view.__panel__().get_root()
    clouds = [r.data_source for plot in root.select({"type": Plot}) for r in plot.renderers
              if isinstance(r, GlyphRenderer) and "label" in r.data_source.data]
    assert sorted(len(source.data["x"]) for source in clouds) == [6, 600]
    moments = max(clouds, key=lambda source: len(source.data["x"]))
    at, _ = projection.pca(view.cloud.values)
    assert np.allclose(np.stack([moments.data["x"], moments.data["y"]], 1), at)
    for name in view.param.color.objects:
        view.color = name
        known = view._label.notna().to_numpy()
        colors = np.array(moments.data["color"])
        assert (colors[~known] == "#c9c9c9").all() and "#c9c9c9" not in colors[known]
        assert len(set(colors[known])) == min(view._label.nunique(), 8)
    for name in view.param.units_color.objects:
        view.units_color = name


def test_what_is_chosen_is_there_for_a_notebook_and_in_the_raster(make):
    view = make(color="trials.side")
    inside = (view.cloud.times > 4) & (view.cloud.times < 6)
    view.select(inside)
    rows = view.selected
    assert list(rows.columns) == ["session", "time", "trial", "x", "y", "trials.side"]
    assert len(rows) == inside.sum() == 40 and set(rows["trial"]) == {1} and set(rows["trials.side"]) == {"l"}
    assert np.allclose(rows["time"], view.cloud.times[inside])
    text = view._chosen.says
    assert "40 of 600 points" in text and "1 of 9 trials: 1" in text and "1 stretches from 4.00 to 6.00 s" in text
    session = view.sessions[0]
    drawn = view._chosen._image.data["image"][0]
    assert drawn.shape[0] == 6 and 0 < drawn.sum() <= ((session.spike_times >= 4) & (session.spike_times < 6)).sum()
    view.select([])
    assert not view._chosen._plots.visible and view.selected.empty


def test_chosen_units_leave_only_their_rows_in_the_raster(make):
    view = make(mtm(recording()))
    view._units.chosen = np.array([1, 4])
    assert list(view.selected_units["id"]) == ["u1", "u4"] and set(view.selected_units["region"]) == {"M1", "PMd"}
    assert view._chosen._image.data["image"][0].shape[0] == 2 and "2 of 6 units" in view._chosen.says


def test_of_several_sessions_the_one_with_most_of_the_choice_is_shown(make):
    sessions = [recording(), recording(seconds=10.0, n=4, seed=2, id="two")]
    view = make(mtm_of(sessions), sessions, color="session")
    assert list(view.units["session"]) == ["one"] * 6 + ["two"] * 4
    view.select(view.cloud.session == 1)
    assert "200 of 800 points" in view._chosen.says and "4 of 4 units" in view._chosen.says
    view._moments.chosen = np.empty(0, int)
    view._units.chosen = np.array([7])
    assert list(view.selected_units["id"]) == ["u1"] and "1 of 4 units" in view._chosen.says


def mtm_of(sessions):
    return models.build("mtm", sessions, **SMALL["mtm"])


def test_the_table_says_how_far_to_believe_it(make):
    view = make(color="hand_vel.x")
    assert "being computed" in view._honest.object
    view.wait()
    for part in ("all 6 dimensions", "PCA, 2 dimensions", "label moved by half", "R², linear", "more than 1 s away"):
        assert part in view._honest.object
    view.color = "trials.side"
    view.wait()
    assert "balanced accuracy" in view._honest.object and "gives 0.50" in view._honest.object


def test_umap_comes_when_it_is_ready_and_a_choice_stays(make, standin):
    view = make(projection="UMAP", neighbors=4)
    view.select([1, 2, 3])
    pca = view._moments.at
    assert np.allclose(pca, projection.pca(view.cloud.values)[0])        # until then
    wait_for(lambda: view._look() and "finding neighbours" in view._doing.object)
    assert view._stop.visible
    standin.touch()
    view.wait()
    assert np.allclose(np.abs(view._moments.at), np.abs(4 * pca), atol=1e-3) and list(view.selected.index) == [1, 2, 3]
    assert "UMAP, 2 dimensions" in view._honest.object and view._doing.object == "" and not view._stop.visible
    again = make(projection="UMAP", neighbors=4)                        # from the cache, at once
    assert np.array_equal(again._moments.at, view._moments.at)


def test_cancel_ends_umap_and_shows_pca(make, standin):
    view = make(projection="UMAP")
    wait_for(lambda: view._look() and "finding" in view._doing.object)
    process = view._umap._process
    view.cancel()
    assert view.projection == "PCA" and process.poll() is not None and view._doing.object == ""


def test_without_umap_a_sentence_says_what_to_install_and_pca_is_there(make, monkeypatch):
    monkeypatch.setattr(projection, "find_spec", lambda name: None)
    view = make(projection="UMAP")
    assert "spike-workbench[umap]" in view._doing.object and view.projection == "PCA"


def test_a_model_without_vectors_of_units_says_so(make):
    assert "No cloud of units: Counts keeps no vector of its own for a unit" in said(make())


@pytest.mark.parametrize(("wrong", "says"), [({"color": "trials.sides"}, "trials.side"),
                                             ({"units_color": "rat"}, "rate")])
def test_an_unknown_name_is_answered_with_the_near_ones(wrong, says):
    with pytest.raises(UnknownName, match=says):
        Latents(Counts(), recording(), **wrong)


def test_the_code_makes_the_same_view(make, tmp_path):
    session = recording()
    session.save(tmp_path / "one.h5")
    mtm(session).save_pretrained(tmp_path / "model")
    view = make(tmp_path / "model", str(tmp_path / "one.h5"), color="pupil", units_color="rate", neighbors=12)
    names = {}
    *lines, last = view.code().split("\n\n")
    exec("\n".join(lines), names)
    again = eval(last, names)
    assert all(getattr(again, name) == getattr(view, name) for name in latents.STATE)
    assert np.array_equal(again.cloud.values, view.cloud.values) and again.code() == view.code()
    again.close()
    assert "# a Counts and 'one'" in make().code()


def test_a_folder_without_a_session_asks_for_one(tmp_path):
    mtm(recording()).save_pretrained(tmp_path / "model")
    with pytest.raises(WorkbenchError, match="no session was named"):
        Latents(tmp_path / "model")


@pytest.mark.parametrize("odd", [
    {"series": {}, "trials": pd.DataFrame({"start": [], "stop": []})},
    {"units": pd.DataFrame({"id": ["a"]}), "n": 1},
    {"intervals": [[0, 1.5], [10, 11.2], [20, 22]]},
])
def test_odd_recordings_are_shown_too(make, odd):
    session = recording(**{"n": 6, **odd})
    view = make(mtm(session), session)
    view.select(np.arange(5))
    view.wait()
    assert list(view.__panel__().get_root().select({"type": Plot}))


@pytest.mark.parametrize("name", ["steinmetz"])
def test_a_real_recording_is_shown_with_its_conditions(real_data, make, name):
    path = sorted((real_data / name).glob("*.nwb"))[0]
    session = Session.from_nwb(path)
    session = session.select(np.arange(0, len(session.units), 4))
    settings = {**SMALL["mtm"], "window": 0.4}
    view = make(models.build("mtm", [session], **settings), session)
    assert view.cloud.every == 1 and set(view._trial) == set(range(len(session.trials))) | ({-1} & set(view._trial))
    conditions = [c for c in view.param.color.objects if c.startswith("trials.")]
    view.param.update(color=conditions[0], units_color="region")
    view.select(view._trial == 3)
    assert f"1 of {len(session.trials)} trials: 3" in view._chosen.says and view.selected["time"].between(
        *session.trials.loc[3, ["start", "stop"]]).all()


# In a browser.

@pytest.fixture
def address():
    made, built = [], []

    def build():
        session = recording(seconds=60.0, spikes=20_000)
        made.append(Latents(mtm(session), session, color="pupil"))
        return made[-1]

    with serving(build) as url:
        yield url, made
    for one in made + built:
        one.close()


def test_a_lasso_chooses_points_and_the_others_stay_grey(address, page):
    url, made = address
    page.goto(url)
    cloud = page.locator(".bk-Figure").first
    cloud.wait_for()
    page.locator("text=nearest points").wait_for()
    colourful = lambda: (colours(cloud.screenshot()).std(axis=2) > 20).sum()
    before = wait_for(lambda: n if (n := colourful()) > 500 else 0)
    lasso(page, cloud, (0.45, 0.45), (0.6, 0.45), (0.6, 0.6), (0.45, 0.6))
    page.locator("text=the raster shows").wait_for()
    view = made[-1]
    assert 0 < len(view.selected) < len(view.cloud.times)
    page.mouse.move(5, 5)
    wait_for(lambda: colourful() < 0.7 * before)
    wait_for(lambda: page.locator(f"text={len(view.selected):,} of 1,200 points").count())
    wait_for(lambda: page.locator(".bk-Figure").count() == 4)
    raster = page.locator(".bk-Figure").last
    wait_for(lambda: (colours(raster.screenshot()).max(axis=2) < 120).mean() > 0.01)


def test_the_page_answers_while_umap_is_on_its_way(address, page, standin):
    url, made = address
    page.goto(url)
    page.locator("text=nearest points").wait_for()
    page.locator("select").nth(1).select_option("UMAP")
    page.locator("text=finding neighbours").wait_for()
    page.locator("select").first.select_option("hand_vel.speed")        # UMAP has not gone on yet, and may not
    page.locator("text=hand_vel.speed told from").wait_for()
    assert made[-1]._umap.running and not standin.exists()
    standin.touch()
    page.locator("text=UMAP, 2 dimensions").wait_for()
    assert not page.locator("text=so far").count()


def test_the_hub_opens_it_on_a_run_and_the_address_brings_back_the_view(hub, page, tmp_path):
    session = recording(simulated=True)
    session.save(tmp_path / "one.h5")
    folder = tmp_path / "model"
    mtm(session).save_pretrained(folder)
    Recipe.preset("demo").with_(model={"name": "mtm"}).save(folder / "recipe.yaml")     # it is listed, too
    (folder / "model").mkdir()
    query = f"app=latents&run={quote(os.path.relpath(folder, ROOT))}&session={quote(str(tmp_path / 'one.h5'))}"
    page.goto(f"{hub}/apps?{query}&folder={quote(str(tmp_path))}&color=trials.side&units_color=rate&neighbors=7")
    page.locator("text=SIMULATED").wait_for()
    page.locator("text=balanced accuracy").first.wait_for()
    for part in ("color=trials.side", "units_color=rate", "projection=PCA", "neighbors=7"):
        assert part in page.url
    assert page.locator("select").first.locator("option").all_inner_texts() == [str(folder), "example"]
    page.locator("select").nth(1).select_option("pupil")
    page.wait_for_url("**color=pupil**")
    assert [sideways(page, width) for width in (600, 400)] == [0, 0]


@pytest.mark.parametrize(("query", "says"), [
    ("run=/nowhere/at/all", "no run at /nowhere/at/all"),
    ("run={model}", "no session was named"),
    ("run={model}&session={data}&color=sped", "hand_vel.speed"),
    ("run={model}&session={data}&neighbors=few", "write neighbors=30"),
])
def test_a_bad_address_gets_a_sentence_and_not_an_empty_page(hub, page, tmp_path, query, says):
    session = recording()
    session.save(tmp_path / "one.h5")
    mtm(session).save_pretrained(tmp_path / "model")
    page.goto(f"{hub}/apps?app=latents&" + query.format(model=tmp_path / "model", data=tmp_path / "one.h5"))
    page.get_by_role("alert").filter(has_text=says).wait_for()
