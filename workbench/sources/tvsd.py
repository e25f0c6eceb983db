"""TVSD, the THINGS ventral stream spiking dataset: multi-unit activity (MUA), which is an envelope and not spikes.

Papale, Wang, Self, Roelfsema, Neuron 113 (2025), doi 10.1016/j.neuron.2024.12.003; data doi 10.12751/g-node.hc7zlv, CC
BY 4.0. The pictures are THINGS' and not in it. Facts of the layout: the data's README and its script norm_MUA.m.

    THINGS_normMUA.mat     one number a channel and presentation, as released
    THINGS_MUA_trials.mat  300 ms around every onset; with _logs/1024chns_mapping_20220105.mat, the channel map
    _logs/things_imgs.mat  which picture is which; both want it
        → series `mua` [T, 1024], a column a unit (a channel, in physical order) · stimuli with `split` and `image`

Two macaques, F and N, with 16 arrays of 64 channels each. The files have no clock: presentations are laid 0.4 s apart
in the order of their rows, so that times within a presentation are true and times between presentations are not.

The released normalisation takes the mean and sd of each channel and day from that day's *test* presentations, which
leaks the test set and cannot be undone in normMUA. Trials are normalised here by training presentations alone. The
column `reliability` of the unit table is measured on the test's repeats: channels chosen by it are chosen by the test.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from scipy.io import loadmat

from workbench.errors import BadRecording
from workbench.files import existing
from workbench.session import Series, Session

CHANNELS, ARRAY = 1024, 64
AREAS = {"N": {"V1": 512, "V4": 256, "IT": 256}, "F": {"V1": 512, "IT": 320, "V4": 192}}    # in physical order
WINDOWS = {"V1": (25, 125), "V4": (50, 150), "IT": (75, 175)}           # ms after onset, those of normMUA
EVERY, SHOWN = 0.4, 0.2                                                 # s, from onset to onset and on the screen
IMAGES, MAP = "_logs/things_imgs.mat", "_logs/1024chns_mapping_20220105.mat"
BLOCK = 64                                                              # presentations read at once, 160 MB


def read(path: str | Path, *, id: str | None = None, monkey: str | None = None, bin_size: float | None = 0.02,
         normalise: str | None = None, events: float | None = None) -> Session:
    """The session of one monkey, from THINGS_normMUA.mat or THINGS_MUA_trials.mat, with `_logs` beside the file.

    monkey: F or N (None: as a folder of the path says, monkeyF or monkeyN).
    bin_size: seconds of a sample of the trials; None: one a presentation, the mean over 100 ms that suit its area.
    normalise: trials: "train" (default; z-scores by the training presentations of the same day) or "none"; normMUA is
        always "released".
    events: of trials: one event for each time the MUA rises above so many sd, at 1 ms. They are no spikes: the id ends
        in -pseudo-events, the description gives the rule, and the unit table has the column `derived_events`.

    `stimuli.image` counts the pictures of things_imgs.mat from 0, first those of training, then those of the test.
    Raises BadRecording for another layout, a channel map that is not its own inverse, or a day without training.
    """
    path = existing(path).absolute()
    monkey = monkey or next((m[1] for part in path.parts[::-1] if (m := re.search(r"monkey[ _]?([FN])$", part))), None)
    if monkey not in AREAS:
        raise BadRecording(f"{path}: whose is it? keep it in a folder monkeyF or monkeyN, or give monkey='F' or 'N', "
                           f"not {monkey!r}, since the areas of channels differ")
    if not h5py.is_hdf5(path):
        raise BadRecording(f"{path} is not a MATLAB 7.3 file, as all of TVSD's recordings are; download it again")
    images = _images(_beside(path, IMAGES))
    with _opened(path) as file:
        released = "train_MUA" in file
        if not released and "ALLMUA" not in file:
            raise BadRecording(f"{path} is neither THINGS_normMUA.mat (train_MUA) nor THINGS_MUA_trials.mat (ALLMUA); "
                               f"it has {', '.join(file) or 'nothing'}")
        kind = normalise or ("released" if released else "train")
        if kind not in (("released",) if released else ("train", "none")):
            raise BadRecording(f"{path}: normalise={kind!r} cannot be had from it; " + (
                "normMUA is released as normalised by test presentations: read THINGS_MUA_trials.mat instead"
                if released else "'train' and 'none' can"))
        if released and events is not None:
            raise BadRecording(f"{path}: there are no events in one number a presentation; read THINGS_MUA_trials.mat")
        parts = (_released(file, path, images) if released else
                 _trials(file, path, images, _areas(monkey), bin_size, kind == "train", events))
    times, values, stimuli, intervals, spikes, metrics = parts
    ids = [f"{monkey}{channel:04d}" for channel in range(CHANNELS)]
    units = pd.DataFrame({"id": ids, "region": _areas(monkey), "array": np.arange(CHANNELS) // ARRAY + 1, **metrics})
    name = f"monkey{monkey}-{'norm' if released else 'trials'}"
    text = ("Multi-unit activity, not spikes. Presentations are laid 0.4 s apart in the order of the file, which has "
            f"no clock. Normalised: {kind}.")
    if released:
        warnings.warn(f"{path}: normMUA was normalised by the mean and sd of test presentations, which leaks the test "
                      "set; for a clean evaluation read THINGS_MUA_trials.mat, or state it", stacklevel=2)
        text += " The released normalisation uses test presentations."
    if events is not None:
        units["derived_events"] = True
        name += "-pseudo-events"
        text += f" The events are no spikes: one each time the MUA rises above {events:g} sd of training presentations."
    return Session(id=id or name, subject=monkey, description=text, units=units, stimuli=stimuli, intervals=intervals,
                   spike_times=spikes[0], spike_units=spikes[1],
                   series={"mua": Series(times, values, f"MUA ({kind})", tuple(ids))},
                   species="Macaca mulatta", dataset="tvsd", resolution=0.001 if events is not None else 0.0)


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        raise BadRecording(f"{path} is damaged or only a part of the file ({error}); download it again") from None


def beside(path: Path) -> list[Path]:
    """The companions that are read with the file: when one of them changes, a converted copy is made anew."""
    return [file for name in (IMAGES, MAP) if (file := path.parent / name).is_file()]


def _beside(path: Path, name: str) -> Path:
    found = path.parent / name
    if not found.is_file():
        raise BadRecording(f"{path}: its companion {found} is missing; download monkey*/{name} into the same folder")
    return found


def _areas(monkey: str) -> np.ndarray:
    return np.repeat(np.array([*AREAS[monkey]], object), list(AREAS[monkey].values()))


def _get(file: h5py.File, path: Path, name: str, shape: tuple[int | None, ...]) -> h5py.Dataset:
    """The array, of that shape as h5py sees it: MATLAB's axes in reverse. None: any length."""
    found = file.get(name)
    if not isinstance(found, h5py.Dataset) or len(found.shape) != len(shape) or any(
            want not in (None, has) for want, has in zip(shape, found.shape, strict=True)):
        size = " × ".join("any" if want is None else str(want) for want in shape[::-1])
        has = "is not there" if not isinstance(found, h5py.Dataset) else "is " + " × ".join(map(str, found.shape[::-1]))
        raise BadRecording(f"{path}: {name} must be {size} in MATLAB's order and {has}; use the file as released")
    return found


