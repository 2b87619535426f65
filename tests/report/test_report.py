import base64
import json
import math
import re
import shutil
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from c2fmae.core.errors import UserError
from c2fmae.report import (
    Details,
    Figure,
    KeyValues,
    LineChart,
    Page,
    Section,
    Table,
    Text,
    build_pretrain_page,
    render_page,
)
from c2fmae.report.charts import downsample_points

NASTY = '<script>alert("&")</script>'
CONFIG = """\
name: first-try
title: A first try.
method: {name: c2fmae, encoder: {name: test_vit}, granularities: [semantic, rgb], image_size: [64, 64]}
data: {train: generated, held_out: null}
training: {steps: 4, lr: 0.001, compile: false, clip: null}
"""
ROWS: list[dict[str, Any]] = [
    {"step": 1, "lr": 1e-4, "loss": 3.0, "loss/semantic": 2.0, "loss/rgb": 1.0, "alpha": 1.0, "beta": 0.0},
    {"step": 2, "lr": 2e-4, "loss": None, "loss/semantic": None, "loss/rgb": 1.0, "skipped": "not finite"},
    {"step": 3, "lr": 1e-4, "loss": 2.5, "loss/semantic": 1.6, "loss/rgb": 0.9, "valid/semantic": 0.97},
    {"step": 3, "held_out/loss": 2.75, "held_out/semantic": 1.8, "held_out/rgb": 0.95},
    {"step": 4, "lr": 0.0, "loss": 2.25, "loss/semantic": 1.5, "loss/rgb": 0.75, "grad_norm": 0.5},
]


