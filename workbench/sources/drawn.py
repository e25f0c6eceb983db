"""Pictures drawn by code: gratings, textures, shapes and simple scenes, 64 × 64 RGB, each with its description.

    (seed, number of the picture) → category, colour, place, size, turn → uint8 [64, 64, 3]

Nothing is copied from anywhere, so nothing is licensed. Picture i depends on (seed, i) alone: a longer set begins with
the shorter one. Coordinates run from -1 (left, top) to 1; edges are smoothed over about one pixel.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

SIDE = 64                                                               # pixels
KINDS = {"grating": "grating", "dots": "texture", "checks": "texture", "disc": "shape", "square": "shape",
         "triangle": "shape", "star": "shape", "cross": "shape", "ring": "shape", "house": "scene", "tree": "scene",
         "boat": "scene", "face": "scene"}
CATEGORIES = tuple(KINDS)
COLORS = {"red": (215, 50, 45), "orange": (240, 145, 40), "yellow": (240, 220, 70), "green": (60, 160, 75),
          "cyan": (80, 190, 210), "blue": (50, 90, 200), "purple": (140, 70, 175), "white": (240, 240, 240)}
DARK, SKIN, WOOD = np.array((35, 35, 40.0)), np.array((225, 180, 150.0)), np.array((110, 75, 45.0))
Y, X = np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 2, indexing="ij")


def pictures(number: int, seed: int = 0) -> np.ndarray:
    """The first `number` pictures of the set `seed`, uint8 [number, 64, 64, 3]."""
    return np.stack([_draw(row, np.random.default_rng([seed, 11, row.Index]))
                     for row in descriptions(number, seed).itertuples()])


def descriptions(number: int, seed: int = 0) -> pd.DataFrame:
    """What the first `number` pictures show: kind, category, color, x, y (centre), size (half width), turn (radians).

    Categories take turns, so that every 13 pictures hold each of them once.
    """
    rows = []
    for i in range(number):
        rng = np.random.default_rng([seed, 10, i])
        category = CATEGORIES[i % len(CATEGORIES)]
        whole = KINDS[category] in ("grating", "texture")               # fills the picture: it has no place
        rows.append((KINDS[category], category, rng.choice(list(COLORS)), *(rng.uniform(-0.4, 0.4, 2) * (not whole)),
                     1.0 if whole else rng.uniform(0.3, 0.6), rng.uniform(0, 2 * np.pi)))
    return pd.DataFrame(rows, columns=["kind", "category", "color", "x", "y", "size", "turn"])


def _draw(row, rng: np.random.Generator) -> np.ndarray:
    color = np.array(COLORS[row.color], float)
    if row.kind in ("grating", "texture"):
        ground = np.array((110, 110, 110.0)) * rng.uniform(0.6, 1.2)
        canvas = ground + _pattern(row, rng)[..., None] * (color - ground)
    elif row.kind == "shape":
        level = rng.uniform(60, 160) + 40 * (X * rng.normal() + Y * rng.normal())
        canvas = _paint(np.repeat(level[..., None], 3, axis=2), _shape(row), color)
    else:
        canvas = _scene(row, rng, color)
    return (canvas + rng.normal(0, 3, canvas.shape)).clip(0, 255).astype(np.uint8)


def _pattern(row, rng) -> np.ndarray:
    """A grating or texture over the whole picture [64, 64], 0 to 1."""
    u, v = X * np.cos(row.turn) + Y * np.sin(row.turn), Y * np.cos(row.turn) - X * np.sin(row.turn)
    cycles = rng.uniform(2, 8)                                          # in half a picture
    if row.category == "grating":
        return 0.5 + 0.5 * rng.uniform(0.4, 1) * np.sin(np.pi * cycles * u + rng.uniform(0, 2 * np.pi))
    if row.category == "checks":
        return 0.5 + 0.5 * np.tanh(6 * np.sin(np.pi * cycles / 1.5 * u) * np.sin(np.pi * cycles / 1.5 * v))
    places, radius = rng.uniform(-1, 1, (int(rng.integers(15, 60)), 2)), rng.uniform(0.06, 0.14)
    nearest = np.min([np.hypot(X - x, Y - y) for x, y in places], axis=0)
    return _inside(nearest - radius)


def _shape(row) -> np.ndarray:
    """Signed distance [64, 64] to the edge of a shape, negative inside."""
    u = (X - row.x) * np.cos(row.turn) + (Y - row.y) * np.sin(row.turn)
    v = (Y - row.y) * np.cos(row.turn) - (X - row.x) * np.sin(row.turn)
    r, s = np.hypot(u, v), row.size
    if row.category == "disc":
        return r - s
    if row.category == "ring":
        return np.abs(r - 0.75 * s) - 0.22 * s
    if row.category == "square":
        return _box(u, v, 0.85 * s, 0.85 * s)
    if row.category == "cross":
        return np.minimum(_box(u, v, s, 0.28 * s), _box(u, v, 0.28 * s, s))
    if row.category == "triangle":
        return _triangle(u, v, s)
    return r - s * (0.68 + 0.36 * np.cos(5 * np.arctan2(v, u)))         # a star


def _scene(row, rng, color: np.ndarray) -> np.ndarray:
    """A thing under a sky, on the ground or on water; a face against a wall."""
    u, v, s = X - row.x, Y - row.y, row.size
    light = rng.uniform(0.7, 1.1)
    sky = light * np.array((150, 190, 235.0)) + 25 * Y[..., None]
    if row.category == "face":
        canvas = np.repeat((light * rng.uniform(70, 170) + 15 * X)[..., None], 3, axis=2)
        canvas = _paint(canvas, np.hypot(u, (v + 0.15 * s) / 1.15) - 0.95 * s, color)                   # hair
        canvas = _paint(canvas, np.hypot(u / 0.85, v) - 0.85 * s, SKIN * light)
        eyes = np.minimum(np.hypot(u - 0.3 * s, v + 0.15 * s), np.hypot(u + 0.3 * s, v + 0.15 * s)) - 0.13 * s
        mouth = np.maximum(np.abs(np.hypot(u, v - 0.1 * s) - 0.35 * s) - 0.07 * s, 0.2 * s - v)
        return _paint(_paint(canvas, eyes, DARK), mouth, np.array((170, 50, 60.0)))
    ground = np.array((45, 100, 170.0)) if row.category == "boat" else np.array((95, 145, 70.0))
    canvas = _paint(sky, row.y + 0.55 * s - Y, ground * light)
    if row.category == "house":
        canvas = _paint(canvas, _box(u, v - 0.2 * s, 0.7 * s, 0.55 * s), color)
        canvas = _paint(canvas, _triangle(u, v + 0.65 * s, 0.85 * s), WOOD)
        return _paint(canvas, _box(u, v - 0.45 * s, 0.16 * s, 0.3 * s), DARK)
    if row.category == "tree":
        canvas = _paint(canvas, _box(u, v - 0.5 * s, 0.12 * s, 0.5 * s), WOOD)
        crown = np.min([np.hypot(u - a * s, v - b * s) - 0.42 * s
                        for a, b in ((-0.35, -0.2), (0.35, -0.2), (0, -0.6))], axis=0)
        return _paint(canvas, crown, color)
    canvas = _paint(canvas, np.maximum(_box(u, v - 0.5 * s, 2 * s, 0.2 * s), np.abs(u) + 0.7 * v - 1.15 * s), WOOD)
    sail = np.maximum.reduce([-u, 0.8 * u - 0.6 * (v + s), v - 0.2 * s])
    return _paint(canvas, sail, color)


def _inside(distance: np.ndarray) -> np.ndarray:
    return (0.5 - distance * SIDE / 2).clip(0, 1)


def _paint(canvas: np.ndarray, distance: np.ndarray, color: np.ndarray) -> np.ndarray:
    cover = _inside(distance)[..., None]
    return canvas * (1 - cover) + color * cover


def _box(u, v, half_width: float, half_height: float) -> np.ndarray:
    return np.maximum(np.abs(u) - half_width, np.abs(v) - half_height)


def _triangle(u, v, size: float) -> np.ndarray:
    return np.maximum(np.abs(u) * 0.866 - v * 0.5, v) - 0.5 * size
