"""How good the units are, by the measures of the field, and the session with only those that pass.

    session → metrics → one row a unit: firing_rate, isi_violations, presence_ratio, amplitude_cutoff, snr
    session, criteria → passing → the session with the units that pass all, and how many of how many pass each

What the recording's own unit table says is taken; firing rate, ISI violations and presence ratio are computed from the
spikes where it does not, ISI violations not from times coarser than what they count. Amplitude cutoff and SNR need
waveforms, which a session does not have: they are read or absent, never guessed. Definitions: ISI violations, Hill,
Mehta & Kleinfeld 2011 (J. Neurosci. 31:8699) as Allen's ecephys_spike_sorting computes them; presence ratio, the share
of 100 equal parts with a spike; the default criteria are those of AllenSDK 2.16 (`EcephysProjectCache`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from workbench.errors import BadRecording, UnknownName
from workbench.session import Session, inside

NAMES = ("firing_rate", "isi_violations", "presence_ratio", "amplitude_cutoff", "snr")
REFRACTORY = 0.0015                                                     # s
PARTS = 100
CRITERIA = ("isi_violations <= 0.5", "amplitude_cutoff <= 0.1", "presence_ratio >= 0.95")


def metrics(session: Session) -> pd.DataFrame:
    """One row a unit, in table order: the id, and those of NAMES that are known. `attrs` says which were computed.

    firing_rate [spikes/s]; isi_violations [relative rate of false spikes, 0 best, may pass 1]; presence_ratio [0-1];
    amplitude_cutoff [share of missed spikes, 0-0.5]; snr. NaN where a unit has no spikes to tell from.
    """
    given = {name.lower(): name for name in session.units if session.units[name].dtype.kind in "iuf"}
    compute = _computable(session)
    found, computed = {"id": session.units["id"].to_numpy()}, []
    for name in NAMES:
        if name in given:
            found[name] = session.units[given[name]].to_numpy(np.float64)
        elif name in compute:
            found[name] = compute[name]()
            computed.append(name)
    table = pd.DataFrame(found)
    table.attrs["computed"] = computed
    return table


def _computable(session: Session) -> dict[str, Callable[[], np.ndarray]]:
    """The metrics that the spikes can tell: of units that are known by a trace instead none, and nothing that is finer
    than spike times are.
    """
    found = {"firing_rate": session.rates, "isi_violations": lambda: isi_violations(session),
             "presence_ratio": lambda: presence_ratio(session)} if not _traces(session) else {}
    if session.resolution > REFRACTORY:
        found.pop("isi_violations", None)
    return found


def passing(session: Session, criteria: Iterable[str] | None = None) -> tuple[Session, pd.DataFrame]:
    """The session with the units that pass all criteria, its unit table with the metrics; and the report.

    criteria: queries of the unit table and the metrics, one each ("firing_rate > 0.1", "region == 'M1'"). None: those
    of CRITERIA whose metric is known; the report names the others as not known, with NaN.

    The report has one row a criterion: `passed` it, `left` after it and those before, of `total`. A comparison with NaN
    is false, so that a unit without the metric passes "not (snr < 2)" but not "snr >= 2". Raises UnknownName for a
    metric that the recording does not have, BadRecording where no unit is left or for what is no query.
    """
    if isinstance(criteria, str):
        criteria = [criteria]
    measured = metrics(session)
    table = session.units.assign(**{name: measured[name].to_numpy() for name in measured if name != "id"})
    keep, rows = np.ones(len(table), bool), []
    for criterion in CRITERIA if criteria is None else criteria:
        metric = re.match(r"\W*(\w*)", criterion)[1]
        if metric in NAMES and metric not in table:
            if criteria is not None:
                raise UnknownName("metric", metric, [n for n in NAMES if n in table], where=f"session {session.id!r}",
                                  hint=f"the recording's unit table does not give it, and {_why_not(session, metric)}")
            rows.append({"criterion": criterion, "passed": np.nan, "left": keep.sum(), "total": len(table)})
            continue
        passed = _passed(session, table, criterion)
        keep &= passed
        rows.append({"criterion": criterion, "passed": passed.sum(), "left": keep.sum(), "total": len(table)})
    report = pd.DataFrame(rows, columns=["criterion", "passed", "left", "total"]).set_index("criterion")
    if not keep.any():
        raise BadRecording(f"{session.id}: none of {len(table)} units passes {' and '.join(report.index)}; loosen them "
                           f"({', '.join(f'{c}: {p:.0f} pass' for c, p in report['passed'].dropna().items())})")
    return replace(session, units=table, checked=True).select(keep), report


def _why_not(session: Session, metric: str) -> str:
    if metric in ("amplitude_cutoff", "snr"):
        return "it needs waveforms"
    return "there are no spikes to compute it from" if _traces(session) else \
        f"spike times are known to {session.resolution:g} s only"


def _traces(session: Session) -> bool:
    """Whether units have no spikes but a column each of some series, such as dF/F."""
    ids = tuple(session.units["id"])
    return not len(session.spike_times) and any(ids == tuple(s.columns) for s in session.series.values())


def isi_violations(session: Session) -> np.ndarray:
    """Rate of violating spikes relative to a unit's own [N]: v / (2 n REFRACTORY) / (n / T).

    v: intervals shorter than REFRACTORY, n: spikes, T: seconds of valid recording. 0.5 is a Poisson train, which knows
    no refractory period; NaN for units without spikes.
    """
    times, units = _valid(session)
    order = np.argsort(units, kind="stable")
    times, units = times[order], units[order]
    short = (np.diff(times) < REFRACTORY) & (units[1:] == units[:-1])
    n = np.bincount(units, minlength=len(session.units)).astype(np.float64)
    violations = np.bincount(units[1:][short], minlength=len(session.units))
    n[n == 0] = np.nan
    return violations * session.duration / (2 * n * n * REFRACTORY)


def presence_ratio(session: Session) -> np.ndarray:
    """Share of PARTS equal parts of the valid recording in which a unit has a spike [N]."""
    times, units = _valid(session)
    lengths = np.diff(session.intervals)[:, 0]
    passed = np.cumsum(lengths) - lengths                               # valid seconds before each interval
    row = np.searchsorted(session.intervals[:, 0], times, side="right") - 1
    since = times - session.intervals[row, 0] + passed[row]
    part = np.minimum((PARTS * since / max(session.duration, 1e-9)).astype(np.int64), PARTS - 1)
    present = np.zeros((len(session.units), PARTS), bool)
    present[units, part] = True
    return present.mean(axis=1)


def _valid(session: Session) -> tuple[np.ndarray, np.ndarray]:
    rows = inside(session.spike_times, session.intervals)
    return session.spike_times[rows], session.spike_units[rows]


def _passed(session: Session, table: pd.DataFrame, criterion: str) -> np.ndarray:
    try:
        passed = np.asarray(table.eval(criterion))
        if passed.shape != (len(table),) or passed.dtype != bool:
            raise ValueError("it is not true or false for every unit")
        return passed
    except Exception as error:
        raise BadRecording(f"{session.id}: {criterion!r} cannot choose units ({error}); write it as "
                           f"\"firing_rate > 0.1\", of the columns {', '.join(table.columns)}") from None
