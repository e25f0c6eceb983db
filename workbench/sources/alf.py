"""A folder of ALF files as a Session: the layout of the International Brain Laboratory, read with numpy and pandas.

    alf/probe00/<sorter>/#<revision>#/spikes.times.npy, spikes.clusters.npy → spikes of every probe on one clock
    clusters.*, <probe>/electrodeSites.* or <sorter>/channels.* → units: id <probe>/<cluster>, region, depth, metrics
    alf/_ibl_trials.*, _ibl_wheel.*, licks.*, <side>Camera.* → trials, series (`workbench.sources.alf_behavior`)

Names are `_namespace_object.attribute.extension`; of each the newest revision counts. A session folder, its alf folder
and one flat folder of files are read alike (of the Cortex Lab's flat ones, channels.brainLocation and annotations of
clusters are not read). `workbench.sources.ibl`, where ONE-api finds the files, shares `assemble`. Layout: the ALF
specification (int-brain-lab.github.io/ONE, MIT). Regions: Allen Mouse Brain Common Coordinate Framework (Wang et al.
2020, doi:10.1016/j.cell.2020.04.007); allen_regions.csv has their acronyms, as iblatlas 1.3.0 (MIT) gives them.
"""

from __future__ import annotations

import re
import warnings
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd

from workbench.errors import BadRecording, NeedsExtra, UnknownName
from workbench.session import Session
from workbench.sources import alf_behavior

SORTERS = ("iblsorter", "pykilosort", "")                               # the first of them that a probe has
OUTSIDE = ("void", "root")                                              # of the Allen tree: not in a brain region
CLUSTERS = ("channels", "depths", "metrics", "brainLocationAcronyms_ccf_2017")
REGION_IDS = "brainLocationIds_ccf_2017"                                # one a channel
UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
NAME = re.compile(rf"(?:_[^_.]+_)?(?P<object>[^_.][^.]*)\.(?P<attribute>[^.]+)(?:\.{UUID})?\.(?:npy|pqt|csv|tsv|ssv)")
REVISION = re.compile(r"#([^#]*)#")


class Source(Protocol):
    """Where ALF objects come from: a folder (here), or ONE-api (`workbench.sources.ibl`)."""

    where: str                                                          # for messages

    def collections(self, object: str) -> list[str]:
        """The folders, relative to the session, that hold files of the object."""

    def load(self, collection: str, object: str, attributes: tuple[str, ...] | None = None) -> dict:
        """attribute → array or table, newest revisions, of those that match a pattern such as 'times*' (None: all)."""


class Folder:
    """The ALF files under a folder: the session's, its alf folder, or a flat one."""

    def __init__(self, path: Path):
        self.where = str(path)
        self.files: dict[str, dict[tuple[str, str], Path]] = {}
        base, above = (path / "alf", path) if (path / "alf").is_dir() else (path, path)
        found: dict[tuple, str] = {}
        for file in sorted(base.rglob("*")):
            named = NAME.fullmatch(file.name)
            if not named or not file.is_file():
                continue
            parts = file.relative_to(above).parent.parts
            revision = REVISION.fullmatch(parts[-1]) if parts else None
            collection = "/".join(parts[:-1] if revision else parts)
            key, date = (collection, named["object"], named["attribute"]), revision[1] if revision else ""
            if key in found and found[key] == date:
                raise BadRecording(f"{file.parent} has two files of {key[1]}.{key[2]} ({file.name} is one); keep the "
                                   "one that is meant")
            if key not in found or date > found[key]:                   # dates sort as text; no revision is the oldest
                found[key] = date
                self.files.setdefault(collection, {})[key[1:]] = file

    def collections(self, object: str) -> list[str]:
        return sorted(c for c, files in self.files.items() if any(name == object for name, _ in files))

    def load(self, collection: str, object: str, attributes: tuple[str, ...] | None = None) -> dict:
        return {attribute: _content(file) for (name, attribute), file in self.files.get(collection, {}).items()
                if name == object and (attributes is None or any(fnmatchcase(attribute, a) for a in attributes))}


