"""Embeddings by name: one learned row a unit or a session, that grows when new ones are met.

Row 0 belongs to no name ("NA"), as in torch_brain, so that tables can be exchanged with it.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from workbench.batch import SpikeBatch
from workbench.errors import UnknownName


class Vocabulary(nn.Module):
    """words → rows of `weight` [1 + len(words), dim], drawn from N(0, std²)."""

    def __init__(self, kind: str, words: Iterable[str], dim: int, std: float = 0.02):
        super().__init__()
        self.kind, self.std = kind, std
        self.words = list(words)
        self.row = {word: i for i, word in enumerate(self.words, start=1)}
        self.weight = nn.Parameter(torch.randn(1 + len(self.words), dim) * std)
        self._of_session: dict[str, tuple[tuple[str, ...], Tensor]] = {}

    def extend(self, words: Iterable[str]) -> None:
        """Add rows for the words that are not there yet; the others keep theirs. Make the optimizer afterwards."""
        new = [word for word in dict.fromkeys(words) if word not in self.row]
        rows = torch.randn(len(new), self.weight.shape[1], device=self.weight.device) * self.std
        self.weight = nn.Parameter(torch.cat([self.weight.detach(), rows]), requires_grad=self.weight.requires_grad)
        self.row |= {word: i for i, word in enumerate(new, start=1 + len(self.words))}
        self.words += new
        self._of_session.clear()

    def rows(self, words: Sequence[str]) -> Tensor:
        """Rows of the words [n]. UnknownName for a word that the model has never seen."""
        for word in words:
            if word not in self.row:
                raise UnknownName(self.kind, word, self.words, where="the model's vocabulary",
                                  hint="the model has never seen it; train on its session, or extend the vocabulary")
        return torch.tensor([self.row[word] for word in words], dtype=torch.long, device=self.weight.device)

    def of_units(self, batch: SpikeBatch) -> tuple[Tensor, Tensor]:
        """The rows [R] of all units of the batch's sessions, each once, and for every entry of `batch.window_units`
        which of them is its [U]; a unit's word is '<session id>/<unit id>'.
        """
        lists, which = batch.present
        return torch.cat([self._session_rows(*each) for each in lists]), which

    def unit_rows(self, batch: SpikeBatch) -> Tensor:
        """The row of every entry of `batch.window_units` [U]."""
        rows, which = self.of_units(batch)
        return rows[which]

    def session_rows(self, batch: SpikeBatch) -> Tensor:
        """The row of the session of every window [B], for a vocabulary of sessions."""
        present, which = batch.session.unique(return_inverse=True)
        return self.rows([batch.sessions[i].id for i in present.tolist()])[which]

    def _session_rows(self, session: str, units: tuple[str, ...]) -> Tensor:
        known = self._of_session.get(session)
        if known is None or known[0] is not units or known[1].device != self.weight.device:
            # A vocabulary trained elsewhere may hold bare unit ids.
            words = [word if word in self.row or unit not in self.row else unit
                     for unit, word in ((unit, f"{session}/{unit}") for unit in units)]
            known = self._of_session[session] = (units, self.rows(words))
        return known[1]

    def forward(self, rows: Tensor) -> Tensor:
        return nn.functional.embedding(rows, self.weight)
