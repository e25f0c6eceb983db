"""Models side by side: the same recordings, split and budget, one row a model, in a folder that can be gone on with.

    models ─► a recipe each, on the same data, target, split, seed and budget ─► a Run each, in folder/<model>/
           ─► scores, parameters, time per step, latency, cost of a new session ─► folder/rows/<model>.json ─► table

The folder is the comparison, and a run of several (`workbench.training.group`): called again with it, `compare` trains
what is not trained yet, from the last checkpoint on, and measures what has no row, and so does `Run(folder).resume()`.
`Run(folder).scores()` is the table as far as it has come, `workbench.runs(folder)` lists the runs in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench import windows
from workbench.catalog import open_recordings
from workbench.errors import WorkbenchError
from workbench.session import Session, overlap
from workbench.training import group, storage
from workbench.training.launching import new_folder
from workbench.training.recipe import Recipe
from workbench.training.run import Run

if TYPE_CHECKING:
    import holoviews as hv

COLUMNS = ["r2", "r2_causal", "bits_per_spike", "parameters", "steps", "step_ms", "train_s", "latency_ms", "adapt_how",
           "adapt_s", "adapt_parameters", "adapt_r2", "run", "error"]
Model = str | Path | Recipe | Run
EVERY = 0.05                                                            # seconds between two live predictions


class CannotCompare(WorkbenchError, ValueError):
    """Models that were not, or could not be, measured under the same conditions."""


def compare(models: Model | Sequence[Model] | Mapping[str, Model],
            sessions: str | Path | Session | Iterable[str | Path | Session], *, target: str | None = None,
            budget: int | Mapping[str, Any] | None = None, split: Mapping[str, Any] | None = None, seed: int = 0,
            adapt_to: str | Path | Session | None = None, labels: float = 120.0,
            adapt: Mapping[str, Any] | None = None, folder: str | Path | None = None) -> pd.DataFrame:
    """Train (or load) every model on the same recordings and return one row a model; see `plot`.

    models     names of models or shipped recipes, recipe files, Recipes, folders of finished runs; or {label: one}, or
               just one
    sessions   catalog names, paths, or Sessions
    target     the series to decode, or to probe for in models that decode nothing
    budget     steps for every model, or settings of `Recipe.budget`; None: what each recipe has
    split      settings of `Recipe.split`
    adapt_to   another session: every model that can is adapted to its first `labels` seconds and scored on its test
               part, by identity where it has that, else by identification; `adapt`: other settings of `workbench.adapt`
    folder     None: a new one under runs/

    r2 (windows averaged) and r2_causal: held-out R². bits_per_spike: co-smoothing, of models that reconstruct.
    latency_ms: a prediction every 50 ms on one core: of a model that streams its next step, else a whole window.
    step_ms, train_s: of this machine, as busy as it was. A model that cannot be trained keeps its error as its row.
    Raises CannotCompare for a run, OtherRuns for a folder of other conditions, Stopped after an interrupt.
    """
    folder = Path(folder).expanduser() if folder is not None else new_folder("compare")
    data, new = _kept(sessions, folder), None if adapt_to is None else _kept(adapt_to, folder)
    if new and len(found := open_recordings(new)) > 1:
        raise CannotCompare(f"adapt_to={adapt_to!r} holds {len(found)} recordings ({found[0].id}, {found[1].id}, …); "
                            "choose one")
    same: dict[str, Any] = {"data": data, "target": target, "split": dict(split or {}), "seed": seed}
    if isinstance(budget, int):                                         # eight looks, whatever a recipe's own rhythm
        budget = {"steps": budget, "eval_every": max(budget // 8, 1)}
    asked = {label: _recipe_or_run(what, same, budget) for label, what in _labelled(models).items()}
    for what in asked.values():
        if isinstance(what, Run):
            _check_run(what, open_recordings(data), same)
    runs = {label: {"run": str(what.path)} if isinstance(what, Run) else
            {"recipe": what.anchored().model_dump(mode="json")} for label, what in asked.items()}
    conditions = {**same, "budget": budget, "adapt_to": new, "labels": labels, "adapt": dict(adapt or {})}
    group.carry_out(group.join(folder, "comparison", runs, conditions))
    return load(folder)


def load(folder: str | Path) -> pd.DataFrame:
    """The table of a comparison as far as it has come, the best R² first."""
    rows = {label: row for label, row in group.Group(folder).rows().items() if row}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS).rename_axis("model")
    table = table.astype({c: float for c in COLUMNS if c not in ("adapt_how", "run", "error")})
    table = table.sort_values(["r2", "bits_per_spike"], ascending=False, kind="stable")
    table.attrs["folder"] = str(folder)
    return table


def plot(table: pd.DataFrame) -> hv.Layout:
    """The table as bars of each score that it holds, and R² against latency."""
    import holoviews as hv
    import holoviews.plotting.bokeh  # registers the backend
    data, scores = table.reset_index(), {"r2": "held-out R²", "bits_per_spike": "co-smoothing, bits per spike"}
    bars = []
    for column, label in scores.items():
        there = data.dropna(subset=[column])
        if len(there):
            bars.append(hv.Bars(there, "model", (column, label)).opts(
                width=420, height=300, xrotation=45, color="#0072b2", tools=["hover"], toolbar="above"))
    there = data.dropna(subset=["r2", "latency_ms"])
    cost = [("latency_ms", "ms a prediction, one core"), ("r2", "held-out R²")]
    points = hv.Points(there, cost, ["model", "parameters"]).opts(
        width=420, height=300, logx=True, size=9, color="#d55e00", padding=0.2, tools=["hover"], toolbar="above")
    names = hv.Labels(there.assign(model="\u2002" + there["model"]), cost, "model").opts(
        text_font_size="9pt", text_align="left", text_color="#333333", padding=0.2)
    return hv.Layout([*bars, points * names]).cols(2).opts(shared_axes=False)


def latency(model, session: Session, *, number: int = 40) -> float:
    """Milliseconds of one core for one live prediction: median over `number` of them, spikes already in memory.

    A model with `stream` takes only the newest spikes; every other one looks at its whole window again.
    """
    import torch

    from workbench.batch import Reader
    reader = Reader([session], () if getattr(model, "target", None) is None else (model.target,), also=model.reads)
    model, spent, first = deepcopy(model).to("cpu").eval(), [], float(session.intervals[0, 0])
    stream = model.stream(session) if hasattr(model, "stream") else None
    length = model.bin_size if stream else model.window
    with _one_thread(), torch.no_grad():
        for k in range(number):
            batch = reader.read([0], [first + k * (length if stream else EVERY)], length)
            start = time.perf_counter()
            stream.step(batch.times, batch.units) if stream else model(batch)
            spent.append(time.perf_counter() - start)
    return 1000 * float(np.median(spent[number // 4:]))                # the first ones warm up


def row(run: Run, plan: Mapping[str, Any], on_step: Callable[[dict], None]) -> dict[str, Any]:
    """What one model's row says of its finished run, under the conditions of the plan; `on_step` as of `adapt`."""
    conditions, result, metrics = plan["conditions"], run.result(), run.metrics()
    protocol = result["protocol"]
    scores = result["scores"].get(protocol["target"], {})
    row = {"r2": scores.get("r2"), "r2_causal": scores.get("r2_causal"),
           "bits_per_spike": result["scores"].get("spikes", {}).get("bits_per_spike"),
           "parameters": protocol["parameters"], "steps": protocol["steps"], "train_s": protocol["wall_s"],
           "step_ms": 1000 * metrics["seconds"].diff().median() if "seconds" in metrics else None,
           "latency_ms": latency(run.model(), open_recordings(conditions["data"])[0]), "run": str(run.path)}
    return row | (_adaptation(run, conditions, on_step) if conditions["adapt_to"] else {})


