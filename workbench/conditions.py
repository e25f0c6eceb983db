"""Events and pictures in a session's tables, as series: whoever reads series reads them too, under these names.

    "trials.go_cue_time"                       a sample of 1 at every go cue
    "trials.target_on_time:reach_x,reach_y"    the same, and beside it what these columns say of the trial
    "stimuli.start:pixels"                     one a presentation, and its picture as 8 × 8 colours, 0 to 1
    "pictures:tiny"                            one a presentation, and its picture as a vector of `images.embedding`

`pictures` does the last with any encoder of images; `beside` puts what it returns into a session.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np

from workbench.errors import BadRecording, UnknownName
from workbench.session import Series, Session

TABLES = ("trials", "stimuli")
SIDE = 8                                                                # of the small pictures


def events(session: Session, name: str) -> Series:
    """The series that a name such as "trials.go_cue_time:reward" stands for: values [n, 1 + columns], the first 1.

    Events without a time, or with a gap in a column, are left out. UnknownName for a table or a column that is not
    there, BadRecording for one that holds no numbers.
    """
    place, _, asked = name.partition(":")
    table_name, _, when = place.partition(".")
    if table_name not in TABLES:
        raise UnknownName("table", table_name, TABLES, where=f"the events of session {session.id!r}")
    table, columns = getattr(session, table_name), [part for part in asked.split(",") if part]
    for column in (when, *columns):
        if column not in table and column != "pixels":
            raise UnknownName("column", column, table.columns, where=f"the {table_name} of session {session.id!r}")
    parts = [np.ones((len(table), 1)), *(_pixels(session) if column == "pixels" and column not in table else
                                         _numbers(session, table, column)[:, None] for column in columns)]
    times, values = _numbers(session, table, when), np.hstack(parts)
    there = np.isfinite(times) & np.isfinite(values).all(1)
    order = np.argsort(times[there], kind="stable")
    return Series(times[there][order], values[there][order], "", ("there", *columns) if "pixels" not in columns else ())


def pictures(session: Session, embed: Callable[[np.ndarray], np.ndarray]) -> Series:
    """One sample a presentation, at its start: embed(images [n, height, width(, 3)] uint8) → [n, D] of its picture.

    Each picture is embedded once. BadRecording for a session without pictures.
    """
    images = _images(session)
    return shown(session, np.asarray(embed(images), np.float64).reshape(len(images), -1))


def shown(session: Session, vectors: np.ndarray) -> Series:
    """One sample a presentation, at its start: the row of vectors [pictures, D] of the picture that it showed."""
    starts, image = presentations(session)
    return Series(starts, vectors[image])


def presentations(session: Session) -> tuple[np.ndarray, np.ndarray]:
    """Start [n] in seconds, in order, and picture [n] of every presentation; a grey screen is none.

    BadRecording where the stimuli do not say which picture they show.
    """
    if "image" not in session.stimuli:
        raise BadRecording(f"{session.id}: its stimuli do not say which picture was shown (a column `image`); attach a "
                           "folder of pictures with workbench.sources.pictures.attach, or choose another recording")
    start, image = (session.stimuli[column].to_numpy(float) for column in ("start", "image"))
    there = np.isfinite(start) & (np.nan_to_num(image, nan=-1) >= 0)
    order = np.argsort(start[there], kind="stable")
    return start[there][order], image[there][order].astype(int)


def picture_names(session: Session) -> np.ndarray:
    """What tells every picture of a session from others [pictures]: its pixels, so that a picture is the same in every
    session that shows it; or its number in the dataset, where the recording comes without pixels.
    """
    if session.load_images is None:
        count = int(presentations(session)[1].max(initial=-1)) + 1
        return np.array([f"{session.dataset or session.id} {i}" for i in range(count)])
    names = _digests(session.load_images)
    _count_from_0(session, len(names))
    return names


@lru_cache(maxsize=8)
def _digests(load_images: Callable[[], np.ndarray]) -> np.ndarray:
    images = load_images()
    return np.array([hashlib.sha256(f"{picture.shape}".encode() + np.ascontiguousarray(picture).tobytes()).hexdigest()
                     for picture in images])


def beside(session: Session, **series: Series) -> Session:
    """The session with more series."""
    return replace(session, series=dict(session.series) | series)


def thumbnails(images: np.ndarray) -> np.ndarray:
    """Pictures [n, height, width(, 3)] uint8 as SIDE × SIDE means, 0 to 1 [n, SIDE² (× 3)]."""
    small = images.astype(np.float64) / 255
    for axis in (1, 2):
        edges = np.linspace(0, small.shape[axis], SIDE, endpoint=False).astype(int)
        widths = np.diff(edges, append=small.shape[axis]).reshape([-1 if a == axis else 1 for a in range(small.ndim)])
        small = np.add.reduceat(small, edges, axis=axis) / np.maximum(widths, 1)
    return small.reshape(len(small), -1)


def _pixels(session: Session) -> np.ndarray:
    """Small pictures in the order of the stimulus table, not of time."""
    small, image = thumbnails(_images(session)), session.stimuli["image"].to_numpy(float)
    return np.where((image >= 0)[:, None], small[np.nan_to_num(image, nan=0).clip(0).astype(int)], np.nan)


def _images(session: Session) -> np.ndarray:
    images = session.images
    if images is None or "image" not in session.stimuli:
        raise BadRecording(f"{session.id} holds no pictures; choose columns of its stimuli: "
                           f"{', '.join(session.stimuli.columns)}")
    _count_from_0(session, len(images))
    return images


def _count_from_0(session: Session, pictures: int) -> None:
    if "image" in session.stimuli and (most := session.stimuli["image"].max()) >= pictures:
        raise BadRecording(f"{session.id}: its stimuli show picture {most:g} of {pictures}; pictures count from 0 "
                           "(take 1 away where they count from 1)")


def _numbers(session: Session, table, column: str) -> np.ndarray:
    try:
        return table[column].to_numpy(float)
    except (TypeError, ValueError):
        raise BadRecording(f"{session.id}: column {column!r} holds no numbers; choose one that does, or make it "
                           "numbers first") from None
