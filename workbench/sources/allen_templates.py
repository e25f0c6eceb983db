"""The pictures of Visual Coding - Neuropixels, which are no part of a session's file: natural scenes and movie frames.

    <folder>/natural_scene_templates/natural_scene_<0..117>.tiff    one picture a file
    <folder>/natural_movie_templates/natural_movie_<1, 3>.h5        900 and 3,600 frames

The layout is that of the public bucket and of allensdk's cache folder, so one folder holds sessions and templates.
`stimuli.image` of a session counts the pictures of one template.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from workbench.errors import BadRecording
from workbench.files import existing

# Pictures → their file, or that of each; the stimuli that show them.
TEMPLATES = {
    "natural_scenes": ("natural_scene_templates/natural_scene_{}.tiff", ("natural_scenes",)),
    "natural_movie_one": ("natural_movie_templates/natural_movie_1.h5",
                          ("natural_movie_one", "natural_movie_one_more_repeats")),
    "natural_movie_three": ("natural_movie_templates/natural_movie_3.h5", ("natural_movie_three",)),
}


def loader(path: Path, images: str | None, stimuli: pd.DataFrame,
           folder: str | Path | None) -> Callable[[], np.ndarray] | None:
    """What loads the pictures, if they are there; else None, and a warning says where they belong."""
    n = int(stimuli["image"].max()) + 1 if images and len(stimuli) else 0
    if not n:
        return None
    names = [TEMPLATES[images][0].format(i) for i in range(n)] if images == "natural_scenes" else [TEMPLATES[images][0]]
    looked = [Path(folder).expanduser()] if folder is not None else _near(path)
    for place in looked:
        if all((place / name).is_file() for name in names):
            return partial(load_images, [place / name for name in names], n)
    warnings.warn(f"{path.name}: the session is read without the pictures of {images}: not all of {names[0]}"
                  f"{f' to {names[-1]}' if len(names) > 1 else ''} are in {' or '.join(map(str, looked))}; fetch them "
                  "with workbench/scripts/allensdk_fetch.py, or name their folder as `templates`", stacklevel=3)
    return None


def folders(path: Path) -> list[Path]:
    """The template folders that are near the session file: beside it, or beside one of the two folders above it."""
    names = sorted({file.split("/")[0] for file, _ in TEMPLATES.values()})
    return [place / name for place in _near(path) for name in names if (place / name).is_dir()]


def _near(path: Path) -> list[Path]:
    return list(path.parents[:3])


def load_images(files: list[Path], n: int) -> np.ndarray:
    """The pictures [at least n, height, width] uint8: one TIFF each, or the .h5 of a movie.

    The movies' files are numpy arrays under a name that says HDF5 (allensdk reads them with numpy too).
    """
    if files[0].suffix == ".tiff":
        pictures = [_tiff(file) for file in files]
        odd = next((i for i, p in enumerate(pictures) if p.shape != pictures[0].shape), None)
        if odd is not None:
            raise BadRecording(f"{files[odd]} is {pictures[odd].shape} pixels and {files[0].name} "
                               f"{pictures[0].shape}; fetch the templates again")
        pictures = np.stack(pictures)
    else:
        try:
            pictures = np.load(existing(files[0]), allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise BadRecording(f"{files[0]} is not the numpy array that the movie's template is ({error}); fetch it "
                               "again") from None
    if pictures.dtype != np.uint8 or pictures.ndim not in (3, 4) or len(pictures) < n:
        raise BadRecording(f"{files[0]}: the pictures are {pictures.dtype} {pictures.shape}, and the session shows {n} "
                           "of uint8; fetch the templates again")
    return pictures


def _tiff(file: Path) -> np.ndarray:
    try:
        with Image.open(existing(file)) as picture:
            return np.asarray(picture)
    except (OSError, SyntaxError) as error:
        raise BadRecording(f"{file} cannot be read as a picture ({error}); fetch it again") from None
