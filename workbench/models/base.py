"""What every model has in common: built for sessions, a forward pass over a batch, a loss, a folder to live in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from workbench.batch import SpikeBatch, Target
from workbench.errors import BadRecording, UnknownName, WorkbenchError
from workbench.nn.counts import StandardCounts
from workbench.nn.stitcher import ReadOut
from workbench.nn.vocabulary import Vocabulary
from workbench.session import Session


@dataclass(frozen=True)
class Output:
    """What a model says of a batch; None where it says nothing.

    log_rates [B, N, T] log spikes per bin, columns as in batch.counts(model.bin_size), of all units, hidden or not
    behavior  [Q, D] at the target's times, in its unit
    latents   [B, L, D]
    tasks     series → what a model of several says of each at its times: values [Q, D] in its unit, or the
              probabilities of its classes [Q, K]
    """

    log_rates: Tensor | None = None
    behavior: Tensor | None = None
    latents: Tensor | None = None
    tasks: Mapping[str, Tensor] | None = None


class SpikeModel(nn.Module, PyTorchModelHubMixin):
    """Base of every model. `__init__` takes JSON types only, so that a folder or a hub page can rebuild the model.

    window    seconds of spikes that the model wants to see at once
    warmup    seconds at the start of each window whose predictions lack history and are not used
    history   seconds that a window opens with and that are seen only: they may come from before the time to score
    bin_size  seconds of its bins, for a model of binned counts: its windows are aligned with the target's samples
    reads     series besides the target that its batches have to carry
    spikes    whether it sees spikes; a model of calcium traces does not
    takes     the view of the batch that its tokens are made of: bins, patches, spikes, neurons or events
    rows_lr   learning rate at which rows of new units and sessions are learned (`workbench.adapt`)
    rows_dropout  whether the frozen rest drops out while they are
    rows_alike    whether what units that fire alike ask for in common is trusted more where nothing else learns
    locked    whether its windows begin with the target's samples, as those of pictures do, and not anywhere
    slower    what begins the names of parameters → the share of the learning rate at which they learn
    """

    name = ""
    decodes = reconstructs = forecasts = generates = embeds = False
    window: float = 1.0
    warmup: float = 0.0
    history: float = 0.0
    bin_size: float | None = None
    reads: Sequence[str] = ()
    spikes: bool = True
    takes: str = "bins"
    rows_lr: float = 1e-2
    rows_dropout: bool = True
    rows_alike: bool = False
    locked: bool = False
    slower: Mapping[str, float] = MappingProxyType({})

    @classmethod
    def for_sessions(cls, sessions: Sequence[Session], **settings) -> SpikeModel:
        """A model with rows for the units of `sessions`; settings left out come from these recordings."""
        raise TypeError(f"{cls.__name__} is not a model that can be built")

    def loss(self, batch: SpikeBatch) -> dict[str, Tensor]:
        """Scalars to log; "loss" is the one to minimise."""
        raise TypeError(f"{type(self).__name__} has no loss")

    def extend(self, sessions: Sequence[Session]) -> None:
        """Rows for the units and sessions that the model has not met; the others keep theirs, to the bit.

        New rows are as random as in a new model. Pass sessions cut to the time that the model may know. A model that
        keeps more of a session than rows in its vocabularies sets that here too. WorkbenchError for one without any.
        """
        words = {"unit": unit_names(sessions), "session": [s.id for s in sessions]}
        tables = [m for m in self.modules() if isinstance(m, Vocabulary) and m.kind in words]
        if not tables:
            raise WorkbenchError(f"model {self.name!r} keeps no rows of units or sessions, so none can be added; build "
                                 "it for the new session")
        standard = [(m, list(m.rates.words)) for m in self.modules() if isinstance(m, StandardCounts)]
        read_outs = [(m, list(m.units.words)) for m in self.modules() if isinstance(m, ReadOut)]
        for table in tables:
            table.extend(words[table.kind])
            if f"{table.kind}s" in self._hub_mixin_config:              # what a folder rebuilds the model from
                self._hub_mixin_config[f"{table.kind}s"] = list(table.words)
        for module, known in standard:
            module.measure(sessions, self.bin_size, but=known)
        for read_out, known in read_outs:
            read_out.start_at_(sessions, self.bin_size, but=known)

    def _save_pretrained(self, save_directory: Path) -> None:
        # A recurrent layer's weights are views of one array on a GPU, which the hub's own way of saving refuses.
        save_file({name: value.cpu().clone() for name, value in self.state_dict().items()},
                  Path(save_directory) / "model.safetensors")

    @classmethod
    def from_pretrained(cls, where: str | Path, **hub) -> SpikeModel:
        """The saved model that `saved`(where, **hub) finds. WorkbenchError for another one, or one that is damaged."""
        folder = saved(where, **hub)
        try:
            return super().from_pretrained(folder)
        except (RuntimeError, TypeError, ValueError, OSError, SafetensorError) as error:
            said = " ".join(str(error).split())
            raise WorkbenchError(f"the {cls.name!r} in {folder} cannot be read: its weights and its config.json are "
                                 f"damaged or not of each other ({said[:200]}); save it again") from error

    @classmethod
    def _from_pretrained(cls, *, config: dict, **where) -> SpikeModel:
        if config.get("model") != cls.name:
            raise WorkbenchError(f"{where['model_id']} holds a {config.get('model')!r} model, not a {cls.name!r}; give "
                                 "the folder of one, or read it by workbench.models.load, whichever it is")
        with redirect_stdout(None):                                     # the hub's own way prints a line
            return super()._from_pretrained(**where | {"strict": True})          # a weight that is missing is told

    def save_pretrained(self, save_directory: str | Path, **options):
        """Write model.safetensors and config.json (settings, and the model's name) into a folder."""
        result = super().save_pretrained(save_directory, **options)
        path = Path(save_directory) / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({"model": self.name, **config}, indent=2))
        return result


