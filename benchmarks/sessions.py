"""Windows from a hundred recordings of an hour against windows from one, memory-mapped, and what they cost in memory.

200 units at 8 spikes/s each: 5.8 million spikes and 360,000 samples of behaviour an hour, about 130 MB a file. A
hundred files are also a hundred times as many pages for the processor to look up, as one file of a hundred hours would
be; the same hour divided into a hundred sessions tells what their number costs by itself.
"""

import os
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.clock import tell
from benchmarks.recordings import poisson
from workbench.session import Session
from workbench.windows import RandomWindows


def main(sessions: int = 100, seconds: float = 3600.0, batch: int = 128) -> dict[str, float]:
    """Print the cost of a window from one and from many sessions; returns the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        first = poisson("first", 200, 8.0, seconds).save(Path(folder) / "first.h5")
        # The same bytes under other names: reading is what is measured, not the numbers.
        paths = [first, *(Path(folder) / f"copy{i}.h5" for i in range(sessions - 1))]
        for path in paths[1:]:
            os.link(first, path)
        before = memory()
        opened = [Session.open(path) for path in paths]
        edges = np.linspace(0, seconds, sessions + 1)
        parts = [opened[0].between(*pair) for pair in pairwise(edges)]
        cases = {"one session": opened[:1], f"the same bytes as {sessions} sessions": parts,
                 f"{sessions} sessions": opened}
        windows = {name: RandomWindows(several, [s.intervals for s in several], duration=1.0, batch_size=batch,
                                       targets=("hand_vel",)) for name, several in cases.items()}
        number = iter(range(10**9))
        ratios = tell(f"Batches of {batch} windows of 1 s, with the behaviour at 100 Hz", {
            name: lambda w=w: w.batch(next(number)) for name, w in windows.items()}, "window", batch)
        print(f"  memory of its own that {sessions} open sessions and their windows took: {memory() - before:.0f} MB")
        return ratios


def memory() -> float:
    """Memory of this process that is not a mapped file, in MB: what the operating system cannot take back (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


if __name__ == "__main__":
    main()
