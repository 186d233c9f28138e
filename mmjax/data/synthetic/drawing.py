"""Draw pictures of synthetic items from their attribute values.

Pictures are 64 x 64 RGB, made from signed distances, a batch at once.

Every value shows in its own way, so that an encoder (or a reader) can tell all of them apart: the
category is the outline, the colour fills it, the pattern is painted on it in large marks, the
material shades it (grain, sheen, transparency, gloss, knit, speckle), the style is the wall behind
it and the frame around it. Position, size, angle, brightness and noise vary by item.
"""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 64
BATCH = 256  # items drawn at once; the noise is a function of the seed and the batch
RGB = {
    "red": (205, 30, 38),
    "orange": (250, 135, 15),
    "yellow": (250, 222, 40),
    "green": (45, 150, 45),
    "teal": (20, 180, 185),
    "blue": (35, 75, 205),
    "purple": (125, 40, 170),
    "pink": (250, 130, 190),
    "brown": (115, 65, 25),
    "gray": (135, 135, 138),
}
Field = np.ndarray  # [N, SIZE, SIZE] float32


def draw(values: dict[str, np.ndarray], words: dict[str, tuple[str, ...]], seed: int) -> np.ndarray:
    """Draw the pictures of N items.

    Args:
      values: attribute -> [N] codes; category, colour, material, pattern and style.
      words: attribute -> its words, in the order of the codes.
      seed: seed of position, size, angle, brightness and noise.

    Returns:
      [N, 64, 64, 3] uint8.
    """
    count = len(values["category"])
    rng = np.random.default_rng(seed)

    def vary(low: float, high: float) -> Field:
        return rng.uniform(low, high, (count, 1, 1)).astype(np.float32)

    axis = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
    column, row = np.broadcast_arrays(
        axis[None, None, :], axis[None, :, None]
    )  # pixels from centre
    angle, radius = vary(-0.2, 0.2), vary(21, 25)
    dx, dy = column - vary(-3, 3), row - vary(-3, 3)
    x = (np.cos(angle) * dx + np.sin(angle) * dy) / radius  # the object's axes, about -1..1
    y = (np.cos(angle) * dy - np.sin(angle) * dx) / radius

    def choose(attribute: str, painters: dict[str, Callable], *args: Field) -> np.ndarray:
        """Run each value's painter on the items that have the value."""
        out = None
        for code, word in enumerate(words[attribute]):
            rows = np.flatnonzero(values[attribute] == code)
            if len(rows):
                part = painters[word](*(arg[rows] for arg in args))
                out = np.empty((count, *part.shape[1:]), np.float32) if out is None else out
                out[rows] = part
        assert out is not None
        return out

    distance = choose("category", SHAPES, x, y) * radius  # pixels, negative inside
    inside = np.clip(0.5 - distance, 0, 1)[..., None]
    palette = np.array([RGB[word] for word in words["colour"]], np.float32) / 255
    colour = palette[values["colour"]][:, None, None, :]
    # Marks are white on dark colours and dark on light ones.
    bright = (colour @ np.array([0.3, 0.59, 0.11], np.float32))[..., None] > 0.5
    paint = np.where(bright, colour * 0.3, 1 - 0.12 * (1 - colour))
    marks = choose("pattern", PATTERNS, x, y)[..., None]
    surface = colour * (1 - marks) + paint * marks

    columns, rows = np.broadcast_to(column, x.shape), np.broadcast_to(row, x.shape)
    wall = choose("style", WALLS, columns, rows)
    grain = rng.random(x.shape, np.float32)
    finish = choose("material", FINISHES, x, y, grain, distance)  # shade, gloss, opacity
    shade, gloss, opacity = (finish[..., i, None] for i in range(3))
    surface = surface * shade * (1 - gloss) + gloss
    surface = surface * opacity + wall * (1 - opacity)
    # A pale halo and a dark contour separate the outline from every wall.
    halo = np.clip(2.5 - distance, 0, 1)[..., None]
    contour = np.clip(1.5 - np.abs(distance + 0.2), 0, 1)[..., None] * 0.85
    picture = wall * (1 - halo) + np.float32(0.97) * halo
    picture = picture * (1 - inside) + surface * inside
    picture = picture * (1 - contour) + np.float32(0.08) * contour
    picture = picture * vary(0.9, 1.08)[..., None]
    picture += rng.normal(0, 0.015, picture.shape).astype(np.float32)
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def write_pictures(
    values: dict[str, np.ndarray],
    words: dict[str, tuple[str, ...]],
    seed: int,
    folder: Path,
    paths: list[str],
) -> None:
    """Draw the items and write them as JPEG files.

    The files are `folder / path`; empty paths are skipped. A picture depends only on the item's
    attributes, its position in the list and the seed.
    """
    for parent in {(folder / path).parent for path in paths if path}:
        parent.mkdir(parents=True, exist_ok=True)

    def write(pixels: np.ndarray, path: str) -> None:
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "JPEG", quality=90, subsampling=0)
        (folder / path).write_bytes(out.getvalue())

    with ThreadPoolExecutor() as pool:  # JPEG compression lets other threads run
        for start in range(0, len(paths), BATCH):
            batch = {name: codes[start : start + BATCH] for name, codes in values.items()}
            pixels = draw(batch, words, hash_seed(seed, start))
            pairs = zip(pixels, paths[start : start + BATCH], strict=True)
            list(pool.map(lambda pair: write(*pair), [pair for pair in pairs if pair[1]]))


