"""A cloud of points in two dimensions.

    values [P, D] → pca: at once · Umap: in a process of its own, which says how far it is → positions [P, 2]

UMAP (McInnes, Healy & Melville 2018, arXiv 1802.03426; umap-learn, BSD-3) compiles itself for about half a minute the
first time, and holds the interpreter while it does: in a thread it would freeze the page. Its process is kept for the
next parameters. An extra: pip install 'spike-workbench[umap]'.
"""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from workbench.errors import WorkbenchError
from workbench.places import cache_folder

COMPONENTS = 50                                                         # principal components that UMAP is given
COMPILES = "the first time it also compiles its code, about a minute"


def pca(values: np.ndarray, components: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Positions [P, components] along the directions of most variance, and the share of it that each holds.

    Each direction points to where its largest weight is positive. Beyond 600 dimensions the directions are found by
    iterating on a random subspace (Halko, Martinsson & Tropp 2011, arXiv 0909.4061), which a page need not wait for.
    """
    from scipy.linalg import eigh

    x = np.asarray(values, np.float32) - np.mean(values, axis=0, dtype=np.float64).astype(np.float32)
    found = min(components, *x.shape)
    basis = None
    if x.shape[1] > 600:
        basis = np.random.default_rng(0).normal(size=(x.shape[1], found + 10)).astype(np.float32)
        for _ in range(4):
            basis = np.linalg.qr(x.T @ (x @ basis))[0]
    narrow = x if basis is None else x @ basis
    last = narrow.shape[1] - 1
    variance, directions = eigh((narrow.T @ narrow).astype(np.float64), subset_by_index=[last - found + 1, last])
    variance, directions = np.maximum(variance[::-1], 0), directions[:, ::-1]
    directions = directions if basis is None else basis @ directions
    largest = np.take_along_axis(directions, np.abs(directions).argmax(0)[None], 0)
    positions = x @ (directions * np.sign(largest)).astype(np.float32)
    share = variance / max(float(np.einsum("pd,pd->", x, x, dtype=np.float64)), 1e-30)
    absent = components - found
    return np.pad(positions, ((0, 0), (0, absent))), np.pad(share, (0, absent))


class Umap:
    """UMAP in a process of its own. `start` a layout, then `poll` until it says False; `wait` does that for you.

    said: what it does, for people. positions: [P, 2] once done. error: why there are none.
    """

    def __init__(self):
        self.said, self.error, self.positions, self.running = "", "", None, False
        self._process, self._folder = None, None

    def start(self, values: np.ndarray, key: str, *, neighbors: int = 30, min_dist: float = 0.1, seed: int = 0) -> None:
        """Lay out `values` [P, D]. key: names them in the cache; the same key and parameters are laid out once."""
        self.cancel() if self.running else None
        self.error, self.positions = "", None
        name = f"{key}-umap-{neighbors}-{min_dist:g}-{seed}.npy"
        self._result = cache_folder("latents") / name
        if self._take():
            return
        if find_spec("umap") is None:
            raise WorkbenchError("UMAP needs the package umap-learn, which is not installed; run: "
                                 "pip install 'spike-workbench[umap]' (PCA needs nothing)")
        if len(values) < 10:
            raise WorkbenchError(f"UMAP of {len(values)} points shows nothing; choose a longer recording, or PCA")
        if self._process is None or self._process.poll() is not None:
            self._open()
        np.save(self._folder / "values.npy", pca(values, min(COMPONENTS, values.shape[1]))[0])
        job = {"values": str(self._folder / "values.npy"), "result": str(self._result),
               "n_neighbors": min(neighbors, len(values) - 1), "min_dist": min_dist, "random_state": seed}
        self.running, self._begun = True, time.monotonic()
        self.said = f"starting; {COMPILES}" if self._fresh else "finding neighbours"
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def _open(self) -> None:
        self._folder = self._folder or Path(tempfile.mkdtemp(prefix="workbench-umap-"))
        env = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen([sys.executable, "-m", "workbench.analysis.umap_process"], text=True, env=env,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self._fresh, self._lines = True, queue.SimpleQueue()
        threading.Thread(target=_listen, args=(self._process, self._lines), daemon=True).start()

    def poll(self) -> bool:
        """Take in what the process has said; True while it works."""
        while self.running and not self._lines.empty():
            self._hear(self._lines.get())
        return self.running

    def _hear(self, line: str | None) -> None:
        if line is None or line.startswith("failed: "):
            self.running = False
            self.error = f"UMAP ended without a result: {(line or '').removeprefix('failed: ') or self.said}"
        elif line == "done":
            self.running = self._fresh = False
            if not self._take():
                self.error = f"UMAP could not leave its result in {self._result.parent}"
        elif found := re.search(r"completed\s+(\d+)\s*/\s*(\d+)", line):
            self.said = f"laying out, {100 * int(found[1]) / int(found[2]):.0f} %"
        elif "Nearest Neighbors" in line or "fuzzy" in line:
            self.said = "finding neighbours"
        elif "Construct embedding" in line:
            self.said = "laying out"
        if self.running and self._fresh and "%" not in self.said:
            self.said = f"{self.said.split(';')[0]}; {COMPILES}"

    def _take(self) -> bool:
        try:
            self.positions = np.load(self._result)
        except (OSError, ValueError, EOFError):
            return False
        return True

    @property
    def seconds(self) -> float:
        """How long the layout has been going on."""
        return time.monotonic() - self._begun

    def wait(self, timeout: float = 600) -> np.ndarray:
        """The positions [P, 2], once they are there. WorkbenchError where there will be none."""
        until = time.monotonic() + timeout
        while self.poll():
            if time.monotonic() > until:
                raise WorkbenchError(f"UMAP is still {self.said} after {timeout:g} s")
            time.sleep(0.05)
        if self.positions is None:
            raise WorkbenchError(self.error or "UMAP was cancelled")
        return self.positions

    def cancel(self) -> None:
        """End the process and what it was doing."""
        self.running, self.said = False, ""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __del__(self):
        self.cancel()


def _listen(process: subprocess.Popen, lines: queue.SimpleQueue) -> None:
    for line in process.stdout:
        lines.put(line.strip())
    lines.put(None)
