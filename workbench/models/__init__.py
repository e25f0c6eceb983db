"""Every model by name. A model's file is read only when the model is asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, get_type_hints

from workbench.errors import UnknownName, WorkbenchError
from workbench.session import Session

_MODELS = {"poyo": "POYO", "ridge": "Ridge", "mlp": "MLP", "gru": "GRU",
           "ndt1": "NDT1", "stndt": "STNDT", "ndt2": "NDT2", "ndt3": "NDT3",
           "spint": "SPINT", "nuclr": "NuCLR", "cebra": "CEBRA", "possm": "POSSM",
           "lfads": "LFADS", "ldns": "LDNS",
           "mtm": "MtM", "neds": "NEDS",
           "poyo_plus": "POYOPlus", "capoyo": "CaPOYO", "neuroformer": "Neuroformer",
           "neurobridge": "NeuroBridge", "neurobridge_decoder": "NeuroBridgeDecoder",
           "neurobridge_pictures": "NeuroBridgePictures", "neurohorizon": "NeuroHorizon"}
_EXTRAS = {"cebra": "cebra"}                                            # model → the package that it cannot do without
_OWN: dict[str, type] = {}                                             # models of the user's, by their names
_VERBS = ("decodes", "reconstructs", "forecasts", "generates", "embeds")


def get(name: str) -> type:
    """The class of that name."""
    if name in _OWN:
        return _OWN[name]
    if name not in _MODELS:
        raise UnknownName("model", name, [*_MODELS, *_OWN])
    return getattr(import_module(f"workbench.models.{name}"), _MODELS[name])


def register(model: type) -> type:
    """Know a `SpikeModel` of one's own under its `name`, in this process, wherever a model is named; a decorator.

    A run in a process of its own does not know it: train it with launch(…, on="here"), as `compare` does.
    """
    if not model.name or model.name in _MODELS:
        raise WorkbenchError(f"{model.__name__} has the name {model.name!r}; give the class a `name` of its own")
    _OWN[model.name] = model
    return model


def available() -> dict[str, list[str]]:
    """name → what it does: decodes, reconstructs, forecasts, generates, embeds. Without models of absent packages."""
    here = (name for name in _MODELS if name not in _EXTRAS or find_spec(_EXTRAS[name]))
    return {name: [verb for verb in _VERBS if getattr(get(name), verb)] for name in (*here, *_OWN)}


def build(name: str, sessions: Session | Sequence[Session], **settings):
    """A new model for these sessions, or this one; settings that it does not know, or lacks, are refused by name."""
    check(name, settings)
    sessions = [sessions] if isinstance(sessions, Session | str | Path) else list(sessions)
    if not sessions or not all(isinstance(s, Session) for s in sessions):
        raise WorkbenchError(f"model {name!r} is built for Sessions, not for {sessions!r}; open them first, with "
                             "open_catalog().open or Session.open")
    wanted = [key for key, of in signature(get(name).for_sessions).parameters.items() if of.default is Parameter.empty
              and of.kind is Parameter.KEYWORD_ONLY and key not in settings]
    if wanted:
        raise WorkbenchError(f"model {name!r} needs {', '.join(f'{key}=' for key in wanted)}; there are the series "
                             f"{', '.join(sessions[0].series) or 'none'} in {sessions[0].id!r}")
    return get(name).for_sessions(sessions, **settings)


def check(name: str, settings: Mapping[str, Any]) -> None:
    """Make sure that there is such a model and that it takes these settings; near names where not."""
    model = get(name)
    hints = get_type_hints(model.__init__) | get_type_hints(model.for_sessions)
    known = [k for k in hints if k not in ("return", "units", "sessions", "regions", "outputs", "mean", "scale",
                                           "rates")]
    for key, value in settings.items():
        if key not in known:
            raise UnknownName("setting", key, known, where=f"model {name!r}")
        if hints[key] is int and (type(value) is not int or value < 1):
            raise WorkbenchError(f"{key} of model {name!r} is {value!r}; give a whole number, 1 or more")
        if hints[key] is float and (type(value) not in (int, float) or not 0 <= value < math.inf):
            raise WorkbenchError(f"{key} of model {name!r} is {value!r}; give a number, 0 or more")
        if key in ("bin_size", "window") and value == 0:
            raise WorkbenchError(f"{key} of model {name!r} is 0; give seconds above 0")


def load(where: str | Path, **hub):
    """The model that `save_pretrained` wrote, whichever it is; where: as of `workbench.models.base.saved`."""
    from workbench.models.base import saved
    config = saved(where, **hub) / "config.json"
    try:
        name = json.loads(config.read_text())["model"]
    except (ValueError, KeyError, TypeError) as error:
        raise WorkbenchError(f"{config} does not say which model it is of; give a folder that save_pretrained "
                             "wrote") from error
    return get(name).from_pretrained(config.parent)


def __getattr__(name: str):
    for module, model in _MODELS.items():
        if name == model:
            return get(module)
    raise AttributeError(f"module 'workbench.models' has no attribute {name!r}")
