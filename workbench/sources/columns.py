"""Tables as plain columns, for file formats that know only arrays of numbers and of text.

    DataFrame → columns → [Column(name, values, missing)] → a file → table → the same DataFrame
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from workbench.errors import BadRecording


class Column(NamedTuple):
    """One column of a table: numbers or truth values [n], or text as an object array of str [n]; rows without text."""

    name: str
    values: np.ndarray
    missing: list[int]

    @property
    def text(self) -> bool:
        return self.values.dtype == object


def columns(table: pd.DataFrame, where: str) -> list[Column]:
    """The columns of the table, each as numbers or as text. BadRecording, naming `where`, for lists and the like."""
    if not table.columns.is_unique:
        twice = table.columns[table.columns.duplicated()][0]
        raise BadRecording(f"{where} has two columns named {twice!r}; rename one")
    return [_column(str(name), table[name], where) for name in table.columns]


def _column(name: str, column: pd.Series, where: str) -> Column:
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf":
        return Column(name, column.to_numpy(), [])
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object)
    kind = pd.api.types.infer_dtype(column, skipna=True)
    empty = column.isna().to_numpy(bool)
    if kind in ("integer", "floating", "mixed-integer-float", "decimal", "boolean"):
        whole = column.to_numpy(np.float64, na_value=np.nan) if empty.any() else np.array(column.tolist())
        return Column(name, whole, [])
    if kind not in ("string", "empty"):
        odd = next((v for v in column if isinstance(v, (list, tuple, set, dict, np.ndarray))), None)
        if odd is not None:
            raise BadRecording(f"{where} has a {type(odd).__name__} in its column {name!r}, which no file can hold; "
                               "split it into columns of numbers or text, or drop it")
    text = [v.decode("utf-8", "replace") if isinstance(v, bytes) else "" if gone else str(v)
            for v, gone in zip(column, empty, strict=True)]
    return Column(name, np.array(text, object), np.flatnonzero(empty).tolist())


def table(found: Iterable[Column]) -> pd.DataFrame:
    """The DataFrame of those columns."""
    data = {}
    for name, values, missing in found:
        if values.dtype == object:
            values = values.copy()
            values[missing] = None
            values = pd.Series(values, dtype="str" if pd.__version__ >= "3" else object)
        data[name] = values
    return pd.DataFrame(data)


def file_name(name: str, taken: Collection[str]) -> str:
    """A name for `name` inside a file, a plain identifier that is not yet `taken`: 'dF/F' → 'dF_F'."""
    plain = re.sub(r"\W", "_", name, flags=re.ASCII).lstrip("_") or "unnamed"
    while plain in taken:
        plain += "_"
    return plain


def stacked(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Several tables of events as one, in order of start; where there are several, `table` names each row's own."""
    if not tables:
        return pd.DataFrame({"start": np.empty(0), "stop": np.empty(0)})
    if len(tables) == 1:
        return next(iter(tables.values())).reset_index(drop=True)
    named = [rows.assign(table=name) for name, rows in tables.items()]
    whole = pd.concat(named, ignore_index=True).sort_values("start", kind="stable", ignore_index=True)
    return whole[["start", "stop", "table", *(c for c in whole if c not in ("start", "stop", "table"))]]
