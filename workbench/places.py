"""Where the files of a dataset are: in the user's folders, in the cache, or on a server.

    Dataset → {session name: Path of a file that is here, or Remote that can be fetched}

Nothing is downloaded here; only the list of a dandiset's files is asked for, when the caller says so, and kept.
"""

from __future__ import annotations

import glob
import json
import os
from collections import Counter
from pathlib import Path

import pooch

from workbench.catalog_file import Dandi, Dataset, Http, Local
from workbench.files import replacing
from workbench.sources import alf, dandi, folder_loader
from workbench.sources.download import Remote

SUFFIXES = (".nwb", ".h5", ".hdf5")                                     # in small or capital letters


def cache_folder(dataset: str) -> Path:
    """Where downloads and conversions of a dataset are kept: under WORKBENCH_CACHE, or the user's cache folder."""
    base = os.environ.get("WORKBENCH_CACHE")
    return (Path(base).expanduser().absolute() if base else Path(pooch.os_cache("spike-workbench"))) / dataset


def places(dataset: str) -> list[Path]:
    """The folders where files of a dataset are looked for, in this order."""
    own = os.environ.get("WORKBENCH_DATA")
    return [*([Path(own).expanduser().absolute() / dataset] if own else []), cache_folder(dataset) / "files"]


def files_of(dataset: Dataset, beside: Path, listing: bool = False) -> dict[str, Path | Remote]:
    """Session name → file. `beside`: the catalog file's folder. `listing`: the archive may be asked for its list."""
    suffixes = (".mat",) if dataset.loader == "mat" else SUFFIXES
    files = _of(dataset.access, dataset.id, beside, listing, suffixes)
    if dataset.sample and dataset.sample.access:
        files |= _of(dataset.sample.access, dataset.id, beside, listing, suffixes)
    return files


def beside(dataset: Dataset, session: str) -> list[Remote]:
    """The files that the reader of the session wants beside the session's own."""
    access = dataset.access
    return [_remote(access, path) for path in access.beside.get(session, ())] if isinstance(access, Http) else []


def recordings_at(path: Path, within: Path = Path(), suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """The recordings that a path means: itself, else those directly in the folder, else those that match the glob.

    A relative path is one `within` that folder, whose own name is no glob: "lab [2024]" is a folder.
    """
    whole = within / path
    if whole.is_file() or folder_loader(whole):
        return [whole]
    if whole.is_dir():
        seen = (p for p in whole.iterdir() if not p.name.startswith("."))               # macOS leaves ._day.nwb beside
        return sorted(p for p in seen if p.suffix.lower() in suffixes or folder_loader(p))
    found = [within / p for p in glob.glob(str(path), root_dir=within, recursive=True)]
    own = path.suffix.lower()
    named = {*suffixes, own} if own[1:].isalnum() else suffixes         # "day_*.mat" says what it means
    folders = {p for p in found if folder_loader(p)}                    # the session's, and not those of its probes
    return sorted([*(p for p in folders if folders.isdisjoint(p.parents)),
                   *(p for p in found if p.suffix.lower() in named and p.is_file())])


def _of(access, name: str, beside: Path, listing: bool, suffixes: tuple[str, ...]) -> dict[str, Path | Remote]:
    if isinstance(access, Local):
        folder = Path(os.environ.get(access.env) or beside) if access.env else beside
        return _named([p for path in access.path for p in recordings_at(Path(path).expanduser(), folder, suffixes)])
    if isinstance(access, Http):
        return _here(_sessions([_remote(access, path) for path in access.files], access.sessions), name)
    if isinstance(access, Dandi):
        listed = _here(_sessions(_listed(access, name, listing), access.sessions), name)
        return listed or _brought(name, suffixes)                       # before the archive was asked for its list
    return _brought(name, suffixes)


def _brought(name: str, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """What the user has put where the dataset's files are looked for."""
    return _named([p for place in places(name) for p in recordings_at(Path("**/*"), place, suffixes)])


def _remote(access: Http, path: str) -> Remote:
    file = access.files[path]
    return Remote(path, f"{access.base_url.rstrip('/')}/{path}", file.bytes, file.sha256)


def _sessions(remote: list[Remote], named: dict[str, str]) -> dict[str, Remote]:
    """The session names of files. A named file that no list tells of yet has no address."""
    by_path = {r.path: r for r in remote}
    if named:
        return {session: by_path.get(path, Remote(path, "")) for session, path in named.items()}
    paths = _named([Path(r.path) for r in remote])
    return {session: by_path[path.as_posix()] for session, path in paths.items()}


def _here(remote: dict[str, Remote], name: str) -> dict[str, Path | Remote]:
    """The same, with the path in place of what is on this computer already.

    A file put here without its folders is found by its name, where no other file of the dataset has that name.
    """
    named = Counter(Path(path).name for path in {r.path for r in remote.values()})

    def look(r: Remote) -> Path | Remote:
        flat = Path(r.path).name
        tries = [p for place in places(name) for p in (place / r.path, place / flat)[:1 if named[flat] > 1 else 2]]
        return next((p for p in tries if p.is_file()), r)
    return {session: look(r) for session, r in remote.items()}


def _listed(access: Dandi, name: str, ask: bool) -> list[Remote]:
    """What the archive holds, from the list that was kept (a published version never changes), or asked for."""
    asked = [access.dandiset, access.version, access.glob]
    kept = cache_folder(name) / "listing.json"
    if kept.is_file() and not (ask and access.version == "draft"):
        try:
            found = json.loads(kept.read_text(encoding="utf-8"))
            if found["asked"] == asked:
                return [Remote(*f) for f in found["files"]]
        except (ValueError, KeyError, TypeError):
            pass                                                        # damaged: ask again
    if not ask:
        return []
    files = dandi.assets(*asked)
    with replacing(kept) as temporary:
        temporary.write_text(json.dumps({"asked": asked, "files": files}), encoding="utf-8")
    return files


def _named(paths: list[Path]) -> dict[str, Path]:
    """Name → path: the file's name without its suffix; where two are alike, with the folder before it."""
    names = [alf.session_id(p) if p.is_dir() else p.stem for p in paths]
    return {name if names.count(name) == 1 else f"{p.parent.name}-{name}": p
            for name, p in zip(names, paths, strict=True)}
