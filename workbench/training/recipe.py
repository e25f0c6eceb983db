"""A recipe: everything that decides the result of a training run, as plain data.

    shipped name or YAML file → Recipe → with_(…) or key=value → the run's recipe.yaml

A setting left at None is taken from the recording when the run starts, and written beside the recipe into
`resolved.json`. Recipes never change in place, and an unknown or impossible setting is refused in one sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from workbench.errors import UnknownName, WorkbenchError
from workbench.training import storage

SHIPPED = Path(__file__).resolve().parent.parent / "recipes"


class BadRecipe(WorkbenchError, ValueError):
    """A recipe with an unknown setting or an impossible value."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def __setattr__(self, key: str, value: Any) -> None:
        known = type(self).model_fields
        near = get_close_matches(key, known, n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        hint = "" if key in known else f"there is no setting {key!r}{meant}, and "
        raise BadRecipe(f"{hint}a recipe does not change in place; make another one with recipe.with_(…)")


class Model(_Part):
    """Which model, by its name in `workbench.models`, and its settings beside the name."""

    model_config = ConfigDict(extra="allow")

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        return deepcopy(self.model_extra or {})


class Split(_Part):
    """Shares held out: by "time" `test` is the last part and `valid` is cut from the end of the rest; or by "trial", or
    by "picture"."""

    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    valid: Annotated[float, Field(gt=0, lt=1)] = 0.1
    by: Literal["time", "trial", "picture"] = "time"
    seed: Annotated[int, Field(ge=0)] = 0                               # of the draw of trials or pictures
    train: Annotated[float, Field(gt=0, le=1)] = 1.0                    # share of the rest that is used, see `split`


class Batch(_Part):
    """Windows with random starts."""

    size: Annotated[int, Field(ge=1)] = 8                               # windows a step
    pieces: Annotated[int, Field(ge=1)] = 1                             # in which they are taken, where memory is short
    power: Annotated[float, Field(ge=0, le=1)] = 1.0                    # N seconds of a dataset weigh N^power; √N: 0.5
    opens: dict[str, Annotated[int, Field(ge=0)]] = {}                  # dataset → step from which on it is drawn
    drop_spikes: Annotated[float, Field(ge=0, lt=1)] = 0.0              # at most this share of a window's spikes
    drop_units: Annotated[float, Field(ge=0, lt=1)] = 0.0               # at most this share of a window's units
    jitter: Annotated[float, Field(ge=0)] = 0.0                         # seconds by which a spike is moved at most

    @model_validator(mode="after")
    def _whole_pieces(self) -> Batch:
        if self.size % self.pieces:
            raise ValueError(f"{self.pieces} pieces of a batch of {self.size} windows are not alike; choose a size "
                             "that pieces divides")
        return self


class Optim(_Part):
    """AdamW; the learning rate rises for `warmup` steps, then falls along a cosine to `floor` of its peak."""

    lr: Annotated[float, Field(gt=0)] = 1e-3
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.98)
    weight_decay: Annotated[float, Field(ge=0)] = 0.1                   # of matrices; norms and biases have none
    warmup: Annotated[int, Field(ge=0)] = 100                           # steps
    floor: Annotated[float, Field(ge=0, le=1)] = 0.02
    clip: Annotated[float, Field(ge=0)] = 1.0                           # norm of the gradient; 0: as it is
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0                      # of the weights, a step; 0: none


class Budget(_Part):
    """How long to train, in steps, and how often to look and to save. A model that is solved at once ignores it."""

    steps: Annotated[int, Field(ge=1)] = 2000
    eval_every: Annotated[int, Field(ge=1)] = 200                       # the best weights on `valid` are the result
    checkpoint_every: Annotated[int, Field(ge=1)] = 100


