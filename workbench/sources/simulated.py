"""A simulated reaching recording: one animal, several sessions, and the truth about every unit.

Nothing here was recorded: every session says `simulated`. The arm reaches for random targets with minimum-jerk
submovements (Flash & Hogan 1985); units are tuned to its direction and speed (Georgopoulos 1982, Moran & Schwartz
1999), M1 a little ahead of the movement, PMd further ahead and also during the plan; all share slow common inputs.

    seed → animal: who is recorded in which session, every unit's tuning and how it drifts
    session → targets → hand and plan [T, 2] at 100 Hz → firing rates [N, T] → spikes with a refractory period

    reach_sim    the recording to teach and test with
    many_spikes  untuned spikes in any number, for drawing and timing
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from workbench.errors import BadRecording
from workbench.session import Series, Session

STEP = 0.01                                     # s, the grid of movement and rates
TRUTH_BIN = 0.05                                # s, the grid of the rates that are kept as truth
DEAD, RECOVERED = 0.002, 0.008                  # s, no spike before the first; as before from the second on
LOST = (DEAD + RECOVERED) / 2                   # s, mean time a spike takes away from the next
REACH, WORKSPACE = 8.0, 10.0                    # cm, a usual distance to a target; half the side of the target square
SPEED = 20.0                                    # cm/s, the unit in which tuning to velocity is written
CEILING = 120.0                                 # spikes/s, where rates saturate
REGIONS = ("M1", "PMd")
DRIVES = ("movement", "plan")


def reach_sim(session: int = 0, *, seconds: float = 600.0, units: int = 90, seed: int = 0,
              delay: tuple[float, float] = (0.15, 0.6), reaction: float = 0.26, hold: tuple[float, float] = (0.1, 0.35),
              drives: Mapping[str, tuple[float, float]] | None = None) -> Session:
    """Session number `session` of the simulated animal `seed`, on `units` units for `seconds`.

    delay: least and greatest time from target to go cue, s. reaction: median time from go cue to movement, s.
    hold: least and greatest time on the target, s. drives: region → how strongly (movement, plan) drive its units (1:
    as strongly as they drive M1 and PMd units on average; 0: not at all); the units are then split evenly over these
    regions, which differ in nothing else. The same arguments give the same session, to the last bit.

    Series hand_pos (cm) and hand_vel (cm/s), 100 Hz. A trial's reach_x and reach_y are target less hand, in 8 cm; with
    target_on_time and move_onset_time they say all of the plan. 50 to 80 % of the units are those of the session
    before, under the same id, with slightly drifted tuning. `truth` holds, in the order of the full session's units:
    unit (number in the id), kept (was in the session before), preferred_direction (rad, of velocity), plan_direction
    (rad), gain and speed_gain (log rate per 20 cm/s), plan_gain, lag (s that the unit leads the hand), mean_rate
    (spikes/s), rates [N, T] at rate_times (50 ms bins); and latents [T, 8] at latent_times, named by latent_names.
    With `drives` the gains are what the drives made of them, and truth also holds drive [regions, 2]: what movement and
    plan (drive_modalities) tell of each region (drive_names), bits per spike; see `bits_told`.

    Raises BadRecording for a negative session, fewer than 2 units, less than 5 seconds, or drives that are not two
    numbers >= 0 for every region, or of more regions than units.
    """
    if session < 0 or units < 2 or seconds < 5:
        raise BadRecording(f"a simulated reaching session needs session >= 0, units >= 2 and seconds >= 5, not session "
                           f"{session}, {units} units and {seconds} seconds")
    strength = None if drives is None else strengths(drives, DRIVES, units)
    cells, kept = _animal(seed, session, units, 0 if drives is None else len(strength))
    if drives is not None:
        movement, planning = strength[cells["region"]].T
        cells |= {"gain": cells["gain"] * movement, "speed_gain": cells["speed_gain"] * movement,
                  "plan_gain": cells["plan_gain"] * planning}
    rng = np.random.default_rng([seed, 2, session])
    steps = round(seconds / STEP)
    times = np.arange(steps) * STEP
    intended, sway, plan, trials = _reaches(rng, steps, delay, reaction, hold)
    position = np.cumsum(intended, axis=0) * STEP + sway
    common = np.stack([_wander(rng, steps, tau) for tau in (0.15, 0.4, 1.5, 30.0)], axis=1)
    rates, told = _rates(rng, cells, intended / SPEED, plan, common, tell=drives is not None)
    spikes, rows = refractory_spikes(rng, rates, STEP)
    per_bin = round(TRUTH_BIN / STEP)
    bins = steps // per_bin
    table = pd.DataFrame({"id": [f"u{n:04d}" for n in cells["unit"]],
                          "region": np.array(list(drives or REGIONS))[cells["region"]], "depth": cells["depth"],
                          "firing_rate": np.bincount(rows, minlength=units) / (steps * STEP)})
    truth = {name: cells[name] for name in ("unit", "preferred_direction", "plan_direction", "gain", "speed_gain",
                                            "plan_gain", "lag")}
    truth |= {"kept": kept, "mean_rate": rates.mean(axis=1, dtype=float),
              "rate_times": (np.arange(bins) + 0.5) * TRUTH_BIN,
              "rates": rates[:, :bins * per_bin].reshape(units, bins, per_bin).mean(axis=2),
              "latent_times": times, "latents": np.hstack([intended, plan, common]).astype(np.float32),
              "latent_names": np.array(["intended_vx", "intended_vy", "plan_x", "plan_y", "common_0", "common_1",
                                        "common_2", "common_3"])}
    if drives is not None:
        truth |= true_drives(drives, DRIVES, cells["region"], told, rates.sum(axis=1, dtype=float))
    return Session(
        id=f"reach-sim-{seed}-{session}", spike_times=spikes, spike_units=rows, units=table, trials=trials,
        intervals=np.array([[0.0, steps * STEP]]), truth=truth, simulated=True, dataset="reach-sim",
        series={"hand_pos": Series(times, position, "cm", ("x", "y")),
                "hand_vel": Series(times, np.gradient(position, STEP, axis=0), "cm/s", ("x", "y"))},
        subject=f"simulated-{seed}", species="simulated", task="random-target reaching", license="CC0-1.0",
        description=f"simulated random-target reaching, session {session} of simulated animal {seed}")


def many_spikes(spikes: int = 10_000_000, *, units: int = 500, seconds: float = 3600.0, seed: int = 0) -> Session:
    """About that many simulated spikes of untuned units with log-normal rates, in four regions, and nothing else."""
    rng = np.random.default_rng([seed, 3])
    share = np.sort(rng.lognormal(0.0, 1.0, units))[::-1]
    rates = np.minimum(share / share.sum() * spikes / seconds, CEILING / 1.5)
    waves = 1 + 0.5 * np.sin(2 * np.pi * (np.arange(0, seconds, 1.0) / 60 + rng.random((units, 1))))
    times, rows = refractory_spikes(rng, (rates[:, None] * waves).astype(np.float32), 1.0)
    order = rng.permutation(units).astype(np.int32)                     # neighbours in the table differ in rate
    table = pd.DataFrame({"id": [f"u{n:04d}" for n in range(units)], "region": np.repeat(
        ["V1", "LM", "CA1", "LGd"], -(-units // 4))[:units], "depth": np.linspace(0, 3840, units)})
    rows = order[rows]
    table["firing_rate"] = np.bincount(rows, minlength=units) / seconds
    return Session(id=f"many-spikes-{seed}", spike_times=times, spike_units=rows, units=table, simulated=True,
                   intervals=np.array([[0.0, seconds]]), dataset="many-spikes", species="simulated", license="CC0-1.0",
                   description=f"simulated: {len(times):,} spikes without a task, for drawing and timing")


def strengths(drives: Mapping[str, tuple[float, float]], modalities: tuple[str, str], units: int) -> np.ndarray:
    """The `drives` of a simulated population as an array [regions, 2].

    Raises BadRecording where there is no region, a region without two finite numbers >= 0, or more regions than units.
    """
    rows = list(drives.items()) if isinstance(drives, Mapping) else []
    try:
        strength = np.array([list(both) for _, both in rows], float)
    except (TypeError, ValueError):
        strength = np.empty(0)
    if (strength.shape != (len(rows), 2) or not 1 <= len(rows) <= units or not np.isfinite(strength).all()
            or strength.min() < 0 or not all(isinstance(name, str) for name, _ in rows)):
        raise BadRecording(f"drives names 1 to {units} regions (there are {units} units) and gives each two numbers "
                           f">= 0, {' and '.join(modalities)}, as in {{'A': (1, 0), 'B': (0.5, 1)}}; not {drives!r}")
    return strength


def shared_out(units: int, regions: int) -> np.ndarray:
    """How many of `units` each of the regions has, as evenly as can be [regions]; the first ones have one more."""
    return units // regions + (np.arange(regions) < units % regions)


def bits_told(rates: np.ndarray, without: np.ndarray) -> np.ndarray:
    """What is lost when `rates` [..., T] are taken for `without` [..., T], brought to the same mean; bits × steps.

    The difference of the expected Poisson log-likelihoods, Σ λ log2(λ/λ') - (λ - λ')/ln 2; the last term sums to zero,
    as the means are the same. Divided by Σ λ it is in bits per spike. Exactly 0 where the two are the same.
    """
    same = rates.mean(axis=-1, keepdims=True) / without.mean(axis=-1, keepdims=True)
    return (rates * np.log2(rates / (without * same))).sum(axis=-1)


def true_drives(names, modalities: tuple[str, str], region: np.ndarray, told: np.ndarray,
                total: np.ndarray) -> dict[str, np.ndarray]:
    """The truth of driven regions from what each modality tells of every unit [N, 2] and the units' rates, summed."""
    bits = np.stack([np.bincount(region, weights) for weights in told.T], axis=1) / np.bincount(region, total)[:, None]
    return {"drive": bits, "drive_names": np.array(list(names)), "drive_modalities": np.array(modalities)}