def _images(path: Path) -> list[pd.DataFrame]:
    """The pictures of training and of the test: class and path (with /), read from UTF-16 text."""
    def text(file: h5py.File, refs: h5py.Dataset) -> list[str]:
        return [file[ref][:].astype("<u2").tobytes().decode("utf-16-le") for ref in refs[:].ravel()]
    try:
        with h5py.File(path, "r") as file:
            return [pd.DataFrame({"image_class": text(file, file[part]["class"]),
                                  "image_path": [p.replace("\\", "/") for p in text(file, file[part]["things_path"])]})
                    for part in ("train_imgs", "test_imgs")]
    except (OSError, KeyError, ValueError, AttributeError, UnicodeDecodeError) as error:
        raise BadRecording(f"{path} does not list pictures as TVSD's things_imgs.mat does ({error}); download it "
                           "again") from None


def channel_map(path: Path) -> np.ndarray:
    """Which recording channel is each physical channel [1024], from 0; BadRecording unless it is its own inverse.

    The released script uses the map both to label recording channels and to reorder them, which is right only for
    such a map; with any other, the areas of TVSD's table would be those of other channels.
    """
    try:
        order = np.asarray(loadmat(path)["mapping"]).ravel().astype(np.int64) - 1
    except Exception as error:
        raise BadRecording(f"{path} is no channel map ({(str(error) or type(error).__name__).splitlines()[0]}); "
                           "download it again") from None
    if not np.array_equal(np.sort(order), np.arange(CHANNELS)):
        raise BadRecording(f"{path}: `mapping` is no order of channels 1 to {CHANNELS}; download it again")
    wrong = np.flatnonzero(order[order] != np.arange(CHANNELS))
    if len(wrong):
        raise BadRecording(f"{path}: the channel map is not its own inverse ({len(wrong)} channels, the first "
                           f"{wrong[0] + 1}), so it cannot be told which channels its areas are; ask the authors")
    return order


