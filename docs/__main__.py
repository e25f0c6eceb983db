"""The pages of the API from its docstrings, offline: `make docs`, or `python -m docs FOLDER`.

    index.html            the rooms, with the drawing of who imports from whom
    <room>.html           a page a room: each of its modules, each public name with its signature and first sentence
    workbench/….html      the page that pdoc makes of each module, in full
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path

import pdoc
import pdoc.doc
import pdoc.render
from markupsafe import Markup, escape

from docs import drawing, rooms

HERE = Path(__file__).resolve().parent
HERE_AND_NOW = re.compile(rf"{re.escape(str(rooms.ROOT))}/| at 0x[0-9a-f]+")      # what the next build would not repeat
COLUMNS = re.compile(r"\S+( \S+)* {2,}\S")                           # "bin_size  seconds of its bins"


def build(folder: Path, only: Collection[str] = ()) -> list[Path]:
    """Write the pages of all modules, or of `only` these and `workbench` itself, into a folder; returns them."""
    warnings.simplefilter("ignore")                                     # annotations that only type checkers can read
    os.environ["PANEL_INLINE"] = "true"                                 # importing a dashboard asks no network
    pdoc.render.configure(docformat="markdown", show_source=False, search=False, template_directory=HERE / "templates")
    env = pdoc.render.env
    env.filters |= {"to_markdown": laid_out, "first": first_sentence, "room": rooms.room_of}
    env.globals |= {"rooms": rooms.ROOMS}
    files = rooms.modules()
    wanted = [name for name in files if not private(name) and (not only or name in {"workbench", *only})]
    documented = {name: module for name in wanted if (module := documentation(name))}
    pages = {f"{name.replace('.', '/')}.html": pdoc.render.html_module(module, documented)
             for name, module in documented.items()}
    found = rooms.imports()
    sizes = {room: sum(rooms.room_of(name) == room for name in files) for room in rooms.ROOMS}
    shown = {"drawing": drawing.svg(rooms.arrows(found), sizes), "sizes": sizes}
    with pdoc.render.defuse_unsafe_reprs():
        pages["index.html"] = env.get_template("index.html.jinja2").render(all_modules=documented, **shown)
        for room in rooms.ROOMS:
            inside = [module for name, module in documented.items() if rooms.room_of(name) == room]
            pages[f"{room}.html"] = env.get_template("room.html.jinja2").render(
                room=room, modules=inside, all_modules=documented, module=documented["workbench"], **shown)
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(HERE_AND_NOW.sub("", text), encoding="utf-8")
    return sorted(folder / name for name in pages)


def private(module: str) -> bool:
    return any(part.startswith("_") for part in module.split("."))


def documentation(module: str) -> pdoc.doc.Module | None:
    """What pdoc knows of a module; None where it needs a package that is not here."""
    try:
        return pdoc.doc.Module.from_name(module)
    except RuntimeError as error:
        print(f"no page for {module}: {error.__cause__ or error}", file=sys.stderr)
        return None


def laid_out(docstring: str) -> str:
    """A docstring as Markdown: paragraphs in columns stay as they were typed."""
    return "\n\n".join("\n".join(f"    {line}" for line in lines) if any(map(COLUMNS.match, lines)) else
                       "\n".join(lines) for lines in paragraphs(docstring))


def paragraphs(text: str) -> Iterator[list[str]]:
    for part in re.split(r"\n\s*\n", text.strip("\n")):
        yield part.splitlines()


def first_sentence(docstring: str) -> Markup:
    said = re.split(r"(?<=\.)\s", " ".join(docstring.strip().partition("\n\n")[0].split()))[0]
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(said))))


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else HERE / "html")
    print(f"{len(build(out))} pages: {out / 'index.html'}")
