"""Arrays of an HDF5 file as read-only maps of the file, and checksums that cost little at any size.

HDF5 says at which byte an uncompressed array begins; from there on it is plain memory that the system reads page by
page when it is touched. Arrays stored otherwise (in chunks, compressed, of another byte order) are read instead.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

PAGE, PAGES = 4096, 1024                                                # bytes; what is checked of a larger array


class Mapped:
    """The arrays of one open HDF5 file by name. They outlive the h5py handle and hold the file's bytes, not copies."""

    def __init__(self, path: Path, file: h5py.File):
        self.path, self.file = path, file
        self.bytes = np.memmap(path, np.uint8, mode="r")

    def __getitem__(self, name: str) -> np.ndarray:
        data = self.file[name]
        start, dtype = self._start(data), data.dtype
        if start is None:
            return data[()]
        stop = start + data.size * dtype.itemsize
        if stop > len(self.bytes):
            raise ValueError(f"{name} ends at byte {stop:,} of a file of {len(self.bytes):,}")
        values = self.bytes[start:stop].view(dtype).reshape(data.shape)
        return values if values.flags.aligned else np.array(values)

    def verify(self, name: str, expected: int) -> None:
        """ValueError where the array no longer has the checksum it was written with."""
        data = self.file[name]
        start, size = self._start(data), data.size * data.dtype.itemsize
        if start is None:
            found = checksum(np.ascontiguousarray(data[()]))
        else:
            with open(self.path, "rb", buffering=0) as plain:           # not the map: its pages would stay in memory

                def take(a: int, b: int) -> bytes:
                    plain.seek(start + a)
                    return plain.read(b - a)

                found = _sum(size, take)
        if found != expected:
            raise ValueError(f"the bytes of {name} have changed since they were written")

    @staticmethod
    def _start(data: h5py.Dataset) -> int | None:
        plain = data.chunks is None and data.size and data.dtype.kind in "biufcS" and data.dtype.byteorder != ">"
        return data.id.get_offset() if plain else None


def checksum(values: np.ndarray) -> int:
    """CRC-32 of a contiguous array: of all its bytes up to 4 MiB, of 1,024 pages spread evenly over larger ones."""
    raw = values.reshape(-1).view(np.uint8)
    return _sum(len(raw), lambda start, stop: raw[start:stop])


def _sum(size: int, take: Callable[[int, int], bytes | np.ndarray]) -> int:
    if size <= PAGE * PAGES:
        return zlib.crc32(take(0, size))
    total = 0
    for start in np.linspace(0, size - PAGE, PAGES).astype(int).tolist():
        total = zlib.crc32(take(start, start + PAGE), total)
    return total


def unit_rows(values: np.ndarray) -> np.ndarray:
    """int32 rows of units from torch_brain's int64 `unit_index` [S], uncopied: the lower half of every number."""
    if values.dtype == np.dtype("<i8") and values.flags.c_contiguous:
        return values.view("<i4")[::2]
    return values.astype(np.int32, copy=False)