def _check_run(run: Run, sessions: Sequence[Session], same: dict) -> None:
    """A run from elsewhere belongs into the table if it was trained and scored on the very same."""
    protocol, target = run.result()["protocol"], same["target"]
    parts = {s.id: {k: v.round(6) for k, v in windows.split(s, **same["split"]).items()} for s in sessions}
    if protocol["split"] != storage.as_json(parts) or (target and protocol["target"] not in (None, target)):
        raise CannotCompare(f"{run.path} was trained or scored on another split, recording or target than this "
                            "comparison's; train it anew (give its recipe), or compare it elsewhere")


def _adaptation(run: Run, conditions: Mapping[str, Any], on_step: Callable[[dict], None]) -> dict[str, Any]:
    """What a new session costs, by the way that this model has, and what it is worth there."""
    from workbench.analysis.decoding import score
    from workbench.training.adaptation import CannotAdapt, adapt
    session, model = open_recordings(conditions["adapt_to"])[0], run.model().to(_device(run))
    parts = windows.split(session, **conditions["split"])
    begin = parts["train"][0, 0]
    known = overlap(parts["train"], np.array([[begin, begin + conditions["labels"]]]))
    how = {"how": "identity" if hasattr(model, "identify") else "identify", **conditions["adapt"]}
    try:
        found = adapt(model, session, **how, intervals=known,
                      on_step=lambda status: on_step({"stage": f"adapting to {session.id}", **status}))
    except WorkbenchError as error:
        return {"adapt_how": "none" if isinstance(error, CannotAdapt) else f"failed: {error}"}
    worth = score(model, [session], [parts["test"]], model.target)["r2"] if model.decodes else None
    return {"adapt_how": found.how, "adapt_s": found.seconds, "adapt_parameters": found.parameters, "adapt_r2": worth}


