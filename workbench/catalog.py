"""Every dataset that can be opened by name: where it is, how it comes here, which sessions it has.

    data_catalog.yaml + your own files (WORKBENCH_CATALOG) → Catalog → found or fetched file → Session
                                                                             └→ converted once, kept in the cache

    open_catalog        the catalog
    open_recording      one session, from `name`, `name/session`, the path of a recording, or its address on a server
    open_recordings     the same for several: `name/*`, a folder, a glob, a list
    prepare             download and convert, before it is needed

A catalog file of a lab's own recordings, named in WORKBENCH_CATALOG (several: separated as in PATH):

    schema_version: 1
    datasets:
      - id: our_m1
        title: M1 during wrist force, one file a day
        access: {method: local, path: recordings/day_*.nwb}

Paths are relative to that file. Datasets of later files replace those of the same id. Nothing is downloaded unless
asked for with `download=True`. Looked for, in this order: $WORKBENCH_DATA/<dataset id>, the cache (WORKBENCH_CACHE, or
the user's cache folder), the network.
"""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pandas as pd
from h5py import is_hdf5

from workbench import cache
from workbench.catalog_file import Dataset, One, read
from workbench.errors import BadRecording, DatasetNotAvailable, ManualDownload, NeedsAccount, NoNetwork, UnknownName
from workbench.files import existing
from workbench.places import SUFFIXES, beside, cache_folder, files_of, places, recordings_at
from workbench.session import Session
from workbench.sources import folder_loader, ibl, reader
from workbench.sources.download import Remote, fetch, megabytes, sized
from workbench.sources.simulated import many_spikes, reach_sim
from workbench.sources.vision_sim import vision_sim

GENERATORS = {"reach_sim": reach_sim, "many_spikes": many_spikes, "vision_sim": vision_sim}


def open_catalog(path: str | Path | None = None) -> Catalog:
    """The shipped catalog, over it the files of WORKBENCH_CATALOG, over them the file at `path`. Raises BadCatalog."""
    files = [_shipped(), *(p for p in os.environ.get("WORKBENCH_CATALOG", "").split(os.pathsep) if p)]
    datasets, origins = {}, {}
    for file in [*files, *([path] if path is not None else [])]:
        file = Path(file).expanduser().absolute()
        for name, dataset in read(file).items():
            same = next((k for k in datasets if _plain(k) == _plain(name)), None)
            if same:
                del datasets[same], origins[same]
            datasets[name], origins[name] = dataset, file
    return Catalog(datasets, origins)


