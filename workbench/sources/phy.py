"""A folder of Kilosort or Phy as a Session: what a spike sorter leaves, and what its user adds by hand.

    spike_times.npy (samples) / sample_rate of params.py → seconds
    spike_clusters.npy, else spike_templates.npy         → the unit of each spike
    units.csv (label), cluster_info.tsv, cluster_group.tsv, cluster_KSLabel.tsv → the first label that a unit has
    units.csv (cluster_id, region, ...), trials.csv (start, stop, ...)          → region and anything else; trials

params.py is a program that the sorter wrote: one line of it is read as a literal, and none is run. Layout: Kilosort
and phy documentation (phy.readthedocs.io), both open source.
"""

from __future__ import annotations

import ast
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.errors import BadRecording
from workbench.session import Session

LABELS = (("units.csv", "label"), ("cluster_info.tsv", "group"), ("cluster_info.tsv", "KSLabel"),
          ("cluster_group.tsv", "group"), ("cluster_KSLabel.tsv", "KSLabel"))
UNDECIDED = "unsorted"                                                  # Phy's word for no label by hand
REGIONS = ("region", "location", "brain_area", "area", "acronym")
TRIALS = {"start": ("start", "start_time"), "stop": ("stop", "stop_time", "end", "end_time")}


def recognises(path: Path) -> bool:
    """Whether the folder is one of Kilosort or Phy."""
    return (path / "params.py").is_file() and (path / "spike_times.npy").is_file()


def beside(path: Path) -> list[Path]:
    """The files of the recording that are read: when one of them changes, a converted copy is made anew."""
    return sorted([*path.glob("spike_*.npy"), *path.glob("cluster_*.tsv"), *path.glob("*.csv"), path / "params.py"])


def read(path: str | Path, *, id: str | None = None, labels: list[str] | None = None) -> Session:
    """The session in a folder with params.py and spike_times.npy.

    labels: only units so labelled, such as ['good'] or ['good', 'mua'] (None: all but 'noise'). A warning says how
    many of how many are kept. Without units.csv or a region in cluster_info.tsv every region is 'unknown'; without
    trials.csv there are no trials. trials.csv has start and stop in seconds, or start_sample and stop_sample, on the
    clock of the recording; trials without one of them are left out with a warning.

    Raises BadRecording for a folder that is not of this layout, and for files that do not fit together.
    """
    path = Path(path).expanduser().absolute()
    if not recognises(path):
        raise BadRecording(f"{path} is not a folder of Kilosort or Phy: it needs params.py and spike_times.npy; give "
                           "the folder that Phy opens")
    rate = sample_rate(path / "params.py")
    samples, clusters = _spikes(path)
    numbers, rows = np.unique(clusters, return_inverse=True)
    units, keep, why = _units(path, numbers, labels)
    warnings.warn(f"{path.name}: {why}", stacklevel=2)
    of_kept = keep[rows]
    times, rows = samples[of_kept] / rate, (np.cumsum(keep) - 1)[rows[of_kept]]
    order = np.argsort(times, kind="stable")
    return Session(id=id or path.name, spike_times=times[order], spike_units=rows[order].astype(np.int32),
                   units=units[keep], trials=_trials(path / "trials.csv", rate), resolution=1 / rate, description=why)


