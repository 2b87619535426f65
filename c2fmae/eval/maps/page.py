"""The page and the tables of a comparison of maps with true ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer
from PIL import Image
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.files import write_atomic
from c2fmae.core.json_file import write_json
from c2fmae.core.scene import Scene
from c2fmae.core.text import format_count
from c2fmae.data.preview import draw_map_tile, fit_tile_size, make_row_title
from c2fmae.data.spacing import evenly_spaced_indices
from c2fmae.eval.class_sections import make_class_charts
from c2fmae.eval.maps.compare import MapComparison
from c2fmae.eval.maps.pairs import MapPair, MapPairs, convert_classes, match_classes
from c2fmae.eval.metrics import Metric
from c2fmae.eval.results import EvaluationResult, make_metrics_table
from c2fmae.report import Details, Figure, KeyValues, Page, Section, Table, Text, render_page
from c2fmae.report.drawing import Tile, draw_tile_sheet, pad_tile
from c2fmae.report.page import table_to_lines

COMPARISON_FORMAT = 1
NUM_EVEN, NUM_LOWEST = 12, 6
"""Numbers of images in the contact sheets: evenly spaced, and those with the lowest scores."""

_MAX_NAMED_CLASSES = 12

_DEFINITIONS = """Pixels whose truth is not labelled do not count. Pixels of the maps that are not labelled are errors.

Average best overlap is the mean over true objects of the highest IoU of any object of the maps; covering is the same,
weighted by the area of true objects; recall is the fraction of true objects with an IoU of at least 0.5 or 0.75. PQ is
panoptic quality: of objects without classes, and of things and stuff with classes. Boundaries match within 0.75 % of
the image diagonal. Intervals are 95 % intervals of a bootstrap over images. Its samples lack rare classes, so for means
over classes (mIoU, and PQ, SQ and RQ of classes) of a few images, the interval may not even include the score.