def recognises(path: Path) -> bool:
    """Whether the folder is one ALF recording: spikes.times*.npy in it, in a sorter's folder, or anywhere under alf."""
    inside = path if path.name == "alf" else path / "alf"
    direct = ("", "#*#/", *(f"{sorter}/**/" for sorter in SORTERS if sorter))
    places = [inside.rglob("spikes.times*.npy"), *(path.glob(f"{place}spikes.times*.npy") for place in direct)]
    return any(True for found in places for _ in found)


def beside(path: Path) -> list[Path]:
    """The files of the recording: when one of them changes, a converted copy is made anew."""
    return sorted(p for p in ((path / "alf") if (path / "alf").is_dir() else path).rglob("*") if p.is_file())


def session_id(path: Path) -> str:
    """<subject>_<date>_<number> of a folder in the standard tree, else the folder's name."""
    path = path.parent if path.name == "alf" else path
    standard = re.fullmatch(r"\d{4}-\d\d-\d\d", path.parent.name) and re.fullmatch(r"\d{3}", path.name)
    return "_".join((path.parent.parent.name, path.parent.name, path.name)) if standard else path.name


def read(path: str | Path, *, id: str | None = None, probes: list[str] | None = None,
         sorters: list[str] | None = None, min_label: float | None = None, in_brain: bool = False,
         wheel_rate: float = 50.0) -> Session:
    """The session in a folder of ALF files. Options as in `assemble`; here every unit is kept unless asked.

    Raises BadRecording for a folder that has no spikes or damaged files, UnknownName for a probe that is not there,
    NeedsExtra where a .pqt table is there and pyarrow is not.
    """
    path = folder(path)
    if not recognises(path):
        raise _no_spikes(path)
    return assemble(Folder(path), id=id or session_id(path), subject=subject(path), probes=probes, sorters=sorters,
                    min_label=min_label, in_brain=in_brain, wheel_rate=wheel_rate)


def _no_spikes(where: str | Path) -> BadRecording:
    return BadRecording(f"{where} has no spikes.times*.npy, nor have probes in its alf; give one session's folder")


def folder(path: str | Path) -> Path:
    """The path, if it is a folder; BadRecording says what it is instead."""
    path = Path(path).expanduser().absolute()
    if not path.is_dir():
        raise BadRecording(f"{path} is {'a file' if path.is_file() else 'not there'}; give the path of a folder")
    return path


def subject(path: Path) -> str:
    """The subject that a folder of the standard tree names, else nothing."""
    path = path.parent if path.name == "alf" else path
    return path.parent.parent.name if session_id(path) != path.name else ""


def assemble(source: Source, *, id: str, subject: str, probes: list[str] | None, sorters: list[str] | None,
             min_label: float | None, in_brain: bool, wheel_rate: float) -> Session:
    """The session of a source of ALF objects: the probes merged on their common clock, behaviour beside them.

    probes: only these (None: all). sorters: which to take where a probe has several, the first found (None: iblsorter,
    pykilosort, the probe's own folder; '' is that folder). min_label: only units with at least this quality label,
    the share of three criteria passed (0, 1/3, 2/3, 1). in_brain: no units in void and root; those of unknown region
    stay, and a warning counts them.
    wheel_rate: samples/s at which the wheel, recorded when it moves, is interpolated.
    """
    chosen = _collections(source, probes, SORTERS if sorters is None else tuple(sorters))
    parts = [_probe(source, probe, collection) for probe, collection in chosen.items()]
    offsets = np.cumsum([0, *(len(p.units) for p in parts)])
    units = pd.concat([p.units for p in parts], ignore_index=True)
    times = np.concatenate([p.times for p in parts])
    rows = np.concatenate([p.rows + offset for p, offset in zip(parts, offsets, strict=False)])
    keep, why = _filter(source, units, min_label, in_brain)
    of_kept = keep[rows]
    times, rows = times[of_kept], (np.cumsum(keep) - 1)[rows[of_kept]]
    order = np.argsort(times, kind="stable")
    if why:
        warnings.warn(f"{id}: {why}", stacklevel=3)
    lost = (units["region"] == "unknown").sum()
    if lost:
        warnings.warn(f"{id}: no file says the region of {lost:,} of {len(units):,} units, which is 'unknown'",
                      stacklevel=3)
    return Session(id=id, subject=subject, spike_times=times[order], spike_units=rows[order].astype(np.int32),
                   units=units[keep], trials=alf_behavior.trials(source), description=why,
                   series=alf_behavior.series(source, wheel_rate))


