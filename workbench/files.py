"""Files: found with a clear word when they are not there, and written whole or not at all.

    existing   path → the path of a file that is there, or one sentence about what is there instead
    replacing  path → a temporary path in the same folder, put in place of `path` in one step when the block ends well
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path

from workbench.errors import BadRecording, CannotWrite


def existing(path: str | Path) -> Path:
    """The path, if it is a file; BadRecording says what is there instead, and near names in the same folder."""
    path = Path(path).expanduser()
    if path.is_dir():
        raise BadRecording(f"{path} is a folder, not a recording; give the path of one file in it")
    if not path.is_file():
        if not path.parent.is_dir():
            raise BadRecording(f"there is no file {path}: the folder {path.parent} does not exist; check the path")
        near = get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=3, cutoff=0.6)
        hint = f"did you mean {', '.join(near)}?" if near else "check the path"
        raise BadRecording(f"there is no file {path}; {hint}")
    return path


@contextmanager
def replacing(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """A new path beside `path` to write to. It replaces `path` when the block ends, and is removed if the block fails.

    Readers see the old file or the new one, never a part; arrays mapped from the old file stay as they were. `durable`
    also waits for the disk, so that a power cut cannot undo it. Raises CannotWrite.
    """
    path = Path(path).expanduser()
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        _replace(temporary, path)
        if durable:
            _sync_folder(path.parent)
    except OSError as error:
        raise CannotWrite(f"cannot write {path} ({error.strerror or error}); check that the folder can be written to "
                          "and has room, and that no other program holds the file") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _replace(temporary: Path, path: Path) -> None:
    for wait in (0.01, 0.1, 1.0):                                       # Windows refuses while a reader has it open
        try:
            return os.replace(temporary, path)
        except PermissionError:
            time.sleep(wait)
    os.replace(temporary, path)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):                                             # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
