"""The hub: `panel serve workbench/apps/` as anybody types it, seen in a browser without a network."""

import re
import urllib.request

import numpy as np
import pandas as pd
import panel as pn
import pytest

from tests.apps.browsing import colours, wait_for
from workbench import Series, Session
from workbench.apps import main, raster
from workbench.display import LINK, built
from workbench.training import storage
from workbench.training.recipe import Recipe


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A recording that is drawn in no time."""
    random, times = np.random.default_rng(0), np.arange(0, 200, 0.1)
    return Session(id="small", spike_times=np.sort(random.uniform(0, 200, 900)), spike_units=random.integers(0, 6, 900),
                   units=pd.DataFrame({"id": range(6), "region": "M1", "depth": 100.0 * np.arange(6)}),
                   series={"hand_vel": Series(times, random.normal(size=(2000, 2)))}, intervals=[[0, 200]]).save(
                       tmp_path_factory.mktemp("small") / "small.h5")


@pytest.mark.parametrize(("name", "says"), [
    ("raster", "spikes in view"), ("masking", "Leakage meter"), ("latents", "nearest points"),  # examples, where there
    ("attribution", "Integrated gradients of"), ("gallery", "page 1 of"), ("runs", "Runs ·")])  # is no run
def test_every_tile_of_the_hub_opens_its_dashboard(hub, page, name, says):
    page.goto(hub)
    tile = page.locator(f'a[href="?app={name}"]').first
    tile.wait_for()
    assert page.locator("text=reach-sim").first.is_visible()
    tile.click()
    page.locator(f"text={says}").first.wait_for(timeout=300_000)
    assert f"app={name}" in page.url
    if name == "runs":                                                  # of which a fresh clone has none
        return
    page.locator(".bk-Figure, .tile img").first.wait_for()
    wait_for(lambda: (np.ptp(colours(page.screenshot())[100:], axis=2) > 40).mean() > 0.002)       # more than grey


def test_the_address_brings_back_the_same_view(hub, page, small):
    page.goto(f"{hub}/apps?app=raster&data={small}&sort=rate&color=depth&series=hand_vel&window=100,110")
    page.locator("text=100.00 to 110.00 s").wait_for()
    chosen = [select.input_value() for select in page.locator("select").all()]
    assert {"rate", "depth"} <= set(chosen)
    for part in ("sort=rate", "color=depth", "series=hand_vel", "window=100%2C110"):
        assert part in page.url


@pytest.mark.parametrize(("query", "says"), [
    ("app=nothing", "no dashboard 'nothing'"),
    ("app=raster&data=reach-sum", "reach-sim"),
    ("app=raster&data=/nowhere/at/all.nwb", "/nowhere/at/all.nwb"),
    ("app=raster&data={small}&sort=ratio", "no unit column to sort by 'ratio'"),
    ("app=raster&data={small}&window=soon", "write two numbers"),
    ("app=raster&data={small}&window=9000,9100", "shows nothing"),
])
def test_a_bad_address_gets_a_sentence_and_not_an_empty_page(hub, page, small, query, says):
    page.goto(f"{hub}/apps?{query.format(small=small)}")
    alert = page.get_by_role("alert").filter(has_text=says)
    alert.wait_for()
    assert contrast(*alert.evaluate("e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]")) > 7


def test_an_exception_while_a_page_is_built_is_its_sentence():
    def broken():
        raise ZeroDivisionError("a unit without spikes")

    said = [pane.object for part in built("Raster", broken).main for pane in part.select(pn.pane.HTML)]
    assert any("ZeroDivisionError: a unit without spikes" in text for text in said)


def test_two_visitors_share_no_state(hub, page, browser, small):
    address = f"{hub}/apps?app=raster&data={small}&sort=rate"
    page.goto(address)
    page.wait_for_url("**color=region**")
    other = browser.new_page()
    try:
        other.goto(address)
        other.wait_for_url("**color=region**")
        other.locator("select").nth(1).select_option("depth")
        other.wait_for_url("**sort=depth**")
    finally:
        other.close()
    page.locator("select").nth(2).select_option("depth")                # what this one does next does not bring it in
    page.wait_for_url("**color=depth**")
    assert "sort=rate" in page.url and page.locator("select").nth(1).input_value() == "rate"


def seen(page, text) -> tuple[str, str]:
    """The colour of a text, as it looks on the ground of the page, and of that ground."""
    ground = page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor")
    color = text.evaluate("e => getComputedStyle(e).color")
    *rgb, alpha = (float(part) for part in [*re.findall(r"[\d.]+", color.replace("color(srgb", "")), "1"][:4])
    rgb = [part * (255 if color.startswith("color(srgb") else 1) for part in rgb]
    rgb = [alpha * part + (1 - alpha) * float(under)
           for part, under in zip(rgb, re.findall(r"[\d.]+", ground), strict=False)]
    return f"rgb({rgb[0]}, {rgb[1]}, {rgb[2]})", ground


def test_a_dark_page_can_be_read(hub, page, tmp_path):
    Recipe.preset("demo").save(tmp_path / "run" / "recipe.yaml")
    storage.write_json(tmp_path / "run" / "status.json", {"state": "finished"})
    page.goto(f"{hub}/apps?folder={tmp_path}")
    name, state = page.locator("text=reach-sim").last, page.locator("span", has_text="finished").last
    name.wait_for()
    assert contrast(*seen(page, name)) > 7 and contrast(*seen(page, state)) > 7
    light = seen(page, name)
    page.get_by_label("Toggle theme").first.click()
    wait_for(lambda: seen(page, name)[1] != light[1] and contrast(*seen(page, name)) > 7)
    assert contrast(*seen(page, state)) > 4.5


def test_the_first_page_of_a_server_is_dark_but_for_its_figures_which_stay_white(served, page, small):
    page.goto(f"{served('workbench/apps/raster.py')}/raster?data={small}")
    texts = [page.locator(f"text={said}").first for said in ("Recordings on this computer", "spikes in view", "train")]
    texts[1].wait_for()
    light = seen(page, texts[0])
    page.get_by_label("Toggle theme").first.click()
    wait_for(lambda: seen(page, texts[0])[1] != light[1])
    assert min(contrast(*seen(page, text)) for text in texts) > 7
    white = lambda: [(colours(figure.screenshot()) > 250).all(axis=2).mean() for figure in page.locator(
        ".bk-Figure").all()]
    wait_for(lambda: min(white()) > 0.3)
    page.locator("select").nth(1).select_option("rate")                 # other figures, made on a dark page
    page.wait_for_url("**sort=rate**")
    page.wait_for_timeout(1500)
    assert len(white()) > 2 and min(white()) > 0.3


def test_the_hub_lists_the_newest_runs_and_says_what_opens_without_a_network(monkeypatch, tmp_path):
    run = tmp_path / "runs" / "a <i>run"
    Recipe.preset("demo").save(run / "recipe.yaml")
    (run / "model").mkdir()
    (tmp_path / "runs" / "damaged").mkdir()
    (tmp_path / "runs" / "damaged" / "recipe.yaml").write_text("model: [")
    for name, runs in {"both": {"a": {"run": str(run)}, "b": {"run": str(run)}},
                       "grid": {"a": {"recipe": Recipe.preset("demo").model_dump(mode="json"), "varied": []}}}.items():
        storage.write_json(tmp_path / "runs" / name / "plan.json", {"kind": "sweep", "conditions": {}, "runs": runs})
        storage.write_json(tmp_path / "runs" / name / "rows" / "a.json", {"seconds": 1})
    monkeypatch.setattr(type(pn.state), "session_args", {"folder": [str(tmp_path / "runs").encode()]})
    said = "".join(pane.object for part in main.app().main for pane in part.select(pn.pane.HTML))
    assert "a &lt;i&gt;run" in said and "poyo on reach-sim" in said and "unreadable" in said
    assert said.count("sweep of poyo on reach-sim<") == 2 and "1 of 2 runs" in said
    assert re.search(r'app=latents&amp;run=[^"]*">Latents', said.replace(f' style="{LINK}"', ""))
    assert re.search(r"\d+ of \d+ open without a network", said)


def contrast(*colors: str) -> float:
    """Between two opaque CSS colours, as WCAG 2.1 defines it: 1 to 21; 7 is its highest demand on text."""
    light = []
    for color in colors:
        rgb = np.array([float(part) for part in re.findall(r"[\d.]+", color)]) / 255
        assert color.startswith("rgb(") and len(rgb) == 3, f"{color} is not opaque"
        light.append(np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])
    return (max(light) + 0.05) / (min(light) + 0.05)


@pytest.mark.parametrize("app", [main.app, raster.app])
def test_a_mistake_in_a_catalog_file_is_said_on_the_page(app, tmp_path, monkeypatch):
    mine = tmp_path / "mine.yaml"
    mine.write_text("schema_version: 1\ndatasets:\n  - title: it has no id\n")
    monkeypatch.setenv("WORKBENCH_CATALOG", str(mine))
    said = [pane.object for part in app().main for pane in part.select(pn.pane.HTML)]
    assert any('role="alert"' in text and "mine.yaml" in text for text in said)


def test_a_recording_without_spikes_is_served_without_asking_anybody(hub, page, tmp_path):
    times = np.arange(0, 60, 0.05)
    wide = Series(times, np.random.default_rng(0).normal(size=(len(times), 20)))
    Session(id="calcium", spike_times=[], spike_units=[], units=pd.DataFrame({"id": range(20), "region": "V1"}),
            intervals=[[0, 60]], series={"dff": wide}).save(tmp_path / "calcium.h5")
    page.goto(f"{hub}/apps?app=raster&data={tmp_path / 'calcium.h5'}")
    page.locator("text=no spikes in this recording").wait_for()
    page.locator("select").nth(1).select_option("id")                   # what is added later asks nobody either
    page.wait_for_url("**sort=id**")
    page.wait_for_timeout(1000)


def test_only_recordings_on_this_computer_are_offered(hub, page, small):
    page.goto(f"{hub}/apps?app=raster&data={small}")
    page.locator("text=spikes in view").wait_for()
    offered = page.locator("select").first.locator("option").all_inner_texts()
    page.locator("text=Recordings on this computer").first.wait_for()
    assert any(name.startswith("reach-sim") for name in offered)
    assert not any(name.startswith("mc_maze") for name in offered)


def test_hub_and_dashboards_are_also_served_side_by_side(served):
    address = served("workbench/apps", "workbench/apps/raster.py", "--index", "apps")
    for path in ("/", "/apps", "/raster"):
        with urllib.request.urlopen(address + path) as answer:
            assert answer.status == 200
