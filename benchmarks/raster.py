"""The raster of ten and a hundred million spikes, 500 units, 1 h, from a file: redraws beside datashader's, and memory.

Each in a process of its own: the first and the second time that a session is opened and its page is drawn (what the
pyramid in the cache saves), redraws of the page, and the memory that this took, of its own and as pages of files, which
the system takes back when it needs them. Then a view of the whole, of 15 min and of 10 s, 1,000 × 500 pixels, as counts
from the pyramid and as `datashader.Canvas.points` makes them of the same spikes in memory. BIG=1 measures a hundred
million too (2 GB of disk, 4 of memory, minutes).
"""

import os
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.clock import tell
from workbench.session import Session

UNITS, SECONDS = 500, 3600.0
WINDOWS = {"the whole hour": (0.0, SECONDS), "15 minutes": (600.0, 1500.0), "10 seconds": (600.0, 610.0)}


def main() -> dict[str, float]:
    """Print times and memory; returns how many times as fast as datashader each view is."""
    found, cache = {}, os.environ.get("WORKBENCH_CACHE")
    for spikes in (10_000_000, *[100_000_000] * (os.environ.get("BIG") == "1")):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["WORKBENCH_CACHE"] = folder
            path = _alone(make, spikes, f"{folder}/many.h5")
            for when in ("first", "second"):
                spent = _alone(_opened, path)
                print(f"\n{spikes:,} spikes, opened and drawn the {when} time: " + ", ".join(
                    f"{what} {value:,.2f} {unit}" for what, (value, unit) in spent.items()))
            found |= _alone(_beside_datashader, path)
    os.environ.pop("WORKBENCH_CACHE") if cache is None else os.environ.update(WORKBENCH_CACHE=cache)
    return found


def _alone(do, *arguments):
    """In a process of its own, so that memory is its own too."""
    with get_context("spawn").Pool(1) as one:
        return one.apply(do, arguments)


def make(spikes: int, path: str) -> str:
    """A file with so many simulated spikes; returns its path."""
    random = np.random.default_rng(0)
    times = np.cumsum(random.standard_exponential(spikes, np.float32), dtype=np.float64)
    times *= (SECONDS - 1e-3) / times[-1]
    units = pd.DataFrame({"id": [f"u{i}" for i in range(UNITS)], "region": np.repeat(["V1", "LM"], UNITS // 2)})
    Session(id="many", spike_times=times, spike_units=(random.beta(1, 3, spikes) * UNITS).astype(np.int32), units=units,
            intervals=np.array([[0, SECONDS]]), simulated=True, checked=True).save(path)
    return path


def _opened(path: str) -> dict[str, tuple[float, str]]:
    """CPU seconds of imports, of the first paint after them, of redraws; and how much more memory is held then."""
    spent, clock = {}, time.process_time
    start = clock()
    from datashader.transfer_functions import eq_hist

    from workbench.apps.raster import Raster

    eq_hist(np.arange(9), np.arange(9) < 5)                             # compiles what it needs
    spent["imports"] = clock() - start, "s"
    own, mapped, start = _held("RssAnon"), _held("RssFile"), clock()
    raster = Raster(Session.open(path))
    page = raster.__panel__().get_root()
    spent["first paint"] = clock() - start, "s"
    for name, window in list(WINDOWS.items())[::-1]:
        start = clock()
        raster.go(window[0] + 0.1, window[1])
        spent[f"redraw of {name}"] = clock() - start, "s"
    del page                                                            # without which nothing would be drawn
    return spent | {"memory of its own": (_held("RssAnon") - own, "MB"),
                    "pages of files": (_held("RssFile") - mapped, "MB")}


def _beside_datashader(path: str) -> dict[str, float]:
    import datashader

    from workbench.analysis.raster import CountPyramid

    session = Session.open(path)
    pyramid, spikes = CountPyramid(session), len(session.spike_times)
    points = pd.DataFrame({"time": session.spike_times[:], "unit": session.spike_units[:].astype(np.int32)})
    found = {}
    for name, (start, stop) in WINDOWS.items():
        canvas = datashader.Canvas(1000, UNITS, (start, stop), (-0.5, UNITS - 0.5))
        told = tell(f"{spikes:,} spikes, {name}", {
            "datashader": lambda canvas=canvas: canvas.points(points, "time", "unit"),
            "count pyramid": lambda start=start, stop=stop: pyramid.view(start, stop, 1000)}, repeats=3)
        found[f"{spikes:.0e} spikes, {name}"] = told["count pyramid"]
    return found


def _held(what: str) -> float:
    """MB of this process, by its name in /proc/self/status (Linux)."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith(what)) / 1024