def _collections(source: Source, probes: list[str] | None, sorters: tuple[str, ...]) -> dict[str, str]:
    """probe → the folder of its spikes, by the first sorter that it has."""
    found: dict[str, dict[str, str]] = {}
    for collection in source.collections("spikes"):
        parts = [p for p in collection.split("/") if p not in ("alf", "")]
        if not parts or parts[0] in (*SORTERS, *sorters):               # the folder of one probe was given
            parts = ["", *parts]
        found.setdefault(parts[0], {})["/".join(parts[1:])] = collection
    if not found:
        raise _no_spikes(source.where)
    for probe in {*(probes or ())} - {*found}:
        raise UnknownName("probe", probe, found, where=source.where)
    chosen = {}
    for probe in sorted(found) if probes is None else probes:
        sorter = next((s for s in sorters if s in found[probe]), None)
        if sorter is None:
            raise BadRecording(f"{source.where}: {probe} was sorted by {', '.join(found[probe])} and not by "
                               f"{', '.join(sorters)}; name one in sorters=[...]")
        chosen[probe] = found[probe][sorter]
    return chosen


class _Probe(NamedTuple):
    units: pd.DataFrame
    times: np.ndarray                                                   # [S] seconds
    rows: np.ndarray                                                    # [S] rows of `units`


def _probe(source: Source, probe: str, collection: str) -> _Probe:
    where = f"{source.where}, {collection or 'its files'}"
    spikes = source.load(collection, "spikes", ("times*", "clusters"))
    times = next((spikes[name] for name in sorted(spikes) if name.split("_")[0] == "times"), None)
    if times is None or "clusters" not in spikes:
        raise BadRecording(f"{where}: spikes.times and spikes.clusters are needed; there is "
                           f"{', '.join(sorted(spikes)) or 'neither'}")
    times, of = np.ravel(times).astype(np.float64), np.ravel(spikes["clusters"])
    if len(times) != len(of):
        raise BadRecording(f"{where}: {len(times):,} spikes.times and {len(of):,} spikes.clusters; one of the files is "
                           "of another revision, or was cut short: fetch both again")
    clusters = source.load(collection, "clusters", CLUSTERS)
    metrics = clusters.pop("metrics", None)
    clusters = {name: np.ravel(values) for name, values in clusters.items()}
    if len({len(values) for values in clusters.values()}) > 1:
        sizes = ", ".join(f"{len(values):,} clusters.{name}" for name, values in clusters.items())
        raise BadRecording(f"{where}: {sizes}; the files are of different revisions: fetch them again")
    if clusters:
        numbers, rows = np.arange(len(next(iter(clusters.values())))), of.astype(np.int64)
        odd = rows[(rows < 0) | (rows >= len(numbers))]
        if len(odd):
            raise BadRecording(f"{where}: spikes.clusters names cluster {odd[0]}, but the clusters files have "
                               f"{len(numbers)} rows; they are of different revisions")
    else:
        numbers, rows = np.unique(of, return_inverse=True)
    units = pd.DataFrame({"id": [f"{probe}/{n}" if probe else str(n) for n in numbers],
                          "region": _regions(source, collection, clusters, len(numbers), where), "probe": probe,
                          "cluster": numbers})
    if "depths" in clusters:
        units["depth"] = clusters["depths"].astype(np.float64)                              # µm from the tip
    return _Probe(_with_metrics(units, metrics, where), times, rows)