def _stimuli(images: list[pd.DataFrame], train: np.ndarray, test: np.ndarray, onset: np.ndarray,
             path: Path, **columns) -> pd.DataFrame:
    """One row a presentation; `train` and `test` [P] count pictures from 1, 0 says that it is of the other kind."""
    n = len(images[0])
    for name, rows, listed in (("training", train, images[0]), ("test", test, images[1])):
        if rows.max(initial=0) > len(listed):
            raise BadRecording(f"{path}: {name} picture {rows.max()} is shown, but things_imgs.mat lists "
                               f"{len(listed)}; take both files from the same release")
    if ((train > 0) & (test > 0)).any():
        raise BadRecording(f"{path}: presentation {np.flatnonzero((train > 0) & (test > 0))[0] + 1} is of training and "
                           "of the test at once, so the columns of ALLMAT are not those expected")
    image = np.where(train > 0, train - 1, np.where(test > 0, n + test - 1, -1))
    split = np.where(train > 0, "train", np.where(test > 0, "test", "none"))
    listed = pd.concat(images, ignore_index=True).reindex(image).fillna("").reset_index(drop=True)
    return pd.DataFrame({"start": onset, "stop": onset + SHOWN, "image": image, "split": split, **columns,
                         **{name: listed[name] for name in listed}})


