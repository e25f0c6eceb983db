"""A sweep trains every combination once, whatever happens in between, and its folder is a run like any other."""

import copy
import itertools
import json
import math
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

import workbench
from workbench import models
from workbench.apps.runs import RunMonitor
from workbench.models.neurobridge import MODES
from workbench.sources.simulated import reach_sim
from workbench.sources.vision_sim import vision_sim
from workbench.training import reporter, storage, trainer
from workbench.training.group import Group, OtherRuns, Stopped
from workbench.training.launching import CannotStart
from workbench.training.recipe import BadRecipe
from workbench.training.run import NoRun, Run, RunFailed, launch, runs
from workbench.training.sweep import BadSweep, available, combinations, experiment, load, sweep

GRID = {"model.dim": [8, 16], "optim.lr": [1e-3, 0.01]}
LABELS = ["dim=8,lr=0.001", "dim=8,lr=0.01", "dim=16,lr=0.001", "dim=16,lr=0.01"]


@pytest.fixture(scope="session")
def quick(tiny):
    return tiny.with_(budget={"steps": 4, "eval_every": 2, "checkpoint_every": 2})


@pytest.fixture(scope="session")
def done(quick, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps") / "one"
    return folder, sweep(quick, GRID, folder=folder)


def test_a_sweep_in_a_process_of_its_own_is_watched_stopped_and_resumed_as_one(quick, done, tmp_path):
    folder = tmp_path / "detached"
    table = sweep(quick, GRID, folder=folder, on="local")
    assert table.index.tolist() == LABELS and not (table["state"] == "finished").all()
    run = Run(folder)
    with pytest.raises(CannotStart, match="already"):
        sweep(quick, GRID, folder=folder, on="local")
    assert run.stop().wait(120).state == "stopped"
    assert run.resume().wait(240).state == "finished"
    scores = [column for column in done[1] if column.startswith("hand_vel")]
    pd.testing.assert_frame_equal(load(folder)[scores], done[1][scores])
    with pytest.raises(CannotStart, match="in one process each"):
        sweep(quick, GRID, folder=tmp_path / "none", on="local", workers=2)
    assert not (tmp_path / "none").exists()


def stop_at(monkeypatch, label, step, what):
    beat = reporter.Reporter.__call__

    def tell(report, **fields):
        beat(report, **fields)
        if report.folder.name == label and fields.get("step") == step:
            what()
    monkeypatch.setattr(reporter.Reporter, "__call__", tell)


def test_every_combination_is_a_run_of_its_own_and_a_row(done, quick):
    folder, table = done
    assert table.index.tolist() == LABELS and (table["state"] == "finished").all()
    for label, one in table.iterrows():
        run = Run(folder / label)
        assert (run.recipe.model.settings["dim"], run.recipe.optim.lr) == (one["model.dim"], one["optim.lr"])
        assert set(quick.diff(run.recipe)) <= set(GRID)
        protocol = run.result()["protocol"]
        assert one["hand_vel.r2"] == run.result()["scores"]["hand_vel"]["r2"]
        assert one["parameters"] == protocol["parameters"] and one["seconds"] == protocol["wall_s"]
        (part,) = protocol["split"].values()
        assert one["data_s"] == pytest.approx(sum(b - a for a, b in part["train"])) and one["sessions"] == 1
    assert not [c for c in table if c.startswith("hand_vel.") and "r2" not in c]            # scores alone
    assert table["parameters"].nunique() == 2 and workbench.sweep is sweep


def test_the_folder_is_a_run(done):
    folder, table = done
    run = Run(folder)
    assert type(copy.deepcopy(run)) is Group and copy.deepcopy(run).path == run.path
    assert run.state == "finished" and run.wait() is run and run.resume() is run and run.error == ""
    assert run.scores().equals(table) and set(run.result()["rows"]) == set(LABELS)
    assert "sweep of 4 runs, 4 done" in repr(run) and "sweep" in run._repr_html_()
    metrics = run.metrics()
    assert metrics.groupby("run")["step"].apply(list).to_dict() == {label: [1, 2, 3, 4] for label in LABELS}
    for look in (lambda: run.recipe, run.model):
        with pytest.raises(NoRun, match=r"run\.runs\[label\]"):
            look()


def test_the_folder_and_its_runs_are_listed_and_shown(done):
    folder, _ = done
    above = runs(folder.parent)
    assert above.loc[str(folder), ["state", "recipe", "step", "steps"]].tolist() == ["finished", "sweep", 4, 4]
    assert set(runs(folder)["state"]) == {"finished"} and len(runs(folder)) == 4
    monitor = RunMonitor(folder=folder.parent)
    assert monitor.param.run.objects == [str(folder), *(str(folder / label) for label in LABELS)]
    assert "4 runs, 4 done" in monitor._head.object and "model.dim" in monitor._head.object
    assert not monitor._curves.visible and not monitor._resume.visible
    monitor.run = str(folder / LABELS[1])
    assert monitor._curves.visible and "model.dim" not in monitor._head.object


def test_called_again_nothing_is_trained_again_and_a_larger_grid_joins(done, quick, monkeypatch):
    folder, table = done
    monkeypatch.setattr(trainer, "train", lambda recipe, place, **_: pytest.fail(f"{place} was trained again"))
    assert sweep(quick, GRID, folder=folder).equals(table)
    monkeypatch.undo()
    larger = sweep(quick, {**GRID, "optim.lr": [0.1, *GRID["optim.lr"]]}, folder=folder)
    assert set(larger.index) == {*LABELS, "dim=8,lr=0.1", "dim=16,lr=0.1"}
    assert larger.loc[LABELS, table.columns].equals(table) and Run(folder).result()["rows"].keys() == set(larger.index)


def test_a_stopped_sweep_goes_on_where_it_was_from_another_process(quick, tmp_path, monkeypatch):
    folder = tmp_path / "sweep"
    stop_at(monkeypatch, "seed=1", 2, lambda: Run(folder).stop())
    with pytest.raises(Stopped, match="stopped after 1 of 3 runs"):
        sweep(quick, {"seed": [0, 1, 2]}, folder=folder)
    monkeypatch.undo()
    assert Run(folder).state == "stopped" and load(folder)["state"].tolist() == ["finished", "stopped", "queued"]
    before = (folder / "seed=0" / "result.json").stat().st_mtime_ns
    run = Run(folder).resume().wait(100)
    assert run.state == "finished" and (run.scores()["state"] == "finished").all()
    assert "resumed from the checkpoint of step 2" in run.runs["seed=1"].log()
    assert (folder / "seed=0" / "result.json").stat().st_mtime_ns == before
    straight = launch(quick.with_(seed=1), on="here", run=tmp_path / "straight")
    assert run.runs["seed=1"].result()["scores"] == straight.result()["scores"]


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_a_killed_sweep_is_lost_and_resumes(quick, tmp_path):
    quick.with_(budget={"steps": 10**6}).save(tmp_path / "long.yaml")
    code = "import sys, workbench; workbench.sweep(sys.argv[1], {'seed': [0, 1]}, folder=sys.argv[2])"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "long.yaml"), str(tmp_path / "sweep")],
                               stderr=subprocess.DEVNULL)
    end, seen = time.monotonic() + 200, set()
    while not list(tmp_path.glob("sweep/*/checkpoints/*.pt")) and time.monotonic() < end:
        if (tmp_path / "sweep" / "process.json").exists():
            seen.add(Run(tmp_path / "sweep").state)
        time.sleep(0.05)
    assert seen <= {"queued", "running"}
    assert Run(tmp_path / "sweep").state == "running" and Run(tmp_path / "sweep" / "seed=0").state == "running"
    with pytest.raises(CannotStart, match="running already"):
        Run(tmp_path / "sweep").resume()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert Run(tmp_path / "sweep").state == "lost" and load(tmp_path / "sweep")["state"].tolist() == ["lost", "queued"]
    with pytest.raises(RunFailed, match=r"killed without a word; run.resume\(\)"):
        Run(tmp_path / "sweep").wait()


