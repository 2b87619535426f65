import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from c2fmae.core.errors import UserError
from c2fmae.report import drawing
from c2fmae.report.drawing import (
    DrawnObject,
    colour_classes,
    colour_instances,
    draw_bar_chart,
    draw_legend,
    draw_line_chart,
    draw_objects,
    draw_outlines,
    draw_tile_sheet,
    hide_patches,
    image_to_tile,
    pad_tile,
    save_png,
    stack_images,
)

COLOURINGS = pytest.mark.parametrize("colour", [colour_classes, colour_instances])


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def chart(**changes: Any) -> NDArray[np.uint8]:
    given: dict[str, Any] = {"series": {"a": [0, 1]}, "x": [0, 1], "y_range": (0, 1)}
    texts = {"title": "", "x_label": "", "y_label": ""}
    return np.asarray(draw_line_chart(**(given | texts | changes)))


def has(image: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    return np.asarray((image == colour).all(axis=-1))


@COLOURINGS
def test_every_id_has_a_colour_of_its_own(colour: Any) -> None:
    assert len(np.unique(colour(np.arange(256).reshape(256, 1)).reshape(-1, 3), axis=0)) == 256


@COLOURINGS
def test_neighbouring_ids_have_clearly_different_colours(colour: Any) -> None:
    colours = colour(np.arange(256).reshape(256, 1)).astype(int)[:, 0]
    assert np.abs(np.diff(colours, axis=0)).sum(axis=1).min() > 60


@COLOURINGS
def test_unlabelled_pixels_are_light_and_hatched_unlike_any_id(colour: Any) -> None:
    unlabelled = np.unique(colour(np.full((16, 16), 255)).reshape(-1, 3), axis=0)
    ids = colour(np.arange(255).reshape(255, 1)).reshape(-1, 3)
    assert len(unlabelled) == 2
    assert unlabelled.min() > 180
    assert not (ids[:, None] == unlabelled).all(axis=-1).any()


@COLOURINGS
def test_colouring_depends_on_ids_and_not_on_their_dtype(colour: Any) -> None:
    ids = np.array([[0, 3, 255], [7, 254, 1]], np.uint8)
    coloured = colour(ids)
    assert coloured.shape == (2, 3, 3)
    assert coloured.dtype == np.uint8
    assert ids.tolist() == [[0, 3, 255], [7, 254, 1]]
    np.testing.assert_array_equal(coloured, colour(ids.astype(np.int64)))


@pytest.mark.parametrize(("height", "width", "rows", "columns"), [(32, 32, 4, 4), (32, 64, 2, 8), (30, 50, 7, 3)])
def test_masked_patches_are_covered_and_visible_ones_unchanged(
    height: int, width: int, rows: int, columns: int
) -> None:
    image = noise(height, width)
    before = image.copy()
    is_masked = np.random.default_rng(1).random((rows, columns)) < 0.5
    hidden = hide_patches(image, is_masked)
    np.testing.assert_array_equal(image, before)
    for y in range(height):
        for x in range(width):
            if not is_masked[y * rows // height, x * columns // width]:
                assert (hidden[y, x] == image[y, x]).all()
            else:
                assert np.ptp(hidden[y, x].astype(int)) <= 0.15 * 255 + 18


def test_full_opacity_hides_the_image_completely() -> None:
    everything = np.ones((4, 4), bool)
    one, other = (hide_patches(noise(32, 32, seed), everything, opacity=1) for seed in (0, 1))
    np.testing.assert_array_equal(one, other)


def test_a_sheet_contains_each_tile_unchanged_in_rows_and_columns() -> None:
    tiles = [[noise(20, 30, seed=3 * i + j) for j in range(3)] for i in range(2)]
    page = np.asarray(
        draw_tile_sheet(tiles, column_titles=["α", "a wide title that\nwraps", "c"], row_titles=["one", "two"])
    )
    windows = np.lib.stride_tricks.sliding_window_view(page, (20, 30, 3))[:, :, 0]
    corners = np.array([[np.argwhere((windows == tile).all(axis=(2, 3, 4))) for tile in row] for row in tiles])
    assert corners.shape == (2, 3, 1, 2)
    y, x = corners[..., 0, 0], corners[..., 0, 1]
    assert (y == y[:, :1]).all()
    assert (x == x[:1]).all()
    assert (np.diff(y, axis=0) > 20).all()
    assert (np.diff(x, axis=1) > 30).all()


def test_a_sheet_grows_with_rows_columns_and_texts() -> None:
    def size(rows: int, columns: int, **texts: str) -> tuple[int, int]:
        return draw_tile_sheet([[noise(90, 200)] * columns] * rows, column_titles=[], **texts).size

    (width, height), (wider, _), (_, higher) = size(1, 2), size(1, 3), size(2, 2)
    assert wider - width == 200 + drawing.GAP
    assert higher - height == 90 + drawing.GAP
    assert size(1, 2, title="t")[1] < size(1, 2, title="t", footer="f")[1]
    assert size(1, 2, subtitle="many words " * 30)[0] == width


def test_texts_of_a_sheet_stay_inside_its_margins() -> None:
    texts = {"title": "A title " * 9, "subtitle": "αβγ − × · → " * 20, "footer": "gj " * 99}
    page = draw_tile_sheet(
        [[noise(40, 40)]], column_titles=["a head broader than its tile"], row_titles=["a row " * 9], **texts
    )
    assert (np.asarray(page.crop((0, 0, drawing.MARGIN - 2, page.height))) == 255).all()
    assert (np.asarray(page.crop((page.width - drawing.MARGIN + 2, 0, *page.size))) == 255).all()
    assert (np.asarray(page.crop((0, page.height - drawing.MARGIN + 2, *page.size))) == 255).all()


def test_tiles_of_different_sizes_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"^rows: expected tiles of one size, got \[\(8, 8, 3\), \(8, 9, 3\)\]$"):
        draw_tile_sheet([[noise(8, 8), noise(8, 9)]], column_titles=[])


def test_characters_missing_from_the_font_are_spelt_out() -> None:
    def head(text: str) -> bytes:
        return draw_tile_sheet([[noise(8, 8)]], column_titles=[text]).tobytes()

    assert head("α − β × γ → 1") == head("alpha - beta x gamma -> 1")
    assert head("é² ≤ \u4e00") == head("e2 <= ?")
    assert head("a · b") != head("a ? b")


def test_curves_are_clipped_to_the_frame() -> None:
    image = chart(series={"a": [-9, 9, -9]}, x=[0, 1, 2])
    rules = np.argwhere(has(image, drawing.GRID_COLOUR))
    (top, left), (bottom, right) = rules.min(axis=0), rules.max(axis=0)
    curve = np.argwhere(has(image, drawing.SERIES_COLOURS[0]))
    curve = curve[curve[:, 1] < right + 8]
    assert len(curve) > 100
    assert (curve >= (top - 3, left - 3)).all()
    assert (curve <= (bottom + 3, right + 3)).all()


def test_overlapping_curves_all_remain_visible() -> None:
    image = chart(series={"a": [0.2, 0.8], "b": [0.2, 0.8], "c": [0.2, 0.8]})
    counts = [has(image[:, :500], colour).sum() for colour in drawing.SERIES_COLOURS[:3]]
    assert min(counts) > 60


def test_a_dashed_curve_has_gaps_and_a_solid_one_has_none() -> None:
    def ink(**changes: Any) -> int:
        return int(has(chart(series={"a": [0.5, 0.5]}, **changes), drawing.SERIES_COLOURS[0]).sum())

    assert 0.5 < ink(dashed=["a"]) / ink() < 0.8


@pytest.mark.parametrize("values", [[float("nan")] * 3, [0.1, float("nan"), 0.9], [5.0, 6.0, 7.0]])
def test_a_chart_accepts_missing_and_out_of_range_values(values: list[float]) -> None:
    assert chart(series={"a": values}, x=[0, 1, 2]).shape == (360, 640, 3)


def test_a_chart_accepts_a_single_point() -> None:
    assert chart(series={"a": [0.5]}, x=[3], width=300, height=200).shape == (200, 300, 3)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (0, 300, [0, 50, 100, 150, 200, 250, 300]),
        (0.03, 0.0501, [0.03, 0.035, 0.04, 0.045, 0.05]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, ticks: list[float]) -> None:
    assert drawing.choose_ticks(low, high) == ticks


def test_bars_are_proportional_to_their_values() -> None:
    page = np.asarray(draw_bar_chart({"one": 1, "none": 0, "four": 4}, title="t"))
    rows = [has(page[24 + 22 + 10 + 20 * i :][:20], drawing.SERIES_COLOURS[0]).any(axis=0).sum() for i in range(3)]
    assert rows[1] == 0
    assert rows[2] > 200
    assert abs(rows[2] - 4 * rows[0]) <= 4


def test_texts_of_a_bar_chart_stay_inside_its_margins() -> None:
    bars = {"a name that is fairly long": 1e6, "": 3, "koala, koala bear, kangaroo bear, native bear " * 3: 1e6}
    page = draw_bar_chart(bars, title="title " * 20, format_value="{:.3f}".format)
    assert has(np.asarray(page), drawing.SERIES_COLOURS[0]).sum() > 2 * 14 * 100
    assert (np.asarray(page)[:, : drawing.MARGIN - 2] == 255).all()
    assert (np.asarray(page)[:, page.width - drawing.MARGIN + 2 :] == 255).all()


def test_a_chart_without_bars_shows_its_title() -> None:
    assert draw_bar_chart({}, title="none").height < 100


def test_a_legend_counts_the_entries_that_do_not_fit() -> None:
    colours = {f"class {i}": (i, 0, 200) for i in range(9)}
    for height, shown in ((9 * 18, 9), (9 * 18 - 1, 7), (3 * 18, 2), (10, 0)):
        tile = draw_legend(colours, height, 120)
        assert tile.shape == (height, 120, 3)
        assert [has(tile, colour).sum() >= 100 for colour in colours.values()] == [i < shown for i in range(9)]


def test_stacked_images_are_complete_and_do_not_overlap() -> None:
    sizes = [(30, 20), (50, 10), (8, 40)]
    images = [Image.new("RGB", size, colour) for size, colour in zip(sizes, ("red", "lime", "blue"), strict=True)]
    page = stack_images(images, columns=2, gap=5)
    assert page.size == (30 + 5 + 50, 20 + 5 + 40)
    assert [page.crop(box).tobytes() for box in ((0, 0, 30, 20), (35, 0, 85, 10), (0, 25, 8, 65))] == [
        image.tobytes() for image in images
    ]
    assert stack_images(images[:1], columns=3).size == (30, 20)


def test_a_saved_image_loads_unchanged_and_equal_images_give_equal_bytes(tmp_path: Path) -> None:
    image = Image.fromarray(noise(9, 7))
    first, second = save_png(image, tmp_path / "new" / "a.png"), save_png(image, str(tmp_path / "b.png"))
    assert first.read_bytes() == second.read_bytes()
    np.testing.assert_array_equal(np.asarray(Image.open(first)), noise(9, 7))
    assert [path.name for path in first.parent.iterdir()] == ["a.png"]


def test_a_failed_write_leaves_the_previous_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_png(Image.new("RGB", (4, 4)), tmp_path / "a.png")
    before = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError) as caught:
        save_png(Image.new("RGB", (5, 5)), path)
    assert (
        str(caught.value)
        == f"{path}: cannot be written: No space left on device. Free space or fix its permissions, then run again"
    )
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_at_the_path_of_a_figure_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UserError) as caught:
        save_png(Image.new("RGB", (4, 4)), tmp_path / "a.png")
    assert str(caught.value) == f"{tmp_path / 'a.png'}: exists and is not a file. Use another name"
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_file_at_the_path_of_the_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^.*a\.png: cannot be written: (File exists|Not a directory)\. Free space"):
        save_png(Image.new("RGB", (4, 4)), tmp_path / "file" / "a.png")


