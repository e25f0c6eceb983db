"""The attribution dashboard: its numbers are those of the analysis, it answers while they are computed, and says what
it cannot do."""

from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest
import torch
from bokeh.models import Plot

from tests.analysis.test_attribution import Known, recording
from tests.apps.browsing import colours, serving, sideways, wait_for
from workbench import models
from workbench.analysis import attribution as analysis
from workbench.analysis import driven
from workbench.apps import attribution
from workbench.apps.attribution import ALL, Attribution
from workbench.errors import UnknownName, WorkbenchError
from workbench.windows import split

BOTH = {"x": ["x"], "y": ["y"]}


@pytest.fixture
def make():
    """Dashboards that end what they began."""
    made = []

    def build(model=None, session=None, **settings):
        settings = {"modalities": BOTH, "most": 16} | settings
        made.append(Attribution(model or Known(), session or recording(), **settings))
        return made[-1]

    yield build
    for one in made:
        one.close()


def said(view: Attribution) -> str:
    """Everything that the alerts say."""
    return " ".join(pane.object for pane in view._alerts)


def horizon(session):
    """A NeuroHorizon too small to be good at anything, that knows x and y."""
    torch.manual_seed(0)
    return models.build("neurohorizon", [session], conditions=["x", "y"], **driven.SMALL | {"history": 1.0,
                                                                                             "horizon": 0.5})


def test_the_bars_are_the_contributions_of_the_held_out_windows(make):
    session = recording()
    view = make(session=session).wait()
    table = analysis.ablation(Known(), session, split(session)["test"], modalities=BOTH, most=16, by=())
    drawn = pd.DataFrame(view._bars.source.data)
    for kind, column in (("shown − withheld", "contribution"), ("shown − another window's", "over_shuffled")):
        own = drawn[drawn["kind"] == kind]
        assert list(own["modality"]) == ["x", "y"] and np.allclose(own["value"], table[column])
        assert ((own["low"] < own["value"]) & (own["value"] < own["high"])).all()
    assert f"{table['spikes'].iloc[0]:,} spikes: {table['bits'].iloc[0]:+.3f} bits" in view._bars.plot.title.text
    assert not said(view) and view._doing.object == ""


def test_a_region_a_phase_and_an_event_are_chosen_without_forecasting_again(make):
    view = make().wait()
    gains = view.gains
    view.param.update(region="A", phase="0.4 s from go", event="go")
    view.wait()
    assert view.gains is gains
    values = dict(zip(view._bars.source.data["at"], view._bars.source.data["value"], strict=True))
    assert values["x", 0.2] > 0.2 and values["y", 0.2] == 0             # x drives A, y does not
    assert np.allclose(view._lags.sources["x"].data["x"], 0.05 * np.arange(1, 9))           # all that lies in the phase
    assert (np.array(view._lags.sources["y"].data["value"]) == 0).all()
    assert len(view._trial.sources["x"].data["x"]) == 12
    assert view._trial.plot.title.text == "in the trial, A: time from go"


def test_gradients_of_a_region_stand_beside_its_bars(make):
    view = make(region="A").wait()
    assert set(view.gradients) == {"A"} and "x: +" in view._ledger.object and "100%" in view._ledger.object
    view.region = "B"
    assert view._ledger.object == ""                                    # not those of another region
    view.wait()
    assert set(view.gradients) == {"A", "B"} and "y: +" in view._ledger.object
    assert f"misses {100 * view.gradients['B'].error:.2f} %" in view._ledger.object


def test_without_captum_a_sentence_says_what_to_install_and_the_bars_are_there(make, monkeypatch):
    monkeypatch.setattr("workbench.analysis.gradients.find_spec", lambda name: None)
    view = make().wait()
    assert "spike-workbench[captum]" in said(view) and len(view._bars.source.data["value"]) == 4


