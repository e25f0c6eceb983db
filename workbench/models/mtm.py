"""MtM, many-task masking: one transformer that fills in neurons, time and brain regions, told by a prompt which.

Zhang et al. 2024, "Towards a 'universal translator' for neural dynamics at single-cell, single-spike resolution",
arXiv 2407.14668; the authors' earlier code, from which details are taken, is under the MIT licence.

    counts [B, N, T], some hidden → read-in → softsign → linear, + position → bins [B, T, dim]
        [session, prompt, bin 1 … bin T] → encoder layers → latents [B, T, dim], of the bins
        → read-out → log_rates [B, N, T], scored by the Poisson likelihood of what was hidden

A batch is hidden by one scheme, drawn with equal chance, and the prompt is the scheme's:

    neuron         units, over the whole window
    causal         bins, where a bin sees those before it alone
    intra_region   all units outside one region, and some of the units in it, which alone are scored
    inter_region   all units of one region
    temporal       bins, seen from both sides: the baseline, NDT1's mask, where asked for

Region schemes need windows with units in two known regions; others pass them by.

Departs from the authors' code: maps in and out hold a row a unit (theirs are looked up by the number of units, so that
sessions of one size share a map); the read-in is one linear map of `width` channels (theirs are two in a row, with
nothing between); codes of positions, sessions and prompts start at a tenth of theirs, which drown the counts for long;
the bias of the read-out starts at each unit's mean rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softsign

from workbench.batch import SpikeBatch
from workbench.errors import UnknownName, WorkbenchError
from workbench.losses import poisson_nll
from workbench.masking import Mask, draw, two_regions
from workbench.models.base import Output, SpikeModel, unit_names
from workbench.nn.position import Position
from workbench.nn.regions import Regions, possible, region_names
from workbench.nn.stitcher import ReadIn, ReadOut
from workbench.nn.transformer import Transformer, band
from workbench.nn.vocabulary import Vocabulary
from workbench.session import Session

SCHEMES = ("neuron", "causal", "intra_region", "inter_region", "temporal")
BY_REGION = ("intra_region", "inter_region")


class MtM(SpikeModel):
    """units and sessions are names ('<session id>/<unit id>'), regions the units' by name; bin_size, window in seconds.

    schemes: those to train with, the first of them asked where none is named. ratio: the share that is hidden of units,
    or of bins in the temporal scheme; causal_ratio: of bins in the causal one. The defaults are the authors' but for
    width, which is 1336 there.
    """

    name = "mtm"
    reconstructs = embeds = True

    def __init__(self, *, units: Sequence[str], sessions: Sequence[str], regions: Mapping[str, str],
                 schemes: Sequence[str] = SCHEMES[:4], bin_size: float = 0.02, window: float = 2.0, width: int = 1024,
                 dim: int = 512, depth: int = 5, heads: int = 8, inner: int = 1024, dropout: float = 0.4,
                 embedding_dropout: float = 0.2, ratio: float = 0.3, causal_ratio: float = 0.6):
        super().__init__()
        for scheme in schemes:
            if scheme not in SCHEMES:
                raise UnknownName("scheme", scheme, SCHEMES, where="MtM")
        if not schemes:
            raise WorkbenchError("MtM without a scheme has nothing to learn from; name one or more in schemes=")
        self.bin_size, self.window, self.schemes = bin_size, window, tuple(schemes)
        self.ratio, self.causal_ratio, self.regions = ratio, causal_ratio, Regions(regions)
        self.read_in = ReadIn(units, sessions, width)
        self.embed = nn.Linear(width, dim)
        self.position = Position("learned", max(round(window / bin_size), 1), dim, std=0.1)
        self.embedding_dropout = nn.Dropout(embedding_dropout)
        self.session = Vocabulary("session", sessions, dim, std=0.1)
        self.prompt = nn.Parameter(torch.randn(len(self.schemes), dim) * 0.1)
        self.encoder = Transformer(dim, depth, heads, inner, dropout=dropout)
        self.encoder.tfixup_()
        self.read_out = ReadOut(units, dim)

    @classmethod
    def for_sessions(cls, sessions: Sequence[Session], *, schemes: Sequence[str] = SCHEMES[:4], **settings) -> MtM:
        """Without the region schemes where no session has units in two known regions, which a warning says."""
        schemes = possible(schemes, sessions, "MtM")
        model = cls(units=unit_names(sessions), sessions=[s.id for s in sessions], regions=region_names(sessions),
                    schemes=schemes, **settings)
        model.read_out.start_at_(sessions, model.bin_size)
        return model

    def extend(self, sessions: Sequence[Session]) -> None:
        super().extend(sessions)
        self.regions = Regions(region_names(sessions) | self.regions.names)
        self._hub_mixin_config["regions"] = self.regions.names

    def forward(self, batch: SpikeBatch, scheme: str | None = None) -> Output:
        """Log rates [B, N, T], in log spikes per bin, of all units, and latents [B, T, dim].

        scheme: what is asked for; by default the first that the model learned, the neuron scheme if not set otherwise.
        What the scheme would hide is for the caller to hide (`batch.drop`).
        """
        return self.predict(batch.counts(self.bin_size), batch, self.schemes[0] if scheme is None else scheme)

    def predict(self, counts: Tensor, batch: SpikeBatch, scheme: str) -> Output:
        """The same from counts [B, N, T] as they are given."""
        if scheme not in self.schemes:
            raise UnknownName("scheme", scheme, self.schemes, where="what this MtM was trained with")
        bins = self.position(self.embed(softsign(self.read_in(counts, batch))))
        told = torch.stack([self.session(self.session.session_rows(batch)),
                            self.prompt[self.schemes.index(scheme)].expand(len(batch), -1)], dim=1)
        x = self.embedding_dropout(torch.cat([told, bins], dim=1))
        past = band(x.shape[1], 0, None, x.device) if scheme == "causal" else None
        latents = self.encoder(x, mask=past)[:, 2:]
        return Output(log_rates=self.read_out(latents, batch), latents=latents)

    def loss(self, batch: SpikeBatch) -> dict[str, Tensor]:
        """Poisson negative log-likelihood of hidden counts under one scheme, nats per scored entry."""
        counts = batch.counts(self.bin_size)
        scheme, mask = self.mask(batch)
        return {"loss": poisson_nll(self.predict(mask.of_counts(counts), batch, scheme).log_rates, counts,
                                    where=mask.scored)}

    def mask(self, batch: SpikeBatch) -> tuple[str, Mask]:
        """A random scheme of those that the batch allows, and what it hides; windows without two regions pass by."""
        there, bins = batch.unit_mask, batch.bins(self.bin_size)
        regions = self.regions.numbers(batch)
        able = two_regions(there, regions).any()
        possible = [scheme for scheme in self.schemes if scheme not in BY_REGION or able]
        if not possible:
            raise WorkbenchError("no window of the batch has units in two known regions, and this MtM learns by region "
                                 "alone; choose sessions with units in several regions, or add schemes")
        scheme = possible[int(torch.randint(len(possible), ()))]
        mode = {"causal": "time", "temporal": "time"}.get(scheme, scheme)
        return scheme, draw(mode, there, bins, self.causal_ratio if scheme == "causal" else self.ratio, regions=regions)