def test_images_of_any_number_of_channels_have_colours() -> None:
    image = np.arange(5 * 2 * 3, dtype=np.uint8).reshape(5, 2, 3)
    first, second, third, *_ = image
    for channels, colours in (
        (1, (first, first, first)),
        (2, (first, second, second)),
        (3, (first, second, third)),
        (5, (first, second, third)),
    ):
        assert np.array_equal(image_to_tile(image[:channels]), np.stack(colours, axis=2))


def test_objects_are_drawn_in_their_places() -> None:
    image = np.full((60, 90, 3), 100, np.uint8)
    mask = np.zeros((60, 90), np.uint8)
    mask[20:40, 30:60] = 1
    red, blue = (200, 0, 0), (0, 0, 200)
    drawn = draw_objects(image, [DrawnObject((30, 20, 60, 40), red, mask=mask), DrawnObject((70, 50, 90, 60), blue)])
    assert image.max() == 100  # the image itself is unchanged
    assert tuple(drawn[30, 45]) == (140, 60, 60)  # 0.6 of the image and 0.4 of the colour
    assert tuple(drawn[20, 45]) == tuple(drawn[30, 59]) == red
    assert tuple(drawn[59, 80]) == tuple(drawn[55, 70]) == blue
    assert tuple(drawn[55, 80]) == (100, 100, 100)
    assert np.array_equal(drawn[:20], image[:20])