def test_the_window_is_drawn_with_and_without(make):
    view = make(modality="y").wait()
    images, session = view._beside.images.data, view.session
    at, order = view.origins[0], view._beside._grid.order
    inside = (session.spike_times >= at) & (session.spike_times < at + 0.5)
    assert np.allclose(np.sort(view._beside.spikes.data["time"]), session.spike_times[inside], atol=1e-6)
    batch = analysis.windows(view.model, session, [at])
    for name, given in (("shown", None), ("without", ("x",))):
        assert np.allclose(images[name][0], view.model.forecast(batch, given=given).rates[0].detach()[order])
    bits = view.gains.without["y"][0].sum() / inside.sum()
    assert view._beside.plots[2].title.text == f"without y: {bits:+.3f} bits per spike"
    before = images["without"][0]
    view.modality = "x"
    view.wait()
    assert not np.allclose(view._beside.images.data["without"][0], before)
    view.window = 3
    view.wait()
    assert view._beside.images.data["x"] == [view.origins[3]]


def test_the_page_answers_and_says_how_far_it_is_while_it_forecasts(make):
    class Slow(Known):
        go = False

        def forecast(self, *args, **options):
            wait_for(lambda: self.go)
            return super().forecast(*args, **options)

    view = make(Slow())
    view._look()
    assert "0 of …" in view._doing.object
    view.region = "A"                                                   # nothing to show yet, and no error
    Slow.go = True
    view.wait()
    assert "A, " in view._bars.plot.title.text and view._doing.object == ""


def test_closing_ends_what_goes_on(make):
    view = make(most=None)
    view.close()
    assert wait_for(lambda: all(job.done() or job.cancelled() for job in view._jobs.values()), 20)
    assert view.gains is None


def test_a_neurohorizon_in_a_folder_and_the_code_that_makes_the_same_view(make, tmp_path):
    session = recording()
    session.save(tmp_path / "known.h5")
    horizon(session).save_pretrained(tmp_path / "model")
    view = make(tmp_path / "model", str(tmp_path / "known.h5"), modalities=None, region="B", window=2).wait()
    assert list(view.modalities) == ["x", "y", "spikes"] and not said(view)
    assert view.gradients["B"].error < 0.01
    names = {}
    *lines, last = view.code().split("\n\n")
    exec("\n".join(lines), names)
    again = eval(last, names)
    assert all(getattr(again, name) == getattr(view, name) for name in attribution.STATE)
    assert again.code() == view.code()
    again.close()
    grouped = make(modalities={"both": ["x", "y"]})
    assert "modalities={'both': ['x', 'y']}" in grouped.code() and "# a Known and 'known'" in grouped.code()


@pytest.mark.parametrize(("wrong", "says"), [
    ({"region": "M1"}, "no region 'M1'"), ({"phase": "later"}, "no phase 'later'"), ({"event": "gone"}, "mean go"),
    ({"modality": "z"}, "no modality 'z'"), ({"modalities": {"z": ["z"]}}, "no condition 'z'"),
    ({"intervals": [[10, 10.4]]}, "longer intervals")])
def test_what_cannot_be_shown_is_refused_in_a_sentence(wrong, says):
    with pytest.raises((UnknownName, WorkbenchError), match=says):
        Attribution(Known(), recording(), **{"modalities": BOTH} | wrong)


def test_a_model_without_conditions_is_refused():
    session = recording()
    with pytest.raises(WorkbenchError, match="built with conditions="):
        Attribution(models.build("neurohorizon", [session], **driven.SMALL), session)


@pytest.mark.parametrize("odd", [
    {"trials": pd.DataFrame({"start": [], "stop": []})}, {"intervals": [[0, 20], [30, 240]]}, {"simulated": True},
    {"units": pd.DataFrame({"id": [f"u{i}" for i in range(12)]})}])
def test_odd_recordings_are_shown_too(make, odd):
    view = make(session=recording(**odd)).wait()
    assert list(view.__panel__().get_root().select({"type": Plot})) and not said(view)
    assert len(view._bars.source.data["value"]) == 4 and view.region == ALL
    assert ("no events" in view._trial.plot.title.text) == ("trials" in odd)


