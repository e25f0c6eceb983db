"""A recording of the catalog, converted once and opened from the cache afterwards.

    file → Session → what the catalog knows is added → <cache>/<dataset>/<session>.<key>.h5 → Session, memory-mapped

The key is made of the file's path, size and time, of what the catalog says about it, and of the code that reads it;
when one changes, a new copy is made and the old one removed. HDF5 files in our own layout are opened as they are.

`derived` keeps what is computed of such a file in the same way: one array, mapped the second time.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from workbench.catalog_file import Dataset
from workbench.errors import BadRecording, CannotWrite, NeedsExtra
from workbench.files import existing, replacing
from workbench.places import cache_folder
from workbench.session import Session
from workbench.sources import folder_loader, read_beside, reader


def opened(dataset: Dataset, session: str, path: Path) -> Session:
    """The session in `path`, from its converted copy where there is one, else converted now.

    Raises NeedsExtra, and BadRecording for a file that cannot be read. A damaged copy, or a cache that cannot be
    written, is told as a warning and costs only time.
    """
    loader = _loader(dataset, path)
    if loader == "hdf5":
        return labelled(Session.open(path), dataset)
    folder = cache_folder(dataset.id)
    name = re.sub(r"[^\w+-]", "_", session)
    copy = folder / f"{name}.{_key(dataset, path)}.h5"
    if copy.is_file():
        try:
            return Session.open(copy)
        except BadRecording as error:
            warnings.warn(f"the converted copy of {path} is damaged and made anew ({error})", stacklevel=3)
            copy.unlink()
    _check_extras(dataset)
    try:
        made = labelled(reader(loader)(path if path.is_dir() else existing(path), **dataset.loader_options), dataset)
    except TypeError as error:
        raise BadRecording(f"the loader of dataset {dataset.id!r} does not take its loader_options ({error}); correct "
                           "them in the catalog file") from error
    try:
        made.save(copy)
    except (BadRecording, CannotWrite) as error:
        warnings.warn(f"no converted copy of {path} was kept, so it is read anew each time ({error}); another cache "
                      "folder can be named in WORKBENCH_CACHE", stacklevel=3)
        return made
    _remove_others(copy, name)
    return Session.open(copy)


def derived(kind: str, source: Path, key: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array of `make()`, made once and afterwards mapped from <cache>/<kind>/<source>.<key>.npy, read-only.

    source: the file that it is computed from; key: of everything that decides what it holds. The newest key of a source
    stays. A damaged array, or a cache that cannot be written, is told as a warning and costs only time.
    """
    source = source.resolve()
    name = f"{re.sub(r'[^A-Za-z0-9_+-]', '_', source.stem)}-{_digest(str(source))}"
    path = cache_folder(kind) / f"{name}.{key}.npy"
    try:
        return np.load(path, mmap_mode="r")
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError, EOFError) as error:
        warnings.warn(f"{path} is damaged and made anew ({error})", stacklevel=3)
    made = make()
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.save(file, made)
        _remove_others(path, name)
        return np.load(path, mmap_mode="r")
    except (CannotWrite, OSError) as error:
        warnings.warn(f"what was computed of {source} is computed anew each time ({error}); another cache folder can "
                      "be named in WORKBENCH_CACHE", stacklevel=3)
        return made


def mapped_from(values: np.ndarray) -> Path | None:
    """The file that an array is a map of, or a part of such a map; None for one in memory."""
    while isinstance(values, np.ndarray):
        if isinstance(values, np.memmap) and values.filename:
            return Path(values.filename)
        values = values.base
    return None


def _remove_others(path: Path, name: str) -> None:
    """Files of the same name with another key."""
    for old in path.parent.glob(f"{glob.escape(name)}.*{path.suffix}"):
        if old != path:
            with suppress(OSError):                                     # in use elsewhere
                old.unlink()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _loader(dataset: Dataset, path: Path) -> str:
    by_suffix = folder_loader(path) or ("nwb" if path.suffix.lower() == ".nwb" else "hdf5")
    return by_suffix if dataset.loader == "by_suffix" else dataset.loader


def labelled(session: Session, dataset: Dataset) -> Session:
    """The session with the dataset's name, and what the catalog knows where the file is silent."""
    known = {"species": dataset.species, "license": dataset.license, "citation": dataset.citation,
             "task": ", ".join(dataset.tasks)}
    return replace(session, dataset=dataset.id, checked=True,
                   **{name: text for name, text in known.items() if text and not getattr(session, name)})


def _key(dataset: Dataset, path: Path) -> str:
    about = path.stat()
    parts = [str(path.resolve()), about.st_size, about.st_mtime_ns, dataset.model_dump(mode="json"), _code(),
             *((str(other), other.stat().st_mtime_ns) for other in read_beside(_loader(dataset, path), path.resolve()))]
    return _digest(json.dumps(parts))


@cache
def _code() -> str:
    """A digest of the code between a file and its copy: a changed reader makes a changed recording."""
    here = Path(__file__).parent
    readers = [here / "session.py", *sorted(p for p in (here / "sources").glob("*.py") if p.stem != "simulated")]
    return hashlib.sha256(b"".join(p.read_bytes() for p in readers if p.is_file())).hexdigest()


def _check_extras(dataset: Dataset) -> None:
    for extra in dataset.extras:
        try:
            version(re.split(r"[\[<>=!~; ]", extra)[0])
        except PackageNotFoundError:
            raise NeedsExtra(f"dataset {dataset.id!r} is read with a package that is not installed; run: "
                             f"pip install '{extra}'") from None