class Catalog(Mapping):
    """Datasets by name; `-` and `_` are the same in it. `catalog["reach-sim"]` is what the catalog file says of it."""

    def __init__(self, datasets: dict[str, Dataset], origins: dict[str, Path]):
        self._datasets, self._origins = datasets, origins

    def __getitem__(self, name: str) -> Dataset:
        return self._datasets[_match("dataset", name, self._datasets, where="the catalog")]

    def __contains__(self, name: object) -> bool:
        return _plain(name) in map(_plain, self._datasets)

    def __iter__(self) -> Iterator[str]:
        return iter(self._datasets)

    def __len__(self) -> int:
        return len(self._datasets)

    def __repr__(self) -> str:
        return f"Catalog of {len(self)} datasets: {', '.join(self)}"

    def _repr_html_(self) -> str:
        return self.table().to_html()

    def names(self) -> list[str]:
        return list(self)

    def table(self) -> pd.DataFrame:
        """One row a dataset: what it is, its licence, whether it is simulated, whether it is on this computer."""
        rows = [{"dataset": name, "title": d.title, "species": d.species, "regions": ", ".join(d.regions),
                 "modality": d.modality, "license": d.license, "size_gb": d.size_gb,
                 "sessions": d.n_sessions or len(self.sessions(name)) or None, "simulated": d.simulated,
                 "available": self.available(name), "needs_account": d.needs_account,
                 "catalog": str(self._origins[name])}
                for name, d in self.items()]
        return pd.DataFrame(rows).set_index("dataset")

    def sessions(self, name: str, here: bool = False) -> list[str]:
        """The names of the sessions, as far as they are known without a network; `here`: of those on this computer."""
        dataset = self[name]
        if dataset.simulated:
            return list(dataset.access.sessions)
        return [session for session, file in self._files(dataset).items() if not here or isinstance(file, Path)]

    def available(self, name: str) -> bool:
        """Whether `open(name)` needs no network."""
        dataset = self[name]
        files = {} if dataset.simulated else self._files(dataset)
        return dataset.simulated or any(isinstance(files[s], Path) for s in _usual(dataset, files)[:1])

    def open(self, name: str, session: str | None = None, download: bool = False) -> Session:
        """One session; without `session` the first of the sample or, where there is no sample, of all.

        Raises UnknownName, BadRecording for a file that cannot be read, NeedsExtra, and DatasetNotAvailable where the
        session is not here; with `download` its kin NoNetwork, NeedsAccount, FileDamaged where it cannot be fetched.
        """
        dataset = self[name]
        if dataset.simulated:
            made = dataset.access.sessions
            chosen = made[_pick(dataset, session, made)]
            return cache.labelled(GENERATORS[dataset.access.generator](**chosen), dataset)
        files = self._files(dataset, download, [session] if session else self._sample(dataset)[:1])
        if not files:
            raise self._absent(dataset)
        session = _pick(dataset, session, files)
        path = files[session]
        if isinstance(path, Remote):
            if not download:
                raise self._absent(dataset, session)
            if isinstance(dataset.access, One):
                try:
                    path = ibl.fetch(session, places(dataset.id)[-1], dataset.access.base_url)
                except NoNetwork as error:
                    raise self._unreachable(dataset, error, session) from None
                return cache.opened(dataset, session, path)
            for needed in (*beside(dataset, session), path):
                try:
                    path = fetch(needed, places(dataset.id)[-1] / needed.path)
                except NoNetwork as error:
                    raise self._unreachable(dataset, error, session) from None
        return cache.opened(dataset, session, path)

    def open_all(self, name: str, sessions: str = "*", download: bool = False) -> list[Session]:
        """Every session whose name matches the glob `sessions`, in the order of the catalog."""
        dataset = self[name]
        known = list(dataset.access.sessions if dataset.simulated else self._files(dataset, download))
        if not known:
            raise self._absent(dataset)
        chosen = [s for s in known if fnmatch(_plain(s), _plain(sessions))]
        if not chosen:
            raise UnknownName("session", sessions, known, where=f"dataset {dataset.id!r}")
        return [self.open(dataset.id, s, download) for s in chosen]

    def prepare(self, name: str, sessions: Iterable[str] | None = None) -> None:
        """Fetch and convert `sessions`; without them the sample or, where there is none, all. Tells the sizes first."""
        dataset = self[name]
        if dataset.simulated:
            print(f"{dataset.id} is simulated: it is made when it is opened, there is nothing to prepare")
            return
        sessions = list(sessions or ())
        files = self._files(dataset, True, sessions or self._sample(dataset))
        if not files:
            raise self._absent(dataset)
        wanted = [_pick(dataset, s, files) for s in sessions] if sessions else _usual(dataset, files)
        missing = self._missing(dataset, {s: files[s] for s in wanted})
        known = sum(f.size or 0 for f in missing)
        told = [megabytes(known)] if known else []
        if any(f.size is None for f in missing):
            whole = f" ({megabytes(round(dataset.size_gb * 1e9))} in the whole dataset)" if dataset.size_gb else ""
            told.append(f"files of unknown size{whole}")
        to_get = f"{' and '.join(told)} to download" if missing else "all of it here"
        print(f"{dataset.id}: {len(wanted)} of {len(files)} sessions, {to_get}; licence "
              f"{dataset.license or 'not stated'}; kept in {cache_folder(dataset.id)}", flush=True)
        for session in wanted:
            print(f"{session}: {self.open(dataset.id, session, download=True)}", flush=True)

    def _files(self, dataset: Dataset, download: bool = False, wanted: Sequence[str] = ()) -> dict[str, Path | Remote]:
        """Session name → file. With `download` the archive is asked for its list, unless all that is `wanted` is here.

        Where it does not answer and nothing particular was wanted, it is what is known here, with a warning.
        """
        folder = self._origins[dataset.id].parent
        files = files_of(dataset, folder)
        here = {_plain(name) for name, file in files.items() if isinstance(file, Path)}
        absent = [name for name in wanted if _plain(name) not in here]
        if download and (absent or not wanted):
            try:
                files = files_of(dataset, folder, True)
            except NoNetwork as error:
                if absent or not here:
                    raise self._unreachable(dataset, error, absent[0] if len(absent) == 1 else None) from None
                warnings.warn(f"only what is on this computer is known of dataset {dataset.id!r}: {error}",
                              stacklevel=3)
        if isinstance(dataset.access, One):                             # which sessions there are, the server knows
            files |= {name: Remote(name, "") for name in absent}
        return files

    def _sample(self, dataset: Dataset) -> list[str]:
        return [s for s in self.sessions(dataset.id) if s in dataset.sample.sessions] if dataset.sample else []

    def _missing(self, dataset: Dataset, files: Mapping[str, Path | Remote]) -> list[Remote]:
        """What is to be downloaded for these sessions, with sizes as far as the catalog or a server tells them."""
        wanted = dict.fromkeys(r for s, file in files.items() if isinstance(file, Remote) for r in (
            *(b for b in beside(dataset, s) if not (places(dataset.id)[-1] / b.path).is_file()), file))
        try:
            return [sized(remote) for remote in wanted]
        except NoNetwork as error:
            raise self._unreachable(dataset, error) from None

    def _unreachable(self, dataset: Dataset, error: NoNetwork, session: str | None = None) -> NoNetwork:
        return NoNetwork(f"{self._looked(dataset, session)}, and {error}; or put a copy of its files into "
                         f"{places(dataset.id)[0]}")

    def _looked(self, dataset: Dataset, session: str | None = None) -> str:
        size = f"{megabytes(round(dataset.size_gb * 1e9))} in all" if dataset.size_gb else "size not stated"
        return (f"dataset {dataset.id!r}{f', session {session!r}' if session else ''} ({size}) is not on this "
                f"computer (looked in {' and '.join(map(str, places(dataset.id)))})")

    def _absent(self, dataset: Dataset, session: str | None = None) -> DatasetNotAvailable:
        access = dataset.access
        if access.method == "local":
            env = f", or name the folder in the environment variable {access.env}" if access.env else ""
            return DatasetNotAvailable(f"dataset {dataset.id!r} has no recording at {', '.join(access.path)}, where "
                                       f"{self._origins[dataset.id]} says it is; correct the path there{env}")
        looked = self._looked(dataset, session)
        if access.method == "one":
            return NeedsAccount(f"{looked}; it is fetched session by session and needs an account: "
                                f"{dataset.needs_account}; then run `python -m workbench prepare "
                                f"{dataset.id}/{session or '<session>'}`, or use 'reach-sim', which needs no download")
        if access.method == "manual":
            steps = str(access.steps).rstrip(". ")
            return ManualDownload(f"{looked}; it must be fetched by hand from {access.url}: {steps}; without it, use "
                                  "'reach-sim', which needs no download")
        account = f" (it needs an account: {dataset.needs_account})" if dataset.needs_account else ""
        one = f"/{session}" if session and (dataset.size_gb or 0) > 2 else ""     # not 81 GB for a first look
        return DatasetNotAvailable(f"{looked}; run `python -m workbench prepare {dataset.id}{one}` or open it with "
                                   f"download=True{account}, or use 'reach-sim', which needs no download")