def hash_seed(seed: int, start: int) -> int:
    """Return one integer for (seed, first item of a batch)."""
    return int(np.random.SeedSequence([seed, start]).generate_state(1, np.uint64)[0])


def _box(x: Field, y: Field, cx: float, cy: float, w: float, h: float, r: float = 0.0) -> Field:
    """Return the signed distance to a rounded rectangle.

    It has the centre (cx, cy), half-widths w and h, and corners of radius r.
    """
    qx, qy = np.abs(x - cx) - w + r, np.abs(y - cy) - h + r
    return np.hypot(np.maximum(qx, 0), np.maximum(qy, 0)) + np.minimum(np.maximum(qx, qy), 0) - r


def _disc(x: Field, y: Field, cx: float, cy: float, r: float) -> Field:
    return np.hypot(x - cx, y - cy) - r


def _ring(x: Field, y: Field, cx: float, cy: float, r: float, thick: float) -> Field:
    return np.abs(_disc(x, y, cx, cy, r)) - thick


def _trapezoid(x: Field, y: Field, top: float, bottom: float, w0: float, w1: float) -> Field:
    """Return the signed distance to a symmetric trapezoid.

    It lies between heights top and bottom; its half-width changes from w0 at top to w1 at bottom.
    """
    slope = (w1 - w0) / (bottom - top)
    side = (np.abs(x) - w0 - slope * (y - top)) / np.hypot(1, slope)
    return np.maximum(side, np.maximum(top - y, y - bottom))


def _bar(x: Field, y: Field, ax: float, ay: float, bx: float, by: float, r: float) -> Field:
    """Return the signed distance to a thick segment.

    The bar is all points within r of the segment from a to b.
    """
    dx, dy = bx - ax, by - ay
    t = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0, 1)
    return np.hypot(x - ax - t * dx, y - ay - t * dy) - r


def _union(*parts: Field) -> Field:
    return np.minimum.reduce(parts)


SHAPES: dict[str, Callable[[Field, Field], Field]] = {
    "mug": lambda x, y: _union(
        _box(x, y, -0.22, 0.05, 0.58, 0.68, 0.12), _ring(x, y, 0.42, 0.05, 0.34, 0.1)
    ),
    "lamp": lambda x, y: _union(
        _trapezoid(x, y, -0.9, 0.15, 0.36, 0.85),
        _box(x, y, 0, 0.4, 0.08, 0.4),
        _box(x, y, 0, 0.82, 0.45, 0.1, 0.05),
    ),
    "shirt": lambda x, y: np.maximum(
        _union(
            _box(x, y, 0, 0.15, 0.5, 0.75, 0.05),
            _bar(x, y, -0.42, -0.38, -0.78, 0.0, 0.2),
            _bar(x, y, 0.42, -0.38, 0.78, 0.0, 0.2),
        ),
        -_disc(x, y, 0, -0.65, 0.25),
    ),
    "bottle": lambda x, y: _union(
        _box(x, y, 0, 0.3, 0.48, 0.65, 0.2), _box(x, y, 0, -0.55, 0.17, 0.42, 0.03)
    ),
    "hat": lambda x, y: _union(
        np.maximum(_disc(x, y, 0, 0.3, 0.68), y - 0.35), _box(x, y, 0, 0.42, 1.0, 0.14, 0.13)
    ),
    "bag": lambda x, y: _union(
        _trapezoid(x, y, -0.25, 0.85, 0.6, 0.85), _ring(x, y, 0, -0.25, 0.4, 0.08)
    ),
    "boot": lambda x, y: _union(
        _box(x, y, -0.3, -0.15, 0.38, 0.75, 0.06), _box(x, y, 0.1, 0.55, 0.8, 0.33, 0.2)
    ),
    "ball": lambda x, y: _disc(x, y, 0, 0, 0.85),
}


def _soft(field: Field, sharp: float = 8.0) -> Field:
    """Return 0 below zero and 1 above it, with a ramp.

    The ramp is 1 / sharp wide, in units of the field.
    """
    return np.clip(0.5 + sharp * field, 0, 1)


