"""Statistics of a data set as bar charts and text, from the counts of a check."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from PIL import Image

from c2fmae.core.granularity import IGNORE
from c2fmae.core.text import format_count
from c2fmae.data.check import AREA_FRACTION_EDGES, CheckReport
from c2fmae.report.drawing import draw_bar_chart, stack_images

_OBJECT_EDGES = (0, 1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50)
_SIDE_EDGES = (0, 32, 64, 96, 128, 192, 256, 320, 384, 448, 512, 640, 768, 1024, 1536, 2048)  # pixels
_MAX_BARS = 40


def draw_stats(report: CheckReport) -> Image.Image:
    """Draw classes by pixels and by images, objects by number and size, labels, and image sizes."""
    charts = []
    if total := int(report.class_pixels.sum()):
        names = dict(enumerate(report.info.class_names)) | {IGNORE: "(not labelled)"}
        for counts, total_count, unit in (
            (report.class_pixels, total, "pixels"),
            (report.class_images, report.num_scenes, "images"),
        ):
            fractions = {names.get(i, f"class {i}"): counts[i] / total_count for i in np.flatnonzero(counts).tolist()}
            charts.append(
                draw_bar_chart(
                    _largest_bars(fractions), title=f"Fraction of {unit} with a class", format_value="{:.1%}".format
                )
            )
    if report.annotated is not None:
        bars = {
            entry.name: count
            for entry, count in zip(report.info.object_classes, report.annotated.objects.tolist(), strict=True)
        }
        charts.append(draw_bar_chart(_largest_bars(bars), title="Objects by class"))
    if report.object_counts:
        charts.append(
            draw_bar_chart(_bin_counts(report.object_counts, _OBJECT_EDGES), title="Images by number of objects")
        )
        charts.append(draw_bar_chart(_object_size_bars(report), title="Objects by fraction of the image"))
    if report.label_counts:
        charts.append(draw_bar_chart(_largest_bars(_label_bars(report)), title="Images by label"))
    sides = Counter[int]()
    for size, images in report.image_size_counts.items():
        sides[min(size)] += images
    charts.append(draw_bar_chart(_bin_counts(sides, _SIDE_EDGES), title="Images by shorter side, in pixels"))
    return stack_images(charts, columns=2)


def describe_stats(report: CheckReport) -> str:
    """Return one line about scenes, one about image sizes, about objects and about labels."""
    lines = [f"scenes   {report.num_scenes}"]
    if report.image_size_counts:
        (width, height), images = max(report.image_size_counts.items(), key=lambda pair: pair[1])
        shorter = sorted(min(size) for size in report.image_size_counts)
        lines.append(
            f"images   {format_count(len(report.image_size_counts), 'size')}, most often {width}×{height} ({images}),"
            f" shorter side {shorter[0]} to {shorter[-1]} pixels"
        )
    if report.object_counts:
        counts = np.repeat([*report.object_counts], [*report.object_counts.values()])
        lines.append(
            f"objects  {report.num_objects}; per image {counts.mean():.1f} on average, median {np.median(counts):g},"
            f" maximum {counts.max()}"
        )
    if report.annotated is not None:
        small, medium, large = report.annotated.sizes.tolist()
        num_crowds = int(report.annotated.crowds.sum())
        crowds = f", and {format_count(num_crowds, 'crowd')}" if num_crowds else ""
        lines.append(f"sizes    {small} small (below 32² pixels), {medium} medium, {large} large (from 96²){crowds}")
    if report.label_counts:
        known = f" of {len(report.info.labels)}" if report.info.labels else ""
        fewest, most = min(report.label_counts.values()), max(report.label_counts.values())
        lines.append(f"labels   {len(report.label_counts)}{known}, with {fewest} to {most} images each")
    return "\n".join(lines)


def _label_bars(report: CheckReport) -> dict[str, float]:
    names = {label: name for label, name in enumerate(report.info.label_names) if name}
    return {names.get(label, f"label {label}"): images for label, images in report.label_counts.items()}


def _largest_bars(bars: Mapping[str, float]) -> dict[str, float]:
    """Return at most `_MAX_BARS` bars, the longest first; the last one counts the others if there are more."""
    ordered = dict(sorted(bars.items(), key=lambda bar: -bar[1]))
    if len(ordered) <= _MAX_BARS:
        return ordered
    names = list(ordered)[: _MAX_BARS - 1]
    others = list(ordered.values())[len(names) :]
    return {name: ordered[name] for name in names} | {f"{format_count(len(others), 'other')}, each at most": others[0]}


def _object_size_bars(report: CheckReport) -> dict[str, float]:
    texts = [f"{low:.3g} % to {high:.3g} %" for low, high in pairwise(100 * edge for edge in AREA_FRACTION_EDGES)]
    return dict(zip(texts, report.object_area_counts.tolist(), strict=True))


def _bin_counts(counts: Mapping[int, int], edges: Sequence[int]) -> dict[str, float]:
    """Return sums of counts in bins from the first to the last that is not empty; the last edge is open."""
    bounds = [*pairwise(edges), (edges[-1], None)]
    bins = [
        (
            f"{low} or more" if high is None else f"{low}" if high == low + 1 else f"{low}–{high - 1}",
            sum(images for number, images in counts.items() if number >= low and (high is None or number < high)),
        )
        for low, high in bounds
    ]
    used = [index for index, (_, images) in enumerate(bins) if images]
    return dict(bins[min(used, default=0) : max(used, default=-1) + 1])