def _released(file: h5py.File, path: Path, images: list[pd.DataFrame]) -> tuple:
    n, m = map(len, images)
    repeats = _get(file, path, "test_MUA_reps", (None, m, CHANNELS))[:]
    values = np.concatenate([_get(file, path, "train_MUA", (n, CHANNELS))[:], *repeats]).astype(np.float32)
    onset = np.arange(len(values)) * EVERY
    again = np.arange(len(repeats) * m)
    zeros = np.zeros(n, np.int64)
    stimuli = _stimuli(images, np.r_[np.arange(n) + 1, 0 * again], np.r_[zeros, again % m + 1], onset, path,
                       rep=np.r_[zeros + 1, again // m + 1])
    called = {"reliability": "reliab", "snr": "SNR"}
    metrics = {name: _mean(file, path, theirs) for name, theirs in called.items() if theirs in file}
    return (onset + SHOWN / 2, values, stimuli, np.stack([onset, onset + SHOWN], 1),
            (np.empty(0), np.empty(0, np.int32)), metrics)


def _mean(file: h5py.File, path: Path, name: str) -> np.ndarray:
    """The mean over pairs of repeats, or days, of a quality metric [1024]."""
    n, total, _ = _sums(_get(file, path, name, (None, CHANNELS))[:][None])
    return total / np.where(n > 0, n, np.nan)


def _trials(file: h5py.File, path: Path, images: list[pd.DataFrame], areas: np.ndarray, bin_size: float | None,
            normalise: bool, events: float | None) -> tuple:
    about = _get(file, path, "ALLMAT", (None, None))[:].astype(np.int64)
    if len(about) not in (6, 7) or not about.size:
        raise BadRecording(f"{path}: ALLMAT must have 6 or 7 columns and has {len(about)}, with {about.shape[1]} "
                           "presentations; use the file as released")
    clock = file["tb"][:].ravel().astype(np.float64) if "tb" in file else np.arange(-100.0, 200.0)   # ms
    mua = _get(file, path, "ALLMUA", (len(clock), about.shape[1], CHANNELS))
    order = channel_map(_beside(path, MAP))
    step = float(clock[1] - clock[0])
    start = np.arange(about.shape[1]) * EVERY
    onset = start - clock[0] / 1000
    day = about[-1]
    extra = {"correct": about[5]} if len(about) == 7 else {}
    stimuli = _stimuli(images, about[1], about[2], onset, path, rep=about[3], day=day, trial=about[0], **extra)

    days, which = np.unique(day, return_inverse=True)
    train = about[1] > 0
    if normalise or events is not None:
        bare = [int(d) for i, d in enumerate(days) if (train & (which == i)).sum() < 2]
        if bare:
            raise BadRecording(f"{path}: day {bare[0]} has fewer than two training presentations, so nothing but the "
                               "test could normalise it; read it with normalise='none' and without events")
    values, centres = None, None
    of_values, of_samples = (np.zeros((3, len(days), CHANNELS)) for _ in range(2))
    for rows, block in _blocks(mua, order):
        small, centres = _reduced(block, clock, step, areas, bin_size, path)
        if values is None:
            values = np.empty((mua.shape[1], *small.shape[1:]), np.float32)
        values[rows] = small
        for i in np.unique(which[rows][train[rows]]):
            known = (which[rows] == i) & train[rows]
            of_values[:, i] += _sums(small[known])
            if events is not None:
                of_samples[:, i] += _sums(block[:, known])
    if normalise:
        mean, sd = (m.astype(np.float32) for m in _mean_and_sd(of_values))
        for row, i in enumerate(which):                                 # in place: the values are 1.6 GB
            values[row] = (values[row] - mean[i]) / sd[i]
    spikes = np.empty(0), np.empty(0, np.int32)
    if events is not None:
        mean, sd = _mean_and_sd(of_samples)
        spikes = _events(mua, order, (mean + events * sd)[which], onset, clock)
    times = (onset[:, None] + centres / 1000).ravel()
    intervals = np.stack([start, start + len(clock) * step / 1000], 1)
    return times, values.reshape(-1, CHANNELS), stimuli, intervals, spikes, {}


def _blocks(mua: h5py.Dataset, order: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """The presentations in pieces: rows, and MUA [samples, rows, 1024] in physical order."""
    for first in range(0, mua.shape[1], BLOCK):
        rows = slice(first, min(first + BLOCK, mua.shape[1]))
        yield rows, mua[:, rows].astype(np.float32)[..., order]


def _reduced(block: np.ndarray, clock: np.ndarray, step: float, areas: np.ndarray, bin_size: float | None,
             path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Means over bins [rows, bins, 1024] and the bins' centres in ms, or over the window of each area, bins = 1."""
    if bin_size is None:
        means = np.empty((block.shape[1], 1, CHANNELS), np.float32)
        for area, (first, last) in WINDOWS.items():
            means[:, 0, areas == area] = block[(clock >= first) & (clock < last)][..., areas == area].mean(0)
        return means, np.array([1000 * SHOWN / 2])
    samples = round(bin_size * 1000 / step)
    if samples < 1 or abs(samples * step - bin_size * 1000) > 1e-6 or len(clock) % samples:
        raise BadRecording(f"{path}: bins of {bin_size:g} s do not divide the {len(clock) * step:g} ms of a "
                           "presentation; give 0.001, 0.01, 0.02 or another divisor")
    means = block.reshape(-1, samples, *block.shape[1:]).mean(1)
    return means.transpose(1, 0, 2), clock[::samples] + samples * step / 2


def _sums(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many values [a, b, 1024] of each channel are finite, their sum and the sum of their squares."""
    known = np.isfinite(values)
    values = np.where(known, values, 0).astype(np.float64)
    return known.sum((0, 1)), values.sum((0, 1)), (values ** 2).sum((0, 1))


def _mean_and_sd(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each day and channel, from `_sums`. A channel that never changes, to rounding, has an sd of 1: not divided."""
    n, total, squares = np.maximum(sums[0], 1), sums[1], sums[2]
    mean = total / n
    variance = squares / n - mean ** 2
    return mean, np.where(variance > 1e-12 * squares / n, np.sqrt(np.maximum(variance, 0)), 1.0)


def _events(mua: h5py.Dataset, order: np.ndarray, threshold: np.ndarray, onset: np.ndarray,
            clock: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Upward crossings of `threshold` [presentations, 1024]: times and channels, sorted. Two are 2 ms apart or more."""
    times, channels = [], []
    for rows, block in _blocks(mua, order):
        above = block >= threshold[rows]
        row, sample, channel = np.nonzero((above[1:] & ~above[:-1]).transpose(1, 0, 2))
        times.append(onset[rows][row] + clock[sample + 1] / 1000)
        channels.append(channel.astype(np.int32))
    return np.concatenate(times), np.concatenate(channels)