@pytest.mark.parametrize(("text", "groups"), [
    ("move=hand_vel;plan=trials.a:x,y+trials.b", {"move": ["hand_vel"], "plan": ["trials.a:x,y", "trials.b"]})])
def test_modalities_can_be_grouped_in_the_address(text, groups):
    assert attribution._grouped(text) == groups
    for wrong in ("", "plan", "plan="):
        with pytest.raises(WorkbenchError, match="write name=condition"):
            attribution._grouped(wrong)


def test_the_example_has_drives_that_are_known():
    steps = []
    model, session = driven.driven(steps=2, seconds=60.0, units=8, progress=lambda done, of: steps.append((done, of)))
    assert steps == [(1, 2), (2, 2)] and session.simulated
    assert list(session.units["region"].unique()) == list(session.truth["drive_names"]) == list(driven.DRIVES)
    assert set(analysis.modalities_of(model, driven.MODALITIES)) == {"movement", "plan", "spikes"}


# In a browser.

def test_bars_curves_and_rasters_are_drawn_and_a_region_can_be_chosen(page):
    made = []

    def build():
        made.append(Attribution(Known(), recording(), modalities=BOTH, most=16))
        return made[-1]

    with serving(build) as url:
        page.goto(url)
        page.locator("text=Integrated gradients of the log-likelihood").wait_for()
        plots = page.locator(".bk-Figure")
        wait_for(lambda: plots.count() == 6)
        colourful = lambda i: (colours(plots.nth(i).screenshot()).std(axis=2) > 15).mean()
        wait_for(lambda: all(colourful(i) > 0.004 for i in (0, 1, 2, 4)))
        before = colours(plots.nth(0).screenshot())
        page.locator("select").first.select_option("A")
        wait_for(lambda: (np.abs(colours(plots.nth(0).screenshot()) - before).max(axis=2) > 30).mean() > 0.005)
        assert made[-1].region == "A"
        page.get_by_role("button", name="Later ▶").click()
        wait_for(lambda: made[-1].window == 1)
    made[-1].close()


def test_the_hub_opens_it_on_a_model_and_the_address_brings_back_the_view(hub, page, tmp_path):
    session = recording(60.0, simulated=True)
    session.save(tmp_path / "one.h5")
    horizon(session).save_pretrained(tmp_path / "model")
    query = f"app=attribution&run={quote(str(tmp_path / 'model'))}&session={quote(str(tmp_path / 'one.h5'))}"
    page.goto(f"{hub}/apps?{query}&region=B&event=go&window=3&modalities={quote('both=x+y;x=x')}")
    page.locator("text=SIMULATED").wait_for()
    page.locator("text=Integrated gradients of the log-likelihood").wait_for()
    for part in ("region=B", "event=go", "window=3", "modality=both", "modalities="):
        assert part in page.url
    page.locator("select").nth(1).select_option("C")
    page.wait_for_url("**region=C**")
    assert [sideways(page, width) for width in (600, 400)] == [0, 0]


@pytest.mark.parametrize(("query", "says"), [
    ("run=/nowhere/at/all", "no run at /nowhere/at/all"), ("run={model}", "no session was named"),
    ("run={model}&session={data}&region=M1", "no region 'M1'"),
    ("run={model}&session={data}&window=soon", "write a whole number"),
    ("run={model}&session={data}&modalities=plan", "write name=condition")])
def test_a_bad_address_gets_a_sentence_and_not_an_empty_page(hub, page, tmp_path, query, says):
    session = recording(60.0)
    session.save(tmp_path / "one.h5")
    horizon(session).save_pretrained(tmp_path / "model")
    page.goto(f"{hub}/apps?app=attribution&" + query.format(model=tmp_path / "model", data=tmp_path / "one.h5"))
    page.get_by_role("alert").filter(has_text=says).wait_for()
