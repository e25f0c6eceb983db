"""The run monitor: what it says of a run is true, in every state, also while the kernel is busy with a cell."""

import threading
import time

import pytest
from bokeh.document import Document
from bokeh.models import Plot
from panel.io.model import add_to_doc
from pyviz_comms import Comm

from tests.apps.browsing import wait_for
from workbench.apps import runs
from workbench.apps.runs import RunMonitor
from workbench.training import storage
from workbench.training.recipe import Recipe


def folder_of_a_run(path, rows=0, **status):
    path.mkdir(parents=True)
    Recipe.preset("demo").save(path / "recipe.yaml")
    write(path, rows, **status)
    return path


def write(path, rows=0, **status):
    for step in range(1, rows + 1):
        storage.append(path / "metrics.jsonl", {"step": step, "loss": 1 / step, "data_wait": 0.1})
    storage.write_json(path / "status.json", {"state": "finished", "time": time.time(), **status})


def test_no_runs_yet_names_the_folder_that_was_looked_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monitor = RunMonitor()
    assert str(tmp_path / "runs") in monitor._head.object
    assert not monitor._curves.visible and not monitor._progress.visible


def test_a_run_without_steps_shows_no_empty_plots_and_no_steps(tmp_path):
    monitor = RunMonitor(folder_of_a_run(tmp_path / "solved"))
    assert "finished" in monitor._head.object and "step 0" not in monitor._head.object
    assert not monitor._curves.visible and not monitor._progress.visible


def test_a_run_with_steps_shows_curves(tmp_path):
    monitor = RunMonitor(folder_of_a_run(tmp_path / "trained", rows=20, step=20))
    assert "step 20 of 1,000" in monitor._head.object
    assert monitor._curves.visible and monitor._progress.visible
    assert len(monitor._curve.data["step"]) == 20


def test_changing_from_a_run_to_another_leaves_nothing_behind(tmp_path):
    trained = folder_of_a_run(tmp_path / "trained", rows=20, step=20)
    solved = folder_of_a_run(tmp_path / "solved")
    monitor = RunMonitor(folder=tmp_path)
    monitor.run = str(trained)
    monitor.run = str(solved)
    assert not monitor._curves.visible and not len(monitor._curve.data["step"])


class Line(Comm):
    """A comm as the kernel sees it: closed until somebody opens it, and it keeps what was sent."""

    def __init__(self):
        super().__init__()
        self.sent = []

    def init(self, on_open=None):
        self._comm = object()

    def send(self, data=None, metadata=None, buffers=()):
        assert self._comm, "sent along a closed line"
        self.sent.append(data)


@pytest.mark.parametrize("browser_answers", [True, False])
def test_a_monitor_ends_in_the_true_state_while_a_cell_waits_for_the_run(tmp_path, monkeypatch, browser_answers):
    """Nothing here turns the kernel's event loop, as in a cell that calls `run.wait()`."""
    monkeypatch.setattr(runs, "in_kernel", lambda: True)
    monkeypatch.setattr(runs.Run, "alive", property(lambda run: run.status["state"] in ("running", "queued")))
    path, line = folder_of_a_run(tmp_path / "run", state="queued", stage="starting"), Line()
    monitor = RunMonitor(path, interval=100)
    doc = Document()
    root = monitor.__panel__().get_root(doc, line)
    add_to_doc(root, doc, True)                                         # changes are kept until they are sent
    thread = monitor._ticking
    assert isinstance(thread, threading.Thread)
    if browser_answers:
        line.init()
    write(path, rows=30, state="running", step=30)
    wait_for(lambda: "running" in monitor._head.object)
    write(path, state="finished", step=40)
    wait_for(lambda: "finished" in monitor._head.object and "step 40" in monitor._head.object)
    if not browser_answers:                                             # it does when the kernel is free again
        assert thread.is_alive()
        sent = len(line.sent)
        line.init()
        wait_for(lambda: len(line.sent) > sent)
    thread.join(5)
    assert line.sent
    assert not thread.is_alive() and "finished" in monitor._head.object
    assert any(plot.visible for plot in root.select({"type": Plot})) and monitor._curves.visible
