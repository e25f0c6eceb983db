"""Reports of reconstructions: what they hold and refuse, what may be called a win, and that a saved one is whole."""

import json

import numpy as np
import pandas as pd
import pytest

from workbench.errors import CannotWrite, UnknownName, WorkbenchError
from workbench.images import metrics, report
from workbench.images.report import CHANCE, BadReconstructions, Reconstructions

PICTURES, REPEATS, SEEDS, SIDE, DIM = 12, 2, 2, 12, 6
WHICH = np.repeat(np.arange(PICTURES), REPEATS)
TOLD = {"simulated": True, "split": "by picture", "averaged": 1, "conditioned_by": {"good": "own"}}


def noisy(pictures, features, noise, random, seeds=SEEDS):
    """Pictures and features of every item and seed, `noise` away from the right ones."""
    shape = (len(WHICH), seeds)
    made = pictures[WHICH][:, None] + random.normal(0, 100 * noise, (*shape, *pictures.shape[1:]))
    return (made.clip(0, 255).astype(np.uint8),
            (features[WHICH][:, None] + random.normal(0, noise, (*shape, DIM))).astype(np.float32))


def some(noises=(("good", 0.3), ("bad", 3.0)), kinds=None, protocol=TOLD, **more):
    """Two methods, the first better than the second, the mean picture, and a ceiling."""
    random = np.random.default_rng(0)
    shown = random.integers(256, size=(PICTURES, SIDE, SIDE, 3), dtype=np.uint8)
    features = random.normal(size=(PICTURES, DIM)).astype(np.float32)
    made, own = {}, {"shown": features}
    for name, noise in (*noises, ("true embedding", 0.0)):
        made[name], own[name] = noisy(shown, features, noise, random)
    made["mean picture"] = np.broadcast_to(shown.mean(0).astype(np.uint8), (len(WHICH), 1, SIDE, SIDE, 3)).copy()
    kinds = {**dict.fromkeys(made, "method"), "mean picture": "baseline", "true embedding": "ceiling", **(kinds or {})}
    items = pd.DataFrame({"picture": WHICH, "session": "007", "start": random.random(len(WHICH)) * 100,
                          "correct": WHICH % 2 == 0, "note": "NA"})
    given = {"shown": shown, "items": items, "made": made, "kinds": kinds, "protocol": protocol,
             "features": {"own": own, "other": dict(own)}}
    return Reconstructions(**given | more)


@pytest.fixture(scope="module")
def result():
    return some()


@pytest.fixture(scope="module")
def scored(result):
    return report.scores(result)


@pytest.fixture(scope="module")
def told(scored):
    return report.table(scored)


def row(table, metric, method):
    return table[(table["metric"] == metric) & (table["method"] == method)].iloc[0]


# Scores

def test_every_item_seed_and_metric_has_its_row(result, scored):
    per = scored.groupby(["method", "metric"]).size().unstack()
    assert (per.loc[["good", "bad", "true embedding"]] == len(WHICH) * SEEDS).all(axis=None)
    assert (per.loc[CHANCE] == 3 * len(WHICH)).all()
    assert per.loc["mean picture"].dropna().to_dict() == {"pixcorr": len(WHICH), "ssim": len(WHICH)}    # no features
    assert set(scored) == set(report.SCORES) and scored["value"].notna().all()
    assert scored.attrs["ssim"] == metrics.ssim_protocol() and scored.attrs["candidates"] == PICTURES


def test_a_row_is_the_metric_of_its_item_and_seed(result, scored):
    found = scored[(scored["method"] == "bad") & (scored["seed"] == 1)].set_index("metric")
    true, made = result.shown[WHICH], result.made["bad"][:, 1]
    features, own = result.features["own"]["shown"], result.features["own"]["bad"][:, 1]
    near = metrics.similarity(own, features)
    want = {"pixcorr": metrics.pixcorr(true, made), "ssim": metrics.ssim(true, made),
            "cosine[own]": near[np.arange(len(WHICH)), WHICH], "rank[own]": metrics.ranks(near, WHICH),
            "two_way[own]": metrics.two_way(features, own, WHICH)}
    for metric, values in want.items():
        np.testing.assert_array_equal(found.loc[metric, "value"], values)
        np.testing.assert_array_equal(found.loc[metric, "picture"], WHICH)
    larger = report.scores(result, side=24).query("metric == 'ssim' and method == 'bad' and seed == 1")["value"]
    np.testing.assert_array_equal(larger, metrics.ssim(true, made, side=24))


