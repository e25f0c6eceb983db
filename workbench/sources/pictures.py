"""A folder of pictures as the stimuli of a session: which picture each presentation showed, and the pictures.

    folder of .png, .jpg, .tif → pictures, in order of their names → Session.images [n, height, width(, 3)] uint8
    a column of names or numbers of stimuli (or trials)            → stimuli.image, the row of each picture

Read by Pillow when `images` is asked for, and not before. The pictures keep their own licence.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from workbench.errors import BadRecording
from workbench.session import Session

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


def attach(session: Session, folder: str | Path, *, column: str = "image", table: str = "stimuli", first: int = 0,
           size: tuple[int, int] | None = None) -> Session:
    """The session with the pictures of the folder as its images, and their rows in stimuli.image.

    column: of `table` ('stimuli' or 'trials'): names of files, with or without suffix, or numbers that count the
    pictures in order of their names from `first` (1, where they come from MATLAB). Rows where it is empty show no
    picture: -1. size: (height, width) to which every picture is scaled, its longer side cut evenly at both ends;
    needed where they differ.

    Raises BadRecording for a folder without pictures, a column that is not there, a name or number without a picture,
    one name in two folders, pictures of several sizes where no size is given, of more than 8 bits a grey pixel, or of
    several frames; `images` raises it where a picture is damaged or can be seen through.
    """
    files = find(folder)
    if table not in ("stimuli", "trials"):
        raise BadRecording(f"pictures are attached by a column of 'stimuli' or of 'trials', not of {table!r}")
    rows = getattr(session, table)
    if column not in rows:
        raise BadRecording(f"{session.id}: {table} have no column {column!r} that says which picture was shown; they "
                           f"have {', '.join(rows) or 'no columns'}")
    shown = _rows(rows[column], files, first, f"{session.id}, {table}.{column}")
    shape(files, size)
    base = rows if table == "stimuli" else rows[["start", "stop"]]
    return replace(session, stimuli=base.assign(image=shown), load_images=partial(load, files, size), checked=True)


def find(folder: str | Path) -> tuple[Path, ...]:
    """The pictures directly in the folder, in order of their names: picture2 before picture10."""
    folder = Path(folder).expanduser().absolute()
    if not folder.is_dir():
        raise BadRecording(f"{folder} is not a folder of pictures; check the path")
    files = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
    if not files:
        raise BadRecording(f"there is no picture ({', '.join(SUFFIXES)}) in {folder}; check the path")
    return tuple(sorted(files, key=lambda file: (_natural(file), file.name)))


def shape(files: tuple[Path, ...], size: tuple[int, int] | None) -> tuple[int, ...]:
    """The shape of one picture, from the heads of the files: (height, width) if all are grey, else with 3 colours."""
    sizes, grey = {}, True
    for file in files:
        try:
            with Image.open(file) as picture:
                frames = getattr(picture, "n_frames", 1) if picture.format in ("TIFF", "PNG") else 1
                mode, turned = picture.mode, picture.getexif().get(0x0112, 1) >= 5      # the camera lay on its side
                sizes.setdefault(picture.size[::1 if turned else -1], file)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise BadRecording(f"{file} cannot be read as a picture ({str(error).splitlines()[0]}); remove it or save "
                               "it again") from error
        if mode.startswith("I") or mode == "F":
            raise BadRecording(f"{file} has more than 8 bits a pixel ({mode}), and only the lab knows which range "
                               "matters; save it with 8 bits")
        if frames > 1:
            raise BadRecording(f"{file} has {frames} frames; save each as a picture of its own")
        grey &= mode in ("1", "L")
    if size is None and len(sizes) > 1:
        (one, a), (two, b) = list(sizes.items())[:2]
        raise BadRecording(f"the pictures in {files[0].parent} have {len(sizes)} sizes ({a.name} {one[0]} × {one[1]}, "
                           f"{b.name} {two[0]} × {two[1]}); give size=(height, width) to scale them to one")
    return (*(size or next(iter(sizes))), *(() if grey else (3,)))


def load(files: tuple[Path, ...], size: tuple[int, int] | None = None) -> np.ndarray:
    """The pictures [n, height, width] uint8 where all are grey, else [n, height, width, 3]."""
    one = shape(files, size)
    pictures = np.empty((len(files), *one), np.uint8)
    for row, file in zip(pictures, files, strict=True):
        try:
            with Image.open(file) as picture:
                if picture.has_transparency_data and picture.convert("RGBA").getchannel("A").getextrema()[0] < 255:
                    raise BadRecording(f"{file} can be seen through, and only the lab knows on what background it was "
                                       "shown; save it on that, without transparency")
                picture = ImageOps.exif_transpose(picture).convert("L" if len(one) == 2 else "RGB")
                row[...] = picture if size is None else ImageOps.fit(picture, size[::-1], Image.Resampling.LANCZOS)
        except (OSError, SyntaxError) as error:
            raise BadRecording(f"{file} cannot be read as a picture ({str(error).splitlines()[0]}); it is damaged or "
                               "cut short: copy it again") from error
    return pictures


def _rows(column: pd.Series, files: tuple[Path, ...], first: int, where: str) -> np.ndarray:
    """The row of the picture that each value names or counts; -1 where it is empty."""
    empty = column.isna().to_numpy(bool)
    if not pd.api.types.is_numeric_dtype(column):                       # numbers among objects or categories
        column = pd.Series(column.tolist())
    if pd.api.types.is_numeric_dtype(column):
        numbers = column.to_numpy(np.float64, na_value=np.nan) - first
        bad = ~empty & ((numbers < 0) | (numbers >= len(files)) | (numbers != np.floor(numbers)))
        if bad.any():
            raise BadRecording(f"{where} has the number {column[bad].iloc[0]}, and {files[0].parent} has {len(files)} "
                               f"pictures, counted from {first}; check first=, or name the files")
        return np.where(empty, -1, np.nan_to_num(numbers, nan=-1)).astype(np.int64)
    stems = Counter(file.stem for file in files)                        # a.png beside a.jpg: 'a' could be either
    names = {file.stem: i for i, file in enumerate(files) if stems[file.stem] == 1}
    names |= {file.name: i for i, file in enumerate(files)}
    texts = [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in column]
    paths = [Path(text.replace("\\", "/").strip()) for text in texts]
    asked, folders = [path.name for path in paths], {}
    for path, gone in zip(paths, empty, strict=True):
        home = str(path.parent)
        if not gone and home != "." and folders.setdefault(path.name, home) != home:
            raise BadRecording(f"{where} names {path.name!r} in two folders, {folders[path.name]} and {home}, and "
                               "pictures are found by name alone; give them different names")
    lost = [name for name, gone in zip(asked, empty, strict=True) if not gone and name and name not in names]
    if lost:
        raise BadRecording(f"{where} names {lost[0]!r}, and there is no such picture in {files[0].parent} "
                           f"({len(files)} pictures, from {files[0].name} to {files[-1].name}); check the names")
    rows = [-1 if gone or not name else names[name] for name, gone in zip(asked, empty, strict=True)]
    return np.array(rows, np.int64)


def _natural(file: Path) -> list:
    parts = re.split(r"(\d+)", file.name)
    return [(int(part), "") if part.isdecimal() else (-1, part.lower()) for part in parts if part]