def sample_rate(file: Path) -> float:
    """The samples per second that params.py names, in Hz. The line is read as a literal; the file is never run."""
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        said = re.match(r"\s*sample_rate\s*=(?!=)\s*(.+)", line)
        if not said:
            continue
        try:
            rate = ast.literal_eval(said[1].strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            rate = None
        if isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate < 1e7:
            return float(rate)
        raise BadRecording(f"{file} has the line {line.strip()!r:.80}, where sample_rate must be a plain number in Hz; "
                           "write it as one, such as sample_rate = 30000.0")
    raise BadRecording(f"{file} has no line sample_rate = ...; add it, in Hz")


def _spikes(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Times in samples [S] and the cluster of each [S]."""
    own = next((name for name in ("spike_clusters.npy", "spike_templates.npy") if (path / name).is_file()), None)
    if own is None:
        raise BadRecording(f"{path} has neither spike_clusters.npy nor spike_templates.npy, so nothing says which "
                           "spike is whose; copy it from the sorter's output")
    samples, clusters = _array(path / "spike_times.npy"), _array(path / own)
    if len(samples) != len(clusters):
        raise BadRecording(f"{path}: {len(samples):,} spikes in spike_times.npy and {len(clusters):,} in {own}; one of "
                           "the two was cut short or is of another sorting")
    if (samples != np.floor(samples)).any() or (clusters != np.floor(clusters)).any():
        raise BadRecording(f"{path}: spike_times.npy and {own} must hold whole numbers (samples, clusters); times in "
                           "seconds have another layout, such as ALF")
    return samples.astype(np.float64), clusters.astype(np.int64)


def _array(file: Path) -> np.ndarray:
    try:
        values = np.load(file, allow_pickle=False)                      # a pickle can run code
    except (ValueError, OSError, EOFError) as error:
        raise BadRecording(f"{file} cannot be read ({str(error).splitlines()[0]}); it is damaged, cut short, or holds "
                           "Python objects: copy it again from the sorter's output") from error
    if values.dtype.kind not in "iuf" or values.ndim > 2 or (values.ndim == 2 and 1 not in values.shape):
        raise BadRecording(f"{file} has {values.dtype} values of shape {values.shape}; one number a spike is needed")
    return values.ravel()


def _units(path: Path, numbers: np.ndarray, labels: list[str] | None) -> tuple[pd.DataFrame, np.ndarray, str]:
    """The table of every cluster that has spikes, which of them are kept [N], and a sentence about it."""
    info, own = _by_cluster(path / "cluster_info.tsv", numbers), _by_cluster(path / "units.csv", numbers)
    label = pd.Series(None, index=numbers, dtype=object)
    for name, column in LABELS:
        table = _by_cluster(path / name, numbers)
        if column in table:
            said = table[column].where(table[column].astype(str).str.strip().str.lower() != UNDECIDED)
            label = label.where(label.notna(), said)
    label = label.fillna("unlabelled").astype(str).str.strip().str.lower()
    region = pd.Series(None, index=numbers, dtype=object)
    for table in (own, info):
        said = next((c for c in REGIONS if c in table), None)
        region = region.where(region.notna(), table[said]) if said else region
    more = {c: table[c].to_numpy() for table in (info, own) for c in table
            if c not in ("group", "KSLabel", "id", "region", "label")}
    units = pd.DataFrame({"id": numbers.astype(str), "region": region.fillna("unknown").astype(str).to_numpy(),
                          "label": label.to_numpy(), **more})
    wanted = None if labels is None else [text.strip().lower() for text in labels]
    keep = (label != "noise" if wanted is None else label.isin(wanted)).to_numpy()
    counts = ", ".join(f"{n} {text}" for text, n in label.value_counts().items())
    asked = "all but noise" if wanted is None else " and ".join(wanted)
    why = f"{keep.sum():,} of {len(keep):,} units kept, {asked} ({counts})"
    if len(keep) and not keep.any():
        raise BadRecording(f"{path}: {why}; choose other labels")
    return units, keep, why


def _by_cluster(file: Path, numbers: np.ndarray) -> pd.DataFrame:
    """The rows of a table of clusters for those `numbers`; nothing where there is no such file."""
    if not file.is_file():
        return pd.DataFrame(index=numbers)
    table = _table(file)
    key = next((c for c in ("cluster_id", "id") if c in table), None)
    if key is None or table[key].duplicated().any():
        raise BadRecording(f"{file} needs a column cluster_id with one row a cluster; it has "
                           f"{', '.join(table) if key is None else 'a cluster twice'}")
    if len(table) and not table[key].isin(numbers).any():
        warnings.warn(f"{file}: none of its {len(table):,} rows names a cluster that has spikes here, so it tells "
                      f"nothing; {key} must be the sorter's numbers", stacklevel=4)
    return table.set_index(key).reindex(numbers)


def _trials(file: Path, rate: float) -> pd.DataFrame:
    if not file.is_file():
        return pd.DataFrame({"start": np.empty(0), "stop": np.empty(0)})
    table = _table(file)
    found = {}
    for name, known in TRIALS.items():
        column = next((c for k in known for c in (k, f"{k}_sample") if c in table), None)
        if column is None or not (table.empty or pd.api.types.is_numeric_dtype(table[column])):
            raise BadRecording(f"{file} needs a column of numbers {name} in seconds, or {name}_sample in samples; it "
                               f"has {', '.join(table)}")
        found[name] = table.pop(column).to_numpy(np.float64) / (rate if column.endswith("_sample") else 1.0)
    if (found["stop"] < found["start"]).any():
        raise BadRecording(f"{file} has a trial that stops before it starts; correct it")
    whole = np.isfinite(found["start"]) & np.isfinite(found["stop"])
    if not whole.all():
        warnings.warn(f"{file}: {(~whole).sum():,} of {len(table):,} trials have no start or no stop and are left out",
                      stacklevel=3)
    return pd.DataFrame(found | dict(table))[whole].sort_values("start", kind="stable", ignore_index=True)


def _table(file: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(file, sep="\t" if file.suffix == ".tsv" else ",").dropna(how="all", ignore_index=True)
    except (ValueError, OSError) as error:
        raise BadRecording(f"{file} cannot be read as a table ({str(error).splitlines()[0]}); save it again with a "
                           "line of column names") from error