def test_chance_is_another_picture_never_the_same(scored, told):
    chance = scored[(scored["method"] == CHANCE) & (scored["metric"] == "rank[own]")]
    assert (chance["value"] > 1).all() and (chance["kind"] == "chance").all()
    own = scored[(scored["method"] == CHANCE) & (scored["metric"] == "pixcorr")].groupby("item")["value"].nunique()
    assert (own == 3).all()
    assert abs(row(told, "pixcorr", CHANCE)["mean"]) < 0.1 and 0.2 < row(told, "two_way[own]", CHANCE)["mean"] < 0.6


def test_a_single_test_picture_has_scores_and_no_chance():
    random = np.random.default_rng(0)
    shown = random.integers(256, size=(1, SIDE, SIDE, 3), dtype=np.uint8)
    items = pd.DataFrame({"picture": [0], "session": ["s"], "start": [0.0]})
    table = report.table(report.scores(Reconstructions(
        shown, items, {"m": shown[None]}, {"m": "method"}, {"e": {"shown": np.ones((1, 3)), "m": np.ones((1, 1, 3))}})))
    assert set(table["metric"]) == {"pixcorr", "ssim", "cosine[e]", "rank[e]"} and set(table["method"]) == {"m"}
    assert table["mean"].to_numpy() == pytest.approx(np.ones(4)) and table["low"].isna().all()
    assert (table["verdict"] == "").all() and table["above_chance"].isna().all()
    assert "m (1, 95 % nan to nan) is alone." in report.summary(table)


# The table and what it says

def test_the_better_method_wins_each_metric_and_is_above_chance(told):
    assert list(told["metric"].unique()) == ["pixcorr", "ssim", "cosine[own]", "rank[own]", "two_way[own]",
                                             "cosine[other]", "rank[other]", "two_way[other]"]
    for metric in told["metric"].unique():
        best = row(told, metric, "good")
        assert best["verdict"] == "wins" and best["above_chance"] and best["behind"] == 0
        assert row(told, metric, "bad")["verdict"] == "behind" and row(told, metric, "bad")["behind_low"] > 0
        assert row(told, metric, "true embedding")["verdict"] == ""         # a ceiling wins nothing
        assert row(told, metric, CHANCE)["verdict"] == "" and row(told, metric, CHANCE)["above_chance"] is None
    assert told.iloc[0]["method"] == "true embedding"                       # the best first, whatever wins


def test_means_intervals_and_spreads_are_those_of_the_scores(scored, told):
    part = scored[(scored["method"] == "good") & (scored["metric"] == "ssim")]
    item = part.groupby("item")["value"].mean()
    found = row(told, "ssim", "good")
    assert (found["mean"], found["low"], found["high"]) == pytest.approx(metrics.bootstrap(item, WHICH))
    assert found["seed_sd"] == pytest.approx(part.groupby("seed")["value"].mean().std()) and found["seeds"] == SEEDS
    assert np.isnan(row(told, "ssim", "mean picture")["seed_sd"])
    other = scored[(scored["method"] == "bad") & (scored["metric"] == "ssim")].groupby("item")["value"].mean()
    behind = row(told, "ssim", "bad")[["behind", "behind_low", "behind_high"]]
    assert list(behind) == pytest.approx(metrics.paired(item, other, WHICH))


def test_a_tie_is_not_called_a_win():
    """Two methods, each good where the other is bad, and a third that is bad everywhere."""
    given, even = some(), (WHICH % 2 == 0)[:, None]
    both = [given.made["good"], given.made["bad"]], [given.features["own"]["good"], given.features["own"]["bad"]]
    mixed = lambda values, flag: np.where((even == flag).reshape(-1, *[1] * (values[0].ndim - 1)), *values)
    made = {**given.made, "good": mixed(both[0], True), "other half": mixed(both[0], False)}
    own = {**given.features["own"], "good": mixed(both[1], True), "other half": mixed(both[1], False)}
    table = report.table(report.scores(some(made=made, features={"own": own}, kinds={"other half": "method"})))
    for metric in table["metric"].unique():
        for name, verdict in (("good", "not told apart"), ("other half", "not told apart"), ("bad", "behind")):
            assert row(table, metric, name)["verdict"] == verdict
    line = next(each for each in report.summary(table).splitlines() if each.startswith("cosine"))
    assert " and " in line and "are not told apart; behind the first: bad (" in line and "wins" not in line