def _device(run: Run) -> str:
    """Where the run trained, if that is here."""
    import torch
    device = run.result()["protocol"]["machine"]["device"]
    return device if device != "cuda" or torch.cuda.is_available() else "cpu"


def _labelled(models: Any) -> dict[str, Any]:
    """label → what was asked for. A label is the name of a folder."""
    if isinstance(models, Mapping):
        return dict(models)
    models = [models] if isinstance(models, Model) else models
    labels = [what if isinstance(what, str) and not Path(what).exists() else
              what.name if isinstance(what, Recipe) else
              Path(getattr(what, "path", what)).name.removesuffix(".yaml") for what in models]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice:
        raise CannotCompare(f"two of the models are called {twice!r}; give them names of their own: {{name: model, …}}")
    return dict(zip(labels, models, strict=True))


def _recipe_or_run(what: Model, same: dict, budget: Mapping | None) -> Recipe | Run:
    """A finished run as it is, everything else as a recipe under the conditions of this comparison."""
    from workbench import models
    if isinstance(what, Run) or (not isinstance(what, Recipe) and (Path(what) / "recipe.yaml").is_file()):
        run = what if isinstance(what, Run) else Run(what)
        run.result()                                                    # NoRun, with the way out, before its end
        return run
    if isinstance(what, Recipe):
        recipe = what
    elif str(what) in Recipe.available() or Path(what).is_file():
        recipe = Recipe.load(what)
    else:
        models.get(str(what))                                           # UnknownName lists near ones
        recipe = Recipe(model=str(what), **same)
    return recipe.with_(**same, baselines={}, **({"budget": dict(budget)} if budget else {}))


def _kept(sessions: Any, folder: Path) -> list[str]:
    """Recordings as names or paths that a recipe can hold; Sessions are put beside the runs."""
    several = isinstance(sessions, Iterable) and not isinstance(sessions, str | Path)
    kept = []
    for one in sessions if several else [sessions]:
        if isinstance(one, Session):
            path = folder.resolve() / "sessions" / f"{one.id.replace('/', '_')}.h5"
            there = path.is_file()
            new = one.save(path.with_name(f"{path.stem}.new.h5") if there else path)
            if there:                                                   # as read back: a file keeps no row labels
                same = _same(Session.open(path), Session.open(new))
                new.unlink()
                if not same:
                    raise CannotCompare(f"{folder} compares on another session of the name {one.id!r} (other spikes, "
                                        "units, series, events or valid time); choose another folder")
            kept.append(str(path))
        else:
            path = Path(one).expanduser()
            kept.append(str(path.resolve()) if path.exists() else str(one))
    return kept


def _same(a: Session, b: Session) -> bool:
    """Whether two sessions hold the same, all of it."""
    pairs = [(getattr(a, name), getattr(b, name)) for name in ("spike_times", "spike_units", "intervals", "images")]
    pairs += [pair for name in a.series.keys() & b.series for pair in zip(a.series[name], b.series[name], strict=True)]
    return (a.series.keys() == b.series.keys() and all(_equal(*pair) for pair in pairs)
            and all(getattr(a, name).equals(getattr(b, name)) for name in ("units", "trials", "stimuli")))


def _equal(a: Any, b: Any) -> bool:
    numbers = isinstance(a, np.ndarray) and np.issubdtype(a.dtype, np.floating)
    return bool(np.array_equal(a, b, equal_nan=True) if numbers else np.array_equal(a, b))


@contextmanager
def _one_thread():
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