class Recipe(_Part):
    """What to train on what, and how. See the classes of its parts for their settings.

    `data`: one or more catalog names or paths of recordings. `target`: the series to decode; None: the only one there
    is. A model that decodes nothing needs none; where one is named, a linear probe reads it off the model.
    `baselines`: shipped recipes that run on the same data and split afterwards, each with its own changes.
    """

    name: str = ""
    model: Model
    data: str | list[str]
    target: str | None = None
    split: Split = Split()
    batch: Batch = Batch()
    optim: Optim = Optim()
    budget: Budget = Budget()
    seed: Annotated[int, Field(ge=0)] = 0
    threads: Annotated[int, Field(ge=1)] | None = None                  # of torch; None: what is fastest at the start
    device: str | None = None                                           # None: cuda where there is one, else cpu
    precision: Literal["float32", "bf16"] = "float32"                   # of a training step; weights stay float32
    compile: bool = False                                               # the training step, by torch.compile
    baselines: dict[str, dict[str, Any]] = {}

    def __init__(self, **settings: Any):
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise BadRecipe(_sentence(error, str(settings.get("name") or ""))) from None

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, settings: Any) -> Any:
        settings = dict(settings)
        if isinstance(settings.get("model"), str):
            settings["model"] = {"name": settings["model"]}
        if isinstance(settings.get("baselines"), list | tuple):
            settings["baselines"] = {str(name): {} for name in settings["baselines"]}
        settings["baselines"] = {k: v or {} for k, v in (settings.get("baselines") or {}).items()}
        if not settings.get("name") and settings.get("model"):
            settings["name"] = dict(settings["model"]).get("name", "")
        return settings

    @field_validator("data")
    @classmethod
    def _some_data(cls, data: str | list[str]) -> str | list[str]:
        if not data:
            raise ValueError("name at least one recording")
        return data

    @model_validator(mode="after")
    def _baselines_exist(self) -> Recipe:
        for name in self.baselines:
            self.baseline(name)
        return self

    @staticmethod
    def available() -> list[str]:
        """The names of the shipped recipes."""
        return sorted(path.stem for path in SHIPPED.glob("*.yaml"))

    @classmethod
    def preset(cls, name: str) -> Recipe:
        """A shipped recipe by name; UnknownName lists near ones."""
        if name not in cls.available():
            raise UnknownName("recipe", name, cls.available(), hint="or give the path of a YAML file")
        return cls._read(SHIPPED / f"{name}.yaml")

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """The recipe in a YAML file, or the shipped recipe of that name."""
        if not isinstance(path, str):
            if path.is_file():
                return cls._read(path)
        elif Path(path).is_file():
            return cls._read(Path(path))
        if str(path).endswith((".yaml", ".yml")) or len(Path(path).parts) > 1:
            raise BadRecipe(f"there is no recipe file {str(path)!r}; shipped recipes are {', '.join(cls.available())}")
        return cls.preset(str(path))

    @classmethod
    def _read(cls, path: Path) -> Recipe:
        return cls(**{"name": path.stem, **read_yaml(path)})

    def save(self, path: str | Path) -> Path:
        """Write the recipe as YAML, in one step."""
        path = Path(path) if isinstance(path, str) else path
        storage.write(path, self.yaml().encode())
        return path

    def yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def with_(self, **changes: Any) -> Recipe:
        """A recipe with some settings changed; the parts may be given by the settings that differ.

        >>> recipe.with_(optim={"lr": 3e-4}, data="reach-sim", model="gru")
        """
        return Recipe(**_merge(self.model_dump(), changes))

    def override(self, assignments: Iterable[str]) -> Recipe:
        """The recipe after `key=value` texts: dotted keys, values in YAML (`optim.lr=3e-4`, `data=[a, b]`)."""
        changes: dict[str, Any] = {}
        for text in assignments:
            key, equals, value = text.partition("=")
            if not equals or not key:
                raise BadRecipe(f"{text!r} is no setting; write key=value, as in optim.lr=3e-4")
            changes = _merge(changes, _nested(key.strip(), _value(key, value)))
        return self.with_(**changes)

    def vary(self, settings: Mapping[str, Any]) -> Recipe:
        """The recipe with settings by their dotted keys. Unlike in `with_`, a mapping replaces the one before.

        >>> recipe.vary({"optim.lr": 3e-4, "model.modes": {"neuron": 1.0}})
        """
        recipe = self
        for key in sorted(settings, key=lambda key: key != "model.name"):     # settings of one mean nothing to another
            if isinstance(settings[key], Mapping) and "." in key:
                recipe = recipe.with_(**_nested(key, {}))
            recipe = recipe.with_(**_nested(key, settings[key]))
        return recipe

    def diff(self, other: Recipe) -> dict[str, tuple[Any, Any]]:
        """The settings that differ: dotted key → (here, there)."""
        here, there = _flat(self.model_dump()), _flat(other.model_dump())
        return {k: (here.get(k), there.get(k)) for k in {**here, **there} if here.get(k) != there.get(k)}

    def anchored(self) -> Recipe:
        """The recipe with paths of recordings made absolute, so that it can be resumed from any folder."""
        def anchor(name: str) -> str:
            path = Path(name).expanduser()
            return str(path.resolve()) if path.exists() else name
        return self.with_(data=anchor(self.data) if isinstance(self.data, str) else [anchor(d) for d in self.data])

    def baseline(self, name: str) -> Recipe:
        """The recipe of one baseline: the shipped one of that name, on this recipe's data, target, split and seed."""
        same = {k: self.model_dump()[k] for k in ("data", "target", "split", "seed", "threads", "device")}
        return Recipe.preset(name).with_(**same, baselines={}).with_(**self.baselines.get(name, {}))

    def __str__(self) -> str:
        return self.yaml()


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file. BadRecipe where it is none."""
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), _Yaml)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadRecipe(f"{path} is not YAML ({' '.join(str(error).split())}); mend that line") from None
    if not isinstance(settings, dict):
        raise BadRecipe(f"{path} holds no settings; write them as 'key: value' lines")
    return {str(key): value for key, value in settings.items()}


class _Yaml(yaml.SafeLoader):
    """YAML that reads 1e-3 as the number it is; YAML 1.1 takes it for text."""


_Yaml.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
                            list("-+0123456789"))


def _value(key: str, text: str) -> Any:
    try:
        value = yaml.load(text, _Yaml)
    except yaml.YAMLError:
        value = text
    # A recording may be called 000140, which YAML takes for the number 96.
    return text if key in ("name", "data", "target") and not isinstance(value, str | list | None) else value


def _nested(key: str, value: Any) -> dict[str, Any]:
    """"optim.lr", 1e-3 → {"optim": {"lr": 1e-3}}."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        # Settings of one model mean nothing to another, and {} empties the baselines.
        other_model = key == "model" and both and value.get("name", merged[key].get("name")) != merged[key].get("name")
        merged[key] = _merge(merged[key], value) if both and value and not other_model else value
    return merged


