"""A linear map of its own for every session: many populations read into one space and out of it again.

A session's map is kept as one row a unit, under the unit's name, so that it follows its units in whatever order or
number they come, and a new session adds its rows. (Keyed by session: two sessions with as many units share nothing.)
"""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, pad

from workbench.batch import SpikeBatch
from workbench.nn.vocabulary import Vocabulary
from workbench.session import Session

Made = Callable[[Tensor], Tensor]
AS_IT_IS = nn.Identity()


def unit_weights(batch: SpikeBatch, table: Vocabulary, made: Made = AS_IT_IS) -> Tensor:
    """The rows of every window's units [B, N, D], zeros where a window has fewer units than others. made: what to make
    of rows [R, D] beforehand, once a unit and not once a window.
    """
    rows, which = table.of_units(batch)
    return padded(made(table(rows)), batch.unit_mask, which)


def window_weights(batch: SpikeBatch, table: Vocabulary, made: Made = AS_IT_IS) -> Tensor:
    """The same, or once for all windows [1, N, D] where they hold the same units, which broadcasts and costs less."""
    shared = shared_weights(batch, table)
    return unit_weights(batch, table, made) if shared is None else made(shared)[None]


def shared_weights(batch: SpikeBatch, table: Vocabulary) -> Tensor | None:
    """The rows [N, D] where all windows hold the same units: one matrix for the batch, and not a copy a window."""
    return table(table.unit_rows(batch)[:int(batch.unit_offsets[1])]) if batch.alike else None


def padded(values: Tensor, there: Tensor, which: Tensor | None = None) -> Tensor:
    """Values [U, D], or of values [R, D] those at `which` [U], in their order where `there` [B, N] is true, and zeros
    elsewhere [B, N, D].
    """
    # Not by masked_scatter, whose gradient took a quarter to half of a training step (`python -m benchmarks mixed`).
    place = there.flatten().cumsum(0).view_as(there) * there
    place = place if which is None else pad(which + 1, (1, 0))[place]
    return embedding(place, torch.cat([values.new_zeros(1, values.shape[1]), values]), padding_idx=0)


class ReadIn(nn.Module):
    """Activity of each session's units → `dim` shared features; units and sessions are names as in a model.

    lags: how many bins a feature sees, its own and those before it; a unit's row holds a vector for each.
    """

    def __init__(self, units: Sequence[str], sessions: Sequence[str], dim: int, lags: int = 1):
        super().__init__()
        self.lags, std = lags, (len(sessions) / max(len(units), 1) / lags / 3) ** 0.5
        self.units = Vocabulary("unit", units, lags * dim, std=std)
        self.bias = Vocabulary("session", sessions, dim, std=0.0)

    def forward(self, activity: Tensor, batch: SpikeBatch) -> Tensor:
        """activity [B, N, T], columns as in `batch.counts` → [B, T, dim]."""
        bias, weight = self.bias(self.bias.session_rows(batch))[:, None], shared_weights(batch, self.units)
        weight = unit_weights(batch, self.units) if weight is None else weight
        if self.lags > 1:
            activity = pad(activity, (self.lags - 1, 0)).unfold(2, self.lags, 1).transpose(2, 3).flatten(1, 2)
            weight = weight.unflatten(-1, (self.lags, -1)).flatten(-3, -2)                  # [(B,) N × lags, dim]
        x = activity.transpose(1, 2)
        return x @ weight + bias if weight.ndim == 2 else torch.baddbmm(bias, x, weight)


class ReadOut(nn.Module):
    """`dim` shared features → one value for each unit of the session."""

    def __init__(self, units: Sequence[str], dim: int):
        super().__init__()
        self.units = Vocabulary("unit", units, dim + 1, std=(1 / dim / 3) ** 0.5)        # the last column: the bias

    def forward(self, features: Tensor, batch: SpikeBatch) -> Tensor:
        """features [B, T, dim] → [B, N, T]; columns of units that a window lacks hold 0."""
        shared = shared_weights(batch, self.units)
        if shared is not None:
            return linear(features, shared[:, :-1], shared[:, -1]).transpose(1, 2)
        weight = unit_weights(batch, self.units)
        return torch.baddbmm(weight[..., -1:], weight[..., :-1], features.transpose(1, 2))

    @torch.no_grad()
    def start_at_(self, sessions: Sequence[Session], bin_size: float, but: Collection[str] = ()) -> None:
        """Biases at the log of each unit's mean count a bin, so that what is left to learn is how it varies.

        but: names of units that keep theirs.
        """
        means = {f"{s.id}/{unit}": rate * bin_size for s in sessions
                 for unit, rate in zip(s.units["id"], s.rates().tolist(), strict=True)}
        names = sorted(means.keys() - set(but))
        weight = self.units.weight
        weight[self.units.rows(names), -1] = weight.new_tensor([means[name] for name in names]).clamp(min=1e-4).log()


class SessionMap(nn.Module):
    """One vector for another, of a behaviour say, by a map that each session keeps as a single row under its name."""

    def __init__(self, sessions: Sequence[str], inputs: int, outputs: int):
        super().__init__()
        self.outputs = outputs
        self.rows = Vocabulary("session", sessions, (inputs + 1) * outputs, std=(1 / inputs / 3) ** 0.5)

    def forward(self, x: Tensor, batch: SpikeBatch) -> Tensor:
        """x [B, T, inputs] → [B, T, outputs]."""
        weight = self.rows(self.rows.session_rows(batch)).unflatten(-1, (-1, self.outputs))
        return torch.baddbmm(weight[:, -1:], x, weight[:, :-1])             # the last row: the bias
