"""One file from the network to the disk, whole and checked, or not at all.

    Remote → `name.part`, continued where it was cut → size and sha256 → `name`, in one step

What has the final name is complete. Two processes that want the same file wait for each other.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pooch
import requests
from filelock import FileLock
from tqdm.auto import tqdm

from workbench.errors import DatasetNotAvailable, FileDamaged, NeedsAccount, NoNetwork

TIMEOUT = (3.05, 60)                            # s, to connect (to each address of a host) and between two reads
TRIES = 3                                       # in a row without one new byte
PATIENCE = 5.0                                  # s without an answer after which a server is not asked again
BACK_OFF = 1.0                                  # s before the second try, doubled for each further one
SPARE = 200_000_000                             # bytes of disk that are left alone


class Remote(NamedTuple):
    """A file on a server: its path in the dataset, url, size in bytes (None: not known), sha256 ("": not known)."""

    path: str
    url: str
    size: int | None = None
    sha256: str = ""


def fetch(remote: Remote, target: Path) -> Path:
    """Download to `target`, unless it is there. A cut download is kept as `.part` and continued by the next call.

    Raises NoNetwork, NeedsAccount, FileDamaged or DatasetNotAvailable (no room, no such file, folder not writable).
    """
    if target.is_file():
        return target
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if not target.is_file():
                _download(remote, part)
                _check(remote, part)
                os.replace(part, target)
                part.with_name(f".{part.name}.version").unlink(missing_ok=True)
    except requests.RequestException as error:
        raise NoNetwork(f"cannot reach {_host(remote.url)} for {remote.path} ({_reason(error)}); check the network and "
                        "try again (what has arrived is kept), or use a dataset that is on this computer, such as "
                        "'reach-sim'") from None
    except OSError as error:
        raise DatasetNotAvailable(f"cannot write {target} ({error.strerror or error}); choose another cache folder "
                                  "with WORKBENCH_CACHE") from None
    return target


def ask(url: str, get: Callable[..., requests.Response] | None = None, **options) -> requests.Response:
    """The answer to a GET, asked by `get` (None: requests.get); the errors of `fetch`. What may pass is tried again."""
    since = time.monotonic()
    for attempt in range(TRIES):
        try:
            response = (get or requests.get)(url, timeout=TIMEOUT, **options)
            _refuse(response, url)
            return response
        except requests.RequestException as error:
            if attempt + 1 == TRIES or time.monotonic() - since > PATIENCE:
                raise NoNetwork(f"cannot reach {_host(url)} ({_reason(error)}); check the network and try again, or "
                                "use a dataset that is on this computer, such as 'reach-sim'") from None
            time.sleep(BACK_OFF * 2 ** attempt)


def get_json(url: str, params: dict | None = None) -> dict:
    """The JSON that a server answers with; the errors of `fetch`."""
    try:
        return ask(url, params=params).json()
    except requests.JSONDecodeError:
        raise NoNetwork(f"what answers in place of {_host(url)} is not that server: it sends no JSON, as the sign-in "
                        "page of a network does; sign in to the network and try again") from None


def about(url: str) -> tuple[Remote, str]:
    """The file at `url`, with its size, and the server's mark of this version of it ("" where there is none).

    The errors of `fetch`, and DatasetNotAvailable for a server that cannot send parts of a file.
    """
    with ask(url, headers={"Range": "bytes=0-0", "Accept-Encoding": "identity"}, stream=True) as response:
        size = re.fullmatch(r"bytes 0-0/(\d+)", response.headers.get("Content-Range", ""))
        if response.status_code != 206 or not size:
            raise DatasetNotAvailable(f"{_host(url)} does not send parts of {url}; download the file and open its path")
        return Remote(unquote(urlsplit(url).path).lstrip("/"), url, int(size[1])), _version(response)


def sized(remote: Remote) -> Remote:
    """The file with its size as its server tells it, where it is not known and the server does; the errors of `ask`."""
    if remote.size is not None or not remote.url:
        return remote
    try:
        return remote._replace(size=about(remote.url)[0].size)
    except DatasetNotAvailable as error:
        if type(error) is not DatasetNotAvailable:                      # no network, or an account is wanted
            raise
        return remote


def megabytes(size: int | None) -> str:
    """A size in bytes as people say it."""
    if size is None:
        return "size unknown"
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _download(remote: Remote, part: Path) -> None:
    failures, most, since = 0, _size(part), time.monotonic()
    while True:
        _check_room(remote, part)
        try:
            return _continue(remote, part)
        except requests.RequestException:
            arrived = _size(part) > most
            failures, most = 0 if arrived else failures + 1, max(most, _size(part))
            since = time.monotonic() if arrived else since
            if failures == TRIES or (failures and time.monotonic() - since > PATIENCE):
                raise
            time.sleep(BACK_OFF * 2 ** max(failures - 1, 0))


def _continue(remote: Remote, part: Path) -> None:
    """Append to `part` what is missing; ConnectionError if the connection ends early."""
    have = _size(part)
    if remote.size is not None and have == remote.size:
        return
    # No compression on the way: byte positions must be those of the file.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(remote.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:                                 # nothing lies behind what was kept
            whole = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("Content-Range", ""))
            if remote.size is None and whole and int(whole[1]) == have:
                return
            part.unlink()
            raise requests.ConnectionError("the server has fewer bytes than were kept")
        _refuse(response, remote.url)
        if response.headers.get("Content-Type", "").startswith("text/html") and "htm" not in Path(remote.path).suffix:
            raise NoNetwork(f"{_host(remote.url)} answers with a page to read in place of {remote.path}, as the "
                            "sign-in page of a network does; sign in there and try again")
        now, version = _version(response), part.with_name(f".{part.name}.version")
        if response.status_code != 206:
            have = 0
        elif not remote.sha256 and now and version.exists() and version.read_text() != now:
            part.unlink()                                               # no sum would tell the two halves apart
            raise requests.ConnectionError("the file has changed on the server since its download began")
        length = response.headers.get("Content-Length")
        total = remote.size if remote.size is not None else have + int(length) if length else None
        _check_room(remote._replace(size=total), part)
        if not have:
            version.write_text(now)
        with open(part, "ab" if have else "wb") as file, tqdm(
                desc=Path(remote.path).name, total=total, initial=have, unit="B", unit_scale=True) as bar:
            for chunk in response.iter_content(1 << 16):
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and _size(part) < total:
        raise requests.ConnectionError(f"the connection ended after {_size(part):,} of {total:,} bytes")


def _check(remote: Remote, part: Path) -> None:
    got, expected = _size(part), remote.size
    if expected is None or got == expected:
        got, expected = pooch.file_hash(str(part), alg="sha256") if remote.sha256 else "", remote.sha256
    if got != expected:
        part.unlink()
        what = "sha256" if isinstance(got, str) else "bytes"
        raise FileDamaged(f"{remote.path} from {_host(remote.url)} is not the file that was promised ({what} {got}, "
                          f"not {expected}) and was removed; download it again; if that happens twice, the file "
                          "has changed at its source")


def _check_room(remote: Remote, part: Path) -> None:
    if remote.size is None:
        return
    free, needed = shutil.disk_usage(part.parent).free, remote.size - _size(part)
    if needed + SPARE > free:
        raise DatasetNotAvailable(f"{remote.path} needs {megabytes(needed)} more and {part.parent} has "
                                  f"{megabytes(free)} free; make room, or name a larger disk in WORKBENCH_CACHE")


def _refuse(response: requests.Response, url: str) -> None:
    """Raise for an answer that is no content; those that may pass are RequestExceptions, and tried again."""
    code = response.status_code
    if code in (401, 403):
        raise NeedsAccount(f"{_host(url)} gives {url} only to people it knows (HTTP {code}); ask for access at its "
                           "site and put the file where the dataset is looked for")
    if 400 <= code < 500 and code not in (408, 429):
        raise DatasetNotAvailable(f"{_host(url)} has nothing at {url} (HTTP {code}); correct the catalog entry, or "
                                  "the address")
    response.raise_for_status()


def _reason(error: requests.RequestException) -> str:
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.HTTPError):
        return f"HTTP {error.response.status_code}"
    return str(error) if str(error).startswith("the ") else "no connection"


def _host(url: str) -> str:
    return url.split("/")[2] if url.count("/") >= 2 else url


def _version(response: requests.Response) -> str:
    """The server's mark of this version of a file, "" where it gives none."""
    return response.headers.get("ETag") or response.headers.get("Last-Modified") or ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
