"""Colours of rows and lines: Okabe & Ito's, told apart by colour-blind readers, and viridis without its lightest part.

For plots on a light ground, which they have in a page and in a cell.
"""

from __future__ import annotations

import html

import numpy as np
import pandas as pd

from workbench.analysis.raster import natural_order

CATEGORIES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#6e6e6e", "#332288"]
SCALE = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#a5c11f"]


def row_colors(values: pd.Series | None, name: str, units: int) -> tuple[np.ndarray, list[str], str]:
    """The colour group of every unit [N], the colour of every group, and a legend as HTML.

    values: what is coloured by, one a unit, names or numbers (by rank); None for one colour. name: of `values`.
    """
    if values is None or values.nunique() < 2:
        return np.zeros(units, int), ["#1b1b1b"], ""
    if not pd.api.types.is_numeric_dtype(values):
        names = sorted(values.unique(), key=natural_order)
        groups = pd.Categorical(values, names).codes
        colors = [CATEGORIES[i % len(CATEGORIES)] for i in range(len(names))]
        entries = [swatch(color) + html.escape(str(said))
                   for color, said in zip(colors[:24], names[:24], strict=True)]
    else:
        number = values.to_numpy(float)
        rank = pd.Series(number).rank(pct=True).fillna(0).to_numpy()    # else a few fast units would take all colours
        groups, colors = np.minimum((rank * len(SCALE)).astype(int), len(SCALE) - 1), SCALE
        low, high = (f"{v:,.0f}" if abs(v) >= 1000 else f"{v:.3g}" for v in (np.nanmin(number), np.nanmax(number)))
        entries = [low, swatch(*SCALE, width=120),
                   f"{high} (coloured by rank)"]
    label = f'<span style="opacity:.7;margin-right:10px">{html.escape(name)}</span>'
    return groups.astype(int), colors, f'<div style="font-size:12px">{label}{"".join(entries)}</div>'


def swatch(*colors: str, width: int = 11) -> str:
    """A box in a legend, of one colour or from the first to the last; on white, as figures are on a dark page too."""
    fill = ",".join(colors if len(colors) > 1 else 2 * colors)
    return (f'<span style="display:inline-block;height:11px;width:{width}px;margin:0 4px 0 8px;'
            f'border:2px solid #fff;box-sizing:content-box;vertical-align:-3px;'
            f'background:linear-gradient(90deg,{fill}) content-box #fff"></span>')
