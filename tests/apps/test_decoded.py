"""Decoded traces in the run monitor: those of held-out time, as well as the run was scored."""

import numpy as np
import pytest

from workbench.apps.runs import RunMonitor
from workbench.sources.simulated import reach_sim
from workbench.training.recipe import Recipe
from workbench.training.run import Run, launch
from workbench.windows import split


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A GRU that was hardly trained, and a ridge beside it."""
    folder = tmp_path_factory.mktemp("decoded")
    data = reach_sim(seconds=60, units=12).save(folder / "tiny.h5")
    return launch(Recipe(name="tiny", model={"name": "gru", "dim": 8}, data=str(data), target="hand_vel", threads=1,
                         budget={"steps": 2, "eval_every": 2}, baselines=["ridge"]), on="here", run=folder / "run")


def r2(true, said):
    known = np.isfinite(said).all(1)
    left = ((true - said)[known] ** 2).sum(0)
    return float((1 - left / ((true[known] - true[known].mean(0)) ** 2).sum(0)).mean())


def test_traces_are_of_held_out_time_and_as_good_as_the_score_says(run):
    view = RunMonitor(run.path)
    view.__panel__()
    assert view._decoded._ask.visible
    view._decoded.decode().wait()
    traces = view._decoded.traces
    assert list(traces) == ["true", "ridge", "this run"] and not view._decoded._ask.visible
    for whose, folder in (("this run", run.path), ("ridge", run.path / "baselines" / "ridge")):
        own = Run(folder).result()["scores"]["hand_vel"]["r2"]
        assert r2(traces["true"][1], traces[whose][1]) == pytest.approx(own, abs=1e-6)
    test = split(reach_sim(seconds=60, units=12))["test"]
    assert (traces["true"][0] >= test[0, 0]).all() and "SIMULATED" in view._decoded._says.object
    plots = [pane.object for pane in view._decoded._body]
    assert [plot.yaxis.axis_label for plot in plots] == ["x (cm/s)", "y (cm/s)"]
    assert [item.label.value for item in plots[0].legend[0].items] == ["true", "ridge", "this run"]


def test_nothing_is_offered_that_was_not_scored_and_a_lost_recording_is_told(run):
    view = RunMonitor(run.path)
    for name in ("tiny.h5", "run/scores.json"):
        (run.path.parent / name).rename(run.path.parent / f"{name}.away")
    try:
        view._decoded.decode().wait()
        assert "tiny.h5" in view._decoded._body[0].object
        assert not RunMonitor(run.path)._decoded._ask.visible
    finally:
        for name in ("tiny.h5", "run/scores.json"):
            (run.path.parent / f"{name}.away").rename(run.path.parent / name)


def test_the_monitor_as_code_makes_the_same_view(run):
    shown = {}
    exec(RunMonitor(run.path).code().replace("workbench.Run", "shown['view'] = workbench.Run"), {"shown": shown})
    assert shown["view"].run == str(run.path)
    assert RunMonitor(folder="nowhere").code().endswith("nowhere')")
