"""How a training step computes: in bf16 where the recipe says so, compiled where it says so. Scores do neither.

    recipe.precision → the loss under autocast; the weights, their gradients, the optimizer and the losses stay float32
    recipe.compile   → the layers that say `compiles`, or the whole loss of a model that has none, by torch.compile

A layer is compiled as it stands in the model, so that checkpoints and saved models are the same with it and without.
Not the whole loss, where there is a choice: batches are ragged, and what takes them apart breaks into dozens of graphs
that take minutes to compile and save nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any

import torch
from torch import nn

from workbench.batch import SpikeBatch
from workbench.errors import WorkbenchError
from workbench.training.recipe import Recipe

Losses = dict[str, torch.Tensor]
LossOf = Callable[[SpikeBatch], Losses]


class CannotCompute(WorkbenchError, RuntimeError):
    """This model or this machine cannot train as the recipe says."""


def check(recipe: Recipe, device: torch.device, solved: bool = False) -> None:
    """CannotCompute where the recipe asks for bf16 or a compiled step, and this device has no bf16 or nothing to
    compile with, or where the model takes no steps: it is `solved` at once.
    """
    asked = ["precision=float32"] * (recipe.precision != "float32") + ["compile=false"] * recipe.compile
    if solved and asked:
        raise CannotCompute(f"model {recipe.model.name!r} is solved at once, in its own precision, and takes no "
                            f"training steps; say {' '.join(asked)}")
    if recipe.precision == "bf16" and not _has_bf16(device):
        raise CannotCompute(f"device {str(device)!r} does not compute in bf16; say precision=float32")
    if recipe.compile:
        try:
            torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
        except Exception as error:                                      # of dynamo, inductor, triton or the compiler
            raise CannotCompute(f"nothing compiles on device {str(device)!r} here ({_first_line(error)}); install a "
                                "C++ compiler, or say compile=false") from error


def losses(model: nn.Module, recipe: Recipe) -> LossOf:
    """The model's loss of a batch, in the recipe's precision; what comes back is float32."""
    def computed(batch: SpikeBatch) -> Losses:
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            found = model.loss(batch)
        return {name: value.float() for name, value in found.items()}
    return computed


@contextmanager
def training(model: nn.Module, recipe: Recipe) -> Iterator[None]:
    """Inside, the model's training steps are compiled where the recipe says so; evaluation never is."""
    if not recipe.compile:
        yield
        return
    torch.compiler.reset()                                              # of an earlier run's graphs, which count too
    layers = [layer for layer in model.modules() if getattr(layer, "compiles", False)]
    name, layers = ("forward", layers) if layers else ("loss", [model])
    fast = {kind: torch.compile(getattr(kind, name), dynamic=True) for kind in set(map(type, layers))}
    for layer in layers:
        setattr(layer, name, _in_training(layer, getattr(layer, name), fast[type(layer)]))
    try:
        yield
    finally:
        for layer in layers:
            delattr(layer, name)                                        # what its class says


def _in_training(layer: nn.Module, plain: Callable, fast: Callable) -> Callable:
    @wraps(plain)
    def either(*given: Any, **named: Any) -> Any:
        return fast(layer, *given, **named) if layer.training and torch.is_grad_enabled() else plain(*given, **named)
    return either


@contextmanager
def told(model: nn.Module, recipe: Recipe) -> Iterator[None]:
    """What bf16 or the compiler cannot do of a model, as one sentence that names the setting. Else errors are as ever.
    """
    try:
        yield
    except (WorkbenchError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        name = getattr(model, "name", "") or type(model).__name__
        if recipe.precision == "bf16" and "BFloat16" in str(error):
            raise CannotCompute(f"model {name!r} does not train in bf16 ({_first_line(error)}); say precision=float32"
                                ) from error
        if recipe.compile:
            raise CannotCompute(f"model {name!r} fails where its training step is compiled ({_first_line(error)}); say "
                                "compile=false") from error
        raise


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":                                           # older ones emulate it, slower than float32
        return torch.cuda.is_bf16_supported(including_emulation=False)
    with warnings.catch_warnings(), suppress(RuntimeError):
        warnings.simplefilter("ignore")                                 # that autocast does nothing there
        with torch.autocast(device.type, torch.bfloat16):
            return torch.is_autocast_enabled(device.type)
    return False


def _first_line(error: BaseException) -> str:
    """The kind of an error and the first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
