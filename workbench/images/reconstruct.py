"""Held-out presentations as pictures: by a model and a generator, beside everything that has to stand beside them.

    spikes → model → vector → generator, several seeds            the method
                            + ridge's picture to start from       the same, told the layout
    counts → ridge → vector → generator                           baselines
    counts → ridge → pixels · convolutional · nearest training picture · mean picture
    the true vector → generator                                   what the generator could do at best
        → `report.Reconstructions`: pictures, scores, protocol

One presentation of each test picture, drawn by a seed: nothing is chosen by how it came out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from workbench.errors import WorkbenchError
from workbench.images import baselines, identify
from workbench.images.embedding import Embedder, open_embedder, pixels_of
from workbench.images.identify import Presented
from workbench.images.report import Reconstructions
from workbench.session import Session

RIDGE_SIDE = 32                                                         # pixels a side, that ridge says


def reconstruct(model, sessions: Sequence[Session], parts: Mapping[str, Sequence[np.ndarray]], decoder, *,
                seeds: Sequence[int] = (0,), most: int = 100, steps: int = 20, guidance: float | None = None,
                strength: float = 0.7, extractors: Sequence[str | Embedder] = ("gabor-color",),
                others: Mapping[str, object] | None = None, convolutional: int = 600,
                data: Mapping[str, str] | None = None, seed: int = 0,
                progress: Callable[[str], None] = lambda text: None) -> Reconstructions:
    """parts: train, valid and test → intervals [n, 2] s, one array a session, as `split(…, by="picture")` gives them.

    seeds: of the generator's noise, for the methods; most: test pictures at most. strength: how much of the noise is
    put on ridge's picture where that is the start. extractors: embedders whose vectors score the pictures; the model's
    own is always among them, and marked. others: name → another model of the kind, such as one with a random encoder.
    convolutional: steps of its training, 0 leaves it out. data: session id → how to open it, for the gallery.

    WorkbenchError where the generator takes vectors of another embedder than the model's.
    """
    name = model.target.removeprefix("pictures:")
    if not model.target.startswith("pictures:") or decoder.embedder != name:
        raise WorkbenchError(f"the model reads {model.target!r} and the generator takes vectors of "
                             f"{decoder.embedder!r}; align to pictures:{decoder.embedder}, or choose another generator")
    embedder, mean = open_embedder(name), model.mean.cpu().numpy()
    if decoder.dim != len(mean):
        raise WorkbenchError(f"the generator takes vectors of {decoder.dim} numbers and the model reads {len(mean)}; "
                             "choose a generator for this embedder")
    train, valid, test = (identify.presented(sessions, parts[part], model.target, model.window)
                          for part in ("train", "valid", "test"))
    test = _one_each(test, most, seed)
    side, options = decoder.side, {"steps": steps} | ({} if guidance is None else {"guidance": guidance})
    numbers = np.arange(len(test.start))

    def drawn(vectors: np.ndarray, which: Sequence[int], **more) -> np.ndarray:
        made = []
        for s in which:                                                 # a picture's noise is its own
            for at in np.array_split(numbers, -(-len(numbers) // 16)):
                low = {key: value[at] for key, value in more.items() if key == "low_level"}
                rest = {key: value for key, value in more.items() if key != "low_level"}
                made.append(_uint8(decoder.decode(torch.from_numpy(vectors[at]).float(), **options, **low, **rest,
                                                  seeds=[int(s) * 100_003 + int(i) for i in at])))
            progress(f"{len(numbers)} pictures generated with seed {s}")
        return np.concatenate(made).reshape(len(which), len(numbers), side, side, 3).swapaxes(0, 1)

    power = ((train.vectors - mean) ** 2).sum(1).mean()
    found = mean + _restored(identify.read_out(model, sessions, test, vectors=True) - mean, power)
    progress("spikes read")
    pixels = {part: _pixels(sessions, shown, side) for part, shown in (("train", train), ("valid", valid),
                                                                      ("test", test))}
    small = {part: baselines.sized(each, RIDGE_SIDE).flatten(1).numpy() for part, each in pixels.items()}
    said, _ = identify.ridge(sessions, train, valid, test, *(_by_picture(small[part], shown) for part, shown in (
        ("train", train), ("valid", valid))), model.step)
    ridge = torch.from_numpy(said).unflatten(1, (3, RIDGE_SIDE, RIDGE_SIDE)).clamp(0, 1)
    ridge = baselines.sized(ridge, side)
    vectors, _ = identify.ridge(sessions, train, valid, test, train.vectors - mean, valid.vectors - mean, model.step)
    progress("ridge fitted")

    made, kinds = {}, {}

    def put(method: str, kind: str, pictures: np.ndarray) -> None:
        made[method], kinds[method] = pictures, kind

    own = type(model).__name__
    put(own, "method", drawn(found, seeds))
    put(f"{own}, from ridge's picture", "method", drawn(found, seeds, low_level=ridge, strength=strength))
    for other, one in (others or {}).items():
        told = identify.read_out(one, sessions, test, vectors=True) - mean
        put(other, "baseline", drawn(mean + _restored(told, power), seeds))
    put("ridge to vector", "baseline", drawn(mean + _restored(vectors, power), seeds))
    put("ridge to pixels", "baseline", _uint8(ridge)[:, None])
    if convolutional:
        counts = [identify.counts_of(sessions, shown, model.step) for shown in (train, valid, test)]
        put("convolutional", "baseline", _convolutional(counts, pixels, test, train, valid, convolutional,
                                                        lambda done, of: progress(f"convolutional: {done} of {of}")))
    first = _first(train)
    put("nearest training picture", "baseline", _uint8(pixels["train"][first][baselines.nearest(
        found - mean, train.vectors - mean)])[:, None])
    mean_picture = _uint8(pixels["train"][first].mean(0, keepdim=True))
    put("mean picture", "baseline", mean_picture.repeat(len(numbers), 0)[:, None])
    put("true vector", "ceiling", drawn(test.vectors[test.which], seeds))

    shown = np.zeros((len(test.vectors), side, side, 3), np.uint8)
    shown[test.which] = _uint8(pixels["test"])
    judges = [embedder, *(open_embedder(each) if isinstance(each, str) else each for each in extractors)]
    features = {judge.name: _features(judge, shown, made) for judge in {each.name: each for each in judges}.values()}
    items = pd.DataFrame({"picture": test.which, "session": [sessions[i].id for i in test.session],
                          "start": test.start} | _columns(sessions, test))
    conditioned = {method: name for method in made if method == own or "vector" in method or method in (others or {})
                   or method.startswith(f"{own},")}
    return Reconstructions(shown, items, made, kinds, features, {
        "simulated": any(s.simulated for s in sessions), "split": "by picture", "averaged": 1,
        "selection": f"one presentation of each test picture, drawn by seed {seed}", "conditioned_by": conditioned,
        "embedder": name, "generator": type(decoder).__name__, "seeds": list(map(int, seeds)), "strength": strength,
        "scale": "vectors stretched to the mean square of the training pictures'",
        "recordings": [s.id for s in sessions], "windows": {k: list(v) for k, v in model.windows.items()},
        "training_pictures": len(train.vectors), "training_presentations": len(train.start),
        **options, **({"data": dict(data)} if data else {})})


def example(progress: Callable[[str], None] = lambda text: None):
    """A small simulated recording, read by tuning alone, which takes no training: (Reconstructions, scores, sessions).

    Half a minute on one core; for dashboards without a run to show.
    """
    from workbench import models
    from workbench.images.diffusion import TinyDiffusion
    from workbench.images.report import scores
    from workbench.sources.vision_sim import vision_sim
    from workbench.windows import split

    progress("Simulating V1, V4 and IT …")
    session = vision_sim(0, pictures=260, repeats=2, units=150)
    parts = {name: [part] for name, part in split(session, by="picture").items()}
    model = models.build("neurobridge_pictures", [session.within(parts["train"][0])], target="pictures:tiny",
                         readout=False, encoder=dict(dim=16, width=16, depth=1, heads=2, latents=1, bin_size=0.05))
    result = reconstruct(model, [session], parts, TinyDiffusion(), most=24, steps=10, convolutional=0,
                         progress=progress)
    progress("Scoring …")
    return result, scores(result), [session]


def _one_each(shown: Presented, most: int, seed: int) -> Presented:
    """One presentation of every picture, of so many pictures at most, drawn at random."""
    order = np.random.default_rng(seed).permutation(len(shown.start))
    first = order[np.unique(shown.which[order], return_index=True)[1]]
    rows = np.sort(np.random.default_rng([seed, 1]).permutation(first)[:most])
    pictures, which = np.unique(shown.which[rows], return_inverse=True)
    return Presented(shown.session[rows], shown.start[rows], which, shown.vectors[pictures], shown.number[rows],
                     shown.duration)


def _restored(vectors: np.ndarray, power: float) -> np.ndarray:
    """Vectors [n, D], less the mean of pictures', stretched to a mean square of `power`: what is read from noise is a
    mean of what could have been, shorter than any picture's vector, and generators have not met such.
    """
    return vectors * np.sqrt(power / max((vectors ** 2).sum(1).mean(), 1e-12))


def _first(shown: Presented) -> np.ndarray:
    """A presentation of each picture [P]."""
    return np.unique(shown.which, return_index=True)[1]


def _pixels(sessions: Sequence[Session], shown: Presented, side: int) -> torch.Tensor:
    """What every presentation showed [n, 3, side, side]."""
    found = torch.empty(len(shown.start), 3, side, side)
    for i, session in enumerate(sessions):
        rows = np.flatnonzero(shown.session == i)
        if len(rows):
            distinct, back = np.unique(shown.number[rows], return_inverse=True)
            found[rows] = baselines.sized(pixels_of(session.images[distinct]), side)[back]
    return found


def _by_picture(values: np.ndarray, shown: Presented) -> np.ndarray:
    return values[_first(shown)]


def _uint8(pixels: torch.Tensor) -> np.ndarray:
    return (pixels.permute(0, 2, 3, 1) * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def _convolutional(counts, pixels, test: Presented, train: Presented, valid: Presented, steps: int,
                   progress: Callable[[int, int], None]) -> np.ndarray:
    """A network a session: units of another session are other units."""
    made = np.zeros((len(test.start), 1, *pixels["test"].shape[-2:], 3), np.uint8)
    for i in np.unique(test.session):
        decode = baselines.fit_convolutional(counts[0][i], pixels["train"][train.session == i], counts[1][i],
                                             pixels["valid"][valid.session == i], steps=steps, progress=progress)
        made[test.session == i, 0] = _uint8(decode(counts[2][i]))
    return made


def _features(judge: Embedder, shown: np.ndarray, made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Vectors of the shown pictures [P, D] and of every method's [n, seeds, D]."""
    def of(pictures: np.ndarray) -> np.ndarray:
        flat = pictures.reshape(-1, *pictures.shape[-3:])
        vectors = [judge.embed(pixels_of(part)).cpu().numpy() for part in np.array_split(flat, -(-len(flat) // 64))]
        return np.concatenate(vectors).reshape(*pictures.shape[:-3], -1).astype(np.float32)

    found = {"shown": of(shown)} | {method: of(pictures) for method, pictures in made.items()}
    centre = found["shown"].mean(0)                                     # what all pictures share tells none apart
    return {method: vectors - centre for method, vectors in found.items()}


def _columns(sessions: Sequence[Session], test: Presented) -> dict[str, list]:
    """What the stimuli say of each presentation, where all sessions say it in words."""
    words = [name for name in sessions[0].stimuli if sessions[0].stimuli[name].dtype.kind not in "iufb"]
    words = [name for name in words if all(name in s.stimuli for s in sessions)]
    rows = []
    for i, session in enumerate(sessions):
        start = session.stimuli["start"].to_numpy(float)
        order = np.argsort(start, kind="stable")
        rows.append(order[np.searchsorted(start[order], test.start[test.session == i] - 1e-9)])
    return {name: [str(sessions[i].stimuli[name].iloc[rows[i][np.sum(test.session[:k] == i)]])
                   for k, i in enumerate(test.session)] for name in words}
