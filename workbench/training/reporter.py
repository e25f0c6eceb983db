"""What a run tells of itself while it works: log.txt, and status.json, whose heart beats.

    report(step=…) → status.json, once a second → whoever sees the folder
    beating()      → the same every five seconds while nothing is reported: a long step is no death
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.training import storage

BEAT = 5                                                                # seconds, at most, between two


class Reporter:
    """Writes log.txt and status.json, and passes every step on to a progress bar or to the run that waits for it."""

    def __init__(self, folder: Path, on_step: Callable[[dict], None] | None, pid: int | None = None):
        self.folder, self.on_step, self.beat = folder, on_step, 0.0
        old = storage.read_json(folder / "status.json") or {}
        self.status = {k: old[k] for k in ("started", "step", "steps", "valid", "valid_name") if old.get(k) is not None}
        self.status.setdefault("started", time.time())
        self.lock, self.ended = threading.RLock(), threading.Event()
        self(state="running", pid=pid or os.getpid(), host=socket.gethostname(), stage="opening the recordings")

    def __call__(self, **fields: Any) -> None:
        """Take over new values; on disk at once when the state or stage changes, else once a second."""
        self.status |= fields
        if time.time() - self.beat > 1 or "state" in fields or "stage" in fields:
            self._write(durable="state" in fields)
        if self.on_step:
            self.on_step(self.status)

    def _write(self, durable: bool) -> None:
        with self.lock:
            self.beat = time.time()
            storage.write_json(self.folder / "status.json", {**self.status, "time": self.beat}, durable=durable)

    @contextmanager
    def beating(self) -> Iterator[None]:
        """A heart that beats through a long step too: who sees the folder alone knows by it that the run is alive."""
        def beat() -> None:
            while not self.ended.wait(BEAT):
                if time.time() - self.beat >= BEAT:
                    with suppress(WorkbenchError):                      # a full disk is the work's to tell
                        self._write(durable=False)

        heart = threading.Thread(target=beat, daemon=True)
        heart.start()
        try:
            yield
        finally:
            self.ended.set()
            heart.join()

    def log(self, message: str) -> None:
        storage.log(self.folder / "log.txt", message)


class Silent:
    """A reporter of a rank that writes nothing."""

    def __call__(self, **fields: Any) -> None: ...

    def log(self, message: str) -> None: ...


def relay(part: str, report: Reporter) -> Callable[[dict], None]:
    """The steps of one part of a run, told as the run's own: its heart beats while a baseline trains."""
    def tell(status: dict) -> None:
        stage = {"stage": f"{part}: {status['stage']}"}
        report(part_step=status.get("part_step", status.get("step")),
               part_steps=status.get("part_steps", status.get("steps")),
               **(stage if stage["stage"] != report.status["stage"] else {}))
    return tell
