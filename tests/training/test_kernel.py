"""A run started from a cell, in a real kernel: nothing that happens to the kernel happens to the run."""

import tempfile
import time

import pytest
from jupyter_client.manager import KernelManager

from workbench.training import checkpoint
from workbench.training.run import Run, launch


class Kernel:
    """A kernel and a client of it; `cell` runs code to its end and returns what it printed."""

    def __init__(self, folder):
        self.sockets = tempfile.TemporaryDirectory()                    # files: a free port may soon be another's
        self.manager = KernelManager(kernel_name="python3", transport="ipc", ip=f"{self.sockets.name}/kernel")
        self.manager.start_kernel(cwd=str(folder))
        self.connect()

    def connect(self) -> None:
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)

    def cell(self, code: str, wait: bool = True) -> str:
        said = []

        def heard(message):
            if message["msg_type"] == "stream":
                said.append(message["content"]["text"])

        if not wait:
            return self.client.execute(code)
        reply = self.client.execute_interactive(code, timeout=120, output_hook=heard)
        assert reply["content"]["status"] == "ok", reply["content"].get("evalue")
        return "".join(said)

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.sockets.cleanup()


@pytest.fixture
def kernel(tmp_path):
    opened = []

    def open_() -> Kernel:
        opened.append(Kernel(tmp_path))
        return opened[-1]
    yield open_
    for each in opened:
        each.close()


def goes_on(run: Run) -> bool:
    """Whether the run takes steps that it had not taken before."""
    before, until = run.status.get("step") or 0, time.monotonic() + 60
    while (run.status.get("step") or 0) <= before + 1:
        if time.monotonic() > until or run.state not in ("queued", "running"):
            return False
        time.sleep(0.05)
    return True


def test_a_cell_answers_at_once_while_three_runs_train(kernel, tiny, tmp_path):
    each = [tiny.with_(seed=seed, budget={"steps": 10**6, "eval_every": 10**6}) for seed in range(3)]
    started = [launch(recipe, run=tmp_path / f"run-{recipe.seed}") for recipe in each]
    try:
        assert all(map(goes_on, started))
        cells = kernel()
        cells.cell("1+1")
        took = []
        for _ in range(15):
            began = time.perf_counter()
            cells.cell("1+1")
            took.append(time.perf_counter() - began)
        assert all(map(goes_on, started))
    finally:
        for run in started:
            run.kill()
    # Of three medians the best: a typical cell, of a stretch in which nothing but the runs keeps the machine busy.
    assert min(sorted(took[k:k + 5])[2] for k in (0, 5, 10)) < 0.2, took


def test_what_happens_to_the_kernel_does_not_happen_to_the_run(kernel, tiny, tmp_path):
    recipe, place = tmp_path / "recipe.yaml", tmp_path / "run"
    tiny.with_(budget={"steps": 100_000, "eval_every": 50_000}).save(recipe)
    first = kernel()
    first.cell(f"import workbench; run = workbench.launch({str(recipe)!r}, run={str(place)!r})")
    run = Run(place)
    try:
        assert goes_on(run)
        first.manager.interrupt_kernel()                                # idle
        assert goes_on(run)
        first.cell("import time; time.sleep(600)", wait=False)
        time.sleep(1)
        first.manager.interrupt_kernel()                                # busy
        assert goes_on(run)
        for now in (False, True):                                       # a polite restart, and one by a kill
            first.client.stop_channels()
            first.manager.restart_kernel(now=now)
            first.connect()
            assert goes_on(run)
        first.client.stop_channels()
        first.manager.shutdown_kernel()
        assert goes_on(run)

        second = kernel()
        second.cell(f"import workbench; run = workbench.Run({str(place)!r})")
        state, steps = second.cell("print(run.state, len(run.metrics()))").split()
        assert state == "running" and int(steps) > 0
        assert second.cell("print(run.stop().wait(60).state)").strip() == "stopped"
        step = checkpoint.newest(place / "checkpoints")["step"]
        second.cell("run.resume()")
        assert goes_on(run) and run.status["step"] > step
    finally:
        run.kill()
    assert run.state == "lost"
