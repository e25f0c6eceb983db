"""THIRD_PARTY.md: `python -m docs.third_party` writes it, from pyproject.toml and the metadata of what is installed.

A package that is not installed keeps the line that it has.
"""

from __future__ import annotations

import re
import tomllib
from email.message import Message
from importlib.metadata import PackageNotFoundError, metadata

from docs.rooms import ROOT

FILE = ROOT / "THIRD_PARTY.md"
SILENT = "its metadata does not say"
HEAD = """\
# Third-party notices

## In this repository

- `workbench/models/poyo.py`, `workbench/models/poyo_plus.py`, `workbench/models/capoyo.py` and `workbench/nn/perceiver.py`: their structure follows [torch_brain](https://github.com/neuro-galaxy/torch_brain) (Apache-2.0), re-implemented. `POYO.from_torch_brain` loads its weights; none are shipped.
- Every other model is written anew from its paper, which the first lines of its file name together with where it departs from it.
- `workbench/images/weights/`: this project's own, trained on pictures that its own code draws (Apache-2.0; `model_card.md` there says how). No other weights are shipped.
- `workbench/sources/allen_regions.csv`: numbers and acronyms of the structures of the Allen Mouse Brain Atlas, as iblatlas 1.3.0 (MIT) gives them.
- No recording is shipped. What `data_catalog.yaml` fetches keeps its own licence, which the catalog names.

## Direct dependencies

Installed beside the workbench and not part of it. The licence is what the package's own metadata says. Written by `python -m docs.third_party`.

| package | licence | wanted by |
| --- | --- | --- |
"""  # noqa: E501


def licence(about: Message) -> str:
    """The licence that a package's metadata names: as an expression, else by its short text, else by classifier."""
    text = (about.get("License-Expression") or about.get("License") or "").strip()
    if text and "\n" not in text and len(text) < 120:
        return text
    classes = about.get_all("Classifier") or []
    return next((c.rpartition(" :: ")[2] for c in classes if c.startswith("License :: OSI Approved ::")), SILENT)


def dependencies() -> dict[str, list[str]]:
    """Package → who wants it: the workbench itself, or its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted: dict[str, list[str]] = {}
    for extra, asked in {"workbench": project["dependencies"], **project["optional-dependencies"]}.items():
        for name in (re.split(r"[\[<>=!~; ]", one)[0] for one in asked):
            if name != project["name"]:
                wanted.setdefault(name, []).append(extra)
    return dict(sorted(wanted.items(), key=lambda item: item[0].lower()))


def table(before: str) -> str:
    kept = dict(re.findall(r"^\| ([\w.-]+) \| ([^|]+) \|", before, re.M))
    rows = []
    for name, extras in dependencies().items():
        try:
            said = licence(metadata(name))
        except PackageNotFoundError:
            said = kept.get(name, SILENT)
        rows.append(f"| {name} | {said} | {', '.join(extras)} |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    FILE.write_text(table(FILE.read_text(encoding="utf-8") if FILE.exists() else ""), encoding="utf-8")
