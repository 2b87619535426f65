"""Figures drawn with Pillow and NumPy: arrays and images in, one image out."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import pairwise
from math import ceil, floor, inf, log10
from pathlib import Path
from unicodedata import normalize

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from c2fmae.core.errors import UserError
from c2fmae.core.files import write_atomic
from c2fmae.core.granularity import IGNORE

Tile = UInt8[np.ndarray, "height width 3"]
Colour = tuple[int, int, int]
PixelBox = tuple[int, int, int, int]

BACKGROUND_COLOUR, TEXT_COLOUR, MUTED_COLOUR, GRID_COLOUR, UNLABELLED_COLOUR = (
    (255, 255, 255),
    (31, 36, 45),
    (105, 112, 124),
    (226, 229, 234),
    (217, 219, 222),
)
SERIES_COLOURS = ((43, 104, 176), (217, 122, 38), (52, 143, 104), (181, 65, 100), (121, 92, 168), (64, 152, 174))
MARGIN, GAP = 24, 10

_ASCII_SPELLINGS = dict(
    zip("αβγ−–—×→≤≥", ["alpha", "beta", "gamma", "-", "-", "-", "x", "->", "<=", ">="], strict=True)
)


def image_to_tile(image: UInt8[np.ndarray, "channels height width"]) -> Tile:
    """Return an image in the colours of its first three channels; one channel is grey, two are red and cyan."""
    channels = ([0, 0, 0], [0, 1, 1], [0, 1, 2])[min(len(image), 3) - 1]
    return np.ascontiguousarray(image[channels].transpose(1, 2, 0))


def colour_classes(ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return the colours of a class map [H, W]: muted, 0 is slate, low ids differ most, unlabelled pixels hatched."""
    return _apply_palette(ids, _palette((58, 67, 82), (0.48, 0.05), (0.84, 0.15)))