def _animal(seed: int, session: int, units: int, regions: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Parameters [N] of the units seen in `session`, and which of them the session before had.

    regions: split the units evenly over so many; 0: they are of M1 or PMd as they were born. The days before are
    replayed, so that any one session can be made alone.
    """
    rng = np.random.default_rng([seed, 1])
    cells, kept = _born(rng, units, first=0), np.zeros(units, bool)
    if regions:
        sizes = shared_out(units, regions)
        cells["region"] = np.repeat(np.arange(regions), sizes)
    met = units
    for _ in range(session):
        kept = np.zeros(units, bool)
        kept[rng.permutation(units)[:round(rng.uniform(0.6, 0.75) * units)]] = True
        stay = {name: values[kept] for name, values in cells.items()}
        n = int(kept.sum())
        for name, spread in (("preferred_direction", 0.12), ("plan_direction", 0.12)):
            stay[name] = np.angle(np.exp(1j * (stay[name] + rng.normal(0, spread, n))))
        for name, spread in (("gain", 0.08), ("speed_gain", 0.08), ("plan_gain", 0.08), ("mean_rate", 0.15)):
            stay[name] = stay[name] * rng.lognormal(0, spread, n)
        new = _born(rng, units - n, first=met)
        if regions:                                                     # a unit that left is followed in its region
            new["region"] = np.repeat(np.arange(regions), sizes - np.bincount(stay["region"], minlength=regions))
        met += units - n
        cells = {name: np.concatenate([stay[name], new[name]]) for name in cells}
        kept = np.arange(units) < n
    order = np.lexsort([cells["depth"], cells["region"]])
    return {name: values[order] for name, values in cells.items()}, kept[order]


def _born(rng: np.random.Generator, n: int, first: int) -> dict[str, np.ndarray]:
    """Units never seen before, numbered from `first`."""
    premotor = rng.random(n) < 0.45
    direction = rng.uniform(-np.pi, np.pi, n)
    return {
        "unit": np.arange(first, first + n),
        "region": premotor.astype(int),
        "depth": rng.uniform(200, 1800, n).round(),
        "mean_rate": rng.lognormal(np.log(5.5), 1.15, n).clip(0.1, 60),
        "preferred_direction": direction,
        "plan_direction": np.angle(np.exp(1j * (direction + rng.normal(0, 0.9, n)))),    # plan and movement differ
        "gain": np.where(premotor, 0.3, 0.45) * rng.lognormal(0, 0.4, n),
        "speed_gain": rng.normal(0.5, 0.4, n),
        "plan_gain": np.where(premotor, 1.2, 0.3) * rng.lognormal(0, 0.4, n),
        "lag": np.where(premotor, rng.normal(0.17, 0.03, n), rng.normal(0.07, 0.025, n)).clip(0, 0.3).round(2),
        "common": rng.normal(0, 1, (n, 4)) * [0.35, 0.35, 0.3, 0.25],
    }


def _reaches(rng, steps, delay, reaction, hold):
    """Intended velocity [T, 2] cm/s, sway [T, 2] cm, plan [T, 2] (1: a target 8 cm away), the trials."""
    velocity, plan, rows = np.zeros((steps, 2)), np.zeros((steps, 2)), []
    hand, now, end = np.zeros(2), 0.3, steps * STEP
    while True:
        target = rng.uniform(-WORKSPACE, WORKSPACE, 2)
        if not 4 <= np.linalg.norm(target - hand) <= 15:
            continue
        go = now + rng.uniform(*delay)
        onset = go + reaction * rng.lognormal(0, 0.15)
        success = rng.random() < 0.92
        far = target - hand
        lasts = (0.28 + 0.035 * np.linalg.norm(far)) * rng.lognormal(0, 0.12)
        first = far * rng.normal(0.93, 0.05 if success else 0.2) + rng.normal(0, 0.06, 2) * np.linalg.norm(far)
        _submovement(velocity, onset, lasts, first, bow=rng.normal(0, 0.12))
        landed, done = hand + first, onset + lasts
        if success:
            begins, rest = onset + rng.uniform(0.7, 0.95) * lasts, target + rng.normal(0, 0.25, 2) - landed
            _submovement(velocity, begins, 0.25, rest, bow=0)
            landed, done = landed + rest, max(done, begins + 0.25)
        stop = done + rng.uniform(*hold)
        if stop > end:
            # Nothing may move that no trial tells of: the reach that does not fit is taken back.
            velocity[int(onset / STEP):] = 0
            break
        _plan(plan, now, onset, far / REACH)
        rows.append((now, stop, now, go, onset, *target, float(np.arctan2(far[1], far[0])), success,
                     *far / REACH))
        hand, now = landed, stop + rng.uniform(0.02, 0.1)
    trials = pd.DataFrame(rows, columns=["start", "stop", "target_on_time", "go_cue_time", "move_onset_time",
                                         "target_x", "target_y", "target_direction", "success", "reach_x", "reach_y"])
    sway = 0.12 * np.stack([_wander(rng, steps, 0.15, order=2) for _ in range(2)], axis=1)
    return velocity, sway, plan, trials


def _submovement(velocity, start, lasts, displacement, bow) -> None:
    """Add a minimum-jerk `displacement` [2] to `velocity`, bowed sideways by that share of its length."""
    rows = np.arange(max(int(start / STEP), 0), min(int((start + lasts) / STEP) + 1, len(velocity)))
    t = ((rows * STEP - start) / lasts).clip(0, 1)[:, None]
    aside = np.array([-displacement[1], displacement[0]])
    velocity[rows] += (30 * (t * (1 - t)) ** 2 * displacement + bow * 32 * t * (1 - t) * (1 - 2 * t) * aside) / lasts


def _plan(plan, shown, onset, aim) -> None:
    """Where the hand is to go: rises 0.1 s after the target is shown, falls as the movement starts."""
    rows = np.arange(int(shown / STEP), min(int((onset + 0.3) / STEP), len(plan)))
    t = rows * STEP
    rise, fall = 1 / (1 + np.exp(-(t - shown - 0.12) / 0.025)), 1 / (1 + np.exp((t - onset - 0.02) / 0.04))
    plan[rows] += (rise * fall)[:, None] * aim


def _wander(rng, steps: int, tau: float, order: int = 1) -> np.ndarray:
    """Noise [T] of unit variance with correlation time `tau` s: white noise, exponentially smoothed `order` times."""
    taps = np.exp(-np.arange(0, 6 * tau, STEP) / tau)
    x = rng.normal(size=steps + order * (len(taps) - 1))
    for _ in range(order):
        n = 1 << (len(x) + len(taps)).bit_length()
        smooth = np.fft.irfft(np.fft.rfft(x, n) * np.fft.rfft(taps, n), n)
        x = smooth[len(taps) - 1:len(x)]
    return x / x.std()


def _rates(rng, cells, velocity, plan, common, tell: bool) -> tuple[np.ndarray, np.ndarray]:
    """Firing rates [N, T] float32, spikes/s; with `tell`, also what movement and plan tell of each unit [N, 2]."""
    steps, n = len(velocity), len(cells["unit"])
    rates, told = np.empty((n, steps), np.float32), np.zeros((n, 2))
    padded = np.vstack([velocity, np.repeat(velocity[-1:], round(0.3 / STEP), axis=0)])
    drift = np.stack([np.interp(np.arange(steps), np.linspace(0, steps - 1, max(3, round(steps * STEP / 100))),
                                rng.normal(0, 0.15, max(3, round(steps * STEP / 100)))) for _ in range(n)])
    shared = cells["common"] @ common.T
    for i in range(n):
        ahead = padded[round(cells["lag"][i] / STEP):][:steps]
        a, b = cells["preferred_direction"][i], cells["plan_direction"][i]
        along = cells["gain"][i] * (ahead @ [np.cos(a), np.sin(a)])
        pace = cells["speed_gain"][i] * np.hypot(*ahead.T)
        aim = cells["plan_gain"][i] * (plan @ [np.cos(b), np.sin(b)])
        drive = along + shared[i] + drift[i]
        drive += pace + aim
        mean = cells["mean_rate"][i]
        rates[i] = rate = _saturating(drive, mean)
        if tell:
            told[i] = [bits_told(rate, _saturating(drive - part, mean)) for part in (along + pace, aim)]
    return rates, told


def _saturating(drive: np.ndarray, mean: float) -> np.ndarray:
    """Rates [T], exponential in the drive, of the wanted mean before they saturate."""
    rate = np.exp(drive.clip(-6, 4))
    rate *= mean / rate.mean()
    return rate / (1 + rate / CEILING)


def refractory_spikes(rng, rates: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Spike times [S], sorted, and their rows [S], from rates [N, T] in spikes/s on a grid of `step` s.

    Poisson spikes at a rate that makes up for the refractory loss, thinned by the recovery since the last spike that
    stayed. Only spikes closer than full recovery to their neighbour can fall, so only those runs are walked through,
    all runs at once, one spike of each at a time.
    """
    steps = rates.shape[1]
    free = rates / (1 - rates * LOST)
    counts = rng.poisson(free * step)
    cell = np.repeat(np.arange(counts.size), counts.ravel())
    gap = steps * step + 1.0                                            # between units, on one common axis
    row = cell // steps
    axis = np.sort((cell - row * steps + rng.random(len(cell))) * step + row * gap)
    keep = np.ones(len(axis), bool)
    starts = np.flatnonzero(np.diff(axis, prepend=-np.inf) >= RECOVERED)
    lengths = np.diff(starts, append=len(axis))
    last = axis[starts]
    for k in range(1, int(lengths.max(initial=1))):
        runs = np.flatnonzero(lengths > k)
        at = starts[runs] + k
        since = axis[at] - last[runs]
        stays = rng.random(len(at)) * (RECOVERED - DEAD) < since - DEAD
        keep[at] = stays
        last[runs[stays]] = axis[at[stays]]
    axis = axis[keep]
    row = (axis / gap).astype(np.int32)
    times = axis - row * gap
    order = np.argsort(times, kind="stable")
    return times[order], row[order]