class Parsed(HTMLParser):
    """A page's elements, text and pictures; a tag that is not closed in its turn is an error."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def parsed(*sections: Section) -> Parsed:
    return Parsed(render_page(Page("A page", "All about it.", sections)))


def image(*size: int) -> Image.Image:
    return Image.linear_gradient("L").resize((size[0], size[1])).convert("RGB")


def stored(folder: Path, *names: str) -> Sequence[Path]:
    for name in names:
        image(30, 20).save(folder / name)
    return [folder / name for name in names]


def lines(*points: tuple[float, float], **settings: Any) -> list[str]:
    """The paths of the one curve, without the rules: the line, and the dots."""
    drawn = parsed(LineChart("A curve", {"a": points}, **settings))
    return [str(path["d"]) for path in drawn.all("path") if path.get("class") != "rule"]


def test_a_run_s_page_tells_what_was_trained_how_it_went_and_what_to_type(tmp_path: Path) -> None:
    pictures = stored(tmp_path, "step-00000002.png", "step-00000003.png", "step-00000004.png")
    extra = [Table("Probes", ("", "k-NN"), [("trained", 35.0)])]
    page = Parsed(render_page(build_pretrain_page(ROWS, CONFIG, {"cpu": "a fast one"}, pictures, extra)))
    for words in (
        "first-try A first try.",
        "Steps 4 Loss 3 → 2.25 Held-out loss 2.75 → 2.75",
        "Probes",
        "After 2 steps",
        "After 4 steps",
        "Steps that were skipped, as gaps in the curves: 1 × not finite.",
        "Total training 2.25 held out 2.75",
        "semantic training 1.5 held out 1.8",
        "rgb training 0.75 held out 0.95",
        "Learning rate",
        "Norm of the gradient",
        "Curriculum of the masks semantic, α 1 instance, β 0",
        "Share of the hidden cells that is labelled semantic 0.97",
        "Encoder test_vit Seen and predicted semantic, rgb Height, width 64, 64 Trained on generated",
        "steps 4 lr 0.001 compile no",
        "a fast one",
        "c2fmae view reconstruct RUN --visible rgb:all",
    ):
        assert words in page.text
    assert "After 3 steps" not in page.text
    assert page.text.index("Probes") < page.text.index("Total training")


def test_a_run_that_has_not_begun_has_a_page_too() -> None:
    page = Parsed(render_page(build_pretrain_page([], "method: {name: mae}", {}, [])))
    assert "mae How it was pre-trained, and what it makes of what it cannot see. Steps 0 Losses" in page.text
    assert "Total No numbers yet." in page.text
    assert page.all("img") == []


def test_a_page_asks_nothing_of_the_network_and_runs_nothing(tmp_path: Path) -> None:
    html = render_page(build_pretrain_page(ROWS, CONFIG, {}, stored(tmp_path, "step-00000004.png")))
    page = Parsed(html)
    for _, attributes in page.elements:
        for name in ("src", "href", "data", "action", "style"):
            assert str(attributes.get(name) or "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attributes)
    assert page.all("script") == []
    assert not re.search(r"url\(|@import|https?:", html)
    policies = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


@pytest.mark.parametrize(
    "section",
    [
        Text(NASTY, title=NASTY),
        Text(f"    {NASTY}"),
        Text(f"`{NASTY}`"),
        KeyValues({NASTY: NASTY}),
        Table(NASTY, (NASTY,), [(NASTY,)], footnote=NASTY),
        LineChart(NASTY, {NASTY: [(0, 1)]}, x_label=NASTY, y_label=NASTY),
        Figure(image(2, 2), NASTY),
        Details(NASTY, NASTY),
    ],
    ids=lambda section: type(section).__name__,
)
def test_what_is_not_ours_is_escaped(section: Section) -> None:
    page = Parsed(render_page(Page(NASTY, NASTY, [section])))
    assert page.all("script") == []
    assert page.text.count(NASTY) >= 3


def test_paragraphs_code_and_words_of_code_are_told_apart() -> None:
    html = Text("One `word`.\n\n    first\n      second\n\nTwo.", title="Words").to_html()
    assert html == "<h2>Words</h2>\n<p>One <code>word</code>.</p>\n<pre>first\n  second</pre>\n<p>Two.</p>"


def test_numbers_of_a_column_have_as_many_digits_as_one_of_them_needs() -> None:
    rows = [("a", 21.0, 1e-7, 3, "few"), ("b", 7.25, 0.5, None, "many")]
    html = Table("Figures", ("", "share", "rate", "count", "word"), rows).to_html()
    cells = re.findall("<td>(.*?)</td>", html)
    assert cells == ["21.00", "1e-07", "3", "few", "7.25", "0.5", "–", "many"]


def test_pictures_are_in_the_page_byte_for_byte_or_encoded(tmp_path: Path) -> None:
    (path,) = stored(tmp_path, "one.png")
    first, second = parsed(Figure(path, "from a file"), Figure(image(7, 5), "from memory")).all("img")
    data = [base64.b64decode(str(each["src"]).removeprefix("data:image/png;base64,")) for each in (first, second)]
    assert data[0] == path.read_bytes()
    with Image.open(BytesIO(data[1])) as again:
        assert again.tobytes() == image(7, 5).tobytes()
    assert [(each["width"], each["height"], each["alt"]) for each in (first, second)] == [
        ("30", "20", "from a file"),
        ("7", "5", "from memory"),
    ]


@pytest.mark.parametrize("content", [b"", b"no picture", "half"], ids=["empty", "text", "half"])
def test_a_file_that_is_no_whole_picture_is_refused_by_name(tmp_path: Path, content: bytes | str) -> None:
    (path,) = stored(tmp_path, "one.png")
    path.write_bytes(content if isinstance(content, bytes) else path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError) as caught:
        Figure(path, "").to_html()
    assert str(caught.value) == f"{path}: cannot be read: it is not a whole PNG"


def test_a_picture_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        Figure(tmp_path / "one.png", "").to_html()
    assert str(caught.value) == f"{tmp_path / 'one.png'}: cannot be read: No such file or directory"


def test_a_curve_runs_from_left_to_right_and_up_as_its_numbers_do() -> None:
    line, dots = lines((0, 0), (1, 2), (2, 1))
    places = [tuple(map(float, place.split())) for place in line[1:].split("L")]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x1 - x0 == x2 - x1 > 0
    assert y0 > y2 > y1
    assert dots == ""


@pytest.mark.parametrize("gap", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_a_gap(gap: float) -> None:
    line, dots = lines((0, 1), (1, 2), (2, gap), (3, 1), (4, gap), (5, 1), (6, 2))
    assert line.count("M") == 2
    assert line.count("L") == 2
    assert dots.count("M") == 1
    assert "nan" not in line + dots
    assert "inf" not in line + dots


def test_on_a_log_scale_equal_ratios_are_equally_high_and_zero_is_a_gap() -> None:
    line, _ = lines((0, 1), (1, 10), (2, 100), (3, 0), is_log=True)
    first, second, third = (float(place.split()[1]) for place in line[1:].split("L"))
    assert first - second == pytest.approx(second - third, abs=0.11)
    assert first > second


@pytest.mark.parametrize("y", [0.0, 5.0, -5.0, 1e-12, 1e12])
@pytest.mark.parametrize("log", [False, True])
def test_one_point_and_a_constant_are_drawn_too(y: float, log: bool) -> None:
    is_there = y > 0 or not log
    assert [len(text) > 0 for text in lines((3, y), is_log=log)] == ([False, True] if is_there else [])
    assert [len(text) > 0 for text in lines((3, y), (4, y), is_log=log)] == ([True, False] if is_there else [])


@pytest.mark.parametrize("points", [[], [(0, math.nan)]])
def test_without_a_number_a_chart_says_so(points: list[tuple[float, float]]) -> None:
    assert "Loss No numbers yet." in parsed(LineChart("Loss", {"training": points})).text


def test_long_curves_keep_their_extremes_and_their_gaps() -> None:
    points = [(step, math.sin(step / 900)) for step in range(100_000)]
    points[4321], points[5555] = (4321, 7.0), (5555, -7.0)
    points[30_000:31_000] = [(step, math.nan) for step in range(30_000, 31_000)]
    kept = downsample_points(points)
    assert len(kept) <= 500
    assert kept == sorted(kept)
    assert {(4321, 7.0), (5555, -7.0)} <= set(kept)
    assert any(30_000 <= x < 31_000 and math.isnan(y) for x, y in kept)
    assert not any(30_000 <= x < 31_000 and math.isfinite(y) for x, y in kept)
    assert max(b[0] - a[0] for a, b in pairwise(kept)) < 1300


def test_a_curve_of_few_points_stays_as_it_is() -> None:
    points = [(step, float(step % 3)) for step in range(500)]
    assert downsample_points(points) == points


def test_charts_that_follow_each_other_stand_side_by_side() -> None:
    curves = LineChart("A curve", {"a": [(0, 1), (1, 2)]})
    groups = [each for each in parsed(curves, curves, Text("And"), curves).all("div") if each["class"] == "charts"]
    assert len(groups) == 2


@pytest.mark.once
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_shows_every_picture_and_fits_a_narrow_window(tmp_path: Path) -> None:
    html = render_page(
        build_pretrain_page(ROWS, CONFIG, {}, stored(tmp_path, "step-00000001.png", "step-00000004.png"))
    )
    probe = """<script>document.title = JSON.stringify({
        widths: [...document.images].map((image) => image.naturalWidth),
        lines: [...document.querySelectorAll("svg g path")].filter((path) => path.getTotalLength() > 50).length,
        overflow: document.documentElement.scrollWidth - window.innerWidth})</script>"""
    policy = '<meta http-equiv="Content-Security-Policy"'
    (tmp_path / "page.html").write_text(html.replace(policy, "<meta").replace("</body>", f"{probe}</body>"))
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=500,900", "--dump-dom"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [*command, profile, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, check=True, timeout=60
    )
    title = re.search("<title>(.*?)</title>", done.stdout)
    assert title is not None
    found = json.loads(title[1])
    assert found["widths"] == [30, 30]
    assert found["lines"] >= 4
    assert found["overflow"] <= 0
