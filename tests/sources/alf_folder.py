"""A session folder of the International Brain Laboratory in its true layout, small: two probes, revisions, traps."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

SESSION = "cortexlab/Subjects/KS014/2019-12-03/001"
REGIONS = {"probe00": [385, 385, -312782546, 997, 0, 10], "probe01": [385, 672, 672, 672]}      # by channel
ACRONYMS = {"probe00": ["VISp", "VISp", "VISa", "root", "void", "SCig"], "probe01": ["VISp", "CP", "CP", "CP"]}
LABELS = {"probe00": [1.0, 2 / 3, 1.0, 1.0, 1.0, 0.0], "probe01": [1.0, 1.0, 1 / 3, 1.0]}       # by cluster


def save(folder: Path, **arrays) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in arrays.items():
        np.save(folder / f"{name.replace('__', '.')}.npy", values)


def write(root: Path, *, seed: int = 0, old_sorter: bool = True) -> SimpleNamespace:
    """The session under `root`, and what was written: spikes by probe, trials, wheel. Cluster i sits on channel i."""
    rng = np.random.default_rng(seed)
    session = root / SESSION
    alf = session / "alf"
    truth = {}
    for probe, regions in REGIONS.items():
        n = len(regions)
        times = np.sort(rng.uniform(0, 60, 600))
        clusters = rng.integers(0, n, 600).astype(np.uint16)
        home = alf / probe / "pykilosort"
        # The first release, which a later one replaced in part: other times, other clusters, the same channels.
        save(home, spikes__times=times[:-5] + 1, spikes__clusters=clusters[:-5], spikes__amps=rng.random(595),
             clusters__channels=np.arange(n)[:, None], clusters__depths=np.linspace(20, 400, n))
        if probe == "probe00":  # regions as the sorter's channels have them, or as the probe's final histology has them
            save(home, channels__brainLocationIds_ccf_2017=np.array(regions))
        else:
            save(alf / probe, electrodeSites__brainLocationIds_ccf_2017=np.array(regions))
        save(home / "#2024-05-06#", spikes__times=times, spikes__clusters=clusters)
        save(home / "#2023-01-01#", spikes__times=times[:9], spikes__clusters=clusters[:9])
        order = rng.permutation(n)                                      # metrics are in no order of the clusters
        pd.DataFrame({"cluster_id": order, "label": np.array(LABELS[probe])[order],
                      "firing_rate": order + 0.5}).to_parquet(home / "clusters.metrics.pqt")
        truth[probe] = (times, clusters.astype(int))
    if old_sorter:  # the sorter before pykilosort, in probe00 itself
        save(alf / "probe00", spikes__times=np.arange(5.0) / 9, spikes__clusters=np.zeros(5, int),
             clusters__channels=np.zeros(1, int))
    starts = np.arange(1.0, 55, 6)
    trials = pd.DataFrame({"intervals_0": starts, "intervals_1": np.r_[starts[:-1] + 4, np.nan],
                           "choice": [-1.0, 1, 0, 1, -1, 1, 1, -1, 1], "feedbackType": [1.0, -1, 1, 1, 1, -1, 1, 1, 1],
                           "contrastLeft": [np.nan, 1, 0, np.nan, 0.25, 0, 1, np.nan, 1], "stimOn_times": starts + 0.5})
    (alf / "#2025-03-03#").mkdir()
    trials.to_parquet(alf / "#2025-03-03#" / "_ibl_trials.table.pqt")
    trials.assign(choice=9.0).to_parquet(alf / "_ibl_trials.table.pqt")
    save(alf, _ibl_trials__quiescencePeriod=np.full(9, 0.5))
    moves = np.sort(rng.uniform(0, 58, 400))
    save(alf, _ibl_wheel__timestamps=moves, _ibl_wheel__position=0.25 * moves,
         licks__times=np.array([3.0, 3.0, 2.0, 9]),
         _ibl_leftCamera__times=np.arange(300) / 60, leftCamera__ROIMotionEnergy=np.arange(300.0),
         _ibl_rightCamera__times=np.arange(300) / 150, rightCamera__ROIMotionEnergy=np.arange(299.0))
    return SimpleNamespace(root=root, session=session, alf=alf, spikes=truth, trials=trials)


def spikes_of(truth: SimpleNamespace, probe: str, unit: int) -> np.ndarray:
    """The spike times that were written for one cluster of one probe, newest revision."""
    times, clusters = truth.spikes[probe]
    return times[clusters == unit]
