"""What models of counts have in common that learn by telling counts which were hidden from them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from workbench.batch import SpikeBatch
from workbench.models.base import Output, SpikeModel, unit_names
from workbench.nn.masker import held_out_names
from workbench.session import Session


class Masked(SpikeModel):
    """Such a model has a `read_out` to the units and a `masker`, and says `predict`."""

    reconstructs = embeds = True

    @classmethod
    def for_sessions(cls, sessions: Sequence[Session], *, held_out: Sequence[str] = (), **settings) -> Masked:
        """held_out: units that are never in the input and always a target, by full name or by bare id."""
        model = cls(units=unit_names(sessions), sessions=[s.id for s in sessions],
                    held_out=held_out_names(sessions, held_out), **settings)
        model.read_out.start_at_(sessions, model.bin_size)
        return model

    def forward(self, batch: SpikeBatch) -> Output:
        """Log rates [B, N, T], in log spikes per bin, from the counts of all but the held-out units; latents."""
        held_out = self.masker.held_out(self.read_out.units, batch)
        return self.predict(batch.counts(self.bin_size).masked_fill(held_out, 0), batch)

    def predict(self, counts: Tensor, batch: SpikeBatch) -> Output:
        """The same from counts [B, N, T] as they are given."""
        raise TypeError(f"{type(self).__name__} predicts nothing")