def test_the_very_same_pictures_are_not_told_apart():
    given = some()
    twin = some(made={**given.made, "twin": given.made["good"]}, kinds={**given.kinds, "twin": "baseline"})
    table = report.table(report.scores(twin))
    assert {row(table, "pixcorr", name)["verdict"] for name in ("good", "twin")} == {"not told apart"}
    assert row(table, "cosine[own]", "good")["verdict"] == "wins"           # the twin has no features


def test_a_baseline_can_win_and_low_ranks_are_good():
    table = report.table(report.scores(some(kinds={"good": "baseline", "bad": "method"})))
    assert row(table, "rank[own]", "good")["verdict"] == "wins"
    assert row(table, "rank[own]", "good")["mean"] < row(table, "rank[own]", "bad")["mean"]


def test_the_summary_says_who_wins_what(told):
    lines = report.summary(told).splitlines()
    assert len(lines) == told["metric"].nunique()
    good = row(told, "pixcorr", "good")
    assert lines[0].startswith(f"pixcorr: good ({good['mean']:.3g}, 95 % {good['low']:.3g} to {good['high']:.3g}) wins")
    assert "; chance is " in lines[0] and "Not above chance" not in lines[0] and "Same encoder" not in lines[0]
    ranks = next(line for line in lines if line.startswith("rank[own], lower is better: good"))
    assert ranks.endswith("Same encoder, which also conditioned good.")
    assert "Same encoder" not in next(line for line in lines if line.startswith("rank[other]"))


def test_a_method_that_is_no_better_than_chance_is_named():
    line = report.summary(report.table(report.scores(some((("good", 0.3), ("noise", 1e4)))))).splitlines()[2]
    assert line.startswith("cosine[own]: good") and "Not above chance: noise." in line


# Notes

def test_same_encoder_few_pictures_and_averages_are_noted(result, told):
    said = " ".join(report.notes(result))
    assert "Same encoder: own conditioned and scores good;" in said and "12 test pictures: no Fréchet" in said
    assert "simulated" in said and "averages" not in said and "does not say" not in said
    same = told[told["same_encoder"]]
    assert set(same["method"]) == {"good"} and set(same["metric"]) == {"cosine[own]", "rank[own]", "two_way[own]"}
    assert any("averages 30 presentations" in note for note in report.notes(some(protocol={**TOLD, "averaged": 30})))


def test_what_the_protocol_leaves_open_is_said():
    said = report.notes(some(protocol={"simulated": False, "split": "by picture"}))
    assert "simulated" not in " ".join(said)
    assert said[-1] == ("The protocol does not say how many presentations an item averages, what each method was "
                        "conditioned by.")


def test_the_protocol_counts_what_can_be_counted(result):
    found = result.protocol
    assert (found["pictures"], found["items"], found["size"]) == (PICTURES, len(WHICH), [SIDE, SIDE])
    assert found["samples"]["mean picture"] == 1 and found["samples"]["good"] == SEEDS
    assert found["extractors"] == ["own", "other"] and set(found["versions"]) == {"numpy", "scikit-image", "workbench"}


# Saved

def test_what_was_saved_comes_back(result, scored, tmp_path):
    folder = result.save(tmp_path / "report", scored)
    found = Reconstructions.load(folder)
    np.testing.assert_array_equal(found.shown, result.shown)
    pd.testing.assert_frame_equal(found.items, result.items)
    assert (found.kinds, list(found.made)) == (result.kinds, list(result.made)) and found.protocol == result.protocol
    for method, made in result.made.items():
        np.testing.assert_array_equal(found.made[method], made)
    for name, held in result.features.items():
        for method, values in held.items():
            np.testing.assert_array_equal(found.features[name][method], values)
            assert found.features[name][method].dtype == values.dtype
    again = report.load_scores(folder)
    pd.testing.assert_frame_equal(again, scored)
    assert again.attrs == scored.attrs
    pd.testing.assert_frame_equal(report.table(again), report.table(scored))
    assert json.loads((folder / "report.json").read_text())["notes"] == report.notes(result)


