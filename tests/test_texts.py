"""What the texts say can be done can be done: their commands parse, their links lead somewhere, their code runs."""

import argparse
import re
import shlex
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

from workbench import open_catalog
from workbench.__main__ import _parser
from workbench.errors import WorkbenchError
from workbench.training.recipe import Recipe
from workbench.training.sweep import experiment

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ("README.md", "CONTRIBUTING.md", "docs/results.md", "THIRD_PARTY.md")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)
MAKE = (ROOT / "Makefile").read_text(encoding="utf-8")


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def commands(text: str) -> list[list[str]]:
    """`make …` and `python -m …` commands, in code blocks and in the running text, as lists of words."""
    shell = [block for language, block in BLOCK.findall(text) if language in ("", "bash")]
    lines = [line for block in shell for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))
    return [shlex.split(line, comments=True) for line in lines if line.startswith(("make ", "python -m "))]


def blocks(name: str, language: str) -> list[str]:
    return [block for found, block in BLOCK.findall(text_of(name)) if found == language]


# Commands


COMMANDS = [(name, words) for name in TEXTS for words in commands(text_of(name))]


@pytest.mark.parametrize(("name", "words"), COMMANDS, ids=[f"{name}: {' '.join(words)}" for name, words in COMMANDS])
def test_a_command_of_the_texts_would_start(name, words):
    if words[0] == "make":
        goals = [word for word in words[1:] if "=" not in word]
        assert goals and all(re.search(rf"^{re.escape(goal)}:", MAKE, re.M) for goal in goals)
        for variable in (word.partition("=")[0] for word in words[1:] if "=" in word):
            assert re.search(rf"^(ifdef )?{variable}\b|^{variable}\s*\?=", MAKE, re.M), variable
    elif words[2] == "workbench":
        would_start(words[3:])
    else:
        package = words[2].split(".")[0]
        tool = {"pytest", "ruff"} & {package}
        assert tool or any(ROOT.joinpath(*words[2].split(".")).with_suffix(end).exists() for end in ("", ".py"))


def would_start(words: list[str]) -> None:
    """As `workbench.__main__.main` reads a command, up to where it would begin to work."""
    args, rest = _parser().parse_known_args(words)
    if "settings" in args:
        args.settings += [word for word in rest if "=" in word and not word.startswith("-")]
        rest = [word for word in rest if word not in args.settings]
    assert not rest, rest
    if args.name == "train" and args.recipe != "RECIPE":
        Recipe.load(args.recipe).override(args.settings)
    if args.name == "sweep":
        experiment(args.experiment, args.settings)
    if args.name == "prepare":
        assert args.dataset in open_catalog()


def test_a_wrong_command_is_noticed():
    assert len(COMMANDS) > 10
    for words in (["train", "poyo-reech"], ["train", "demo", "optim.lrr=3"], ["sweep", "maskin"]):
        with pytest.raises(WorkbenchError, match=r"poyo-reach|optim\.lr|masking"):
            would_start(words)
    with pytest.raises(AssertionError):
        would_start(["train", "demo", "--ran", "x"])
    with pytest.raises((SystemExit, argparse.ArgumentError)):
        would_start(["trian", "demo"])


# Links


@pytest.mark.parametrize("name", TEXTS)
def test_links_and_files_that_a_text_names_are_there(name):
    text, folder = text_of(name), (ROOT / name).parent
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        address = urlsplit(link)
        if not address.scheme and address.path:
            assert (folder / unquote(address.path)).exists(), link
        for path in parse_qs(address.query).get("urlpath", []):
            assert opens(path), link
    for path in re.findall(r"`(lab/tree/[^`]*|workbench/(?:\?[^`]*)?)`", text):
        assert opens(path), path
    for path in re.findall(r"`((?:workbench|sources|tests|docs|binder|notebooks)/[\w/.-]+\.\w+)`", text):
        made = path.startswith("docs/html/") or "NN_" in path           # by make; a name that stands for many
        assert made or any((ROOT / where / path).exists() for where in ("", "workbench")), path


def opens(path: str) -> bool:
    """Whether what Binder is asked to open, after the address of its Jupyter server, is in this repository."""
    from workbench.apps.main import DASHBOARDS

    address = urlsplit(path)
    if address.path.startswith("lab/tree/"):
        return (ROOT / unquote(address.path).removeprefix("lab/tree/")).exists()
    apps = parse_qs(address.query).get("app", [])
    return address.path == "workbench/" and all(app in DASHBOARDS for app in apps)


# CONTRIBUTING.md


def test_the_model_of_the_guide_decodes_as_the_others_do(monkeypatch):
    from tests.models.small import SMALL
    from tests.models.test_models import trained, tuned
    from workbench import models
    from workbench.analysis.decoding import score

    monkeypatch.setattr(models, "_OWN", {})
    block = next(block for block in blocks("CONTRIBUTING.md", "python") if "@models.register" in block)
    exec(compile(block, "CONTRIBUTING.md", "exec"), {})
    (name,) = models._OWN
    monkeypatch.setitem(SMALL, name, {})
    session = tuned()
    model, (parts,) = trained(name, [session], steps=100)
    assert score(model, [session], [parts["test"]], "vel")["r2"] > 0.6


def test_the_dataset_of_the_guide_opens_by_name(tmp_path, monkeypatch):
    from workbench.sources.simulated import reach_sim

    (entry,) = blocks("CONTRIBUTING.md", "yaml")
    name = yaml.safe_load(entry)["datasets"][0]["id"]
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "recordings").mkdir()
    reach_sim(0, seconds=6, units=8).to_nwb(tmp_path / "recordings" / "day_0.nwb")
    (tmp_path / "mine.yaml").write_text(entry)
    monkeypatch.setenv("WORKBENCH_CATALOG", str(tmp_path / "mine.yaml"))
    assert len(open_catalog().open(name).units) == 8


def test_the_dashboard_of_the_guide_shows_a_session():
    from workbench.apps.main import DASHBOARDS
    from workbench.sources.simulated import reach_sim

    block = next(block for block in blocks("CONTRIBUTING.md", "python") if "(Dashboard)" in block)
    space: dict = {"__name__": "workbench.apps.rates"}
    exec(compile(block, "CONTRIBUTING.md", "exec"), space)
    view = next(v for k, v in space.items() if k == "Rates")(reach_sim(0, seconds=6, units=8))
    assert view.__panel__().get_root() is not None
    assert space["app"] and "rates" not in DASHBOARDS


# Whose work it is


def dependencies() -> list[str]:
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    asked = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    return sorted({re.split(r"[\[<>=!~; ]", one)[0] for one in asked} - {project["name"]}, key=str.lower)


def test_every_direct_dependency_is_listed_with_the_licence_that_it_says():
    from docs.third_party import licence

    rows = dict(re.findall(r"^\| \[?([\w.-]+)[^|]*\| ([^|]+) \|", text_of("THIRD_PARTY.md"), re.M))
    assert sorted(set(dependencies()) - set(rows)) == []
    for name in dependencies():
        try:
            said = licence(metadata(name))
        except PackageNotFoundError:
            continue
        assert rows[name].strip() == said, f"run `python -m docs.third_party`: {name} is under {said}"


def test_the_citation_names_what_is_here():
    cff = yaml.safe_load(text_of("CITATION.cff"))
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    assert cff["cff-version"] == "1.2.0" and cff["message"] and cff["type"] == "software"
    assert cff["title"] and cff["version"] == project["version"] and cff["license"] == project["license"]
    assert cff["authors"] == [{"name": "The spike workbench contributors"}] and "doi" not in cff
