"""STNDT, a masked transformer that looks across bins and across channels of the population.

Le & Shlizerman 2022, NeurIPS, arXiv 2206.04727; their code is under MIT.

    counts [B, N, T], some hidden → read-in → channels [B, T, dim]
        bins:      channels × √dim + position → T tokens of width dim ──→ attention over bins, feed-forward → Z
        channels:  linear over time × √T + position → dim tokens of width T → attention over channels: weights A alone
        Z + A Z, feed-forward → the next layer's bins, and transposed its channels → … → read-out → log_rates [B, N, T]

Scored by the Poisson likelihood of hidden counts, and by a contrast: two views of a window, each corrupted anew, have
to find each other among all windows of the batch, by their embeddings in either stream.

Departs from the authors' code: maps in and out hold a row a unit, so that several sessions share one model, and the
tokens across space are `dim` shared channels in every layer (theirs are neurons in the first layer, and mixtures of
them in the others); the value half of the spatial attention, which theirs computes and drops, is not there.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import relu

from workbench.batch import SpikeBatch
from workbench.errors import WorkbenchError
from workbench.losses import nt_xent, poisson_nll
from workbench.masking import corrupt, draw
from workbench.models.base import Output
from workbench.models.masked import Masked
from workbench.nn.masker import Masker
from workbench.nn.position import Position
from workbench.nn.stitcher import ReadIn, ReadOut
from workbench.nn.transformer import Transformer, band


class STNDT(Masked):
    """units, sessions and held_out are names ('<session id>/<unit id>'); bin_size and window in seconds.

    ahead, back: bins of context of the attention over bins, None for the whole window; attention over channels sees
    the whole window always, so that no setting makes the model causal. mask, ratio, span, expand, silent, random: see
    `Masker`. contrast: weight of the contrast, 0 for none; view_ratio: share of entries that a view corrupts, half
    of them to silence and a quarter to random counts. The defaults are the paper's for MC_Maze.
    """

    name = "stndt"

    def __init__(self, *, units: Sequence[str], sessions: Sequence[str], held_out: Sequence[str] = (),
                 bin_size: float = 0.02, window: float = 1.0, dim: int = 128, depth: int = 4, heads: int = 2,
                 inner: int = 128, ahead: int | None = None, back: int | None = None, dropout: float = 0.1,
                 embedding_dropout: float = 0.2, rate_dropout: float = 0.2, mask: str = "entry", ratio: float = 0.25,
                 span: int = 1, expand: float = 0.0, silent: float = 1.0, random: float = 0.5, contrast: float = 0.1,
                 view_ratio: float = 0.05, temperature: float = 0.07):
        super().__init__()
        bins = max(round(window / bin_size), 1)
        if dim % heads or bins % heads:
            raise WorkbenchError(f"{heads} heads of STNDT do not divide both its width of {dim} and its windows of "
                                 f"{bins} bins; choose heads=, dim= or window= so that they do")
        self.bin_size, self.window, self.bins, self.ahead, self.back = bin_size, window, bins, ahead, back
        self.contrast, self.view_ratio, self.temperature = contrast, view_ratio, temperature
        self.read_in, self.over_time = ReadIn(units, sessions, dim), nn.Linear(bins, bins)
        self.position, self.channel_position = Position("sinusoidal", bins, dim), Position("sinusoidal", dim, bins)
        self.embedding_dropout, self.rate_dropout = nn.Dropout(embedding_dropout), nn.Dropout(rate_dropout)
        self.temporal = Transformer(dim, depth, heads, inner, dropout=dropout, activation="relu")
        self.temporal.tfixup_()
        self.spatial = nn.ModuleList(Mixing(dim, bins, heads, inner, dropout=dropout) for _ in range(depth))
        self.read_out = ReadOut(units, dim)
        self.masker = Masker(self.read_out.units, held_out, mode=mask, ratio=ratio, span=span, expand=expand,
                             silent=silent, random=random)

    def predict(self, counts: Tensor, batch: SpikeBatch) -> Output:
        """The same from counts [B, N, T] as they are given."""
        if counts.shape[2] != self.bins:
            raise WorkbenchError(f"STNDT was built for windows of {self.window:g} s and was given {batch.duration:g} "
                                 "s; build it with window=, or cut windows of its own length")
        x, channels = self.embed(counts, batch)
        x = self.embedding_dropout(self.position(x))
        channels = self.embedding_dropout(self.channel_position(channels))
        mask = band(self.bins, self.ahead, self.back, x.device)
        for block, mixing in zip(self.temporal.blocks, self.spatial, strict=True):
            x = mixing(block(x, mask=mask), channels)
            channels = x.transpose(1, 2)
        latents = self.temporal.norm(x)
        return Output(log_rates=self.read_out(self.rate_dropout(latents), batch), latents=latents)

    def embed(self, counts: Tensor, batch: SpikeBatch) -> tuple[Tensor, Tensor]:
        """Both streams before their positions: bins [B, T, dim] and channels [B, dim, T]."""
        x = self.read_in(counts, batch)
        return x * x.shape[-1] ** 0.5, self.over_time(x.transpose(1, 2)) * self.bins ** 0.5

    def loss(self, batch: SpikeBatch) -> dict[str, Tensor]:
        """Poisson negative log-likelihood of hidden counts, nats per hidden entry, plus the weighted contrast."""
        counts, held_out = batch.counts(self.bin_size), self.masker.held_out(self.read_out.units, batch)
        seen, scored = self.masker(counts, held_out, batch.unit_mask)
        poisson = poisson_nll(self.predict(seen, batch).log_rates, counts, where=scored)
        if not self.contrast:
            return {"loss": poisson}
        views = [self.embed(self.view(counts, held_out, batch.unit_mask), batch) for _ in range(2)]
        contrast = sum(nt_xent(a.flatten(1), b.flatten(1), self.temperature) for a, b in zip(*views, strict=True))
        return {"loss": poisson + self.contrast * contrast, "poisson": poisson.detach(), "contrast": contrast.detach()}

    def view(self, counts: Tensor, held_out: Tensor, unit_mask: Tensor) -> Tensor:
        """The counts [B, N, T], some entries corrupted at random, held-out units silent."""
        mask = draw("entry", unit_mask & ~held_out[..., 0], counts.shape[2], self.view_ratio)
        return corrupt(counts.masked_fill(held_out, 0), mask.hidden, silent=0.5, random=0.5)


class Mixing(nn.Module):
    """Channels look at channels; what they find is not a value but how to mix the bins' stream across channels."""

    def __init__(self, dim: int, bins: int, heads: int, inner: int, *, dropout: float):
        super().__init__()
        self.heads = heads
        self.to_qk = nn.Linear(bins, 2 * bins)
        self.up, self.down = nn.Linear(dim, inner), nn.Linear(inner, dim)
        self.norm_channels, self.norm = nn.LayerNorm(bins), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, channels: Tensor) -> Tensor:
        """x [B, T, dim], channels [B, dim, T] → [B, T, dim]."""
        x = x + self.dropout(x @ self.weights(channels).transpose(1, 2))
        return x + self.dropout(self.down(self.dropout(relu(self.up(self.norm(x))))))

    def weights(self, channels: Tensor) -> Tensor:
        """How much each channel takes from each other one [B, dim, dim], the mean of heads; rows sum to 1."""
        q, k = self.to_qk(self.norm_channels(channels)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1).mean(1)
