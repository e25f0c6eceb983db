"""The run monitor: what it says of a run is true, in every state, also while the kernel is busy with a cell."""

import html
import re
import shutil
import threading
import time
from contextlib import suppress
from urllib.parse import quote, quote_plus
from urllib.request import urlopen

import pandas as pd
import pytest
from bokeh.document import Document
from bokeh.models import Plot
from panel.io.model import add_to_doc
from pyviz_comms import Comm

from tests.apps.browsing import serving, wait_for
from workbench.apps import runs
from workbench.apps.runs import RunMonitor
from workbench.training import storage
from workbench.training.recipe import Recipe
from workbench.training.run import NoRun


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
    assert len(monitor._curves.loss.data["step"]) == 20


def test_changing_from_a_run_to_another_leaves_nothing_behind(tmp_path):
    trained = folder_of_a_run(tmp_path / "trained", rows=20, step=20)
    solved = folder_of_a_run(tmp_path / "solved")
    monitor = RunMonitor(folder=tmp_path)
    monitor.run = str(trained)
    monitor.run = str(solved)
    assert not monitor._curves.visible and not len(monitor._curves.loss.data["step"])


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


def write_rows(path, rows):
    for row in rows:
        storage.append(path / "metrics.jsonl", row)


def alerts(monitor) -> list[str]:
    """What a reader sees in red."""
    return re.findall(r'role="alert"[^>]*>([^<]*)', monitor._alert.object) if monitor._alert.visible else []