def open_recording(what: str | Path, *, download: bool = False, units=None,
                   series: Iterable[str] | None = None) -> Session:
    """One session: a dataset's `name` (its first session), `name/session`, the path of an .nwb, .h5 or .hdf5 file or
    of a folder of Phy or ALF files, or an NWB file on a server, "dandi:000140/<path>" or "https://….nwb"
    (`workbench.sources.stream`).

    units, series: only these, as `Session.select` takes units, and series by name; of an NWB file, here or on a
    server, the other spikes and series are never read.

    Paths are relative to the working folder and read where they are, without a cache. A file comes before a dataset of
    the same name, a dataset before a folder. Raises what `Catalog.open` does, UnknownName where `what` is none of
    these, and BadRecording for a folder or a glob of several recordings.
    """
    found = _meant(what, download, units, series)
    if len(found) > 1:
        names = ", ".join(name for name, _ in found[:6]) + (", ..." if len(found) > 6 else "")
        raise BadRecording(f"{os.fspath(what)} holds {len(found)} recordings ({names}); choose one, or open all of "
                           "them with open_recordings")
    return found[0][1]()


def open_recordings(what: str | Path | Iterable[str | Path], *, download: bool = False) -> list[Session]:
    """What `open_recording` takes, `name/*` (any glob of session names), a folder, a glob of paths, a list of these."""
    several = [what] if isinstance(what, str | Path) else what
    return [make() for one in several for _, make in _meant(one, download)]


