"""Reconstructed pictures beside those that were shown, what they score, and which method may be said to win.

    Reconstructions ─► scores: a row a method, seed, item and metric ─► table: means, intervals, verdicts ─► summary
                    └► notes: what has to be said beside any number
    save ⇄ load        a folder of pictures.npz, items.json, perhaps scores.csv, and report.json, which is written last
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import workbench
from workbench.errors import UnknownName, WorkbenchError
from workbench.images import metrics
from workbench.training import storage

KINDS = ("method", "baseline", "chance", "ceiling")         # the first two compete; the others are for reference
CHANCE = "another test picture"
FEW = 2000                                                  # pictures, below which a Fréchet distance says nothing
TOLD = {"simulated": "whether the spikes are simulated", "split": "how training and test pictures were parted",
        "averaged": "how many presentations an item averages", "conditioned_by": "what each method was conditioned by"}
SCORES = {"method": "str", "kind": "str", "seed": "int", "item": "int", "picture": "int", "metric": "str",
          "value": "float", "same_encoder": "bool"}
_sha256 = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()


class BadReconstructions(WorkbenchError, ValueError):
    """Pictures, items or features that do not fit each other, or a saved folder that is not whole."""


@dataclass(frozen=True, eq=False)
class Reconstructions:
    """Pictures that were shown, and what each method made of every test presentation.

    shown     uint8 [P, H, W, 3], a row a distinct test picture
    items     a row a test presentation: picture (row of shown), session, start (s), and what else one likes
    made      {method: uint8 [items, seeds, H, W, 3]}; kinds {method: "method", "baseline", "chance" or "ceiling"}
    features  {extractor: {"shown": [P, D], method: [items, seeds, D]}}, of all methods or of some
    protocol  how it came about: simulated, split, averaged (presentations to an item; 1: single ones), conditioned_by
              ({method: extractor}), guidance, steps, …; what can be counted, and versions, are added here
    """
    shown: np.ndarray
    items: pd.DataFrame
    made: Mapping[str, np.ndarray]
    kinds: Mapping[str, str]
    features: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        number, pictures, known = len(self.items), len(self.shown), {"shown", *self.made}
        which = self.items.get("picture", pd.Series(dtype=float))
        if not {"session", "start"} <= {*self.items} or which.dtype.kind not in "iu" or (
                not which.isin(range(pictures)).all()):
            raise BadReconstructions(f"items of {', '.join(self.items)}; give session, start, picture: rows of shown")
        if {*self.kinds} != {*self.made} or {*self.kinds.values()} - {*KINDS} or {"shown", CHANCE} & {*self.made}:
            raise BadReconstructions(f"methods {', '.join(self.made)} of kinds {dict(self.kinds)}; say of each: "
                                     f"{', '.join(KINDS)}; call none 'shown' or {CHANCE!r}")
        for method in set(self.protocol.get("conditioned_by") or ()).union(*self.features.values()) - known:
            raise UnknownName("method", method, self.made, hint="features and conditioned_by name those in made")
        rows = {"shown": (pictures,)} | {method: (number, *made.shape[1:2]) for method, made in self.made.items()}
        for method, values in {"shown": self.shown, **self.made}.items():
            _check(f"the pictures {method}", values, (*rows[method], *self.shown.shape[1:3], 3), "uint8")
        for name, held in self.features.items():
            if "shown" not in held:
                raise UnknownName("pictures", "shown", held, f"the features of {name}")
            for method, values in held.items():
                _check(f"the features of {name}, {method},", values, (*rows[method], held["shown"].shape[-1]), "float")
        versions = {name: version(name) for name in ("numpy", "scikit-image")} | {"workbench": workbench.__version__}
        object.__setattr__(self, "protocol", {
            "versions": versions, **self.protocol, "pictures": pictures, "items": number,
            "size": list(self.shown.shape[1:3]), "extractors": list(self.features),
            "samples": {method: made.shape[1] for method, made in self.made.items()}})

    def save(self, folder: str | Path, scores: pd.DataFrame | None = None) -> Path:
        """Write the folder, with the scores if given. What was cut off while written is never read as whole."""
        folder = Path(folder).expanduser()
        with suppress(OSError):                                         # old pictures under new words would be a lie
            (folder / "report.json").unlink()
        arrays = {"shown": self.shown} | {f"made {i}": made for i, made in enumerate(self.made.values())}
        for i, held in enumerate(self.features.values()):
            arrays |= {f"features {i} {j}": values for j, values in enumerate(held.values())}
        plain = lambda column: (column if column.dtype.kind in "iufb" else column.astype(str)).tolist()
        storage.write(folder / "pictures.npz", lambda file: np.savez_compressed(file, **arrays))
        storage.write_json(folder / "items.json", {name: plain(column) for name, column in self.items.items()})
        if scores is not None:
            storage.write(folder / "scores.csv", scores.to_csv(index=False).encode())
        files = ("pictures.npz", "items.json", *["scores.csv"] * (scores is not None))
        storage.write_json(folder / "report.json", {
            "protocol": self.protocol, "notes": notes(self), "scored": {} if scores is None else scores.attrs,
            "kinds": {method: self.kinds[method] for method in self.made},
            "features": {name: list(held) for name, held in self.features.items()},
            "files": {name: _sha256(folder / name) for name in files}})
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Reconstructions:
        """What `save` wrote. Raises UnknownName for a folder that is not there, BadReconstructions for half a one."""
        folder, told = _opened(folder, "pictures.npz", "items.json")
        items = pd.DataFrame(storage.read_json(folder / "items.json"))
        with np.load(folder / "pictures.npz", allow_pickle=False) as held:
            made = {method: held[f"made {i}"] for i, method in enumerate(told["kinds"])}
            features = {name: {each: held[f"features {i} {j}"] for j, each in enumerate(inside)}
                        for i, (name, inside) in enumerate(told["features"].items())}
            return cls(held["shown"], items, made, told["kinds"], features, told["protocol"])


def load_scores(folder: str | Path) -> pd.DataFrame:
    """The scores in a saved folder, without reading its pictures."""
    folder, told = _opened(folder, "scores.csv")
    frame = pd.read_csv(folder / "scores.csv", dtype=SCORES, keep_default_na=False)
    frame.attrs = told["scored"]
    return frame


def scores(result: Reconstructions, *, side: int | None = None, shuffles: int = 3, seed: int = 0) -> pd.DataFrame:
    """A row a method, seed, item and metric; the columns are those of `SCORES`.

    pixcorr, ssim (at `side`, see `metrics.ssim`), and of every extractor cosine[…], two_way[…] and rank[…]: where the
    shown picture stands among all test pictures, 1 is best. The method "another test picture" is chance: `shuffles`
    others for each item, numbered as seeds; never being right, it has rank (P + 2) / 2, a half behind a guess.
    """
    order, parts = np.random.default_rng(seed).permutation(len(result.shown)), []
    steps = np.arange(1, min(shuffles, len(order) - 1) + 1)                                 # in a ring: never itself
    others = order[(np.argsort(order)[result.items["picture"]] + steps[:, None]) % len(order)]      # [shuffles, items]
    for method, made in result.made.items():
        for s in range(made.shape[1]):
            vectors = {name: held[method][:, s] for name, held in result.features.items() if method in held}
            parts.append(_scored(result, side, method, s, made[:, s], vectors))
    for s, other in enumerate(others):
        vectors = {name: held["shown"][other] for name, held in result.features.items()}
        parts.append(_scored(result, side, CHANCE, s, result.shown[other], vectors))
    frame = pd.concat(parts, ignore_index=True)
    frame.attrs = {"ssim": metrics.ssim_protocol(side), "candidates": len(order), "shuffles": len(steps)}
    return frame


def _scored(result: Reconstructions, side: int | None, method: str, seed: int, made: np.ndarray,
            vectors: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """One picture an item [items, H, W, 3] and its vectors {extractor: [items, D]}."""
    which = result.items["picture"].to_numpy()
    true, item = result.shown[which], np.arange(len(which))
    told = {"method": method, "kind": result.kinds.get(method, "chance"), "seed": seed, "item": item, "picture": which}
    found = {"pixcorr": metrics.pixcorr(true, made), "ssim": metrics.ssim(true, made, side)}
    for name, vector in vectors.items():
        shown = result.features[name]["shown"]
        near = metrics.similarity(vector, shown)
        found |= {f"cosine[{name}]": near[item, which], f"rank[{name}]": metrics.ranks(near, which)}
        if len(shown) > 1:
            found[f"two_way[{name}]"] = metrics.two_way(shown, vector, which)
    frame = pd.DataFrame({**told, **found}).melt(list(told), var_name="metric")
    by = (result.protocol.get("conditioned_by") or {}).get(method)
    return frame.assign(same_encoder=frame["metric"].str.endswith(f"[{by}]"))


def table(scores: pd.DataFrame, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """A row a metric and method, the best first: mean and its 95 % interval over pictures, and what may be said.

    seed_sd        standard deviation of the mean over `seeds` seeds; the interval takes the seeds as they are
    verdict        of methods and baselines: "wins"; "not told apart" from the best, or the best from another; "behind"
    behind         how far; its 95 % interval, paired by picture, tells apart where it excludes 0, each pair for itself
    above_chance   the paired interval to another test picture excludes 0. same_encoder: its extractor conditioned it
    """
    rows = []
    for metric, part in scores.groupby("metric", sort=False):
        sign = -1 if metric.startswith("rank[") else 1
        told = part.groupby("method", sort=False)[["kind", "same_encoder"]].first()
        by_seed = part.groupby(["method", "seed"])["value"].mean().groupby("method").agg(lambda of: (of.std(), len(of)))
        each = part.groupby(["item", "picture", "method"])["value"].mean().unstack()[list(told.index)]
        values, means = each.to_numpy(), sign * each.mean()
        rivals = means[told["kind"].isin(["method", "baseline"])]
        best, chance = (each[[m]].to_numpy() if m in each else np.nan
                        for m in (rivals.idxmax() if len(rivals) else None, CHANCE))
        beside = np.hstack([values, sign * (best - values), sign * (values - chance)])      # on the same draws: paired
        found = metrics.bootstrap(beside, each.index.get_level_values("picture"), draws, seed)
        own, behind, above = np.stack(found).reshape(3, 3, -1).swapaxes(0, 1)               # each: mean, low, high
        tied = {m for m, low in zip(each, behind[1], strict=True) if m in rivals and not low > 0}
        for i in np.argsort(-means.to_numpy(), kind="stable"):
            method = each.columns[i]
            verdict = ("" if method not in rivals or len(rivals) < 2 else "behind" if method not in tied else
                       "wins" if len(tied) == 1 else "not told apart")
            over = None if method == CHANCE or CHANCE not in each else bool(above[1, i] > 0)
            rows.append([metric, method, told["kind"][method], *own[:, i], *by_seed[method], verdict,
                         *(behind[:, i] if method in rivals else [np.nan] * 3), over, told["same_encoder"][method]])
    return pd.DataFrame(rows, columns=["metric", "method", "kind", "mean", "low", "high", "seed_sd", "seeds", "verdict",
                                       "behind", "behind_low", "behind_high", "above_chance", "same_encoder"])


def summary(table: pd.DataFrame) -> str:
    """A line a metric, in plain words: who wins it, who is not told apart from whom, and what chance is."""
    lines = []
    for metric, part in table.groupby("metric", sort=False):
        rivals = part[part["kind"].isin(["method", "baseline"])]
        behind = rivals["verdict"] == "behind"
        first = [f"{a.method} ({a.mean:.3g}, 95 % {a.low:.3g} to {a.high:.3g})" for a in rivals[~behind].itertuples()]
        rest = {"; behind the first: ": [f"{a.method} ({a.mean:.3g})" for a in rivals[behind].itertuples()],
                "; chance is ": [f"{mean:.3g}" for mean in part["mean"][part["method"] == CHANCE]],
                ". Not above chance: ": rivals["method"][rivals["above_chance"].isin([False])],
                ". Same encoder, which also conditioned ": rivals["method"][rivals["same_encoder"]]}
        rest = "".join(start + ", ".join(names) for start, names in rest.items() if len(names))
        says = "is alone" if len(rivals) < 2 else "wins" if len(first) == 1 else "are not told apart"
        better = ", lower is better" * metric.startswith("rank[")
        lines += [f"{metric}{better}: {' and '.join(first)} {says}{rest}."] * bool(first)
    return "\n".join(lines)


def notes(result: Reconstructions) -> list[str]:
    """What has to be said beside any number of these: from the protocol, and what the protocol does not tell."""
    told, number, averaged = result.protocol, len(result.shown), result.protocol.get("averaged") or 1
    found = ["The spikes are simulated."] * bool(told.get("simulated"))
    found += [f"Each item averages {averaged} presentations; single ones are harder to decode."] * (averaged > 1)
    by = told.get("conditioned_by") or {}
    for name in [each for each in dict.fromkeys(by.values()) if each in result.features]:
        methods = ", ".join(method for method in by if by[method] == name)
        found.append(f"Same encoder: {name} conditioned and scores {methods}; look at another extractor, too.")
    found += [f"{number} test pictures: no Fréchet distance, which wants {FEW:,} at least."] * (number < FEW)
    missing = [says for key, says in TOLD.items() if key not in told]
    return [*found, f"The protocol does not say {', '.join(missing)}."] if missing else found


def _check(what: str, values: np.ndarray, shape: tuple, kind: str) -> None:
    if values.shape != shape or not values.size or not values.dtype.name.startswith(kind):  # objects would be pickled
        raise BadReconstructions(f"{what} are {values.dtype} of shape {values.shape}; give {kind} of shape {shape}")


def _opened(folder: str | Path, *names: str) -> tuple[Path, dict[str, Any]]:
    """A saved folder and its report.json, once the files that are asked for are found to be those that it names."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        known = [path.parent.name for path in folder.parent.glob("*/report.json")]
        raise UnknownName("reconstructions", folder.name, known, str(folder.parent))
    if not (folder / "report.json").is_file():
        raise BadReconstructions(f"{folder} has no report.json, which comes last: saving was cut off; save it anew")
    try:
        told = storage.read_json(folder / "report.json")
        told = {key: told[key] for key in ("protocol", "scored", "kinds", "features", "files")}
        there = {name: _sha256(folder / name) for name in names if (folder / name).is_file()}
    except (TypeError, KeyError, ValueError, OSError) as error:
        raise BadReconstructions(f"{folder} is damaged: {error!r} in its report.json; save it anew") from error
    wrong = [name for name in names if name not in there or there[name] != told["files"].get(name)]
    if wrong:
        raise BadReconstructions(f"{folder / wrong[0]} is not there, or not what was saved: save(folder, scores) anew")
    return folder, told