def colour_instances(ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return the colours of an instance map [H, W]: vivid on near-black (0), unlabelled pixels hatched."""
    return _apply_palette(ids, _palette((22, 25, 31), (0.52, 0.11), (0.88, 0.22)))


def list_class_fractions(ids: NDArray[np.integer], names: Sequence[str]) -> list[tuple[str, float, Colour]]:
    """Return name, fraction of the pixels and colour of each class in a map, largest first."""
    values, counts = np.unique(ids, return_counts=True)
    known, palette = {IGNORE: "not labelled"} | dict(enumerate(names)), colour_classes(np.arange(256)[None])[0].tolist()
    order = np.argsort(-counts, kind="stable")
    fractions = zip(values[order].tolist(), (counts[order] / ids.size).tolist(), strict=True)
    return [(known.get(i, f"class {i}"), fraction, tuple(palette[i])) for i, fraction in fractions]


def hide_patches(
    image: Tile, is_masked: NDArray[np.bool_], *, colour: Colour = (104, 110, 120), opacity: float = 0.85
) -> Tile:
    """Return an image with the patches [rows, columns] that are True covered.

    `opacity` 1 hides them completely, 0 only outlines them.
    """
    row, column = (np.arange(n) * cells // n for n, cells in zip(image.shape[:2], is_masked.shape, strict=True))
    is_edge = (np.diff(row, prepend=-1) > 0)[:, None] | (np.diff(column, prepend=-1) > 0)
    covered = image + opacity * (np.array(colour, np.float64) - image)
    covered += 0.12 * is_edge[..., None] * (255 - covered)
    return np.where(is_masked[row[:, None], column][..., None], covered.round().astype(np.uint8), image)


@dataclass(frozen=True, eq=False)
class DrawnObject:
    """An object to draw on an image."""

    box: tuple[float, float, float, float]
    """x0, y0, x1 and y1 in pixels."""
    colour: Colour
    caption: str = ""
    mask: UInt8[np.ndarray, "height width"] | None = None
    """Its pixels, with the size of the image; 0 outside of the object."""


def draw_objects(image: Tile, objects: Sequence[DrawnObject], *, opacity: float = 0.4) -> Tile:
    """Return an image with the masks, boxes and captions of objects; later ones cover earlier ones."""
    height, width = image.shape[:2]
    line, text_size = (
        min(max(round(min(height, width) / fraction), low), high) for fraction, low, high in ((300, 1, 4), (32, 10, 24))
    )
    drawn = image.copy()
    for each in objects:
        if each.mask is not None:
            _tint_mask(drawn, each.mask, each.colour, opacity)
    page = Image.fromarray(drawn)
    pen = ImageDraw.Draw(page)
    for each in objects:
        x0, y0, x1, y1 = (round(side) for side in each.box)
        pen.rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), outline=each.colour, width=line)
    for each in objects:
        if each.caption:
            text = _shorten_text(each.caption, text_size, width - 4)
            x0 = max(min(round(each.box[0]), width - text.width - 4), 0)
            above = round(each.box[1]) - text.height
            y0 = above if above >= 0 else min(max(round(each.box[1]), 0), max(height - text.height, 0))
            pen.rectangle((x0, y0, x0 + text.width + 3, y0 + text.height - 1), fill=each.colour)
            is_light = np.dot(each.colour, (0.299, 0.587, 0.114)) > 140
            text.draw(pen, x0 + 2, y0, TEXT_COLOUR if is_light else BACKGROUND_COLOUR)
    return np.array(page)


def _tint_mask(image: Tile, mask: UInt8[np.ndarray, "height width"], colour: Colour, opacity: float) -> None:
    """Mix the colour into the pixels of a mask, and replace those at its edge."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    inside = np.pad(mask[window] != 0, 1)
    core = inside[1:-1, 1:-1] & inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    part, is_inside = image[window], inside[1:-1, 1:-1]
    part[is_inside] = (part[is_inside] * (1 - opacity) + np.array(colour) * opacity).round().astype(np.uint8)
    part[is_inside & ~core] = colour


def draw_outlines(image: Tile, ids: NDArray[np.integer]) -> Tile:
    """Return an image with the outline of each object of an instance map [H, W], in the object's colour."""
    differs_below, differs_right = ids[1:] != ids[:-1], ids[:, 1:] != ids[:, :-1]
    is_outline = np.zeros(ids.shape, np.bool_)
    is_outline[1:] |= differs_below
    is_outline[:-1] |= differs_below
    is_outline[:, 1:] |= differs_right
    is_outline[:, :-1] |= differs_right
    is_outline &= (ids != 0) & (ids != IGNORE)
    return np.where(is_outline[..., None], colour_instances(ids), image)


def pad_tile(tile: Tile, height: int, width: int) -> UInt8[np.ndarray, "rows columns 3"]:
    """Return a tile in the middle of a larger one."""
    framed = np.full((height, width, 3), BACKGROUND_COLOUR, np.uint8)
    top, left = (height - tile.shape[0]) // 2, (width - tile.shape[1]) // 2
    framed[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return framed


def draw_tile_sheet(
    rows: Sequence[Sequence[Tile]],
    *,
    column_titles: Sequence[str],
    row_titles: Sequence[str] = (),
    title: str = "",
    subtitle: str = "",
    footer: str = "",
) -> Image.Image:
    """Return a grid of tiles [H, W, 3], all of one size; rows may have different lengths, and long texts wrap."""
    shapes = {tile.shape for row in rows for tile in row}
    if len(shapes) != 1:
        raise ValueError(f"rows: expected tiles of one size, got {sorted(shapes) or 'none'}")
    tile_height, tile_width, _ = shapes.pop()
    column_texts = [_Text(text, 13, tile_width) for text in column_titles]
    row_texts = [_Text(text, 13, 160) for text in row_titles]
    column_pitch = max([tile_width, *(text.width for text in column_texts)]) + GAP
    row_pitch = max([tile_height, *(text.height for text in row_texts)]) + GAP
    left = MARGIN + max([0, *(text.width + GAP for text in row_texts)])
    width = max(left + column_pitch * max(map(len, [*rows, column_texts])) - GAP + MARGIN, 360)
    title_text, subtitle_text, footer_text = (
        _Text(t, size, width - 2 * MARGIN) for t, size in ((title, 20), (subtitle, 13), (footer, 12))
    )
    top = MARGIN + title_text.height + subtitle_text.height + (GAP if title or subtitle else 0)
    top += max([0, *(text.height + 5 for text in column_texts)])
    bottom = top + row_pitch * len(rows) - GAP
    canvas = Image.new("RGB", (width, bottom + (GAP + footer_text.height if footer else 0) + MARGIN), BACKGROUND_COLOUR)
    pen = ImageDraw.Draw(canvas)
    title_text.draw(pen, MARGIN, MARGIN, TEXT_COLOUR)
    subtitle_text.draw(pen, MARGIN, MARGIN + title_text.height, MUTED_COLOUR)
    footer_text.draw(pen, MARGIN, bottom + GAP, MUTED_COLOUR)
    indent = (column_pitch - GAP - tile_width) // 2
    for j, text in enumerate(column_texts):
        text.draw(pen, left + column_pitch * j + indent + tile_width // 2, top - 5 - text.height, TEXT_COLOUR, "m")
    for i, text in enumerate(row_texts):
        text.draw(pen, left - GAP, top + row_pitch * i + (tile_height - text.height) // 2, TEXT_COLOUR, "r")
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            x, y = left + column_pitch * j + indent, top + row_pitch * i
            pen.rectangle((x - 1, y - 1, x + tile_width, y + tile_height), outline=GRID_COLOUR)
            canvas.paste(Image.fromarray(tile), (x, y))
    return canvas


def draw_line_chart(
    series: Mapping[str, Sequence[float]],
    x: Sequence[float],
    *,
    title: str,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float],
    width: int = 640,
    height: int = 360,
    dashed: Collection[str] = (),
) -> Image.Image:
    """Return a chart of curves over `x`, each with its name at its end.

    Curves are clipped to `y_range` and skip non-finite values; one that overlaps an earlier curve is dashed too.
    """
    page = Image.new("RGB", (width, height), BACKGROUND_COLOUR)
    pen = ImageDraw.Draw(page)
    names, header = {name: _Text(name, 13) for name in series}, _Text(title, 16, width - 2 * MARGIN)
    label = _Text(y_label, 12)
    (x0, x1), (y0, y1) = (min(x), max(x) if max(x) > min(x) else min(x) + 1), y_range
    x_ticks, y_ticks = ({tick: _Text(f"{tick:g}", 12) for tick in choose_ticks(*ends)} for ends in ((x0, x1), y_range))
    left = MARGIN + 8 + max(text.width for text in y_ticks.values())
    right = width - MARGIN - 42 - max(text.width for text in names.values())
    top, bottom = MARGIN + header.height + label.height + 12, height - MARGIN - 42
    per_x, per_y = (right - left) / (x1 - x0), (bottom - top) / (y1 - y0)
    header.draw(pen, MARGIN, MARGIN, TEXT_COLOUR)
    label.draw(pen, MARGIN, MARGIN + header.height, MUTED_COLOUR)
    _Text(x_label, 12).draw(pen, (left + right) // 2, bottom + 26, MUTED_COLOUR, "m")
    for tick, text in y_ticks.items():
        row = round(bottom - (tick - y0) * per_y)
        pen.line((left, row, right, row), fill=GRID_COLOUR)
        text.draw(pen, left - 8, row - text.height // 2, MUTED_COLOUR, "r")
    for tick, text in x_ticks.items():
        column = round(left + (tick - x0) * per_x)
        pen.line((column, top, column, bottom), fill=GRID_COLOUR)
        text.draw(pen, column, bottom + 7, MUTED_COLOUR, "m")

    across = left + (np.array(x) - x0) * per_x
    curves = {name: across + 1j * (bottom - (np.array(values) - y0) * per_y) for name, values in series.items()}
    curves = {name: curve[np.isfinite(curve)] for name, curve in curves.items()}
    seen, dash = set[object](), dict[str, float]()
    for name, curve in curves.items():
        steps = set(pairwise(curve.round(1).tolist()))
        is_solid = name not in dashed and seen.isdisjoint(steps)
        dash[name] = inf if is_solid else 9 / 2 ** sum(length < inf for length in dash.values())
        seen |= steps
    colours = {name: SERIES_COLOURS[i % len(SERIES_COLOURS)] for i, name in enumerate(curves)}
    for name in sorted(filter(lambda name: len(curves[name]), curves), key=lambda name: -dash[name]):
        _draw_stroke(page, curves[name], (left - 3, top - 3, right + 4, bottom + 4), colours[name], dash[name])
    ends, y = {name: max(curve[-1].imag if len(curve) else bottom, top) for name, curve in curves.items()}, -inf
    for below, name in zip(range(len(ends))[::-1], sorted(ends, key=lambda name: ends[name]), strict=True):
        y = min(max(ends[name], y + 19), bottom - 19 * below)
        swatch = np.array([right + 12, right + 34]) + 1j * y
        _draw_stroke(page, swatch, (right, 0, width, height), colours[name], dash[name])
        names[name].draw(pen, right + 42, round(y) - names[name].height // 2, colours[name])
    return page


def draw_bar_chart(
    bars: Mapping[str, float], *, title: str, format_value: Callable[[float], str] = "{:g}".format, width: int = 440
) -> Image.Image:
    """Return a chart with a horizontal bar from zero for each name, its value at its end; long names are shortened."""
    row, header = 20, _Text(title, 16, width - 2 * MARGIN)
    names = [_shorten_text(name, 12, 0.4 * width) for name in bars]
    values = [_Text(text, 12) for text in map(format_value, bars.values())]
    left = MARGIN + 8 + max((text.width for text in names), default=0)
    available_width = width - MARGIN - 8 - max((text.width for text in values), default=0) - left
    top = MARGIN + header.height + GAP
    page = Image.new("RGB", (width, top + row * len(bars) + MARGIN), BACKGROUND_COLOUR)
    pen = ImageDraw.Draw(page)
    header.draw(pen, MARGIN, MARGIN, TEXT_COLOUR)
    per_unit = max(available_width, 1) / max([*bars.values(), 1e-12])
    for i, (name, value, length) in enumerate(zip(names, values, bars.values(), strict=True)):
        y = top + row * i
        end = left + round(length * per_unit)
        name.draw(pen, left - 8, y + (row - name.height) // 2, TEXT_COLOUR, "r")
        pen.rectangle((left, y + 3, max(end - 1, left), y + row - 4), fill=SERIES_COLOURS[0] if length else GRID_COLOUR)
        value.draw(pen, end + 8, y + (row - value.height) // 2, MUTED_COLOUR)
    return page


def draw_legend(entries: Mapping[str, Colour], height: int, width: int) -> Tile:
    """Return a legend as a tile, in the order given; if not all entries fit, the last line counts the others."""
    row = 18
    fitting = len(entries) if len(entries) * row <= height else max(height // row - 1, 0)
    page = Image.new("RGB", (width, height), BACKGROUND_COLOUR)
    pen = ImageDraw.Draw(page)
    for i, (name, colour) in enumerate(list(entries.items())[:fitting]):
        pen.rectangle((2, i * row + 3, 13, i * row + 14), fill=colour, outline=GRID_COLOUR)
        _shorten_text(name, 12, width - 20).draw(pen, 20, i * row, TEXT_COLOUR)
    if fitting < len(entries):
        _Text(f"and {len(entries) - fitting} more", 12).draw(pen, 20, fitting * row, MUTED_COLOUR)
    return np.asarray(page)


def stack_images(images: Sequence[Image.Image], *, columns: int = 1, gap: int = 16) -> Image.Image:
    """Return images of any size placed row by row on one image, each at the upper left of its cell."""
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    widths = [max(image.width for image in images[j::columns]) + gap for j in range(len(rows[0]))]
    heights = [max(image.height for image in row) + gap for row in rows]
    page = Image.new("RGB", (sum(widths) - gap, sum(heights) - gap), BACKGROUND_COLOUR)
    for i, image in enumerate(images):
        page.paste(image, (sum(widths[: i % columns]), sum(heights[: i // columns])))
    return page


def check_png_path(path: str | Path) -> Path:
    """Return the path of a figure to be written, or raise before it is drawn if it cannot be a PNG file."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UserError(f"{str(path)!r}: not a PNG file name. Use a name that ends in .png")
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: exists and is not a file. Use another name")
    return path


def save_png(image: Image.Image, path: str | Path) -> Path:
    """Write an image as PNG atomically, and create its parent directories; equal images give equal bytes."""
    path, encoded = check_png_path(path), BytesIO()
    image.save(encoded, format="PNG", optimize=True)
    write_atomic(path, encoded.getvalue())
    return path


@cache
def _palette(background: Colour, low: tuple[float, float], high: tuple[float, float]) -> NDArray[np.uint8]:
    """Return 256 colours, each as far in Oklab from all earlier ones as possible; the last is for unlabelled pixels.

    `low` and `high` are bounds of (lightness, chroma).
    """
    rgb = np.concatenate([[UNLABELLED_COLOUR, background], 15 * np.indices((18, 18, 18)).reshape(3, -1).T])
    lms = (rgb / 255) ** 2.2 @ np.array([[0.412, 0.212, 0.088], [0.536, 0.681, 0.282], [0.051, 0.107, 0.630]])
    lab = np.cbrt(lms) @ np.array([[0.210, 1.978, 0.026], [0.794, -2.429, 0.783], [-0.004, 0.451, -0.809]])
    measures = np.stack([lab[:, 0], np.hypot(lab[:, 1], lab[:, 2])], axis=1)
    is_usable = ((measures > low) & (measures < high)).all(axis=1)
    distance, chosen = np.linalg.norm(lab - lab[0], axis=1), [0, 1]
    while len(chosen) <= IGNORE:
        from_last = np.linalg.norm(lab - lab[chosen[-1]], axis=1)
        distance = np.minimum(distance, from_last)
        chosen.append(int(np.where(is_usable & (from_last > 0.15), distance, -inf).argmax()))
    return np.roll(rgb[chosen].astype(np.uint8), -1, axis=0)


def _apply_palette(ids: NDArray[np.integer], palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    is_hatched = (ids == IGNORE) & (np.indices(ids.shape).sum(axis=0) % 8 < 2)
    return np.asarray(palette[ids] - np.uint8(24) * is_hatched[..., None])


class _Text:
    """Text wrapped to a width, with its size in pixels before it is drawn."""

    def __init__(self, text: str, size: int, width: float = inf) -> None:
        self.font, self.size, self.pitch = ImageFont.load_default(size=size), size, round(1.35 * size)
        missing = bytes(self.font.getmask("\ue123"))  # the glyph of all characters that the font lacks
        for c in {c for c in text if c.isprintable() and bytes(self.font.getmask(c)) == missing}:
            text = text.replace(
                c, _ASCII_SPELLINGS.get(c) or normalize("NFKD", c).encode("ascii", "ignore").decode() or "?"
            )
        self.lines: list[str] = []
        for paragraph in text.split("\n") if text else []:
            self.lines.append("")
            for word in paragraph.split(" "):
                longer = f"{self.lines[-1]} {word}".lstrip()
                if self.lines[-1] and self.font.getlength(longer) > width:
                    self.lines.append(word)
                else:
                    self.lines[-1] = longer
        self.width = ceil(max(map(self.font.getlength, self.lines), default=0))
        self.height = self.pitch * len(self.lines)

    def draw(self, pen: ImageDraw.ImageDraw, x: int, y: int, colour: Colour, align: str = "l") -> None:
        for i, line in enumerate(self.lines):
            pen.text((x, y + i * self.pitch + self.size), line, fill=colour, font=self.font, anchor=f"{align}s")


def _shorten_text(text: str, size: int, width: float) -> _Text:
    """Return one line of text, shortened at its end to fit a width."""
    shortened = _Text(text, size)
    while shortened.width > width and text:
        text = text[:-1]
        shortened = _Text(f"{text.rstrip()}…", size)
    return shortened


def choose_ticks(low: float, high: float) -> list[float]:
    """Return three to nine round numbers inside a range."""
    rough = (high - low) / 5
    power = 10.0 ** floor(log10(rough))
    step = power * min((1, 2, 2.5, 5, 10), key=lambda m: abs(log10(m * power / rough)))
    return [round(i * step, 12) + 0.0 for i in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def _draw_stroke(page: Image.Image, points: NDArray[np.complex128], box: PixelBox, colour: Colour, dash: float) -> None:
    """Draw an antialiased line through points x + iy with dashes of `dash` pixels (inf: solid), clipped to a box."""
    smooth = 8
    mask = Image.new("L", ((box[2] - box[0]) * smooth, (box[3] - box[1]) * smooth))
    points = (points + 0.5 + 0.5j - complex(*box[:2])) * smooth
    along = np.cumsum([0, *np.abs(np.diff(points))]) / smooth
    for start in np.arange(0, along[-1], 14) if dash < inf else [0]:
        end = min(start + dash, along[-1])
        piece = np.interp([start, *along[(along > start) & (along < end)], end], along, points).tolist()
        ImageDraw.Draw(mask).line([(p.real, p.imag) for p in piece], fill=255, width=18, joint="curve")
    page.paste(colour, box, mask.reduce(smooth))