def check(what: str | Path | Iterable[str | Path]) -> None:
    """Make sure that these are names in the catalog, or may be recordings, without opening any."""
    for one in [what] if isinstance(what, str | Path) else what:
        _meant(one, False)


def prepare(name: str, sessions: Iterable[str] | None = None) -> None:
    """Download and convert a dataset by `name` or `name/session`; see `Catalog.prepare`."""
    name, _, session = name.partition("/")
    open_catalog().prepare(name, [session] if session else sessions)


def _meant(what: str | Path, download: bool, units=None, series=None) -> list[tuple[str, Callable[[], Session]]]:
    """(what to call it, how to open it) of every session that is meant."""
    text, path = os.fspath(what), Path(what).expanduser()
    if text.startswith(("dandi:", "http://", "https://")):
        from workbench.sources import stream
        return [(text, lambda: stream.read(text, cache_folder("stream"), units=units, series=series))]
    a_path = (isinstance(what, Path) or path.is_file() or path.suffix.lower() in SUFFIXES
              or text.startswith((".", "~", os.sep)))
    if not a_path:
        catalog = open_catalog()
        name, _, session = text.partition("/")
        if name in catalog:
            if not glob.has_magic(session):
                return [(text, lambda: _only(catalog.open(name, session or None, download), units, series))]
            return [(s.id, lambda s=s: s) for s in catalog.open_all(name, session, download)]
        if not (path.exists() or glob.has_magic(text)):
            raise UnknownName("dataset", name, catalog, where="the catalog", hint="nor is there such a file or folder")
    if path.is_dir() or glob.has_magic(text):
        found = recordings_at(path)
        if not found:
            raise BadRecording(f"there is no recording ({', '.join(SUFFIXES)}) {'in' if path.is_dir() else 'at'} "
                               f"{path}, nor a folder of Phy (params.py and spike_times.npy) or of ALF files "
                               "(spikes.times.npy); check the path")
        return [(str(p), lambda p=p: _read(p, units, series)) for p in found]
    return [(text, lambda: _read(path, units, series))]


def _read(path: Path, units, series) -> Session:
    if folder := folder_loader(path):
        return _only(reader(folder)(path), units, series)
    suffix = existing(path).suffix.lower()
    if suffix == ".nwb":
        return Session.from_nwb(path, units=units, series=series)
    if suffix == ".mat" or (suffix not in SUFFIXES and not is_hdf5(path)):
        raise BadRecording(f"{path} is not {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}; what a file of another kind "
                           "holds is said by a catalog entry with a `loader:`, such as mat, and it is opened by that "
                           "entry's name")
    return _only(Session.open(path), units, series)


def _only(session: Session, units, series) -> Session:
    session = session if units is None else session.select(units)
    return session if series is None else replace(session, series={name: session.get_series(name) for name in series},
                                                  checked=True)


def _usual(dataset: Dataset, known: Iterable[str]) -> list[str]:
    """The sessions to begin with: the sample's, else all."""
    return [s for s in known if not dataset.sample or s in dataset.sample.sessions]


def _pick(dataset: Dataset, session: str | None, known: Mapping[str, object]) -> str:
    if session is None:
        return (_usual(dataset, known) or list(known))[0]
    return _match("session", session, known, where=f"dataset {dataset.id!r}")


def _match(kind: str, name: str, known: Iterable[str], where: str) -> str:
    same = [k for k in known if _plain(k) == _plain(name)]
    if not same:
        raise UnknownName(kind, name, known, where=where)
    return name if name in same else same[0]


def _plain(name: object) -> str:
    return str(name).replace("-", "_")


def _shipped() -> Path:
    """The catalog that comes with the package: inside it where it was installed, beside it in the repository."""
    package = Path(__file__).parent
    inside = package / "data_catalog.yaml"
    return inside if inside.is_file() else package.parent / "data_catalog.yaml"