Baselines need no model: the full image as one object, a box in the middle with two thirds of each side, and regions of
similar colour (Felzenszwalb), which is the labeller `regions` with its defaults."""


def check_page_path(path: Path) -> Path:
    """Return the path of a page to be written, or raise before the comparison if it cannot be one."""
    if path.suffix.lower() != ".html":
        raise UserError(f"{str(path)!r}: not the name of a page. Use a name that ends in .html")
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: exists and is not a file. Use another name")
    return path


def list_results(metrics: Mapping[str, tuple[Metric, ...]], path: Path) -> list[EvaluationResult]:
    """Return the metrics of the maps and of each baseline as results, for tables."""
    return [
        EvaluationResult("data compare", row, _DEFINITIONS, values, path.parent, is_new=True)
        for row, values in metrics.items()
    ]


def describe_comparison(pairs: MapPairs, comparison: MapComparison) -> list[str]:
    """Return a sentence for everything that is left out."""
    sentences = []
    if pairs.num_only_truth:
        sentences.append(f"{format_count(pairs.num_only_truth, 'image')} of the truth without maps left out")
    if pairs.num_only_maps:
        sentences.append(f"{format_count(pairs.num_only_maps, 'image')} of the maps without truth left out")
    if comparison.unmatched:
        names, number = ", ".join(comparison.unmatched[:_MAX_NAMED_CLASSES]), len(comparison.unmatched)
        more = ", …" if number > _MAX_NAMED_CLASSES else ""
        has = format_count(number, "class has", "classes have")
        sentences.append(f"{has} no true class of the same name, so their pixels are errors: {names}{more}")
    return sentences


def write_comparison(
    path: Path,
    pairs: MapPairs,
    comparison: MapComparison,
    metrics: Mapping[str, tuple[Metric, ...]],
    *,
    maps: str,
    truth: str,
) -> Path:
    """Write the page, and beside it a JSON file with all metrics; return the path of the latter."""
    document = {
        "format": COMPARISON_FORMAT,
        "maps": maps,
        "truth": truth,
        "num_images": comparison.num_images,
        "num_only_maps": pairs.num_only_maps,
        "num_only_truth": pairs.num_only_truth,
        "unmatched_classes": list(comparison.unmatched),
        "metrics": {row: [metric.to_json() for metric in values] for row, values in metrics.items()},
    }
    json_path = path.with_suffix(".json")
    write_json(json_path, document)
    page = make_comparison_page(pairs, comparison, metrics, path, maps=maps, truth=truth)
    write_atomic(path, render_page(page).encode())
    return json_path


def make_comparison_page(
    pairs: MapPairs,
    comparison: MapComparison,
    metrics: Mapping[str, tuple[Metric, ...]],
    path: Path,
    *,
    maps: str,
    truth: str,
) -> Page:
    """Return the page: scores beside baselines, scores of classes, and contact sheets."""
    sources = {"maps": maps, "truth": truth, "images": f"{comparison.num_images:,}"}
    notes = [Text(f"{sentence}.") for sentence in describe_comparison(pairs, comparison)]
    return Page(
        "Maps compared with true maps",
        f"Scores of {maps} relative to {truth}, beside baselines without a model.",
        [
            KeyValues(sources),
            *notes,
            _make_score_table(metrics, path),
            Text(_DEFINITIONS),
            *_make_class_sections(comparison),
            *_make_contact_sheets(pairs, comparison),
        ],
    )


def _make_score_table(metrics: Mapping[str, tuple[Metric, ...]], path: Path) -> Table:
    """Return the table of metrics without the number of images, which is that of the page; it would be too wide."""
    table = make_metrics_table("Scores, with 95 % intervals", list_results(metrics, path))
    rows = [(f"{label}, {unit}" if unit else label, *values) for label, unit, _, *values in table.rows]
    return Table(table.caption, ("", *table.columns[3:]), rows)


def _make_class_sections(comparison: MapComparison) -> list[Section]:
    """Return the IoU of each class, and its panoptic quality."""
    if not comparison.class_totals or not comparison.classes:
        return []
    names = [entry.name for entry in comparison.classes]
    way = next(iter(comparison.class_totals))
    ious = _to_percent(comparison.class_ious)
    sections = make_class_charts("IoU", [(name, (iou,)) for name, iou in zip(names, ious, strict=True)], (way,))
    qualities = comparison.class_qualities
    if qualities is not None:
        rows = [
            (name, *(f"{value:.1f}" for value in values))
            for name, *values in zip(names, *(100 * qualities).tolist(), strict=True)
            if not np.isnan(values[0])
        ]
        table = Table("", ("class", "PQ", "SQ", "RQ"), rows)
        sections.append(Details("Panoptic quality of each class, %", "\n".join(table_to_lines(table))))
    return sections


def _make_contact_sheets(pairs: MapPairs, comparison: MapComparison) -> list[Section]:
    scores = comparison.image_scores()
    order = [row for row in scores.argsort(stable=True).tolist() if not scores[row].isnan()]
    name = "best overlap" if comparison.object_totals else "mIoU"
    even = evenly_spaced_indices(len(pairs), NUM_EVEN, centred=True)
    sheets: list[Section] = [Figure(draw_contact_sheet(pairs, even, scores, name), "Images, evenly spaced")]
    if lowest := order[:NUM_LOWEST]:
        caption = f"Images with the lowest {name}"
        sheets.append(Figure(draw_contact_sheet(pairs, lowest, scores, name), caption))
    return sheets


def draw_contact_sheet(pairs: MapPairs, indices: Sequence[int], scores: Tensor, score_name: str) -> Image.Image:
    """Draw images with their maps and true maps, a row each. Classes with a true class have its colour."""
    predicted_classes, truth_classes = pairs.maps.info.classes, pairs.truth.info.classes
    classes, unmatched = match_classes(predicted_classes, truth_classes)
    is_named = len(unmatched) < len(predicted_classes)
    shown = [pairs[index] for index in indices]
    sizes = [fit_tile_size(*pair.size) for pair in shown]
    height, width = (max(sides) for sides in zip(*sizes, strict=True))
    titles = ["image"] if shown[0].image is not None else []
    for name in pairs.granularities:
        titles += [f"{name} map", f"true {name} map"]
    rows = []
    for pair, size in zip(shown, sizes, strict=True):
        predicted = dict(pair.predicted)
        if "semantic" in predicted and is_named:
            predicted["semantic"] = convert_classes(predicted["semantic"], classes)
        tiles = [] if pair.image is None else [draw_map_tile(Scene(pair.key, {"rgb": pair.image}), "rgb", size)]
        for name in pairs.granularities:
            tiles += [_draw_ids(pair, name, maps[name], size) for maps in (predicted, pair.truth)]
        rows.append([pad_tile(tile, height, width) for tile in tiles])
    row_titles = _make_row_titles(pairs, shown, indices, scores, score_name)
    return draw_tile_sheet(rows, column_titles=titles, row_titles=row_titles)


def _draw_ids(pair: MapPair, name: str, ids: Integer[Tensor, "rows columns"], size: tuple[int, int]) -> Tile:
    return draw_map_tile(Scene(pair.key, {name: ids}, label_stride=pair.stride), name, size)


def _make_row_titles(
    pairs: MapPairs, shown: Sequence[MapPair], indices: Sequence[int], scores: Tensor, name: str
) -> list[str]:
    values = [scores[index].item() for index in indices]
    keys = [make_row_title(Scene(pair.key, {}), pairs.truth.info) for pair in shown]
    return [
        key if np.isnan(value) else f"{key}\n{name} {100 * value:.1f} %"
        for key, value in zip(keys, values, strict=True)
    ]


def _to_percent(scores: Tensor) -> list[float | None]:
    return [None if np.isnan(score) else 100 * score for score in scores.tolist()]