def table(monitor) -> list[list[str]]:
    """The cells of the table of runs, the head first; nothing where it is not shown."""
    content = html.unescape(monitor._table._rows.content) if monitor._table._rows.visible else ""
    rows = re.findall(r"<tr.*?</tr>", content)
    return [[re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<td.*?</td>", row)] for row in rows]


def test_a_new_row_is_shown_within_a_second(tmp_path, monkeypatch):
    """From the periodic callback of a served page, at the default interval: the time from the file to the plot."""
    monkeypatch.setattr(runs.Run, "alive", property(lambda run: True))
    path, built, took = folder_of_a_run(tmp_path / "run", rows=20, state="running", step=20), [], []

    def build():
        built.append(RunMonitor(path))
        return built[-1]

    def visited(address):
        with suppress(OSError), urlopen(address) as answer:             # the server is about to listen
            return answer.status == 200

    with serving(build) as address:
        wait_for(lambda: visited(address))
        monitor = built[-1]
        for step in range(21, 26):
            storage.append(path / "metrics.jsonl", {"step": step, "loss": 0.1})
            began = time.perf_counter()
            while monitor._curves.loss.data["step"][-1] < step:
                assert time.perf_counter() - began < 20
                time.sleep(0.005)
            took.append(time.perf_counter() - began)
    assert sorted(took)[2] < 1, took                                    # the median: the machine may do something else


def test_only_what_is_new_is_read_and_half_a_line_waits_for_its_end(tmp_path, monkeypatch):
    path, looks = folder_of_a_run(tmp_path / "run", rows=500, step=500), []
    look = storage.Tail.look
    monkeypatch.setattr(storage.Tail, "look", lambda tail: looks.append(look(tail)) or looks[-1])
    monitor = RunMonitor(path)
    storage.append(path / "metrics.jsonl", {"step": 501, "loss": 0.1})
    with open(path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 502, "lo')
    monitor.refresh()
    assert list(monitor._curves.loss.data["step"][-2:]) == [500, 501]
    with open(path / "metrics.jsonl", "ab") as file:
        file.write(b'ss": 0.2}\n')
    monitor.refresh()
    assert list(monitor._curves.loss.data["step"]) == list(range(1, 503))
    assert [len(rows) for rows, _ in looks] == [500, 1, 1]


def test_a_resumed_a_cut_and_a_rewritten_file_are_drawn_without_doubling(tmp_path):
    path = folder_of_a_run(tmp_path / "run", rows=30, step=30)
    monitor, steps = RunMonitor(path), lambda: list(monitor._curves.loss.data["step"])
    for step in (21, 22):                                               # a resumed run goes over its steps again
        storage.append(path / "metrics.jsonl", {"step": step, "loss": 5.0, "valid": 0.1})
    monitor.refresh()
    assert steps() == list(range(1, 23)) and list(monitor._curves.loss.data["loss"][-2:]) == [5, 5]
    kept = (path / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:10]
    (path / "metrics.jsonl").write_bytes(b"".join(kept))
    monitor.refresh()
    assert steps() == list(range(1, 11)) and not monitor._curves.valid.data["step"]
    (path / "metrics.jsonl").unlink()
    monitor.refresh()
    assert steps() == [] and not monitor._curves.visible


def test_a_curve_of_many_steps_is_thinned_and_ends_with_the_newest(tmp_path):
    path = folder_of_a_run(tmp_path / "run", rows=4501, step=4501)
    steps = RunMonitor(path)._curves.loss.data["step"]
    assert len(steps) <= 2001 and steps[0] == 1 and steps[-1] == 4501


@pytest.mark.parametrize("in_a_thread", [False, True])
def test_a_run_that_is_deleted_while_it_is_watched_leaves_one_sentence(tmp_path, monkeypatch, in_a_thread):
    monkeypatch.setattr(runs, "in_kernel", lambda: in_a_thread)
    monkeypatch.setattr(runs.Run, "alive", property(lambda run: run.status["state"] == "running"))
    path = folder_of_a_run(tmp_path / "run", rows=20, state="running", step=20)
    monitor = RunMonitor(path, interval=100)
    if in_a_thread:
        line = Line()
        line.init()
        add_to_doc(monitor.__panel__().get_root(Document(), line), Document(), True)
        thread = monitor._ticking
        shutil.rmtree(path)
        thread.join(20)
        assert not thread.is_alive()
    else:
        shutil.rmtree(path)
        monitor.refresh()
    assert len(alerts(monitor)) == 1 and "there is no run" in alerts(monitor)[0]
    assert not monitor._curves.visible and not monitor._stop.visible and not monitor._head.object
    monitor._act("stop")                                                # a button that was on the screen still
    assert len(alerts(monitor)) == 1


def test_several_runs_are_a_table_of_what_differs_and_a_row_shows_its_run(tmp_path):
    demo = Recipe.preset("demo")
    for name, recipe in {"a": demo, "b": demo.with_(optim={"lr": 3e-4}, name="other"),
                         "c": demo.with_(optim={"lr": 3e-3}, data=["/far/one.h5", "/far/two.h5"])}.items():
        path = folder_of_a_run(tmp_path / name, rows=3, step=3, steps=1000, valid=0.25, valid_name="R²",
                               started={"a": 3, "b": 2, "c": 1}[name])
        recipe.save(path / "recipe.yaml")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "recipe.yaml").write_text("model: gru\nold_setting: 3\n")
    monitor = RunMonitor(folder=tmp_path)
    head, *rows = table(monitor)
    assert head == ["run", "state", "step", "validation", "data", "optim.lr"] or head[4:] == ["optim.lr", "data"]
    cells = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert cells["a"] == {"run": "a", "state": "finished", "step": "3 of 1,000", "validation": "R² 0.250",
                          "optim.lr": "0.001", "data": "reach-sim"}
    assert (cells["b"]["optim.lr"], cells["c"]["data"]) == ("0.0003", "one.h5, two.h5")
    assert cells["broken"]["optim.lr"] == "" and monitor.run == str(tmp_path / "a")
    monitor._table._rows.chosen = [row[0] for row in rows].index("c")   # a click
    assert monitor.run == str(tmp_path / "c") and str(tmp_path / "c") in monitor._head.object
    shutil.rmtree(tmp_path / "b")
    folder_of_a_run(tmp_path / "d", rows=1, started=4)
    monitor._survey()
    assert [row[0] for row in table(monitor)[1:]] == ["d", "a", "c", "broken"] and monitor.run == str(tmp_path / "c")
    shutil.rmtree(tmp_path / "c")                                       # the one on view
    monitor.refresh()
    assert len(alerts(monitor)) == 1 and [row[0] for row in table(monitor)[1:]] == ["d", "a", "broken"]
    monitor._table._rows.chosen = 1
    assert monitor.run == str(tmp_path / "a") and alerts(monitor) == [] and monitor._curves.visible


def test_a_run_is_shown_first_of_those_in_a_folder_or_in_several_as_one(tmp_path):
    for name in ("old", "new"):
        folder_of_a_run(tmp_path / "two" / name, rows=3, started={"old": 1, "new": 2}[name])
    old, both = str(tmp_path / "two" / "old"), [str(tmp_path / "two" / name) for name in ("new", "old")]
    monitor = RunMonitor(old, folder=tmp_path / "two")
    assert monitor.run == old and monitor.param.run.objects == both and len(table(monitor)) == 3
    storage.write_json(tmp_path / "two" / "plan.json", {"kind": "sweep", "conditions": {}, "runs": {
        name: {"recipe": Recipe.preset("demo").model_dump(mode="json"), "varied": []} for name in ("new", "old")}})
    whole = str(tmp_path / "two")
    for monitor in (RunMonitor(whole), RunMonitor(old, folder=whole)):
        assert monitor.param.run.objects == [whole, *both]
    assert monitor.run == old
    with pytest.raises(NoRun, match="there is no run at"):
        RunMonitor(tmp_path / "none", folder=whole)


def test_what_several_runs_measured_is_said_in_few_digits_with_units(tmp_path):
    measured = pd.DataFrame({"r2": [0.77564104, -0.00029], "train_s": [1.84, 191.43], "step_ms": [None, 971.4152],
                             "parameters": [1922.0, 469954.0], "bits_per_spike": [None, None], "optim.lr": [1e-3, 3e-4],
                             "run": ["/far/away/ridge", None], "error": [None, "no <series>"]},
                            index=pd.Index(["ridge", "gru"], name="model"))
    rows = [re.findall("<t[hd]>(.*?)</t[hd]>", row) for row in runs.measured(measured).split("</tr>")[:3]]
    assert rows == [["model", "r2", "train (s)", "step (ms)", "parameters", "optim.lr", "run", "error"],
                    ["ridge", "0.776", "1.84", "", "1,922", "0.001", "ridge", ""],
                    ["gru", "-0.00029", "191", "971", "469,954", "0.0003", "", "no &lt;series&gt;"]]


def test_one_run_alone_has_no_table(tmp_path):
    folder_of_a_run(tmp_path / "a", rows=3)
    assert table(RunMonitor(folder=tmp_path)) == [] == table(RunMonitor(tmp_path / "a"))


def test_settings_of_many_kinds_of_runs_are_not_all_columns(tmp_path):
    for name in ("demo", "ndt1", "gru"):
        folder_of_a_run(tmp_path / name)
        Recipe.preset(name).save(tmp_path / name / "recipe.yaml")
    monitor = RunMonitor(folder=tmp_path)
    assert len(table(monitor)[0]) == 4 + 8 and "more settings differ" in monitor._table._rows.content


@pytest.mark.parametrize("number", [2, 40])
def test_the_score_of_every_session_is_a_line_and_a_number(tmp_path, number):
    path = folder_of_a_run(tmp_path / "run", valid_name="R²")
    scores = {f"day <{i}>": i / 50 for i in range(number)}
    write_rows(path, [{"step": 1, "loss": 1.0},
                      *({"step": step, "loss": 1.0, "valid": 0.5, "valid_sessions": scores} for step in (2, 4))])
    curves = RunMonitor(path)._curves
    lines = curves.each.data
    assert lines["session"] == list(scores) and lines["steps"] == [[2, 4]] * number
    assert lines["scores"][1] == [1 / 50] * 2 and list(curves.valid.data["valid"]) == [0.5, 0.5]
    assert all(f"day &lt;{i}&gt; <b>{i / 50:.3f}" in curves._sessions.object for i in range(number))
    if number == 2:
        assert len({*lines["color"], "#0072b2"}) == 3                   # told from each other and from the whole
    else:
        assert curves._sessions.object.index("&lt;0&gt;") < curves._sessions.object.index("&lt;39&gt;")         # worst


def test_a_score_that_is_no_number_breaks_nothing(tmp_path):
    path = folder_of_a_run(tmp_path / "run", valid_name="R²")
    write_rows(path, [{"step": 1, "loss": 1.0, "grad_norm": 0.0, "valid": None, "valid_sessions": {"a": None}},
                      {"step": 2, "loss": 1.0, "valid": 0.5, "valid_sessions": {"a": 0.5, "b": None}}])
    monitor = RunMonitor(path)
    assert list(monitor._curves.valid.data["step"]) == [2] and alerts(monitor) == []


def test_gradient_norm_throughput_and_memory_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(runs.Run, "alive", property(lambda run: True))
    path = folder_of_a_run(tmp_path / "run", state="running", step=2, spikes_per_s=12345.6)
    write_rows(path, [{"step": step, "loss": 1.0, "grad_norm": 10.0**step, "data_wait": 0.25, "memory_gb": 1.234}
                      for step in (1, 2)])
    monitor = RunMonitor(path)
    assert list(monitor._curves.norm.data["norm"]) == [10, 100] and monitor._curves._norm.visible
    for said in ("12,346 spikes/s", "25 % of a step waits for data", "1.23 GB of memory"):
        assert said in monitor._head.object
    storage.write_json(path / "resolved.json", {"device": "cuda:0"})
    monitor.refresh()
    assert "1.23 GB of the GPU" in monitor._head.object


def test_a_loss_that_is_no_number_is_one_red_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(runs.Run, "alive", property(lambda run: run.status["state"] == "running"))
    path = folder_of_a_run(tmp_path / "run", rows=5, state="running", step=5)
    monitor = RunMonitor(path)
    assert alerts(monitor) == []
    write_rows(path, [{"step": step, "loss": float("nan")} for step in (6, 7)])
    monitor.refresh()
    (said,) = alerts(monitor)
    assert "no number since step 6" in said and "optim.lr" in said
    write_rows(path, [{"step": 8, "loss": 0.5}])
    monitor.refresh()
    assert alerts(monitor) == []
    write_rows(path, [{"step": 9, "loss": float("nan")}])
    write(path, state="failed", step=9, error="the loss became nan at step 9; start a new run with a lower optim.lr")
    monitor.refresh()
    assert alerts(monitor) == ["the loss became nan at step 9; start a new run with a lower optim.lr"]


def test_in_a_browser_a_row_is_clicked_and_its_run_shown(hub, page, tmp_path):
    folder_of_a_run(tmp_path / "bare", rows=3, step=3, steps=1000, started=3)
    for name, started in (("one", 2), ("other", 1)):
        path = folder_of_a_run(tmp_path / name, rows=20, step=20, steps=1000, started=started)
        (path / "model").mkdir()
        for step in range(21, 30):
            storage.append(path / "metrics.jsonl", {"step": step, "loss": 1 / step, "valid": step / 40})
        for place in [path, *(path / "baselines" / kind for kind in ("gru", "ridge") if name == "one")]:
            storage.write_json(place / "scores.json", {"scores": {"hand_vel": {"r2": 0.7}},
                                                       "protocol": {"target": "hand_vel"}})
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"{hub}/apps?app=runs&folder={quote_plus(str(tmp_path))}")
    page.locator("code", has_text=str(tmp_path / "bare")).wait_for()
    page.wait_for_url(f"**run={quote(str(tmp_path / 'bare'), safe='')}**")
    page.locator("tr", has_text="one").click()
    page.locator("code", has_text=str(tmp_path / "one")).wait_for()
    page.locator("tr", has_text="other").click()
    page.locator("code", has_text=str(tmp_path / "other")).wait_for()
    page.locator(f'a[href="?app=latents&run={quote_plus(str(tmp_path / "other"))}"]').wait_for()
    for name in ("one", "other", "one"):                                # dashed lines of baselines come and go
        page.locator("tr", has_text=name).last.click()
        page.wait_for_timeout(1000)
        page.locator("code", has_text=str(tmp_path / name)).wait_for()
        page.locator(f'a[href="?app=latents&run={quote_plus(str(tmp_path / name))}"]').wait_for()
    assert not [text for text in said if "view for" in text], "the browser draws all that it is sent"
    page.wait_for_url(f"**run={quote(str(tmp_path / 'one'), safe='')}**")
    page.reload()                                                       # to the run, and the others beside it
    page.locator("code", has_text=str(tmp_path / "one")).wait_for()
    assert page.locator("tr.row").count() == 3 and "one" in page.locator("tr.row.chosen").inner_text()
