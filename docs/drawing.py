"""The drawing of the rooms: who imports from whom, as arcs, in SVG.

    above the rooms   imports from a room to the left: the way data flows
    below             imports from a room to the right; dashed where a function does it when it is called
"""

from __future__ import annotations

import html

from docs.rooms import ROOMS, Import

WIDTH, GAP, HEIGHT = 136, 10, 54                                        # of a box, between boxes, of a box
STEP, MARGIN = 26, 20                                                   # height of an arc for each room it spans
STYLE = """
  .house { --ink: #1f2933; --box: #eef4fa; --edge: #0072b2; --with: #0072b2; --against: #b35900; }
  @media (prefers-color-scheme: dark) {
    .house { --ink: #e6e6e6; --box: #1e2a35; --edge: #56b4e9; --with: #56b4e9; --against: #f0a35e; }
  }
  .house text { fill: var(--ink); font: 16px system-ui, sans-serif; text-anchor: middle; }
  .house .small { font-size: 13px; opacity: .8; }
  .house rect { fill: var(--box); stroke: var(--edge); }
  .house path { fill: none; stroke-opacity: .75; }
  .house .with { stroke: var(--with); } .house .against { stroke: var(--against); }
  .house .later { stroke-dasharray: 5 4; }
"""


def svg(arrows: dict[tuple[str, str], list[Import]], sizes: dict[str, int]) -> str:
    """`arrows` as from `rooms.arrows`; `sizes`: how many modules a room has."""
    names = list(ROOMS)
    spans = [names.index(a) - names.index(b) for a, b in arrows]
    above, below = (max([s * sign for s in spans if s * sign > 0], default=0) * STEP + MARGIN for sign in (1, -1))
    width, height = len(names) * (WIDTH + GAP) - GAP + 2 * MARGIN, above + HEIGHT + below + 2 * MARGIN
    top = above + MARGIN
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" class="house" viewBox="0 0 {width} {height}" role="img">',
             "<title>Which room of the workbench imports from which</title>", f"<style>{STYLE}</style>", "<defs>"]
    parts += [f'<marker id="{kind}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto" '
              f'markerUnits="userSpaceOnUse"><path class="{kind}" style="fill: var(--{kind})" d="M1 1 L7 4 L1 7 z"/>'
              "</marker>" for kind in ("with", "against")]
    parts.append("</defs>")
    ports = _ports(arrows, names)
    for (a, b), found in sorted(arrows.items()):
        span = names.index(a) - names.index(b)
        kind, y, bend = ("with", top, -1) if span > 0 else ("against", top + HEIGHT, 1)
        later = " later" if all(one.later for one in found) else ""
        x1, x2 = ports[a, b]
        peak = y + bend * (abs(span) * STEP + 6)
        told = "; ".join(sorted({f"{one.importer} imports {one.imported}" for one in found}))
        thick = min(1 + len({one.importer for one in found}) / 8, 3.5)
        parts.append(f'<path class="{kind}{later}" stroke-width="{thick:.2f}" marker-end="url(#{kind})" '
                     f'd="M{x1:.1f} {y} C{x1:.1f} {peak} {x2:.1f} {peak} {x2:.1f} {y + bend * 2}">'
                     f"<title>{html.escape(told)}</title></path>")
    for k, name in enumerate(names):
        x, count = MARGIN + k * (WIDTH + GAP), sizes[name]
        parts.append(f'<a href="{name}.html"><rect x="{x}" y="{top}" width="{WIDTH}" height="{HEIGHT}" rx="8"/>'
                     f'<text x="{x + WIDTH / 2}" y="{top + 24}">{html.escape(ROOMS[name].title)}</text>'
                     f'<text class="small" x="{x + WIDTH / 2}" y="{top + 42}">{count} modules</text></a>')
    return "\n".join([*parts, "</svg>\n"])


def _ports(arrows, names: list[str]) -> dict[tuple[str, str], tuple[float, float]]:
    """Where each arc leaves and arrives: side by side along the edge of a box, so that arcs of one box do not cross."""
    ends: dict[tuple[str, bool], list] = {}
    for a, b in arrows:
        up = names.index(a) > names.index(b)
        for here, other in ((a, b), (b, a)):
            ends.setdefault((here, up), []).append((names.index(other), (a, b), here == a))
    places: dict[tuple[tuple[str, str], bool], float] = {}
    for (here, _), those in ends.items():
        k = names.index(here)                                           # arcs to the left first; near inside far ones
        order = sorted(those, key=lambda end: (end[0] > k, -end[0]))
        for i, (_, pair, starts) in enumerate(order):
            places[pair, starts] = MARGIN + k * (WIDTH + GAP) + WIDTH * (i + 1) / (len(order) + 1)
    return {pair: (places[pair, True], places[pair, False]) for pair in arrows}
