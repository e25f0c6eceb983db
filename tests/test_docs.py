"""The pages of the API and the drawing of the rooms are made from the code, and the rules of the house hold in it."""

import posixpath
import re
from itertools import pairwise
from pathlib import Path

import pytest

import workbench
from docs import drawing, rooms

FOUND = rooms.imports()


# The rules


def test_a_session_waits_for_no_torch():
    later = {one.imported for one in FOUND if one.importer == "workbench.session" and one.later}
    assert "torch" not in rooms.reached(FOUND, "workbench.session") | later


def test_models_import_no_sources_no_training_and_no_dashboards():
    forbidden = {"sources", "training", "apps", "analysis"}
    for module in (name for name in rooms.modules() if rooms.room_of(name) in ("models", "nn")):
        own = {one.imported for one in FOUND if one.importer == module}
        inside = [name for name in own | rooms.reached(FOUND, module) if name.split(".")[0] == "workbench"]
        assert not {rooms.room_of(name) for name in inside} & forbidden, module
        assert "workbench" not in own, f"{module} takes what it needs from the whole package"


def test_an_import_is_seen_wherever_it_hides(tmp_path):
    files = {"__init__": "_PLACES = {'launch': 'workbench.training.run'}", "training/run": "import torch",
             "models/a": "def f():\n    from workbench.training import run",
             "models/b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from workbench import launch",
             "models/c": "try:\n    from ..training.run import launch\nexcept ImportError:\n    pass"}
    for name, text in files.items():
        path = tmp_path / "workbench" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = rooms.imports(tmp_path / "workbench")
    told = {one.importer[-1]: one.later for one in found if one.imported == "workbench.training.run"}
    assert told == {"a": True, "b": True, "c": False}
    assert "torch" in rooms.reached(found, "workbench.models.c") and not rooms.reached(found, "workbench.models.a")


# The drawing


def test_every_module_has_a_room_and_every_arrow_an_arc():
    assert {rooms.room_of(name) for name in rooms.modules()} == {"", *rooms.ROOMS}
    with pytest.raises(LookupError, match=r"docs/rooms\.py"):
        rooms.room_of("workbench.attic")
    arrows = rooms.arrows(FOUND)
    picture = drawing.svg(arrows, dict.fromkeys(rooms.ROOMS, 1))
    assert picture == drawing.svg(dict(reversed(arrows.items())), dict.fromkeys(rooms.ROOMS, 1))
    assert picture.count("marker-end=") == len(arrows) > 10
    for room in rooms.ROOMS.values():
        assert room.title.replace("&", "&amp;") in picture


def test_arcs_that_leave_a_box_do_not_share_a_place():
    ports = drawing._ports(rooms.arrows(FOUND), list(rooms.ROOMS))
    for above in (True, False):
        order = {name: k for k, name in enumerate(rooms.ROOMS)}
        places = sorted(x for pair, ends in ports.items() if (order[pair[0]] > order[pair[1]]) == above for x in ends)
        assert all(b - a > 5 for a, b in pairwise(places))


# The pages


NAMES = {
    "session": ["Session.from_nwb", "Session.to_nwb", "Session.open", "Session.save", "Session.to_pynapple",
                "Session.select", "Session.between"],
    "catalog": ["open_catalog", "open_recording"],
    "batch": ["SpikeBatch", "SpikeBatch.counts", "SpikeBatch.patches", "SpikeBatch.drop"],
    "models": ["build", "available", "register"],
    "training.recipe": ["Recipe", "Recipe.preset", "Recipe.load", "Recipe.with_"],
    "training.launching": ["launch"],
    "training.run": ["Run", "Run.watch", "Run.wait", "Run.stop", "Run.resume", "Run.metrics", "Run.model",
                     "Run.result"],
}


def built(folder: Path, *only: str) -> dict[str, str]:
    pytest.importorskip("pdoc", reason="the extra `docs` is not installed")
    from docs.__main__ import build

    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in build(folder, only)}


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, str]:
    """Those with the names that everything else calls; `make docs` and a slow test make all."""
    return built(tmp_path_factory.mktemp("html"), *(f"workbench.{module}" for module in NAMES))


def test_public_names_are_on_the_page_of_their_room_and_on_their_own(pages):
    for module, names in NAMES.items():
        page = f"workbench/{module.replace('.', '/')}.html"
        room = pages[f"{rooms.room_of(f'workbench.{module}')}.html"]
        for name in names:
            assert f'id="{name}"' in pages[page] and f'href="{page}#{name}"' in room, name
    for name in workbench.__all__:
        assert f"<code>workbench.{name}</code>" in pages["index.html"]


def test_a_room_shows_arguments_and_first_sentences_as_they_are(pages):
    plain = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", pages["models.html"] + pages["data.html"]))
    assert "get (name: str) -&gt; type · The class of that name." in plain
    assert "register (model: type) -&gt; type · Know a SpikeModel of one&#39;s own under its name," in plain
    assert "Session.between (start: float, stop: float) -&gt; " in plain


def test_pages_ask_nobody_lead_somewhere_and_name_no_place_of_this_computer(pages):
    assert_kept(pages)


@pytest.mark.slow
def test_every_module_has_its_page(tmp_path):
    pages = built(tmp_path)
    assert_kept(pages)
    for module in set(rooms.modules()) - {"workbench", "workbench.models.cebra"}:       # cebra's package may be absent
        if "._" not in module:
            page = f"{module.replace('.', '/')}.html"
            assert page in pages and f'href="{page}"' in pages[f"{rooms.room_of(module)}.html"], module


def assert_kept(pages: dict[str, str]) -> None:
    for name, text in pages.items():
        assert not re.search(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"'](?:https?:)?//", text), name
        assert str(rooms.ROOT) not in text and str(Path.home()) not in text and " at 0x" not in text, name
        for link in set(re.findall(r'href="([^"#:]+\.html)', text)):
            assert posixpath.normpath(posixpath.join(posixpath.dirname(name), link)) in pages, f"{name} leads to {link}"