def saved(where: str | Path, **hub) -> Path:
    """The folder of a saved model: the one that `save_pretrained` wrote, a finished run's, or a page's of the hub.

    where: the folder, that of the run, or 'owner/name'; hub: what `huggingface_hub.snapshot_download` is to know of
    the page (revision, token, …). WorkbenchError where there is none.
    """
    folder = Path(where).expanduser()
    found = next((place for place in (folder, folder / "model") if (place / "config.json").is_file()), None)
    if found:
        return found
    # Another folder beside it, so that this was to be one too: nothing is asked of the network.
    if folder.exists() or folder.parent.is_dir() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(where)):
        raise WorkbenchError(f"no model at {folder}; give the folder that save_pretrained wrote, or that of a finished "
                             "run")
    try:
        folder = Path(snapshot_download(str(where), allow_patterns=["config.json", "model.safetensors"], **hub))
    except (OSError, ValueError) as error:                              # ValueError: what can be no page's name
        said = " ".join(str(error).split())
        raise WorkbenchError(f"no model {str(where)!r}: there is no such folder, and the hub gave no such page "
                             f"({said[:200]}); check the name, or the network") from error
    if not (folder / "config.json").is_file():
        raise WorkbenchError(f"the page {str(where)!r} of the hub holds no config.json, so it is of no model of the "
                             "workbench; check the name")
    return folder


def unit_names(sessions: Sequence[Session]) -> list[str]:
    """The names under which models know units: '<session id>/<unit id>'."""
    return [f"{s.id}/{u}" for s in sessions for u in s.units["id"]]


def scaling(sessions: Sequence[Session], target: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each column of a series, gaps left out; the averages of the sessions' own.

    Pass sessions cut to their training part: the scale of what is held out is not ours to know. BadRecording for a
    session without a sample, or for sessions whose series have different columns.
    """
    columns(sessions, target)
    means, scales = [], []
    for session in sessions:
        values = np.asarray(session.get_series(target).values, np.float64)
        values = values[np.isfinite(values).all(1)]
        if len(values) < 2:
            raise BadRecording(f"{session.id}: series {target!r} has {len(values)} finite samples in the time to train "
                               "on; choose another series or another split")
        means.append(values.mean(0))
        scales.append(np.where((values != values[:1]).any(0), values.std(0), 0.0))
    scale = np.mean(scales, axis=0)
    return np.mean(means, axis=0).tolist(), np.where(scale > 0, scale, 1.0).tolist()


def columns(sessions: Sequence[Session], target: str) -> int:
    """How many columns a series has, in all sessions. BadRecording where they differ."""
    found = {s.id: s.get_series(target).values.shape[1] for s in sessions}
    if len(set(found.values())) > 1:
        raise BadRecording(f"series {target!r} has " + ", ".join(f"{n} columns in {name}" for name, n in found.items())
                           + "; choose sessions that agree, or another series")
    return next(iter(found.values()))


def sampling_interval(sessions: Sequence[Session], target: str) -> float:
    """The longest median sampling interval of a series over sessions, in seconds."""
    return max(s.get_series(target).interval for s in sessions)


def default_bins(sessions: Sequence[Session], target: str) -> float:
    """Seconds of a bin, for models of counts: the target's sampling interval, 20 ms at least."""
    return max(sampling_interval(sessions, target), 0.02)


def sample_bins(target: Target, bin_size: float, bins: int) -> tuple[Tensor, Tensor]:
    """The window [Q] and the bin [Q] that hold each sample of a target."""
    return (torch.repeat_interleave(target.offsets.diff()),
            (target.times / bin_size + 1e-4).long().clamp_(max=bins - 1))


def known_session(name: str, known: Sequence[str]) -> int:
    """Which of the sessions that a model was built for this is; UnknownName where it is none of them."""
    if name not in known:
        raise UnknownName("session", name, known, where="the sessions that this model was built for")
    return known.index(name)


def parameters(model: nn.Module) -> int:
    """How many numbers the model learns."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
