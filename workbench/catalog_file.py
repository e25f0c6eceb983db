"""What a catalog file may say: schema_version 1, as plain, frozen data.

    YAML → read → {id: Dataset}, or one sentence that names the file, the dataset and the key

Unknown keys are refused, so that a misspelt one is not silently without effect.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from workbench.errors import WorkbenchError
from workbench.sources import LOADERS


class BadCatalog(WorkbenchError, ValueError):
    """A catalog file that cannot be used: which file, which dataset, which key, and what to write."""


class Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Loader = Literal["by_suffix", "hdf5", *LOADERS]
Texts = Annotated[tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)]


class Simulated(Plain):
    """Made on the spot: `generator` is called with the arguments of each session."""

    method: Literal["simulated"]
    generator: Literal["reach_sim", "many_spikes", "vision_sim"]
    sessions: dict[str, dict[str, int | float | dict[str, tuple[float, float]]]] = Field(min_length=1)


class Local(Plain):
    """Files of this computer: paths of recordings, of folders of recordings, or globs.

    Relative to the folder that the environment variable `env` names, where it is set, else to the catalog file.
    """

    method: Literal["local"]
    path: Texts = Field(min_length=1)
    env: str = ""


class RemoteFile(Plain):
    """What is known of a file before it is downloaded."""

    sha256: str = Field("", pattern="^([0-9a-f]{64})?$")
    bytes: PositiveInt | None = None


class Http(Plain):
    """Files under one address; `sessions` names those that are sessions (without it: all, by file name).

    `beside` names the files that the reader of a session wants as well: they are fetched before it.
    """

    method: Literal["http"]
    base_url: str = Field(pattern="^https?://")
    files: dict[str, RemoteFile] = Field(min_length=1)
    sessions: dict[str, str] = {}
    beside: dict[str, list[str]] = {}

    @model_validator(mode="after")
    def _beside_is_there(self) -> Http:
        for path in (path for paths in self.beside.values() for path in paths):
            if path not in self.files:
                raise ValueError(f"`beside` names the file {path!r}, which `files` does not; add it there")
        return self


class Dandi(Plain):
    """Files of one version of a dandiset; `sessions` names them by path (without it: all that match `glob`)."""

    method: Literal["dandi"]
    dandiset: str = Field(pattern="^[0-9]{6}$")
    version: str
    glob: str = "*.nwb"
    sessions: dict[str, str] = {}


class One(Plain):
    """Sessions of the International Brain Laboratory, fetched one by one by ONE-api with the user's own account."""

    method: Literal["one"]
    base_url: str = Field(pattern="^https?://")


class Manual(Plain):
    """Files that a person fetches from `url` by `steps`."""

    method: Literal["manual"]
    url: str
    steps: str


Access = Annotated[Simulated | Local | Http | Dandi | One | Manual, Field(discriminator="method")]


class Sample(Plain):
    """The sessions that are enough for a laptop; `access`, where they are not a part of the dataset's own files."""

    sessions: tuple[str, ...] = Field(min_length=1)
    size_mb: float
    license_ok: Literal[True]
    access: Access | None = None


class Dataset(Plain):
    """One dataset that can be opened by name. Only `id`, `title` and `access` are needed."""

    id: str = Field(pattern="^[a-z0-9][a-z0-9_-]*$")
    title: str
    access: Access
    sample: Sample | None = None
    species: str = ""
    regions: Texts = ()
    modality: Literal["spikes", "threshold_crossings", "mua", "calcium"] = "spikes"
    tasks: Texts = ()
    stimuli: Texts = ()
    has_images: bool = False
    license: str = ""
    redistribution: Literal["allowed", "derived_only", "forbidden"] = "forbidden"
    citation: str = ""
    doi: str = ""
    homepage: str = ""
    size_gb: float | None = None
    n_sessions: int | None = None
    loader: Loader = "by_suffix"                                        # .nwb, .h5, folders of Phy or ALF
    loader_options: dict[str, str | int | float | bool | list[str] | None] = {}
    extras: Texts = ()                                                  # what pip must install for it
    needs_account: str = ""                                             # where and how; empty: none is needed
    verified: str = ""                                                  # when and how somebody opened it from here
    notes: str = ""

    @property
    def simulated(self) -> bool:
        return self.access.method == "simulated"

    @model_validator(mode="after")
    def _sample_is_there(self) -> Dataset:
        named = getattr((self.sample and self.sample.access) or self.access, "sessions", None)
        if self.sample and named:
            for session in self.sample.sessions:
                if session not in named:
                    raise ValueError(f"the sample names the session {session!r}, which `access` does not; it has "
                                     f"{', '.join(named)}")
        return self


class CatalogFile(Plain):
    """The whole file."""

    schema_version: Literal[1]
    datasets: tuple[Dataset, ...]


def read(path: Path) -> dict[str, Dataset]:
    """The datasets of one catalog file, by id. Raises BadCatalog."""
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadCatalog(f"cannot read the catalog file {path} ({error.strerror}); check the path, and "
                         "WORKBENCH_CATALOG if it is named there") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        at = getattr(error, "problem_mark", None)
        raise BadCatalog(f"the catalog file {path} is not YAML{f', at line {at.line + 1}' if at else ''} "
                         f"({getattr(error, 'problem', None) or error}); correct it") from None
    try:
        datasets = CatalogFile.model_validate(said).datasets
    except ValidationError as error:
        raise BadCatalog(f"the catalog file {path}: {_sentence(error.errors()[0], said)}") from None
    found = {}
    for dataset in datasets:
        if dataset.id in found:
            raise BadCatalog(f"the catalog file {path} has two datasets {dataset.id!r}; rename one")
        found[dataset.id] = dataset
    return found


def _sentence(error: dict, said) -> str:
    where = list(error["loc"])
    dataset, got = "", error["input"]
    if where[:1] == ["datasets"] and len(where) > 1:
        entry = said["datasets"][where[1]]
        name = entry.get("id", f"number {where[1] + 1}") if isinstance(entry, dict) else f"number {where[1] + 1}"
        dataset, where = f"dataset {name!r}, ", where[2:]
    methods = {"simulated", "local", "http", "dandi", "one", "manual"}
    key = ".".join(str(w) for i, w in enumerate(where) if not (w in methods and i and where[i - 1] == "access"))
    problem = {"extra_forbidden": "is not a key of the schema; check its spelling",
               "missing": "is missing; add it"}.get(error["type"])
    if not problem:
        message = error["msg"].removeprefix("Value error, ")
        problem = message if error["type"] == "value_error" else f"{message[:1].lower()}{message[1:]}, not {got!r:.80}"
    if error["type"] == "string_type" and isinstance(got, int | float) and not isinstance(got, bool):
        octal = f" (a number with a leading zero is read as octal: was it 0{got:o}?)" if isinstance(got, int) else ""
        problem += f"; quote it{octal}"
    return f"{dataset}{f'key {key!r}: ' if key else ''}{problem}"
