"""A trained model as a decoder for FALCON's evaluator, which shows one 20 ms bin of counts at a time.

    counts [B, channels] of a new bin → the last `model.window` seconds of each row → model → behaviour [B, outputs]

Has the methods of `falcon_challenge.interface.BCIDecoder` (falcon-challenge 1.0.2, MIT) without needing that package:

    decoder = FalconDecoder(FalconConfig(FalconTask.m2), model, "finger_vel", {tag: session, ...}, batch_size=7)
    FalconEvaluator(eval_remote=False, split="m2").evaluate(decoder, phase="minival")

For M1, M2 and H1. The evaluator batches over recordings and not over trials, so a row's history lives until `reset`.
Models of single spikes see every spike of a bin at the bin's centre.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike

import numpy as np
import torch

from workbench.batch import SpikeBatch, Target, UnitList
from workbench.errors import BadRecording, UnknownName
from workbench.models.base import SpikeModel
from workbench.session import Session

BIN = 0.02                                                              # seconds


class FalconDecoder:
    """task_config: a FalconConfig (its n_channels, out_dim and hash_dataset are used); target: the model's series.

    sessions: the evaluator's tag of a recording (`task_config.hash_dataset` of its file) → the session of that day that
    the model was built for. Raises BadRecording where its units are not the channels, and UnknownName for a recording
    that no session was given for.
    """

    def __init__(self, task_config, model: SpikeModel, target: str, sessions: Mapping[str, Session],
                 batch_size: int = 1):
        self._task_config, self.model, self.target, self.batch_size = task_config, model.eval(), target, batch_size
        self.lists = {tag: UnitList(s.id, tuple(s.units["id"])) for tag, s in sessions.items()}
        for tag, (name, units) in self.lists.items():
            if len(units) != task_config.n_channels:
                raise BadRecording(f"{name}: {len(units)} units, but recordings of tag {tag!r} have "
                                   f"{task_config.n_channels} channels; give the session with all its units")
        self.rows: tuple[UnitList, ...] = ()
        self.history = np.zeros((0, round(model.window / BIN), task_config.n_channels), np.int64)

    def set_batch_size(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def reset(self, dataset_tags: Sequence[str | PathLike] = ("",)) -> None:
        """New recordings, one a row of the batch, as tags or as files; before them there is silence."""
        tags = [tag if tag in self.lists else self._task_config.hash_dataset(tag) for tag in dataset_tags]
        for tag in tags:
            if tag not in self.lists:
                raise UnknownName("recording", tag, self.lists, where="the sessions that this decoder was given")
        self.rows = tuple(self.lists[tag] for tag in tags)
        self.history = np.zeros((len(tags), *self.history.shape[1:]), np.int64)

    def observe(self, neural_observations: np.ndarray) -> None:
        """A bin of counts [B, channels] for which no prediction is wanted. BadRecording for another shape."""
        shape, wanted = np.shape(neural_observations), (len(self.rows), self.history.shape[2])
        if shape != wanted or not self.rows:
            raise BadRecording(f"a bin of counts {list(shape)} was shown where {len(self.rows)} recordings of "
                               f"{wanted[1]} channels were announced; call reset with one tag a row first")
        self.history = np.roll(self.history, -1, axis=1)
        self.history[:, -1] = neural_observations

    def predict(self, neural_observations: np.ndarray) -> np.ndarray:
        """Behaviour [B, outputs] at the centre of the new bin, of which these are the counts [B, channels]."""
        self.observe(neural_observations)
        with torch.no_grad():
            device = next(self.model.parameters()).device
            found = self.model(self._batch().to(device)).behavior.cpu().numpy()
        if found.shape[1] != self._task_config.out_dim:
            raise BadRecording(f"the model predicts {found.shape[1]} columns of {self.target!r} and the task scores "
                               f"{self._task_config.out_dim}; train it on the series that the task asks for")
        return found

    def on_done(self, dones: np.ndarray) -> None:
        """Ends of trials change nothing."""

    def _batch(self) -> SpikeBatch:
        b, bins, n = self.history.shape
        at, unit = (torch.from_numpy(i) for i in np.nonzero(self.history)[1:])
        many = torch.from_numpy(self.history[self.history > 0])
        offsets = torch.cat([torch.zeros(1, dtype=torch.long),
                             torch.from_numpy(self.history.sum((1, 2))).cumsum(0)])
        seconds = ((at + 0.5) * BIN).float().repeat_interleave(many)
        each = torch.arange(b)
        last = Target(torch.full((b,), (bins - 0.5) * BIN), torch.zeros(b, self._task_config.out_dim),
                      torch.arange(b + 1))
        return SpikeBatch(times=seconds, units=unit.repeat_interleave(many), offsets=offsets, session=each,
                          window_units=torch.arange(n).repeat(b), unit_offsets=torch.arange(b + 1) * n,
                          duration=bins * BIN, sessions=self.rows, starts=torch.zeros(b, dtype=torch.float64),
                          targets={self.target: last})