def test_a_run_that_fails_is_told_in_its_row_and_tried_again(quick, tmp_path, monkeypatch):
    def broken():
        raise RuntimeError("out of memory")
    stop_at(monkeypatch, "seed=0", 2, broken)
    table = sweep(quick, {"seed": [0, 1]}, folder=tmp_path)
    assert table["state"].tolist() == ["failed", "finished"] and "out of memory" in table.loc["seed=0", "error"]
    run = Run(tmp_path)
    assert run.state == "failed" and "1 of 2 runs" in run.error and "seed=0" in run.error and "Traceback" in run.log()
    monkeypatch.undo()
    again = sweep(quick, {"seed": [0, 1]}, folder=tmp_path)
    assert (again["state"] == "finished").all() and "error" not in again and Run(tmp_path).state == "finished"


def test_mistakes_are_told_before_anything_starts(quick, done, tmp_path):
    place = tmp_path / "sweep"
    for grid, error, says in [({"optim.lrr": [1]}, BadRecipe, "optim.lr"), ({}, BadSweep, "empty"),
                              ({"seed": []}, BadSweep, "empty"), ({"seed": 3}, BadSweep, "list"),
                              ({"seed": [0, -1]}, BadRecipe, "seed is -1"),
                              ({"name": ["x/y", "x:y"]}, BadSweep, "two runs")]:
        with pytest.raises(error, match=says):
            sweep(quick, grid, folder=place)
    assert not place.exists()
    with pytest.raises(CannotStart, match=r"budget\.steps is 4 there and 5 here"):
        sweep(quick.with_(budget={"steps": 5}), GRID, folder=done[0])
    with pytest.raises(OtherRuns, match="single run"):
        sweep(quick, GRID, folder=done[0] / LABELS[0])
    with pytest.raises(OtherRuns, match="holds a sweep, and this is a comparison"):
        workbench.compare(["ridge"], quick.data, folder=done[0])


