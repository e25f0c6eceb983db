"""One NWB file read where it lies on a server: only the bytes of what is asked for travel, and they are kept.

    dandi:<dandiset>[@<version>]/<path>, or https://….nwb → Remote → blocks of 100 kB, kept in the cache → Session

    open_recording("dandi:000140@0.220113.0408/sub-Jenkins/….nwb", units=range(20), series=["hand_vel"])

`units` and `series` are those of `workbench.sources.nwb.read`; without them all spikes and all signals travel, raw
voltages never. Without a version it is the newest published one, and `Session.dataset` names it. The blocks come
through remfile (https://github.com/magland/remfile, Apache-2.0; `pip install 'spike-workbench[dandi]'`), and lie under
the cache folder in `stream/`; a second reading takes them from there.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

import h5py
import requests

from workbench.errors import BadRecording, CannotWrite, DatasetNotAvailable, NeedsExtra
from workbench.files import replacing
from workbench.session import Session
from workbench.sources import dandi, nwb
from workbench.sources.download import Remote, about, ask

ADDRESS = re.compile(r"dandi:(?P<dandiset>\d{6})(@(?P<version>[^/]+))?/(?P<path>.+)")


def read(address: str, folder: Path, **options) -> Session:
    """The session at `address`; blocks are kept in `folder`. The options are those of `nwb.read`.

    Raises BadRecording for an address that is none or a file that cannot be read, NeedsExtra, NoNetwork, NeedsAccount,
    and DatasetNotAvailable for what the server does not have.
    """
    if address.startswith("dandi:"):
        match = ADDRESS.fullmatch(address)
        if not match:
            raise BadRecording(f"{address} is no address of a DANDI file; write dandi:<six digits>/<path>, or "
                               "dandi:<six digits>@<version>/<path>")
        version = match["version"] or dandi.newest(match["dandiset"])
        remote, origin = dandi.asset(match["dandiset"], version, match["path"]), f"DANDI:{match['dandiset']}/{version}"
        mark = remote.sha256
    else:
        (remote, mark), origin = about(address), ""
    session = nwb.read(Stream(remote, address, folder, mark), **options)
    return replace(session, dataset=session.dataset or origin, checked=True)


class Stream:
    """A file on a server that `nwb.read` takes in place of a path. Its size must be known; `mark` tells its versions
    apart, so that blocks of an old one are never taken for those of a new one."""

    def __init__(self, remote: Remote, address: str, folder: Path, mark: str = ""):
        self.remote, self.address = remote, address
        key = hashlib.sha256(f"{remote.url} {remote.size} {mark}".encode()).hexdigest()[:24]
        self.folder, self.stem = folder / key, PurePosixPath(remote.path).stem

    def __str__(self) -> str:
        return self.address

    @contextmanager
    def opened(self) -> Iterator[h5py.File]:
        """The file, open for reading. What the network did wrong is raised when the block ends, however it ends."""
        try:
            import remfile
        except ImportError:
            raise NeedsExtra(f"{self} is read over the network with a package that is not installed; run: "
                             "pip install 'spike-workbench[dandi]', or download the file and open its path") from None
        line = _Line(self.remote)
        file = remfile.File(self.remote.url, disk_cache=_Blocks(self.folder, self.remote.size), _size=self.remote.size)
        file.session = line
        try:
            # Of chunks that are larger than this cache, and not compressed, only the selected bytes travel.
            with h5py.File(file, "r", rdcc_nbytes=1 << 20) as opened:
                yield opened
        except OSError as error:
            if line.failure is None and "signature" in str(error):
                raise BadRecording("not an NWB file: it is not HDF5") from None
            raise
        finally:
            line.close()
            if line.failure is not None:
                atexit.register(_end_hdf5)
                raise line.failure from None


def _end_hdf5() -> None:
    """A read that failed leaves the file open inside HDF5, out of h5py's reach; HDF5 would close it after Python has
    ended, calling back into nothing. So it is ended first. Only h5py's wheels keep it where it can be found."""
    for library in Path(h5py.__file__).parents[1].glob("h5py.libs/libhdf5-*"):
        ctypes.CDLL(str(library)).H5close()


class _Line(requests.Session):
    """Asks as downloads do (timeouts, tries, errors). What it gives up on is remembered in `failure`, and told to
    remfile as HTTP 408, which that does not try again for half a minute as it does with an exception."""

    def __init__(self, remote: Remote):
        super().__init__()
        self.remote, self.failure = remote, None
        self.at = remote.url
        self.headers["Accept-Encoding"] = "identity"                    # byte positions must be those of the file

    def get(self, url: str, **options) -> requests.Response:
        try:
            try:
                response = ask(self.at, super().get, **options)
            except DatasetNotAvailable:
                if self.at == self.remote.url:
                    raise
                self.at = self.remote.url                               # where it was redirected to holds for a while
                response = ask(self.at, super().get, **options)
            if response.status_code != 206 and len(response.content) != self.remote.size:
                raise DatasetNotAvailable(f"the server of {url} does not send parts of files; download it instead")
            self.at = response.url
            return response
        except DatasetNotAvailable as error:
            self.failure = error
            refused = requests.Response()
            refused.status_code, refused.reason = 408, str(error)
            return refused


class _Blocks:
    """remfile's disk cache, whole blocks only: a block that was cut while it was written is fetched again."""

    def __init__(self, folder: Path, size: int):
        self.folder, self.size = folder, size

    def get(self, key: str) -> bytes | None:
        path, length = self._place(key)
        with suppress(OSError):
            block = path.read_bytes()
            return block if len(block) == length else None
        return None

    def set(self, key: str, value: bytes) -> None:
        path, length = self._place(key)
        if len(value) == length:
            with suppress(CannotWrite), replacing(path, durable=False) as temporary:     # costs only time
                temporary.write_bytes(value)

    def _place(self, key: str) -> tuple[Path, int]:
        block, number = (int(part) for part in key.rsplit("|", 2)[1:])  # the address before them may change
        return self.folder / f"{block}-{number}", min(block, self.size - block * number)