def _flat(settings: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(settings, dict) or (key and not settings):
        return {key: settings}
    return {k: v for name, part in settings.items() for k, v in _flat(part, f"{key}.{name}" if key else name).items()}


def _sentence(error: ValidationError, name: str) -> str:
    """The first of pydantic's findings, said in one sentence."""
    first, *others = error.errors()
    where = f"recipe {name!r}" if name else "the recipe"
    if isinstance((first.get("ctx") or {}).get("error"), WorkbenchError):
        return str(first["ctx"]["error"])
    path = [str(p) for p in first["loc"] if not (isinstance(p, str) and ("[" in p or p in ("str", "tuple")))]
    key = ".".join(path)
    also = f" (and {len(others)} more)" if others and first["type"] == "extra_forbidden" else ""
    if first["type"] == "extra_forbidden":
        near = ", ".join(_near(path))
        return f"{where} has no setting {key!r}; {near}{also}"
    if first["type"] == "missing":
        return f"{where} lacks the setting {key!r}; add it"
    message = first["msg"].removeprefix("Value error, ")
    value = repr(first["input"])
    at = f"{key} is {value if len(value) < 60 else value[:57] + '…'}" if key else "a setting is impossible"
    return f"in {where}, {at}: {message[0].lower()}{message[1:]}"


def _near(path: list[str]) -> list[str]:
    """'did you mean …' for an unknown setting, by the fields of the part that it stands in."""
    part: Any = Recipe
    for step in path[:-1]:
        annotation = part.model_fields[step].annotation if step in part.model_fields else None
        kinds = (annotation, *get_args(annotation))
        part = next((a for a in kinds if isinstance(a, type) and issubclass(a, BaseModel)), Recipe)
    known = list(part.model_fields)
    prefix = "".join(f"{p}." for p in path[:-1])
    near = [prefix + k for k in get_close_matches(path[-1], known, n=3, cutoff=0.5)]
    if not near:                                                        # 'lr' is meant as 'optim.lr'
        near = [f"{name}.{path[-1]}" for name, field in Recipe.model_fields.items()
                if path[-1] in getattr(field.annotation, "model_fields", {})]
    return [f"did you mean {near[0]}", *near[1:]] if near else [f"there are {prefix}{known[0]}",
                                                                *(prefix + k for k in known[1:])]