def test_names_say_what_differs_in_words(quick, recording):
    from workbench.training.sweep import _label
    assert _label({"modes": {"temporal": 1, "neuron": 1}, "prompt": True}) == "modes=temporal+neuron,prompt=true"
    assert _label({"modes": {"temporal": 0.5, "neuron": 1}}) == "modes=temporal~0.5+neuron~1"
    assert _label({"data": [str(recording), "sim/day 2"]}) == "data=tiny+sim_day_2"
    long = [_label({"data": ["x" * 200 + end]}) for end in "ab"]
    assert long[0] != long[1] and all(len(name) < 125 for name in long)


def test_a_mapping_replaces_the_one_in_the_recipe_and_another_model_forgets_settings(quick):
    one = quick.with_(model={"modes": {"temporal": 1.0, "neuron": 1.0}}).vary({"model.modes": {"causal": 1.0}})
    assert one.model.settings["modes"] == {"causal": 1.0} and one.model.settings["dim"] == 16
    assert quick.vary({"model.dim": 3, "model.name": "ridge"}).model.settings == {"dim": 3}


def test_an_experiment_is_a_sweep_in_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("recipe: gru\nset: {budget.steps: 9}\ngrid: {model.dim: [8, 16], seed: [0, 1]}\n")
    recipe, grid = experiment(path, ["optim.lr=2e-3"])
    assert (recipe.budget.steps, recipe.optim.lr) == (9, 2e-3) and len(grid) == 4
    assert experiment(path, ["seed=5"])[1] == [{"model.dim": 8, "seed": 5}, {"model.dim": 16, "seed": 5}]
    path.write_text("recipe: gru\ngrids: {}\n")
    with pytest.raises(BadSweep, match="is no experiment"):
        experiment(path)
    with pytest.raises(workbench.WorkbenchError, match="no experiment 'maskin'"):
        experiment("maskin")


def test_combinations_are_all_of_them_in_order_and_each_once():
    assert combinations({"a": [1, 2], "b": [3, 3]}) == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]
    assert combinations([{"a": 1}, {"b": 2}, {"a": 1}]) == [{"a": 1}, {"b": 2}]


def test_a_plan_is_plain_json(done):
    text = (done[0] / "plan.json").read_text()
    assert "NaN" not in text and json.loads(text)["kind"] == "sweep"
    assert not math.isnan(pd.to_numeric(load(done[0])["parameters"]).sum())
    assert isinstance(Run(done[0]), Group) and storage.read_json(done[0] / "status.json")["done"] >= 4


@pytest.mark.parametrize("name", available())
def test_every_run_of_a_shipped_experiment_can_be_built(name):
    recipe, grid = experiment(name)
    seen, shows = set(), models.get(recipe.model.name).locked
    here = [vision_sim(0, pictures=40, repeats=2, units=30) if shows else reach_sim(seconds=20, units=20)]
    for settings in grid:
        varied = recipe.vary(settings)
        model, given = varied.model, {"target": varied.target} if shows else {}
        if repr([model, given]) not in seen:
            built = models.build(model.name, here, **given, **model.settings)
            assert built.name == recipe.model.name and sum(p.numel() for p in built.parameters()) > 0
            seen.add(repr([model, given]))
    assert len({repr(settings) for settings in grid}) == len(grid) >= 4


def test_the_masking_experiment_has_every_mode_alone_every_pair_and_all_each_told_and_untold():
    recipe, grid = experiment("masking")
    asked = [(frozenset(s["model.modes"]), s.get("model.prompt", False)) for s in grid]
    alone, pairs = ({frozenset(some) for some in itertools.combinations(MODES, n)} for n in (1, 2))
    assert {modes for modes, told in asked if not told} == {*alone, *pairs, frozenset(MODES)}
    assert {modes for modes, told in asked if told} == {*pairs, frozenset(MODES)}     # one mode needs no telling
    assert recipe.model.settings["prompt"] is False
