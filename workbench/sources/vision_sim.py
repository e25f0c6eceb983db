"""Simulated visual recordings: V1-, V4- and IT-like units that answer drawn pictures, and the truth about every unit.

Nothing here was recorded: every session says `simulated`. Pictures are shown one after the other to animals that run
now and then.

    drawn pictures → features → mean answer of every unit to every picture [N, pictures]
    × time course (latency, transient, sustained) × running × trial-to-trial gain → rates [N, T] → refractory spikes

    V1   Gabor filters on local patches, simple, complex or colour-opponent (Hubel & Wiesel; Adelson & Bergen 1985)
    V4   pairs of oriented energies side by side (curvature, Pasupathy & Connor 2001), hues, textures, pooled wider
    IT   a few preferred categories, a little colour, over much of the picture (Hung et al. 2005)

Latencies 30-80, 60-120 and 80-200 ms (Schmolesky et al. 1998; Bullier 2001). Running raises the gain, most in V1 (Niell
& Stryker 2010). Gains vary from trial to trial, together within a region and alone (Goris et al. 2014). That IT knows
categories and V1 places is built in: finding it checks an analysis and discovers nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd

from workbench.errors import BadRecording
from workbench.session import Series, Session
from workbench.sources import drawn
from workbench.sources.simulated import bits_told, refractory_spikes, shared_out, strengths, true_drives

STEP = 0.005                                                            # s, the grid of rates
SHOWN, PAUSE = 0.25, (0.2, 0.3)                                         # s, a picture; least and greatest time after it
REGIONS = ("V1", "V4", "IT")
DRIVES = ("picture", "running")
SHARE = {"V1": 0.4, "V4": 0.3, "IT": 0.3}                               # of the units
LATENCY = {"V1": (0.052, 0.012, 0.03, 0.08), "V4": (0.085, 0.015, 0.06, 0.12),
           "IT": (0.130, 0.028, 0.08, 0.20)}                            # s: mean, spread, least, greatest
RUN_GAIN = {"V1": 0.8, "V4": 0.4, "IT": 0.15}                           # how much more at full speed
USUAL_PACE = 0.28                                                       # of the run gain, the mean over a session
LAGS = np.arange(round((SHOWN + 0.25) / STEP) + 1)                      # steps after onset in which units answer
TOGETHER, ALONE = 0.2, 0.3                                              # spread of log gain over trials
CEILING = 120.0                                                         # spikes/s, no unit fires faster
LUMINANCE, RED_GREEN, BLUE_YELLOW = (0.3, 0.59, 0.11), (1.0, -1.0, 0.0), (-0.5, -0.5, 1.0)


def vision_sim(session: int = 0, *, subject: int = 0, pictures: int = 195, repeats: int = 5, units: int = 150,
               seed: int = 0, drives: Mapping[str, tuple[float, float]] | None = None) -> Session:
    """Session number `session` of simulated animal `subject`: `pictures` shown `repeats` times each in random order.

    All animals of a `seed` see the same pictures (`images` [pictures, 64, 64, 3], `stimuli.image`), 0.25 s each. A
    session has `units` of the subject's 4/3 as many, so that two sessions share about three quarters of theirs, by id.
    drives: region → how strongly (picture, running) drive its units (1: as strongly as pictures drive units of V1, V4
    and IT, and running those of V1; 0: not at all). The units are then split evenly over these regions, which are by
    turns V1-, V4- and IT-like in what they answer to and how soon; how much a unit fires does not depend on what drives
    it. The same arguments give the same session, to the last bit.

    Series running_speed (cm/s, 50 Hz). `truth` holds, in the order of the session's units: unit (number in the id),
    kind, latency (s, to half of the rise), baseline and peak (spikes/s), run_gain (gain at full speed, less 1), place
    [N, 2] (x, y from -1 to 1), orientation (radians), frequency (cycles a picture), tuning [N, pictures] (the answer
    as a share of peak); filters [V1 units, 64, 64, 3]; category_weights [IT units, categories] by category_names;
    shared_gain [presentations, regions]; and the pictures' category, color and kind as picture_*. With `drives`,
    baseline, peak and run_gain are what the drives made of them, filters and category_weights those of the V1-like and
    IT-like units (the latter left out where no region is IT-like), and truth also holds drive [regions, 2]: what
    picture and running (drive_modalities) tell of each region (drive_names), bits per spike; see
    `simulated.bits_told`. An answer's gain, which differs from trial to trial, counts as picture.

    Raises BadRecording for a negative number, fewer than 10 units, 13 pictures or 1 repeat, or drives that are not two
    numbers >= 0 for every region, or of more regions than units.
    """
    if min(session, subject) < 0 or units < 10 or pictures < len(drawn.CATEGORIES) or repeats < 1:
        raise BadRecording(f"a simulated visual session needs session and subject >= 0, units >= 10, pictures >= "
                           f"{len(drawn.CATEGORIES)} and repeats >= 1, not session {session}, subject {subject}, "
                           f"{units} units, {pictures} pictures and {repeats} repeats")
    images, shown = drawn.pictures(pictures, seed), drawn.descriptions(pictures, seed)
    strength = None if drives is None else strengths(drives, DRIVES, units)
    regions = list(REGIONS if drives is None else drives)
    cells = _animal(seed, subject, session, _sizes(units) if drives is None else shared_out(units, len(regions)),
                    images, shown)
    rng = np.random.default_rng([seed, 22, subject, session])
    stimuli = _presentations(rng, shown, repeats)
    steps = round((stimuli["stop"].iloc[-1] + 1.0) / STEP)
    speed = _running(rng, steps)
    together = rng.lognormal(0, TOGETHER, (len(stimuli), len(regions)))
    if drives is not None:
        cells |= _driven(cells, strength[cells["region"]])
    spikes, rows, told, total = _spikes(rng, cells, stimuli, speed, together, tell=drives is not None)
    table = pd.DataFrame({"id": [f"s{subject}u{n:04d}" for n in cells["unit"]],
                          "region": np.array(regions)[cells["region"]],
                          "firing_rate": np.bincount(rows, minlength=units) / (steps * STEP)})
    names = ("unit", "kind", "latency", "baseline", "peak", "run_gain", "place", "orientation", "frequency", "tuning",
             "filters", "category_weights")
    truth = {name: cells[name] for name in names if name in cells} | {"category_names": np.array(drawn.CATEGORIES)}
    truth |= {f"picture_{name}": shown[name].to_numpy(str) for name in ("category", "color", "kind")}
    if drives is not None:
        truth |= true_drives(regions, DRIVES, cells["region"], told, total)
    every = round(0.02 / STEP)
    return Session(
        id=f"vision-sim-{seed}-{subject}-{session}", spike_times=spikes, spike_units=rows, units=table, stimuli=stimuli,
        intervals=np.array([[0.0, steps * STEP]]), load_images=partial(drawn.pictures, pictures, seed), simulated=True,
        series={"running_speed": Series(np.arange(0, steps, every) * STEP, speed[::every, None], "cm/s", ("speed",))},
        truth=truth | {"shared_gain": together}, dataset="vision-sim", subject=f"simulated-{seed}-{subject}",
        species="simulated", task="passive viewing", license="CC0-1.0",
        description=f"simulated V1, V4 and IT answering drawn pictures, session {session} of animal {subject}")


def _sizes(units: int) -> np.ndarray:
    """How many of `units` are in V1, V4 and IT [3]."""
    others = [max(round(SHARE[region] * units), 1) for region in REGIONS[1:]]
    return np.array([units - sum(others), *others])


def _animal(seed: int, subject: int, session: int, sizes: np.ndarray, images: np.ndarray,
            shown: pd.DataFrame) -> dict[str, np.ndarray]:
    """Parameters [N] and tuning [N, pictures] of the units that `session` found, sorted by region; `sizes` of them.

    Regions are by turns V1-, V4- and IT-like.
    """
    parts, first = [], 0
    for k, size in enumerate(sizes):
        n = size + -(-size // 3)
        rng = np.random.default_rng([seed, 21, subject, k])
        like = k % len(REGIONS)
        all_of_it = _born(rng, n, REGIONS[like]) | (_v1, _v4, _it)[like](rng, n, images, shown)
        found = np.sort(np.random.default_rng([seed, 23, subject, session, k]).permutation(n)[:size])
        part = {name: values[found] for name, values in all_of_it.items()}
        parts.append(part | {"unit": first + found, "region": np.full(size, k)})
        first += n
    blank = {"orientation": np.nan, "frequency": np.nan}
    cells = {name: np.concatenate([part.get(name, np.full(len(part["unit"]), blank.get(name))) for part in parts])
             for name in ("unit", "region", "kind", "latency", "baseline", "peak", "run_gain", "place", "orientation",
                          "frequency", "tuning")}
    for name in ("filters", "category_weights"):
        if having := [part[name] for part in parts if name in part]:
            cells[name] = np.concatenate(having)
    return cells


def _driven(cells: dict[str, np.ndarray], strength: np.ndarray) -> dict[str, np.ndarray]:
    """Baseline, peak and run gain [N] under the `strength` [N, 2] of picture and running.

    Each unit is scaled as a whole, so that in a usual session it fires, whatever its strengths, as much as it would at
    rest under pictures of strength 1.
    """
    picture, running = strength.T
    answer = STEP / (SHOWN + np.mean(PAUSE)) * _course(cells["latency"], (LAGS + 0.5) * STEP).sum(axis=1)
    answer *= cells["peak"] * cells["tuning"].mean(axis=1)              # spikes/s, the mean over a session
    own = np.array([RUN_GAIN[REGIONS[k % len(REGIONS)]] for k in cells["region"]])
    run_gain = running * cells["run_gain"] * RUN_GAIN["V1"] / own
    scale = (cells["baseline"] + answer) / (cells["baseline"] + picture * answer) / (1 + run_gain * USUAL_PACE)
    return {"baseline": scale * cells["baseline"], "peak": scale * picture * cells["peak"], "run_gain": run_gain}


def _born(rng: np.random.Generator, n: int, region: str) -> dict[str, np.ndarray]:
    """What units of all regions have."""
    mean, spread, least, most = LATENCY[region]
    return {"latency": rng.normal(mean, spread, n).clip(least, most),
            "baseline": rng.lognormal(np.log(2.5), 0.8, n).clip(0.1, 20),
            "peak": rng.lognormal(np.log(30), 0.5, n).clip(5, 80),
            "run_gain": RUN_GAIN[region] * rng.lognormal(0, 0.3, n)}


def _v1(rng, n: int, images: np.ndarray, shown: pd.DataFrame) -> dict[str, np.ndarray]:
    """Gabor filters: half are complex (energy of two phases), the others keep the sign, a third of them of colour."""
    kind = rng.choice(["complex", "simple", "opponent"], n, p=[0.5, 0.33, 0.17])
    place, turn = rng.uniform(-0.6, 0.6, (n, 2)), rng.uniform(0, np.pi, n)
    frequency = np.where(kind == "opponent", 1.5, np.exp(rng.uniform(np.log(4), np.log(12), n)))
    axis = np.where((kind == "opponent")[:, None], np.array([RED_GREEN, BLUE_YELLOW])[rng.integers(0, 2, n)], LUMINANCE)
    phase = rng.uniform(0, 2 * np.pi, n)
    answers, filters = np.empty((n, len(images))), np.empty((n, drawn.SIDE, drawn.SIDE, 3), np.float32)
    flat = images.reshape(len(images), -1) / 255.0
    for i in range(n):
        even, odd = (_gabor(place[i], turn[i], frequency[i], phase[i] + shift)[..., None] * axis[i]
                     for shift in (0, np.pi / 2))
        filters[i] = even
        answers[i] = flat @ even.ravel()
        answers[i] = np.hypot(answers[i], flat @ odd.ravel()) if kind[i] == "complex" else np.maximum(answers[i], 0)
    return {"kind": kind, "place": place, "orientation": turn, "frequency": frequency, "filters": filters,
            "tuning": _share_of_peak(answers)}


def _v4(rng, n: int, images: np.ndarray, shown: pd.DataFrame) -> dict[str, np.ndarray]:
    """Curvature: two oriented energies side by side, both needed. Colour: a hue. Texture: fine energy of any turn."""
    grey = images @ np.array(LUMINANCE) / 255.0
    turns = np.arange(6) * np.pi / 6
    energy = np.stack([_energy(grey, turn, frequency=6) for turn in turns])         # [6, pictures, 64, 64]
    fine = sum(_energy(grey, turn, frequency=12) for turn in turns[::2])
    rgb = images / 255.0
    kind = rng.choice(["curvature", "color", "texture"], n, p=[0.5, 0.3, 0.2])
    place, turn, first = rng.uniform(-0.5, 0.5, (n, 2)), np.full(n, np.nan), rng.integers(0, 6, n)
    bend, away, hue = rng.integers(1, 4, n), rng.uniform(0, 2 * np.pi, n), rng.uniform(0, 2 * np.pi, n)
    answers = np.empty((n, len(images)))
    for i in range(n):
        aside = 0.15 * np.array([np.cos(away[i]), np.sin(away[i])])
        if kind[i] == "curvature":
            turn[i] = turns[first[i]]
            one, other = (_pool(energy[which], place[i] + sign * aside, 0.22) for which, sign in
                          ((first[i], 1), ((first[i] + bend[i]) % 6, -1)))
            answers[i] = np.sqrt(one * other)
        elif kind[i] == "color":
            # Three cosines 120° apart: how far red, green and blue lie along the hue, white and grey giving nothing.
            weights = np.cos(hue[i] - np.array([0, 2, 4]) * np.pi / 3)
            answers[i] = _pool(np.maximum(rgb @ weights, 0), place[i], 0.3)
        else:
            answers[i] = _pool(fine, place[i], 0.35)
    return {"kind": kind, "place": place, "orientation": turn, "tuning": _share_of_peak(answers)}


def _it(rng, n: int, images: np.ndarray, shown: pd.DataFrame) -> dict[str, np.ndarray]:
    """A few categories, a little colour, almost anywhere; read from what the picture shows, not from its pixels."""
    kinds = list(dict.fromkeys(drawn.KINDS.values()))
    of_kind = np.array([kinds.index(kind) for kind in drawn.KINDS.values()])
    weights = rng.normal(size=(n, len(drawn.CATEGORIES))) + 0.7 * rng.normal(size=(n, len(kinds)))[:, of_kind]
    colors, place = 0.6 * rng.normal(size=(n, len(drawn.COLORS))), rng.uniform(-0.4, 0.4, (n, 2))
    category = shown["category"].map(list(drawn.CATEGORIES).index).to_numpy()
    color = shown["color"].map(list(drawn.COLORS).index).to_numpy()
    far = ((shown[["x", "y"]].to_numpy() - place[:, None]) ** 2).sum(2)             # [N, pictures]
    drive = (weights[:, category] + colors[:, color]) * np.exp(-far / (2 * 0.8 ** 2))
    return {"kind": np.full(n, "category"), "place": place, "category_weights": weights,
            "tuning": _share_of_peak(np.maximum(drive, 0))}


def _share_of_peak(answers: np.ndarray) -> np.ndarray:
    """Answers [N, pictures] ≥ 0 to 0 … 1, half of it at a level that a fifth of the pictures reach (Naka & Rushton)."""
    half = np.quantile(answers, 0.8, axis=1, keepdims=True) + 1e-3 * answers.max(axis=1, keepdims=True) + 1e-12
    return answers ** 2 / (answers ** 2 + half ** 2)


def _gabor(place, turn: float, frequency: float, phase: float) -> np.ndarray:
    """A patch of stripes [64, 64] of zero mean; `frequency` in cycles a picture, about one cycle wide."""
    x, y = drawn.X - place[0], drawn.Y - place[1]
    window = np.exp(-(x ** 2 + y ** 2) / (2 * (0.8 / frequency) ** 2))
    stripes = np.cos(np.pi * frequency * (x * np.cos(turn) + y * np.sin(turn)) + phase)
    # Opponent blobs are a patch without stripes: the mean of colour is what they see.
    return window * np.cos(phase) if frequency < 2 else window * (stripes - (window * stripes).sum() / window.sum())


def _energy(grey: np.ndarray, turn: float, frequency: float) -> np.ndarray:
    """Oriented energy [pictures, 64, 64] at every place, by the Fourier transform; the border wraps around."""
    spectrum = np.fft.rfft2(grey)
    waves = [np.fft.rfft2(np.fft.ifftshift(_gabor((0, 0), turn, frequency, phase))) for phase in (0, np.pi / 2)]
    return np.hypot(*(np.fft.irfft2(spectrum * wave, grey.shape[1:]) for wave in waves))


def _pool(features: np.ndarray, place: np.ndarray, width: float) -> np.ndarray:
    """Mean of features [pictures, 64, 64] around a place, one number a picture."""
    window = np.exp(-((drawn.X - place[0]) ** 2 + (drawn.Y - place[1]) ** 2) / (2 * width ** 2))
    return features.reshape(len(features), -1) @ (window / window.sum()).ravel()


def _presentations(rng, shown: pd.DataFrame, repeats: int) -> pd.DataFrame:
    """Every picture once before any is repeated: start, stop, image, repeat, and what the picture shows."""
    image = np.concatenate([rng.permutation(len(shown)) for _ in range(repeats)])
    lasts = SHOWN + rng.uniform(*PAUSE, len(image))
    start = (1.0 + np.concatenate([[0], np.cumsum(lasts)[:-1]])) / STEP
    start = np.round(start) * STEP
    return pd.DataFrame({"start": start, "stop": start + SHOWN, "image": image,
                         "repeat": np.repeat(np.arange(repeats), len(shown)),
                         **{name: shown[name].to_numpy()[image] for name in ("category", "color", "kind")}})


def _running(rng, steps: int) -> np.ndarray:
    """Speed [T] in cm/s: bouts of some seconds, rest between them."""
    knots = np.arange(0, steps + round(4 / STEP), round(2 / STEP))
    walk = np.zeros(len(knots))
    for i, push in enumerate(rng.normal(0, 1, len(knots))):
        walk[i] = 0.8 * walk[i - 1] + 0.6 * push if i else push         # unit variance, 9 s
    return (18 * (np.interp(np.arange(steps), knots, walk) - 0.1)).clip(0, 45)


def _pace(speed: np.ndarray) -> np.ndarray:
    """How much of their run gain units have at a speed [T] in cm/s: 0 at rest, half of it at 5 cm/s."""
    return speed / (speed + 5)


def _course(latency: np.ndarray, lags: np.ndarray) -> np.ndarray:
    """How far a unit answers at `lags` after onset [N, L]: half of the rise at its latency, a transient, a plateau."""
    since = lags - latency[:, None]
    rise, fall = (since / 0.02 + 0.5).clip(0, 1), ((since - SHOWN) / 0.05).clip(0, 1)
    return rise * (1 - fall) * (0.45 + 0.55 * np.exp(-(since - 0.02).clip(0) / 0.05))


def _spikes(rng, cells, stimuli: pd.DataFrame, speed: np.ndarray, together: np.ndarray, tell: bool):
    """Spike times [S], sorted, and their rows [S]; with `tell` also what picture and running tell of each unit [N, 2],
    and the sum of its rates [N]. One region at a time, for memory.
    """
    onset, image = np.round(stimuli["start"].to_numpy() / STEP).astype(int), stimuli["image"].to_numpy()
    times, rows, told, total = [], [], np.zeros((len(cells["unit"]), 2)), np.zeros(len(cells["unit"]))
    for k in range(together.shape[1]):
        which = np.flatnonzero(cells["region"] == k)
        alone = rng.lognormal(0, ALONE, (len(which), len(image)))
        answer = cells["peak"][which, None] * cells["tuning"][which][:, image] * together[:, k] * alone
        course = _course(cells["latency"][which], (LAGS + 0.5) * STEP)
        rates = np.repeat(cells["baseline"][which, None], len(speed), axis=1)
        for lag in LAGS:                                                # onsets differ, so no cell is added to twice
            rates[:, onset + lag] += answer * course[:, lag:lag + 1]
        push = 1 + cells["run_gain"][which, None] * _pace(speed)
        without = [cells["baseline"][which, None] * push, rates.copy()] if tell else []
        rates *= push
        rates = np.minimum(rates, CEILING)
        for column, other in enumerate(without):
            told[which, column] = bits_told(rates, np.minimum(other, CEILING))
        total[which] = rates.sum(axis=1)
        found, unit = refractory_spikes(rng, rates.astype(np.float32), STEP)
        times.append(found)
        rows.append(which[unit])
    order = np.argsort(np.concatenate(times), kind="stable")
    return np.concatenate(times)[order], np.concatenate(rows)[order].astype(np.int32), told, total