def _wave(t: Field, period: float) -> Field:
    return np.sin(t * np.float32(2 * np.pi / period))


PATTERNS: dict[str, Callable[[Field, Field], Field]] = {
    "plain": lambda x, y: np.zeros_like(x),
    "striped": lambda x, y: _soft(_wave(x, 0.42) - 0.1, 2),
    "dotted": lambda x, y: _soft(
        0.15 - np.hypot((x % 0.46) - 0.23, ((y + 0.23 * ((x // 0.46) % 2)) % 0.46) - 0.23)
    ),
    "checked": lambda x, y: _soft(_wave(x, 0.62) * _wave(y, 0.62), 4),
    "zigzag": lambda x, y: _soft(0.1 - np.abs((y + np.abs((x % 0.5) - 0.25)) % 0.44 - 0.22), 10),
}


def _finish(shade: Field, gloss: Field | float = 0.0, opacity: Field | float = 1.0) -> np.ndarray:
    return np.stack(np.broadcast_arrays(shade, np.float32(gloss), np.float32(opacity)), axis=-1)


def _glint(x: Field, y: Field) -> Field:
    return _soft(0.17 - np.hypot((x + 0.22) * 0.8, y + 0.05), 6)


FINISHES: dict[str, Callable[[Field, Field, Field, Field], np.ndarray]] = {
    "wood": lambda x, y, grain, d: _finish(
        1 - 0.45 * _soft(_wave(y + 0.07 * np.sin(3 * x + 1), 0.17) - 0.3, 1.5)
    ),
    "metal": lambda x, y, grain, d: _finish(
        0.55 + 0.45 * np.exp(-((x + 0.1) ** 2) / 0.12),
        0.85 * np.exp(-((x + 0.1) ** 2) / 0.02),
    ),
    "glass": lambda x, y, grain, d: _finish(
        np.ones_like(x), 0.85 * _soft(0.09 - np.abs(x + y + 0.2), 9), 0.55 + 0.3 * (d > -3)
    ),
    "ceramic": lambda x, y, grain, d: _finish(
        1.05 - 0.2 * np.maximum(x + y, 0), 0.95 * _glint(x, y)
    ),
    "wool": lambda x, y, grain, d: _finish(0.75 + 0.35 * _wave(x + y, 0.2) * _wave(x - y, 0.2)),
    "stone": lambda x, y, grain, d: _finish(1 - 0.6 * (grain < 0.14), 0.7 * (grain > 0.88)),
}


def _wall(colour: tuple[float, float, float], field: Field) -> np.ndarray:
    return np.array(colour, np.float32) * np.ones_like(field)[..., None]


def _mix(wall: np.ndarray, colour: tuple[float, float, float], amount: Field) -> np.ndarray:
    return wall * (1 - amount[..., None]) + np.array(colour, np.float32) * amount[..., None]


def _border(x: Field, y: Field, width: float) -> Field:
    """Return 1 within `width` pixels of the picture's edge, else 0."""
    return (np.maximum(np.abs(x), np.abs(y)) > SIZE / 2 - width).astype(np.float32)


def _minimal(x: Field, y: Field) -> np.ndarray:
    return _wall((0.95, 0.95, 0.95), x)


def _rustic(x: Field, y: Field) -> np.ndarray:
    planks = _mix(_wall((0.85, 0.72, 0.53), x), (0.6, 0.45, 0.28), ((y + 32) % 9 < 1.5) * 1.0)
    return _mix(planks, (0.38, 0.22, 0.1), _border(x, y, 4))


def _elegant(x: Field, y: Field) -> np.ndarray:
    night = _wall((0.07, 0.08, 0.2), x)
    return _mix(night, (0.85, 0.68, 0.25), _border(x, y, 5) - _border(x, y, 2))


def _playful(x: Field, y: Field) -> np.ndarray:
    wall = _wall((1.0, 0.93, 0.75), x)
    for colour, fx, fy in (
        ((0.95, 0.3, 0.45), 0, 0),
        ((0.2, 0.7, 0.9), 10, 5),
        ((0.4, 0.8, 0.3), 5, 11),
    ):
        wall = _mix(wall, colour, (np.hypot((x + fx) % 16 - 8, (y + fy) % 16 - 8) < 2.6) * 1.0)
    return wall


def _vintage(x: Field, y: Field) -> np.ndarray:
    paper = _mix(_wall((0.62, 0.72, 0.6), x), (0.48, 0.58, 0.47), ((x + y) % 10 < 5) * 1.0)
    return _mix(paper, (0.93, 0.9, 0.8), (np.hypot(x, y) > 35) * 1.0)


WALLS: dict[str, Callable[[Field, Field], np.ndarray]] = {
    "minimal": _minimal,
    "rustic": _rustic,
    "elegant": _elegant,
    "playful": _playful,
    "vintage": _vintage,
}