def _regions(source: Source, collection: str, clusters: dict, n: int, where: str) -> list[str]:
    """One acronym a cluster [n]. The electrode sites of a probe are its final histology, whatever sorted it."""
    if "brainLocationAcronyms_ccf_2017" in clusters:
        return [str(name) for name in clusters["brainLocationAcronyms_ccf_2017"]]
    above = collection.rpartition("/")[0]
    places = ((above, "electrodeSites"), (collection, "electrodeSites"), (collection, "channels"))
    found = ((name, source.load(place, name, (REGION_IDS,)).get(REGION_IDS)) for place, name in places)
    name, ids = next(((name, ids) for name, ids in found if ids is not None), ("", None))
    if ids is None or "channels" not in clusters:                       # no histology yet
        return ["unknown"] * n
    ids, channel = np.ravel(ids), clusters["channels"].astype(np.int64)
    if len(channel) and channel.max() >= len(ids):
        raise BadRecording(f"{where}: clusters.channels names channel {channel.max()}, but {name}.{REGION_IDS} has "
                           f"{len(ids)} rows; they are of different revisions")
    table = acronyms()
    return [table.get(abs(int(ids[c])), "unknown") if c >= 0 else "unknown" for c in channel]   # negative: left side


@cache
def acronyms() -> dict[int, str]:
    """Allen structure id → acronym: 385 → 'VISp'."""
    rows = pd.read_csv(Path(__file__).with_name("allen_regions.csv"), keep_default_na=False)
    return dict(zip(rows["id"].astype(int), rows["acronym"], strict=True))


def _with_metrics(units: pd.DataFrame, metrics: pd.DataFrame | None, where: str) -> pd.DataFrame:
    """The units with the columns of clusters.metrics by cluster_id: its rows need be neither all nor in order."""
    if metrics is None:
        return units
    named = "cluster_id" in metrics
    if metrics["cluster_id"].duplicated().any() if named else len(metrics) != len(units):
        raise BadRecording(f"{where}: clusters.metrics has {len(metrics)} rows for {len(units)} clusters and no "
                           "cluster_id that says which is whose; fetch it again")
    metrics = metrics.set_index("cluster_id" if named else units["cluster"].to_numpy())
    metrics = metrics.drop(columns=[c for c in metrics if c in units]).reindex(units["cluster"])
    return pd.concat([units, metrics.reset_index(drop=True)], axis=1)


def _filter(source: Source, units: pd.DataFrame, min_label: float | None, in_brain: bool) -> tuple[np.ndarray, str]:
    """Which units are kept [N], and a sentence about it; nothing to say where no filter is on."""
    passed = {}
    if min_label is not None:
        label = units["label"] if "label" in units else pd.Series(np.nan, units.index)
        without = units["probe"][label.groupby(units["probe"]).transform("count") == 0].unique()
        if len(without):
            raise BadRecording(f"{source.where}: {' and '.join(without) or 'it'} has no quality labels "
                               "(clusters.metrics.pqt with a column label); name the probes that have in probes=[...], "
                               "or keep every unit with min_label=None")
        passed[f"label >= {min_label:g}"] = units["label"].to_numpy(np.float64) >= min_label - 1e-6     # 2/3 is rounded
    if in_brain:
        passed["region is not void or root"] = ~units["region"].isin(OUTSIDE).to_numpy()
    keep = np.logical_and.reduce(list(passed.values())) if passed else np.ones(len(units), bool)
    each = ", ".join(f"{name}: {ok.sum():,}" for name, ok in passed.items())
    why = f"{keep.sum():,} of {len(units):,} units kept ({each})" if passed else ""
    if not keep.any():
        raise BadRecording(f"{source.where}: {why or 'no units'}; loosen the filters")
    return keep, why


def _content(file: Path):
    try:
        if file.suffix == ".npy":
            return np.load(file, allow_pickle=False)                    # a pickle can run code
        if file.suffix == ".pqt":
            return pd.read_parquet(file)
        return pd.read_csv(file, sep={".csv": ",", ".tsv": "\t", ".ssv": " "}[file.suffix]).squeeze("columns")
    except ImportError:
        raise NeedsExtra(f"{file} is a parquet table, read with a package that is not installed; run: "
                         "pip install 'spike-workbench[ibl]'") from None
    except (ValueError, OSError, EOFError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadRecording(f"{file} cannot be read ({said}); it is damaged, cut short, or holds Python objects: fetch "
                           "it again") from error