@pytest.mark.parametrize("box", [(0, 0, 5, 5), (80, 50, 90, 60), (-3, -3, 200, 200), (10, 10, 10, 10)])
def test_captions_are_inside_the_image(box: tuple[float, float, float, float]) -> None:
    image = np.full((60, 90, 3), 100, np.uint8)
    red = (200, 0, 0)
    drawn = draw_objects(image, [DrawnObject(box, red, "traffic light 0.53")])
    without = draw_objects(image, [DrawnObject(box, red)])
    assert drawn.shape == image.shape
    assert (drawn[..., 1] > 130).sum() > 20  # letters
    assert (drawn != without).any(axis=2).sum() > 500


def test_many_objects_and_tiny_images_can_be_drawn() -> None:
    image = np.zeros((1, 3, 3), np.uint8)
    mask = np.ones((1, 3), np.uint8)
    objects = [DrawnObject((0, 0, 3, 1), (9, 9, 9), "γ" * 50, mask), DrawnObject((0, 0, 3, 1), (9, 9, 9), "", 0 * mask)]
    assert draw_objects(image, objects).shape == (1, 3, 3)


def test_outlines_are_the_pixels_of_objects_that_touch_another_id() -> None:
    ids = np.zeros((6, 7), np.uint8)
    ids[1:5, 1:5], ids[1:5, 5], ids[0, 6] = 3, 7, 255
    image = noise(6, 7)
    is_outline = (ids == 3) | (ids == 7)
    is_outline[2:4, 2:4] = False  # inside of the first
    expected = np.where(is_outline[..., None], colour_instances(ids), image)
    assert np.array_equal(draw_outlines(image, ids), expected)


def test_a_padded_tile_is_in_the_middle() -> None:
    image = noise(3, 4)
    padded = pad_tile(image, 6, 8)
    assert padded.shape == (6, 8, 3)
    assert np.array_equal(padded[1:4, 2:6], image)
    padded[1:4, 2:6] = 255
    assert (padded == 255).all()
