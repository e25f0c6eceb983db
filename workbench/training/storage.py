"""Files that survive a kill at any instant: whole files appear in one step, rows are one write each.

    write   bytes → another name in the same folder → the disk → the file's own name
    append  one row → one unbuffered write, so that a kill can only cut the last line
    rows    the whole lines of a JSONL file; a cut or garbled line is skipped
    Tail    the same, look by look: what was written since the last one
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from workbench.files import replacing

KNOWN_BY = 64                                                           # bytes that a file is known again by


def write(path: Path, content: bytes | Callable[[BinaryIO], None], *, durable: bool = True) -> None:
    """Put `content` (bytes, or a function that writes to an open file) at `path` in one step; see `files.replacing`."""
    with replacing(path, durable=durable) as temporary, open(temporary, "wb") as file:
        file.write(content) if isinstance(content, bytes) else content(file)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """JSON that every reader takes: numbers that are not finite become null."""
    write(path, (json.dumps(as_json(value), indent=2, ensure_ascii=False) + "\n").encode(), durable=durable)


def read_json(path: Path) -> dict | None:
    """The content of a JSON file, None where there is no such file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def append(path: Path, row: dict[str, Any]) -> None:
    """Add one row to a JSONL file. A line that a kill cut before is closed first, so that this one stays whole."""
    with open(path, "ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        cut = end and (file.seek(end - 1), file.read(1))[1] != b"\n"
        file.write(b"\n" * bool(cut) + json.dumps(as_json(row)).encode() + b"\n")


def rows(path: Path) -> list[dict]:
    """The rows in whole lines. A missing file has no rows."""
    return Tail(path).look()[0]


class Tail:
    """A JSONL file that grows: each look reads what was written since the one before, and nothing twice."""

    def __init__(self, path: Path):
        self.path, self._offset, self._end = path, 0, b""

    def look(self) -> tuple[list[dict], bool]:
        """The rows in whole lines that are new, and whether the file is another one than before: it was cut or
        written anew, or is gone. Then they are all the rows there are."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._offset - len(self._end))
                content = file.read()
        except FileNotFoundError:
            content = b""
        if not content.startswith(self._end):                           # the end of what was read is not there any more
            self._offset, self._end = 0, b""
            return self.look()[0], True
        whole = content[len(self._end): content.rfind(b"\n") + 1]
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
