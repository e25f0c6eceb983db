"""Files that survive a kill at any instant: whole files appear in one step, rows are one write each.

    place   a path, or the URL of a folder in an object store (s3://, gs://, what fsspec reads) → what the rest takes
    write   bytes → another name in the same folder → the disk → the file's own name; in a store an object appears whole
    Rows    one row → one unbuffered write, so that a kill can only cut the last line. A store cannot add to an object:
            there it is written anew every few seconds, and before a checkpoint
    rows    the whole lines of a JSONL file; a cut or garbled line is skipped
    Tail    the same, look by look: what was written since the last one
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from workbench.errors import WorkbenchError
from workbench.files import replacing

if TYPE_CHECKING:
    from upath import UPath

KNOWN_BY = 64                                                           # bytes that a file is known again by
SELDOM = 5                                                              # seconds between two writes of a growing object


class NoPlace(WorkbenchError, ValueError):
    """A URL that cannot be reached."""


def place(path: str | Path | UPath) -> Path | UPath:
    """A folder by its path or its URL."""
    if not isinstance(path, str | Path):
        return path
    text = str(path)
    for disk in ("file://", "local://"):
        text = text.removeprefix(disk)
    if "://" not in text:
        return Path(text).expanduser().resolve()
    from upath import UPath  # a second that local runs need not wait
    try:
        return UPath(text, use_listings_cache=False)               # what others write has to be seen
    except (ImportError, ValueError) as error:
        raise NoPlace(f"{path} cannot be reached from here ({error}); install what fsspec needs for such URLs, as in "
                      "pip install s3fs") from None


def local(path: Path | UPath) -> bool:
    """Whether it is on a disk, with locks and names that change in one step."""
    return isinstance(path, Path)


def content(path: Path | UPath, start: int = 0) -> bytes:
    """The bytes of a file from `start` on; of an object in one request, as it may be another in the next."""
    if not local(path):
        beyond = start and path.fs.size(path.path) <= start
        return b"" if beyond else path.fs.cat_file(path.path, start=start or None)
    with open(path, "rb") as file:
        file.seek(start)
        return file.read()


def write(path: Path | UPath, what: bytes | Callable[[BinaryIO], None], *, durable: bool = True) -> None:
    """Put `what` (bytes, or a function that writes to an open file) at `path` in one step; see `files.replacing`."""
    if not local(path):
        whole = BytesIO()
        whole.write(what) if isinstance(what, bytes) else what(whole)
        try:
            path.write_bytes(whole.getvalue())
        except FileNotFoundError:                                       # of a store that has folders
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(whole.getvalue())
        return
    with replacing(path, durable=durable) as temporary, open(temporary, "wb") as file:
        file.write(what) if isinstance(what, bytes) else what(file)


def write_json(path: Path | UPath, value: Any, *, durable: bool = True) -> None:
    """JSON that every reader takes: numbers that are not finite become null."""
    write(path, (json.dumps(as_json(value), indent=2, ensure_ascii=False) + "\n").encode(), durable=durable)


def read_json(path: Path | UPath) -> dict | None:
    """The content of a JSON file, None where there is no such file."""
    try:
        return json.loads(content(path))
    except FileNotFoundError:
        return None


class Rows:
    """The end of a JSONL file, to which rows are added."""

    def __init__(self, path: Path | UPath):
        self.path, self.wrote = path, time.monotonic()
        self.all = None if local(path) else content(path) if path.exists() else b""

    def append(self, row: dict[str, Any]) -> None:
        """A line that a kill cut before is closed first, so that this one stays whole."""
        line = json.dumps(as_json(row)).encode() + b"\n"
        if self.all is not None:
            self.all += line
            if time.monotonic() - self.wrote > SELDOM:
                self.flush()
            return
        with open(self.path, "ab+", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            cut = end and (file.seek(end - 1), file.read(1))[1] != b"\n"
            file.write(b"\n" * bool(cut) + line)

    def flush(self) -> None:
        """See that every row is there: before a checkpoint that comes after them."""
        if self.all is not None:
            self.path.write_bytes(self.all)
            self.wrote = time.monotonic()


def append(path: Path | UPath, row: dict[str, Any]) -> None:
    """Add one row to a JSONL file."""
    rows = Rows(path)
    rows.append(row)
    rows.flush()


def log(path: Path | UPath, message: str) -> None:
    """Add a line with the time to a log."""
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n"
    if not local(path):
        path.write_bytes((content(path) if path.exists() else b"") + line.encode())
        return
    with open(path, "a", encoding="utf-8") as file:
        file.write(line)


def seldom(path: Path | UPath, look: Callable[[], bool]) -> Callable[[], bool]:
    """`look`, which asks for files at `path` at every step, at most once in a second where asking is slow."""
    if local(path):
        return look
    last = [-math.inf]

    def asked() -> bool:
        if time.monotonic() - last[0] < 1:
            return False
        last[0] = time.monotonic()
        return look()
    return asked


def rows(path: Path | UPath) -> list[dict]:
    """The rows in whole lines. A missing file has no rows."""
    return Tail(path).look()[0]


class Tail:
    """A JSONL file that grows: each look reads what was written since the one before, and nothing twice."""

    def __init__(self, path: Path | UPath):
        self.path, self._offset, self._end = path, 0, b""

    def look(self) -> tuple[list[dict], bool]:
        """The rows in whole lines that are new, and whether the file is another one than before: it was cut or
        written anew, or is gone. Then they are all the rows there are."""
        try:
            new = content(self.path, self._offset - len(self._end))
        except FileNotFoundError:
            new = b""
        if not new.startswith(self._end):                           # the end of what was read is not there any more
            self._offset, self._end = 0, b""
            return self.look()[0], True
        whole = new[len(self._end): new.rfind(b"\n") + 1]
        if whole:
            self._offset, self._end = self._offset + len(whole), (self._end + whole)[-KNOWN_BY:]
        found = []
        for line in whole.splitlines():
            with suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict):
                    found.append(row)
        return found, False


def as_json(value: Any) -> Any:
    """Plain lists, dicts and numbers, as they come back from a JSON file."""
    if isinstance(value, dict):
        return {str(k): as_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(v) for v in value]
    if hasattr(value, "tolist"):                                        # numpy and torch numbers and arrays
        return as_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