def test_a_folder_without_its_report_is_refused(result, scored, tmp_path):
    folder = result.save(tmp_path / "report", scored)
    (folder / "report.json").unlink()
    for load in (Reconstructions.load, report.load_scores):
        with pytest.raises(BadReconstructions, match=r"has no report\.json, which comes last"):
            load(folder)


def test_a_save_that_is_cut_off_leaves_no_old_words_about_new_pictures(result, tmp_path, monkeypatch):
    folder = result.save(tmp_path / "report")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(CannotWrite, match="No space left"):
        result.save(folder)
    with pytest.raises(BadReconstructions, match="was cut off"):
        Reconstructions.load(folder)


@pytest.mark.parametrize("name, content, says", [
    ("pictures.npz", b"PK", "not what was saved"), ("items.json", b"{}", "not what was saved"),
    ("pictures.npz", None, "is not there"), ("report.json", b"{", "is damaged"), ("report.json", b"{}", "is damaged")])
def test_damage_is_told(result, tmp_path, name, content, says):
    folder = result.save(tmp_path / "report")
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(BadReconstructions, match=says):
        Reconstructions.load(folder)


def test_scores_of_an_earlier_save_are_not_those_of_this_one(result, scored, tmp_path):
    folder = result.save(tmp_path / "report", scored)
    result.save(folder)
    with pytest.raises(BadReconstructions, match=r"scores\.csv is not there, or not what was saved"):
        report.load_scores(folder)


def test_a_folder_that_is_not_there_names_near_ones(result, tmp_path):
    result.save(tmp_path / "monday")
    with pytest.raises(UnknownName, match=r"no reconstructions 'mondy' in .* did you mean monday"):
        Reconstructions.load(tmp_path / "mondy")
    with pytest.raises(UnknownName, match="there are none"):
        Reconstructions.load(tmp_path / "nowhere" / "report")


def test_a_file_in_the_way_is_told(result, tmp_path):
    (tmp_path / "report").write_text("mine")
    with pytest.raises(CannotWrite):
        result.save(tmp_path / "report")
    assert (tmp_path / "report").read_text() == "mine"


# What does not fit

GIVEN = some()


@pytest.mark.parametrize("wrong, says", [
    ({"items": GIVEN.items.drop(columns="start")}, "give session, start, picture"),
    ({"items": GIVEN.items.drop(columns="picture")}, "give session, start, picture"),
    ({"items": GIVEN.items.assign(picture=WHICH + 1)}, "picture: rows of shown"),
    ({"items": GIVEN.items.assign(picture=WHICH * 1.0)}, "picture: rows of shown"),
    ({"items": GIVEN.items[:3]}, r"give uint8 of shape \(3, 2, 12, 12, 3\)"),
    ({"shown": GIVEN.shown / 255}, "the pictures shown are float64 .* give uint8"),
    ({"made": {**GIVEN.made, "good": GIVEN.made["good"][:, 0]}}, "the pictures good are"),
    ({"kinds": {**GIVEN.kinds, "good": "winner"}}, "method, baseline, chance, ceiling"),
    ({"made": {**GIVEN.made, "shown": GIVEN.made["good"]}}, "call none 'shown'"),
    ({"made": {**GIVEN.made, "new": GIVEN.made["good"]}}, "say of each: method, baseline"),
    ({"features": {"own": {"good": GIVEN.features["own"]["good"]}}}, "no pictures 'shown' in the features of own"),
    ({"features": {"own": {**GIVEN.features["own"], "god": GIVEN.features["own"]["good"]}}}, "did you mean good"),
    ({"features": {"own": {**GIVEN.features["own"], "good": GIVEN.features["own"]["good"][..., :2]}}}, "give float"),
    ({"features": {"own": {"shown": np.full((PICTURES, DIM), None)}}}, "give float"),
    ({"protocol": {"conditioned_by": {"god": "own"}}}, "no method 'god'; did you mean good")])
def test_what_does_not_fit_is_told(wrong, says):
    with pytest.raises(WorkbenchError, match=says):
        some(**wrong)
