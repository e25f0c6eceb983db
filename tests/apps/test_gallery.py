"""The gallery: its order is the one it states, its pictures and numbers are the report's, and a click opens one."""

import base64
import html
import io
import json
import re
import sys
from types import SimpleNamespace
from urllib.parse import parse_qs, quote, urlsplit

import numpy as np
import pandas as pd
import panel as pn
import pytest

from tests.apps.browsing import colours, serving, wait_for
from workbench import Session
from workbench.apps import gallery
from workbench.apps.gallery import Gallery
from workbench.errors import UnknownName, WorkbenchError
from workbench.images import report
from workbench.images.report import CHANCE, Reconstructions

ITEMS, PICTURES, SIDE = 30, 12, 16
GOOD, BAD, NEAREST = "good, in <b>pixels</b>", "bad", "nearest training picture"        # a name that has to be escaped


def some(**protocol) -> Reconstructions:
    """30 items of 12 pictures: a good method and a bad one, 2 samples each, and a baseline of one picture an item."""
    random = np.random.default_rng(0)
    shown = random.integers(256, size=(PICTURES, 4, 4, 3)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    which = np.r_[np.arange(PICTURES), random.integers(PICTURES, size=ITEMS - PICTURES)]
    away = lambda noise, samples: (shown[which][:, None] + random.normal(0, 1, (ITEMS, 1, 1, 1, 1)) * random.normal(
        0, noise, (ITEMS, samples, SIDE, SIDE, 3))).clip(0, 255).astype(np.uint8)
    made = {BAD: away(250, 2), NEAREST: shown[random.integers(PICTURES, size=ITEMS)][:, None], GOOD: away(40, 2)}
    features = {"pixels": {"shown": flat(shown)} | {method: flat(pictures) for method, pictures in made.items()}}
    items = pd.DataFrame({"picture": which, "session": np.where(np.arange(ITEMS) % 3, "one", "two"),
                          "start": 2.0 + np.arange(ITEMS), "category": np.where(which % 2, "cat & dog", "house"),
                          "running": random.random(ITEMS), "trial": np.arange(ITEMS)})
    told = {"simulated": True, "split": "by picture", "averaged": 1, "conditioned_by": {GOOD: "pixels"}, **protocol}
    return Reconstructions(shown, items, made, {BAD: "method", NEAREST: "baseline", GOOD: "method"}, features, told)


def flat(pictures: np.ndarray) -> np.ndarray:
    return pictures.reshape(*pictures.shape[:-3], -1).astype(np.float32) - 128


def recording(name: str = "one") -> Session:
    random = np.random.default_rng(3)
    start = 2.0 + np.arange(ITEMS)
    return Session(id=name, spike_times=np.sort(random.uniform(0, 40, 8000)),
                   spike_units=random.integers(20, size=8000), intervals=[[0, 40]], simulated=True,
                   units=pd.DataFrame({"id": range(20), "region": ["V1"] * 12 + ["IT"] * 8}),
                   stimuli=pd.DataFrame({"start": start, "stop": start + 0.25}))


RESULT = some()
SCORES = report.scores(RESULT)
TABLE = report.table(SCORES)


@pytest.fixture(autouse=True)
def known_table(monkeypatch):
    """What takes longest is computed once."""
    compute = report.table
    monkeypatch.setattr(report, "table", lambda scores: TABLE if scores is SCORES else compute(scores))


@pytest.fixture
def make():
    """Galleries that end what they began."""
    made = []

    def build(*what, **state):
        made.append(Gallery(*what or (RESULT, SCORES), **state))
        return made[-1]

    yield build
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of two saved reports; a recording beside them opens by its path."""
    folder = tmp_path_factory.mktemp("reports")
    recording().save(folder / "one.h5")
    result = some(data={"one": str(folder / "one.h5"), "two": "/nowhere/two.h5"}, windows={"V1": [0.03, 0.2]})
    for name in ("a", "b"):
        result.save(folder / name, SCORES)
    return folder


def score(metric: str, method: str, sample: int = 0) -> np.ndarray:
    """[items], straight from the rows."""
    rows = SCORES[(SCORES["metric"] == metric) & (SCORES["method"] == method) & (SCORES["seed"] == sample)]
    return rows.sort_values("item")["value"].to_numpy()


def pictures(content: str) -> list[np.ndarray]:
    """The pictures in a piece of HTML."""
    image = pytest.importorskip("PIL.Image")
    found = re.findall(r"data:image/png;base64,([^\"]+)", content)
    return [np.asarray(image.open(io.BytesIO(base64.b64decode(each)))) for each in found]


# The order.

def test_the_random_order_is_that_of_the_seed_and_holds_every_item_once(make):
    first, again, other = make(), make(seed=0), make(seed=1)
    assert np.array_equal(first.order, again.order) and sorted(first.order) == list(range(ITEMS))
    assert not np.array_equal(first.order, other.order)
    assert "random order, seed 1" in other._head.object and "by how it came out" in other._head.object
    first.seed = 1
    assert np.array_equal(first.order, other.order)


@pytest.mark.parametrize("metric", ["pixcorr", "rank[pixels]"])
def test_best_worst_and_gain_follow_the_score_of_the_picture_that_is_shown(make, metric):
    better = -1 if metric.startswith("rank") else 1                     # a rank is best where it is lowest
    own, other = better * score(metric, BAD, 1), better * score(metric, NEAREST)
    view = make(metric=metric, of=BAD, sample=1)
    assert view.over == NEAREST                                         # what one would choose to compare with
    for sort, key in (("best", own), ("worst", -own), ("gain", own - other)):
        view.sort = sort
        assert (np.diff(key[view.order]) <= 1e-12).all() and sorted(view.order) == list(range(ITEMS))
        assert f"{gallery.SORTS[sort]}" in re.sub(r"</?b>", "", view._head.object)
        assert "not typical: read the medians" in view._head.object


def test_most_different_is_of_the_pixels_of_two_methods(make):
    view = make(sort="different", of=GOOD, over=BAD, sample=1)
    apart = np.square(RESULT.made[GOOD][:, 1] - RESULT.made[BAD][:, 1].astype(float)).mean((1, 2, 3))
    assert np.array_equal(view.order, np.argsort(-apart))


def test_items_that_are_not_told_apart_stay_in_random_order_and_those_without_a_score_come_last(make):
    rows = SCORES[~((SCORES["item"] < 5) & (SCORES["method"] == BAD))].copy()
    rows.loc[rows["method"] == BAD, "value"] = 0.5
    view = make(RESULT, rows, sort="best", of=BAD, seed=4)
    random = np.random.default_rng(4).permutation(ITEMS)
    assert np.array_equal(view.order, [*random[random >= 5], *random[random < 5]])


def test_a_filter_leaves_the_items_with_that_value_and_the_median_is_theirs(make):
    view = make()
    assert set(view.shown.filters) == {"session", "category"}           # not numbers, nor 30 different ones
    select = next(s for s in view.__panel__().select(pn.widgets.Select) if "cat & dog" in s.options)
    select.value = "cat & dog"
    assert view.where == {"category": "cat & dog"}
    view.where = {"category": "cat & dog", "session": "one"}
    keep = (RESULT.items["category"] == "cat & dog") & (RESULT.items["session"] == "one")
    assert sorted(view.order) == list(np.flatnonzero(keep)) and f"{keep.sum()} of 30 items" in view._head.object
    assert "category is cat &amp; dog" in view._head.object
    rows = SCORES[SCORES["item"].isin(view.order) & (SCORES["metric"] == view.metric)]
    assert view.medians == {m: pytest.approx(rows["value"][rows["method"] == m].median()) for m in [
        *RESULT.made, CHANCE]}


# What is shown.

def test_the_header_gives_the_medians_chance_and_what_has_to_be_said(make):
    view = make(metric="ssim")
    for method in (BAD, NEAREST, GOOD, CHANCE):
        rows = SCORES[(SCORES["method"] == method) & (SCORES["metric"] == view.metric)]
        assert f"<b>{rows['value'].median():.3f}</b>" in view._head.object
    assert "SIMULATED" in view._head.object and "no Fréchet distance" in view._head.object
    assert "Same encoder: pixels conditioned and scores good" in view._head.object
    row = TABLE[(TABLE["metric"] == "pixcorr") & (TABLE["method"] == GOOD)].iloc[0]
    for line in report.summary(TABLE).splitlines():
        assert html.escape(line) in view._told.object
    assert f"{row['low']:.3f} to {row['high']:.3f}" in view._told.object and "▲" in view._told.object


def test_a_row_holds_the_target_and_the_picture_score_and_rank_of_every_method(make):
    view = make(sample=1, methods=[NEAREST, GOOD])
    assert view.methods == [GOOD, NEAREST]                              # methods first, baselines beside them
    found, item = pictures(view._tiles.content), view.order[0]
    assert len(found) == gallery.EACH * 3
    for picture, right in zip(found, (RESULT.shown[RESULT.items["picture"][item]], RESULT.made[GOOD][item, 1],
                                      RESULT.made[NEAREST][item, 0]), strict=False):
        assert np.array_equal(picture, right)
    row = view._tiles.content.split("data-item=")[1]
    assert row.startswith(f'"{item}"') and f"{score('pixcorr', GOOD, 1)[item]:.3f}" in row
    assert f"{score('rank[pixels]', NEAREST)[item]:g} of 12" in row
    view.spread = GOOD
    assert len(pictures(view._tiles.content)) == gallery.EACH * 4


def test_large_pictures_are_sent_reduced(make):
    big = Reconstructions(RESULT.shown.repeat(16, 1).repeat(16, 2), RESULT.items, {
        BAD: RESULT.made[BAD].repeat(16, 2).repeat(16, 3)}, {BAD: "method"}, {}, {})
    view = make(big, SCORES[SCORES["method"].isin([BAD, CHANCE])], item=3)
    assert {p.shape for p in pictures(view._tiles.content)} == {(128, 128, 3)}
    assert {p.shape for p in pictures(view._large.content)} == {(256, 256, 3)}


def test_pages_go_on_to_the_end_and_a_new_order_begins_at_the_first(make):
    view = make(page=3)
    assert len(pictures(view._tiles.content)) == (ITEMS - 2 * gallery.EACH) * 4 and "3 of 3" in view._of_page.object
    back, forward = (b for b in view.__panel__().select(pn.widgets.Button))
    forward.clicks += 1
    assert view.page == 3                                               # there is no further one
    back.clicks += 1
    assert view.page == 2
    view.seed = 5
    assert view.page == 1 and f'data-item="{view.order[0]}"' in view._tiles.content


def test_nothing_to_show_is_said(make):
    view = make(methods=[])
    assert "No method is shown" in view._tiles.content
    items = RESULT.items.assign(session=["two", *["one"] * 29], category=["cat", *["house"] * 29])
    view = make(Reconstructions(RESULT.shown, items, RESULT.made, RESULT.kinds), SCORES,
                where={"category": "house", "session": "two"})
    assert "No item has all of these" in view._tiles.content and "0 of 30 items" in view._head.object


def test_names_are_escaped(make):
    view = make(item=0)
    for text in (view._head.object, view._told.object, view._tiles.content, view._large.content):
        assert "in <b>pixels" not in text and "in &lt;b&gt;pixels" in text


# One item.

def test_an_item_shows_everything_there_is_of_it_and_its_spikes(make):
    view = make(RESULT, SCORES, [recording(), recording("two")])
    view._tiles.chosen = 4                                              # as a click does
    assert view.item == 4
    found, item = pictures(view._large.content), 4
    assert len(found) == 1 + 2 + 2 + 1 and np.array_equal(found[1], RESULT.made[BAD][item, 0])
    for metric in view.shown.values:
        assert f"<th>{metric}</th>" in view._large.content
        for method, sample in ((GOOD, 0), (BAD, 1)):
            assert gallery.short(score(metric, method, sample)[item]) in view._large.content
    view.wait()
    session, spikes = recording(), view._spikes.spikes.data
    near = (session.spike_times >= 5.9) & (session.spike_times < 6.4)   # item 4 began at 6 s
    assert np.allclose(spikes["time"], session.spike_times[near] - 6.0) and near.sum() > 50
    order = np.r_[np.arange(12, 20), np.arange(12)]                     # IT before V1
    assert np.array_equal(order[spikes["row"]], session.spike_units[near])
    assert "comes on and goes" in view._spikes.says.object and view._spikes._gone.location == pytest.approx(0.25)
    assert "one" in view._spikes.plot.title.text
    view.item = 3                                                       # of the other session
    view.wait()
    assert "two" in view._spikes.plot.title.text
    view._large.chosen = -1                                             # its button Close
    assert view.item is None and view._large.content == "" and view._spikes.says.object == ""


def test_the_next_item_takes_the_page_along(make):
    view = make()
    at = gallery.EACH - 1
    view.item = int(view.order[at])
    after = re.findall(r'<button data-item="(-?\d+)"', view._large.content)
    assert [int(number) for number in after] == [view.order[at - 1], view.order[at + 1], -1]
    view._large.chosen = int(after[1])
    assert view.page == 2 and view._tiles.chosen == view.item == view.order[at + 1]


def test_sessions_are_found_by_what_the_protocol_says_and_what_is_not_there_is_told(make, saved):
    view = make(saved / "a", item=4).wait()
    assert "spikes of 20 units of one" in view._spikes.plot.title.text
    boxes = view._spikes.boxes.data
    assert [list(boxes[side]) for side in ("left", "right", "top", "bottom")] == [[0.03], [0.2], [7.5], [19.5]]
    view.item = 3
    view.wait()
    assert "/nowhere/two.h5" in view._spikes._alerts[0].object
    view.item = 4
    view.wait()
    assert not len(view._spikes._alerts) and len(view._spikes._body)
    named = make(RESULT, SCORES, [str(saved / "one.h5")], item=4).wait()
    assert np.array_equal(named._spikes.spikes.data["time"], view._spikes.spikes.data["time"])
    assert "sessions=[" in make(RESULT, SCORES, item=4)._spikes.says.object


# State.

STATES = [{}, {"sort": "gain", "of": GOOD, "over": BAD, "metric": "rank[pixels]", "seed": 3, "page": 2, "item": 7},
          {"methods": [GOOD, NEAREST], "where": {"session": "one"}, "sample": 1, "spread": GOOD, "sort": "worst"}]


@pytest.mark.parametrize("state", STATES)
def test_the_code_makes_the_same_view(make, saved, state):
    view = make(str(saved / "a"), **state)
    *lines, last = view.code().split("\n\n")
    names = {}
    exec("\n".join(lines), names)
    again = eval(last, names)
    assert again.state == view.state and again.code() == view.code() and set(view.state) == set(state)
    assert again._tiles.content == view._tiles.content and again._large.content == view._large.content
    assert again._head.object == view._head.object
    again.close()


def test_the_code_of_objects_says_what_they_are(make):
    view = make(RESULT, SCORES, [recording()], seed=2)
    assert view.code().endswith("# Reconstructions, and their scores\nGallery(reconstructions, scores, "
                                "sessions=sessions, seed=2)")


def test_scores_are_those_of_the_folder_or_computed(make, saved, tmp_path):
    view = make(saved / "a")
    assert np.allclose(view.scores["value"], SCORES["value"])
    RESULT.save(tmp_path / "bare")
    assert np.allclose(make(tmp_path / "bare").scores["value"], SCORES["value"])


def test_two_galleries_share_no_state(make):
    one, two = make(), make()
    before = two._tiles.content
    one.param.update(methods=[BAD], sort="best", where={"session": "one"}, page=1, item=2)
    assert two.state == {} and two._tiles.content == before and two.methods == [BAD, GOOD, NEAREST]
    other = Reconstructions(RESULT.shown, RESULT.items, {"x": RESULT.made[BAD]}, {"x": "method"}, {}, {})
    make(other, report.scores(other))
    assert list(one.param.of.objects) == [BAD, GOOD, NEAREST] and one.methods == [BAD]


@pytest.mark.parametrize(("wrong", "says"), [
    ({"metric": "pixcor"}, "pixcorr"), ({"sort": "luck"}, "random"), ({"of": "worse"}, "no method 'worse'"),
    ({"methods": ["bat"]}, "did you mean bad"), ({"methods": "mean"}, "no method 'mean'"), ({"page": 4}, "there are 3"),
    ({"page": 0}, "from 1 to 30"), ({"item": 30}, "from 0 to 29"), ({"seed": 1.5}, "whole number"),
    ({"sample": 2}, "from 0 to 1"), ({"spread": "each"}, "no method 'each'"), ({"where": "one"}, "columns of items"),
    ({"where": {"running": "1"}}, "category"), ({"where": {"session": "three"}}, "no session 'three'")])
def test_what_cannot_be_shown_is_refused_in_a_sentence(make, wrong, says):
    with pytest.raises((UnknownName, WorkbenchError), match=says):
        make(**wrong)


@pytest.mark.parametrize(("scores", "says"), [
    (SCORES.drop(columns="seed"), "without seed"), (SCORES.assign(item=SCORES["item"] + 1), "compute them anew"),
    (SCORES[:0], "compute them anew"), (SCORES.assign(method="other", kind="method"), "compute them anew")])
def test_scores_of_something_else_are_refused(make, scores, says):
    with pytest.raises(WorkbenchError, match=says):
        make(RESULT, scores)


def test_a_folder_that_is_not_there_is_told(saved):
    with pytest.raises(UnknownName, match="no reconstructions 'zzz'"):
        Gallery(saved / "zzz")


# In a browser.

def drawn(locator) -> float:
    """The share of pixels that are colourful."""
    return (colours(locator.screenshot()).std(axis=2) > 20).mean()


def test_pictures_are_drawn_and_a_click_shows_one_large_with_its_spikes(page):
    made = []

    def build():
        made.append(Gallery(RESULT, SCORES, [recording(), recording("two")]))
        return made[-1]

    with serving(build) as url:
        page.goto(url)
        rows = page.locator(".row")
        rows.nth(gallery.EACH - 1).wait_for()
        for i, picture in enumerate((RESULT.shown[RESULT.items["picture"][made[-1].order[0]]],
                                     RESULT.made[BAD][made[-1].order[0], 0])):
            shot = colours(rows.first.locator("img").nth(i).screenshot())
            cell = shot.shape[0] / SIDE                                 # crisp: the middle of each pixel is its colour
            at = ((np.arange(SIDE) + 0.5) * cell).astype(int)
            assert (np.abs(shot[at][:, at] - picture).max(axis=2) < 8).mean() > 0.95
        first = colours(rows.first.screenshot())
        page.get_by_role("button", name="Forward ▶").click()
        page.locator("text=page 2 of 3").wait_for()
        page.locator(f'.row[data-item="{made[-1].order[gallery.EACH]}"]').wait_for()
        assert (np.abs(colours(rows.first.screenshot()) - first).max(axis=2) > 30).mean() > 0.1
        rows.nth(1).click()
        page.locator("text=orange lines").wait_for()
        raster = page.locator(".bk-Figure")
        raster.wait_for()
        assert made[-1].item == made[-1].order[gallery.EACH + 1] and rows.nth(1).get_attribute("class") == (
            "line row chosen")
        wait_for(lambda: (colours(raster.screenshot()).max(axis=2) < 100).mean() > 0.003)
        assert page.locator(".many img").count() == 6 and drawn(page.locator(".many")) > 0.2
        page.get_by_role("button", name="Close").click()
        wait_for(lambda: not page.locator(".many").count())
        rows.nth(2).focus()
        page.keyboard.press("Enter")
        page.locator(".many img").first.wait_for()
    made[-1].close()


def test_the_address_brings_back_the_view_and_follows_it(hub, page, saved):
    asked = {"folder": str(saved / "a"), "metric": "rank[pixels]", "sort": "worst", "of": GOOD, "page": "2",
             "item": "4", "methods": json.dumps([GOOD, NEAREST]), "where": '{"session":"one"}'}
    page.goto(f"{hub}/apps?app=gallery&" + "&".join(f"{key}={quote(value)}" for key, value in asked.items()))
    page.locator("text=worst first").first.wait_for()
    page.locator("text=page 2 of 2").wait_for()
    page.locator("text=Open in the raster").wait_for()
    link = parse_qs(urlsplit(page.locator("text=Open in the raster").get_attribute("href")).query)
    assert link == {"app": ["raster"], "data": [str(saved / "one.h5")], "window": ["5.900,6.400"]}
    held = parse_qs(urlsplit(page.url).query)
    assert {key: held[key][0] for key in ("folder", "metric", "sort", "of", "page", "item")} == {
        key: asked[key] for key in ("folder", "metric", "sort", "of", "page", "item")} and held["app"] == ["gallery"]
    assert json.loads(held["methods"][0]) == [GOOD, NEAREST] and json.loads(held["where"][0]) == {"session": "one"}
    assert page.locator(".row").first.locator("img").count() == 3
    page.get_by_role("button", name="◀ Back").click()
    page.wait_for_function("!location.search.includes('page=')")       # the first is not said
    page.locator("select").first.select_option(str(saved / "b"))        # another report
    page.wait_for_function("location.search.includes('reports') && !location.search.includes('metric')")
    page.locator("text=random order, seed 0").wait_for()


@pytest.mark.parametrize(("query", "says"), [
    ("folder=/nowhere/at/all", "no reconstructions 'all'"), ("folder={saved}&metric=pixcor", "did you mean pixcorr"),
    ("folder={saved}/a&page=two", "write page=3")])
def test_a_bad_address_gets_a_sentence_and_not_an_empty_page(hub, page, saved, query, says):
    page.goto(f"{hub}/apps?app=gallery&" + query.format(saved=saved))
    page.get_by_role("alert").filter(has_text=says).wait_for()
    if "nowhere" not in query:
        page.locator("text=random order, seed 0").wait_for()            # and the view as it is without


def test_without_a_report_there_is_an_example_that_says_how_far_it_is(page, monkeypatch, tmp_path):
    goes_on = tmp_path / "go"

    def example(progress):
        progress("Halfway <there>")
        wait_for(goes_on.exists)
        return RESULT, SCORES, [recording(), recording("two")]

    monkeypatch.setitem(sys.modules, "workbench.images.reconstruct", SimpleNamespace(example=example))
    monkeypatch.chdir(tmp_path)                                         # where there are no runs
    monkeypatch.setattr(pn.state, "cache", {})
    with serving(gallery.app) as url:
        page.goto(f"{url}/?item=4")
        page.locator("text=this is an example").wait_for()
        page.locator("text=Halfway <there>").wait_for()
        goes_on.touch()
        page.locator("text=30 of 30 items").wait_for()
        page.locator("text=orange lines").wait_for()
        assert "folder=example" in page.url and "item=4" in page.url
        assert pn.state.cache["example"][0] is RESULT                   # for whoever comes next
