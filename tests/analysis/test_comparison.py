"""The table of a comparison is what its runs say, and a comparison goes on where it stopped."""

from dataclasses import replace

import numpy as np
import pytest

import workbench
from tests.models.small import SMALL
from tests.models.test_models import tuned
from workbench import models
from workbench.analysis.comparison import CannotCompare, compare, latency, load, plot
from workbench.errors import UnknownName
from workbench.training import reporter, trainer
from workbench.training.group import OtherRuns, Stopped
from workbench.training.launching import CannotStart
from workbench.training.recipe import Recipe
from workbench.training.run import Run, runs

SESSION, OTHER = tuned("here", 1, seconds=40), tuned("other", 2, seconds=40)


def recipe(name: str, **changes) -> Recipe:
    return Recipe(name=name, model={"name": name, **SMALL[name]}, data="reach-sim", threads=1, device="cpu",
                  batch={"size": 4}, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("comparison")


@pytest.fixture(scope="module")
def table(folder):
    return compare([recipe("gru"), "ridge", recipe("ndt1")], SESSION, target="vel", budget=24, adapt_to=OTHER,
                   labels=10.0, adapt={"steps": 5}, folder=folder / "one")


def test_every_row_is_what_its_run_measured(table, folder):
    assert sorted(table.index) == ["gru", "ndt1", "ridge"] and table["error"].isna().all()
    for name, row in table.iterrows():
        result = Run(folder / "one" / name).result()
        assert row["r2"] == result["scores"]["vel"]["r2"] and row["r2_causal"] == result["scores"]["vel"]["r2_causal"]
        assert row["parameters"] == result["protocol"]["parameters"] and row["latency_ms"] > 0
    assert table["r2"].is_monotonic_decreasing
    assert table["bits_per_spike"].notna().tolist() == (table.index == "ndt1").tolist()
    assert set(runs(folder / "one")["state"]) == {"finished"}


def test_one_budget_and_one_split_for_all(table, folder):
    assert table.loc[["gru", "ndt1"], "steps"].tolist() == [24, 24] and np.isnan(table.loc["ridge", "steps"])
    protocols = [Run(folder / "one" / name).result()["protocol"] for name in table.index]
    assert all(p["split"] == protocols[0]["split"] and p["target"] == "vel" for p in protocols)
    assert (table.loc[["gru", "ndt1"], "step_ms"] > 0).all()


def test_the_cost_of_a_new_session_is_told_where_a_model_can_meet_one(table):
    assert table["adapt_how"].to_dict() == {"gru": "identify", "ndt1": "identify", "ridge": "none"}
    assert table.loc["gru", "adapt_parameters"] == 21 * 32 and table.loc["gru", "adapt_s"] > 0
    assert np.isfinite(table.loc["gru", "adapt_r2"]) and np.isnan(table.loc["ndt1", "adapt_r2"])


def test_called_again_nothing_is_trained_again_and_a_new_model_joins(table, folder, monkeypatch):
    monkeypatch.setattr(trainer, "train", lambda *_, **__: pytest.fail("trained again"))
    ask = dict(target="vel", budget=24, adapt_to=OTHER, labels=10.0, adapt={"steps": 5}, folder=folder / "one")
    again = compare([recipe("gru"), "ridge"], SESSION, **ask)
    assert again.equals(table)
    monkeypatch.undo()
    longer = compare({"small": recipe("gru").with_(model={"dim": 8})}, SESSION, **ask)
    assert set(longer.index) == {*table.index, "small"} and longer.loc[table.index].equals(table)
    assert load(folder / "one").equals(longer) and Run(folder / "one").state == "finished"


def test_an_interrupted_comparison_goes_on(folder, monkeypatch):
    place, beat = folder / "two", reporter.Reporter.__call__

    def stop_at_7(report, **fields):
        beat(report, **fields)
        if fields.get("step") == 7:
            (report.folder / "STOP").touch()

    ask = lambda: compare(["ridge", recipe("gru")], SESSION, target="vel", budget=20, folder=place)
    monkeypatch.setattr(reporter.Reporter, "__call__", stop_at_7)
    with pytest.raises(Stopped, match="goes on from there"):
        ask()
    monkeypatch.undo()
    assert load(place).index.tolist() == ["ridge"] and Run(place / "gru").status["step"] == 7
    ridge, run = (place / "ridge" / "result.json").stat().st_mtime_ns, Run(place)
    assert run.state == "stopped" and "comparison of 2 runs, 1 done" in repr(run)
    assert run.resume(on="here").state == "finished" and set(run.result()["rows"]) == {"ridge", "gru"}
    assert (place / "ridge" / "result.json").stat().st_mtime_ns == ridge
    assert "resumed from the checkpoint of step 7" in Run(place / "gru").log()
    monkeypatch.setattr(trainer, "train", lambda *_, **__: pytest.fail("trained again"))
    assert ask().equals(run.scores()) and runs(folder).loc[str(place), "recipe"] == "comparison"


def test_an_adaptation_tells_its_steps_and_is_stopped_like_a_training(folder, monkeypatch):
    place, beat, told = folder / "six", reporter.Reporter.__call__, []

    def stop_at_3(report, **fields):
        beat(report, **fields)
        if fields.get("part_steps") == 50:
            told.append((report.status["stage"], fields["part_step"]))
            if fields["part_step"] == 3:
                (report.folder / "STOP").touch()

    ask = lambda: compare([recipe("gru")], SESSION, target="vel", budget=4, adapt_to=OTHER, labels=10.0,
                          adapt={"steps": 50}, folder=place)
    monkeypatch.setattr(reporter.Reporter, "__call__", stop_at_3)
    with pytest.raises(Stopped, match="after 0 of 1 runs"):
        ask()
    monkeypatch.undo()
    assert told == [("measuring gru: adapting to other", step) for step in (1, 2, 3)]
    assert Run(place).state == "stopped" and Run(place / "gru").state == "finished"
    assert ask().loc["gru", "adapt_how"] == "identify"


def test_one_model_needs_no_list(folder):
    assert compare("ridge", SESSION, target="vel", folder=folder / "alone").index.tolist() == ["ridge"]


def test_a_finished_run_joins_where_it_had_the_same_split_and_no_other(table, folder):
    run = folder / "one" / "gru"
    joined = compare({"before": run}, SESSION, target="vel", folder=folder / "three")
    assert runs(folder).loc[str(folder / "three"), ["model", "data"]].tolist() == ["gru", "here.h5"]
    assert joined.loc["before", "r2"] == table.loc["gru", "r2"] and joined.loc["before", "run"] == str(run)
    with pytest.raises(CannotCompare, match="another split"):
        compare([run], SESSION, target="vel", split={"test": 0.3}, folder=folder / "four")


def test_a_model_that_cannot_be_trained_is_told_in_its_row_and_the_others_go_on(folder):
    found = compare({"bad": recipe("gru").with_(model={"window": 0.4}), "ridge": "ridge"}, SESSION, target="vel",
                    budget=4, folder=folder / "five")
    assert "warm-up" in found.loc["bad", "error"] and found.loc["ridge", "r2"] <= 1
    assert Run(folder / "five").state == "failed" and "bad, because" in Run(folder / "five").error


def test_other_conditions_and_unknown_models_are_refused(table, folder, tmp_path):
    with pytest.raises(OtherRuns, match="seed is 0 there and 1 here"):
        compare(["ridge"], SESSION, target="vel", budget=24, adapt_to=OTHER, labels=10.0, seed=1,
                adapt={"steps": 5}, folder=folder / "one")
    with pytest.raises(CannotCompare, match="another session of the name 'here'"):
        compare(["ridge"], tuned("here", 5, seconds=40), target="vel", folder=folder / "one")
    vel = SESSION.series["vel"]
    for changed in ({"series": {"vel": vel._replace(values=-vel.values)}}, {"intervals": [[0, 30]]},
                    {"units": SESSION.units.assign(region="M1")}):
        with pytest.raises(CannotCompare, match=r"another session of the name 'here' \(other spikes, units, series"):
            compare(["ridge"], replace(SESSION, **changed), target="vel", folder=folder / "one")
    assert sorted(path.name for path in (folder / "one" / "sessions").iterdir()) == ["here.h5", "other.h5"]
    with pytest.raises(CannotStart, match=r"gru holds a run of another recipe \(model.dim is 32 there and 16 here"):
        compare([recipe("gru").with_(model={"dim": 16})], SESSION, target="vel", budget=24, adapt_to=OTHER, labels=10.0,
                adapt={"steps": 5}, folder=folder / "one")
    with pytest.raises(CannotCompare, match="two of the models are called 'gru'"):
        compare([recipe("gru"), recipe("gru")], SESSION, folder=folder / "six")
    several = tmp_path / "several"
    for one in (SESSION, OTHER):
        one.save(several / f"{one.id}.h5")
    with pytest.raises(CannotCompare, match=r"adapt_to=.*several'\) holds 2 recordings \(here, other, …\); choose one"):
        compare("ridge", SESSION, adapt_to=several, folder=folder / "seven")
    with pytest.raises(UnknownName, match="no model 'gruu'"):
        compare(["gruu"], SESSION, folder=folder / "seven")


def test_latency_is_measured_on_one_core_and_streams_are_streamed():
    import torch
    model, threads, seen = models.build("gru", [SESSION], target="vel", dim=8), torch.get_num_threads(), []

    class Stream:
        def step(self, times, units):
            seen.append((len(times), torch.get_num_threads()))

    assert latency(model, SESSION, number=4) > 0
    model.stream = lambda session: Stream()
    assert latency(model, SESSION, number=4) > 0
    assert len(seen) == 4 and all(one == 1 for _, one in seen) and torch.get_num_threads() == threads
    assert sum(n for n, _ in seen) == (SESSION.spike_times < 0.2).sum()


def test_the_plot_shows_what_was_measured(table):
    shown = plot(table)
    assert len(shown) == 3                                              # R², bits per spike, R² against latency
    assert set(shown.values()[0].data["model"]) == set(table.index)
    assert workbench.compare is compare
