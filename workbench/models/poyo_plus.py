"""POYO+: POYO asked for several things at once: behaviour as numbers, as classes, or as ordered classes.

Azabou et al. 2025, "Multi-session, multi-task neural decoding from distinct cell-types and brain regions", ICLR;
structure as in torch_brain 0.1.2 (Apache-2.0).

    spikes → POYO's latents [B, L, D]
    for each task: session embedding + task embedding, at the task's times → cross-attention to the latents
        → the task's own linear map → tasks[name]: numbers [Q, D] in their unit, or probabilities of classes [Q, K]

The loss is the mean of the tasks' losses, each weighted by how many windows of the batch have samples of it. Sessions
and windows may lack every task but `target`, which is the one that a run is chosen and scored by.

Departs from the authors' code: in the loss of numbers all windows weigh the same, as in POYO here; parts of a trial
have no weights of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from workbench.batch import SpikeBatch, Target
from workbench.errors import BadRecording, UnknownName, WorkbenchError
from workbench.losses import mean_where, ordinal, window_mse
from workbench.models.base import Output, scaling, unit_names
from workbench.models.poyo import POYO
from workbench.session import Session

KINDS = ("numbers", "classes", "ordered")


class POYOPlus(POYO):
    """tasks: series → {"kind", "size"} and, of numbers, {"mean", "scale"}, as `described` finds them; all else as in
    POYO. `target` is a task of numbers.
    """

    name = "poyo_plus"

    def __init__(self, *, units: Sequence[str], sessions: Sequence[str], target: str,
                 tasks: Mapping[str, Mapping[str, Any]], window: float = 1.0, step: float = 0.125, latents: int = 64,
                 dim: int = 512, depth: int = 2, head_dim: int = 64, cross_heads: int = 1, self_heads: int = 8,
                 dropout: float = 0.4, ffn_dropout: float = 0.2, attention_dropout: float = 0.0, t_min: float = 1e-4,
                 t_max: float = 2.0627):
        super().__init__(units=units, sessions=sessions, target=target, outputs=1, window=window, step=step,
                         latents=latents, dim=dim, depth=depth, head_dim=head_dim, cross_heads=cross_heads,
                         self_heads=self_heads, dropout=dropout, ffn_dropout=ffn_dropout,
                         attention_dropout=attention_dropout, t_min=t_min, t_max=t_max)
        self.reads = sorted(set(tasks) - {target})                      # in an order that a file keeps
        self.kinds = {name: tasks[name]["kind"] for name in (target, *self.reads)}
        self.tasks = nn.Parameter(torch.randn(len(tasks), dim) * 0.02)
        del self.mean, self.scale                                       # every task has its own
        self.readout = nn.ModuleList(ReadOut(dim, **tasks[name]) for name in self.kinds)

    @classmethod
    def for_sessions(cls, sessions: Sequence[Session], *, target: str, size: str | None = None,
                     tasks: Mapping[str, str] | None = None, **settings) -> POYOPlus:
        """A decoder of the series `target`, and of others: tasks, series → kind.

        numbers   mean squared error of the standardised values
        classes   cross-entropy; the series has one column of whole numbers from 0
        ordered   the same classes, the worse the further off
        """
        tasks = {target: "numbers", **(tasks or {})}
        if tasks[target] != "numbers":
            raise WorkbenchError(f"target {target!r} is a task of {tasks[target]}, and models are chosen by the R² of "
                                 "numbers; name a target of numbers, and give this one among tasks=")
        known = cls.suited(sessions, target, size)
        return cls(units=unit_names(sessions), sessions=[s.id for s in sessions], target=target,
                   tasks={name: described(sessions, name, kind) for name, kind in tasks.items()}, **known | settings)

    @classmethod
    def from_torch_brain(cls, *_, **__):
        """torch_brain 0.2 has no such model, hence no weights of one."""
        raise WorkbenchError(f"torch_brain's weights are POYO's, and {cls.__name__} has parts that they lack; load "
                             "them with POYO.from_torch_brain")

    def forward(self, batch: SpikeBatch) -> Output:
        """Every task that the batch has samples of, at its times; behavior [Q, D] is that of `target`; latents."""
        latents, answers = self.answers(batch)
        said = {name: readout.said(readout(found)) for name, (readout, found) in answers.items()}
        return Output(behavior=said.get(self.target), latents=latents, tasks=said)

    def answers(self, batch: SpikeBatch) -> tuple[Tensor, dict[str, tuple[ReadOut, Tensor]]]:
        """Latents [B, L, D], and for every task that is asked its read-out and the answers [Q, D] that go in."""
        latents, turn = self.compress(batch)
        session, answers = self.session_queries(batch), {}
        for task, readout, name in zip(self.tasks, self.readout, self.kinds, strict=True):
            target = batch.targets.get(name)
            if target is not None and len(target.times):
                answers[name] = readout, self.ask(session + task, target, latents, turn)
        return latents, answers

    def loss(self, batch: SpikeBatch) -> dict[str, Tensor]:
        """The mean of the tasks' losses, weighted by windows; beside it each task's own."""
        told, total, windows = {}, 0, 0
        for name, (readout, found) in self.answers(batch)[1].items():
            target = batch.targets[name]
            told[name] = readout.loss(readout(found), target)
            asked = (target.offsets.diff() > 0).sum()
            total, windows = total + told[name] * asked, windows + asked
        if not told:
            raise BadRecording(f"no window of the batch holds a sample of {', '.join(self.kinds)}; read the batch with "
                               "these series")
        return {**{name: loss.detach() for name, loss in told.items()}, "loss": total / windows}


class ReadOut(nn.Linear):
    """One task: answers [Q, dim] → standardised numbers [Q, size], or scores of classes."""

    def __init__(self, dim: int, kind: str, size: int, mean: Sequence[float] = (), scale: Sequence[float] = ()):
        super().__init__(dim, size)
        self.kind = kind
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("scale", torch.tensor(scale))

    def said(self, found: Tensor) -> Tensor:
        """Numbers in their unit, or probabilities of classes."""
        return found * self.scale + self.mean if self.kind == "numbers" else found.softmax(-1)

    def loss(self, found: Tensor, target: Target) -> Tensor:
        """Of numbers, the windows' mean; of classes, the samples'. A class that was not there to build for teaches
        nothing.
        """
        if self.kind == "numbers":
            return window_mse(self.said(found), target, self.scale)
        classes = target.values[:, 0].long()
        known, classes = (classes >= 0) & (classes < self.out_features), classes.clamp(0, self.out_features - 1)
        if self.kind == "ordered":
            return ordinal(found, classes, known)
        return mean_where(cross_entropy(found, classes, reduction="none"), known)


def described(sessions: Sequence[Session], name: str, kind: str) -> dict[str, Any]:
    """A task as the sessions that have its series show it: {"kind", "size"}, and of numbers {"mean", "scale"}."""
    if kind not in KINDS:
        raise UnknownName("kind", kind, KINDS, where=f"the task {name!r}")
    having = [s for s in sessions if name in s.series]
    if not having:
        raise UnknownName("series", name, {n for s in sessions for n in s.series}, where="the sessions to train on")
    if kind == "numbers":
        mean, scale = scaling(having, name)
        return {"kind": kind, "size": len(mean), "mean": mean, "scale": scale}
    values = np.concatenate([np.asarray(s.get_series(name).values, float) for s in having])
    values = values[np.isfinite(values).all(1)]
    if values.shape[1] != 1 or not len(values) or (values < 0).any() or (values % 1).any():
        raise BadRecording(f"series {name!r} holds no classes in the time to train on: a task of {kind} wants one "
                           "column of whole numbers from 0; number its classes, or call it a task of numbers")
    return {"kind": kind, "size": int(values.max()) + 1}
