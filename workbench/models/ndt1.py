"""NDT1, a masked transformer over binned population vectors: the first of the neural data transformers.

Ye & Pandarinath 2021, arXiv 2108.01210; their code is in the public domain (Unlicense).

    counts [B, N, T], some hidden → read-in × √dim + position [B, T, dim]
        → `depth` encoder layers, each bin seeing `back` bins before it and `ahead` after it → latents [B, T, dim]
        → read-out → log_rates [B, N, T], scored by the Poisson likelihood of what was hidden

Two ways in: "linear", the counts as they are, and "counts", where a count first looks up `lookup` learned numbers.
Layers are normed first and start small (T-Fixup), as in the authors' entries to the Neural Latents Benchmark.

Departs from the authors' code: maps in and out hold a row a unit, so that several sessions share one encoder (theirs
knows one session); a bin is one token of width `dim` in both ways in (theirs may be as wide as the population);
masking by neuron hides neurons (theirs follows the wrong axis); the chance of wide spans stands still during training
(theirs rises); the bias of the read-out starts at each unit's mean rate.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from workbench.batch import SpikeBatch
from workbench.errors import UnknownName
from workbench.losses import poisson_nll
from workbench.models.base import Output
from workbench.models.masked import Masked
from workbench.nn.masker import Masker
from workbench.nn.position import Position
from workbench.nn.stitcher import ReadIn, ReadOut
from workbench.nn.transformer import Transformer, band


class NDT1(Masked):
    """units, sessions and held_out are names ('<session id>/<unit id>'); bin_size and window in seconds.

    ahead, back: bins of context, None for the whole window. mask, ratio, span, expand, silent, random: see `Masker`.
    The defaults are the paper's, layers as in its entries to the benchmark.
    """

    name = "ndt1"

    def __init__(self, *, units: Sequence[str], sessions: Sequence[str], held_out: Sequence[str] = (),
                 bin_size: float = 0.02, window: float = 1.0, embedding: str = "linear", lookup: int = 2,
                 max_count: int = 20, position: str = "sinusoidal", dim: int = 128, depth: int = 4, heads: int = 2,
                 inner: int = 128, ahead: int | None = 4, back: int | None = 8, dropout: float = 0.1,
                 embedding_dropout: float = 0.2, rate_dropout: float = 0.2, mask: str = "time", ratio: float = 0.25,
                 span: int = 5, expand: float = 0.5, silent: float = 1.0, random: float = 0.5):
        super().__init__()
        if embedding not in ("linear", "counts"):
            raise UnknownName("embedding", embedding, ("linear", "counts"), where="NDT1's ways in")
        self.bin_size, self.window, self.ahead, self.back = bin_size, window, ahead, back
        self.lookup = nn.Embedding(max_count + 1, lookup) if embedding == "counts" else None
        self.read_in = nn.ModuleList(ReadIn(units, sessions, dim) for _ in range(lookup if self.lookup else 1))
        self.position = Position(position, max(round(window / bin_size), 1), dim)
        self.embedding_dropout, self.rate_dropout = nn.Dropout(embedding_dropout), nn.Dropout(rate_dropout)
        self.encoder = Transformer(dim, depth, heads, inner, dropout=dropout, activation="relu")
        self.encoder.tfixup_()
        self.read_out = ReadOut(units, dim)
        self.masker = Masker(self.read_out.units, held_out, mode=mask, ratio=ratio, span=span, expand=expand,
                             silent=silent, random=random)

    def predict(self, counts: Tensor, batch: SpikeBatch) -> Output:
        """The same from counts [B, N, T] as they are given."""
        parts = self.lookup(counts.long().clamp(max=self.lookup.num_embeddings - 1)).unbind(-1) if self.lookup else \
            [counts]
        x = sum(read_in(part, batch) for read_in, part in zip(self.read_in, parts, strict=True))
        x = self.embedding_dropout(self.position(x * x.shape[-1] ** 0.5))
        latents = self.encoder(x, mask=band(x.shape[1], self.ahead, self.back, x.device))
        return Output(log_rates=self.read_out(self.rate_dropout(latents), batch), latents=latents)

    def loss(self, batch: SpikeBatch) -> dict[str, Tensor]:
        """Poisson negative log-likelihood of hidden counts, nats per hidden entry."""
        counts = batch.counts(self.bin_size)
        seen, scored = self.masker(counts, self.masker.held_out(self.read_out.units, batch), batch.unit_mask)
        return {"loss": poisson_nll(self.predict(seen, batch).log_rates, counts, where=scored)}
