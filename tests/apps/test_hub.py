"""The hub: `panel serve workbench/apps/` as anybody types it, seen in a browser without a network."""

import urllib.request

import pytest


def test_every_tile_of_the_hub_opens_its_dashboard(hub, page):
    page.goto(hub)
    tile = page.locator('a[href="?app=raster"]')
    tile.wait_for()
    assert page.locator("text=reach-sim").first.is_visible()
    tile.click()
    page.locator("text=spikes in view").wait_for()
    assert "app=raster" in page.url and "data=reach-sim" in page.url


def test_the_address_brings_back_the_same_view(hub, page):
    page.goto(f"{hub}/apps?app=raster&data=reach-sim&sort=rate&color=depth&series=hand_vel&window=100,110")
    page.locator("text=100.00 to 110.00 s").wait_for()
    chosen = [select.input_value() for select in page.locator("select").all()]
    assert {"rate", "depth"} <= set(chosen)
    for part in ("sort=rate", "color=depth", "series=hand_vel", "window=100%2C110"):
        assert part in page.url


@pytest.mark.parametrize(("query", "says"), [
    ("app=nothing", "no dashboard 'nothing'"),
    ("app=raster&data=reach-sum", "reach-sim"),
    ("app=raster&data=/nowhere/at/all.nwb", "/nowhere/at/all.nwb"),
    ("app=raster&sort=ratio", "no unit column to sort by 'ratio'"),
    ("app=raster&window=soon", "write two numbers"),
    ("app=raster&window=9000,9100", "shows nothing"),
])
def test_a_bad_address_gets_a_sentence_and_not_an_empty_page(hub, page, query, says):
    page.goto(f"{hub}/apps?{query}")
    page.locator(".alert, .bk-panel-models-markup-HTML").filter(has_text=says).first.wait_for()


def test_hub_and_dashboards_are_also_served_side_by_side(served):
    address = served("workbench/apps", "workbench/apps/raster.py", "--index", "apps")
    for path in ("/", "/apps", "/raster"):
        with urllib.request.urlopen(address + path) as answer:
            assert answer.status == 200
