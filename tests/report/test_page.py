import base64
import json
import re
import shutil
import subprocess
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from c2fmae.core.errors import UserError
from c2fmae.report import (
    BarChart,
    Details,
    Figure,
    KeyValues,
    LineChart,
    Page,
    Section,
    Table,
    Text,
    render_page,
)
from c2fmae.report.style import STYLE
from tests.report.parsed_page import ParsedPage, gradient_image, write_images

NASTY = '<script>alert("&")</script>'
SECTIONS: list[Section] = [
    KeyValues({"Steps": "4"}),
    LineChart("Loss", {"training": [(0, 3), (1, 2)], "held out": [(0, 3), (1, 2.5)]}),
    LineChart("Rate", {"rate": [(0, 1), (1, 0)]}),
    BarChart("Accuracy", [("first", [90.0, None]), ("second", [80.0, 70.0])], ["a", "b"]),
    Table("Probes", ("", "k-NN"), [("trained", 35.0)]),
    Details("Config", "name: first"),
]


def parse_page(*sections: Section) -> ParsedPage:
    return ParsedPage(render_page(Page("A page", "A summary.", sections)))


def test_a_page_needs_no_network_and_has_no_scripts() -> None:
    html = render_page(Page("A page", "A summary.", [*SECTIONS, Figure(gradient_image(2, 2), "A figure")]))
    page = ParsedPage(html)
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
        BarChart(NASTY, [(NASTY, [1.0])], [NASTY]),
        Figure(gradient_image(2, 2), NASTY),
        Details(NASTY, NASTY),
    ],
    ids=lambda section: type(section).__name__,
)
def test_text_from_outside_is_escaped(section: Section) -> None:
    page = ParsedPage(render_page(Page(NASTY, NASTY, [section])))
    assert page.all("script") == []
    assert page.text.count(NASTY) >= 3


def test_columns_with_long_texts_wrap() -> None:
    names = "Cardigan Welsh corgi, a breed of herding dog"
    page = parse_page(Table("Classes", ("", "accuracy", "mistaken for"), [("dog", "58.00 (54.90-61.00)", names)]))
    assert [cell.get("class") for cell in page.all("th")] == [None, None, "text", None]
    assert [cell.get("class") for cell in page.all("td")] == [None, "text"]
    assert re.search(r"td\.text \{[^}]*white-space: normal", STYLE)


def test_indented_paragraphs_and_backticks_are_code() -> None:
    html = Text("One `word`.\n\n    first\n      second\n\nTwo.", title="Words").to_html()
    assert html == "<h2>Words</h2>\n<p>One <code>word</code>.</p>\n<pre>first\n  second</pre>\n<p>Two.</p>"


def test_floats_of_a_column_share_their_number_of_decimals() -> None:
    rows = [("a", 21.0, 1e-7, 3, "few"), ("b", 7.25, 0.5, None, "many")]
    html = Table("Figures", ("", "share", "rate", "count", "word"), rows).to_html()
    cells = re.findall("<td>(.*?)</td>", html)
    assert cells == ["21.00", "1e-07", "3", "few", "7.25", "0.5", "–", "many"]


def test_image_files_are_embedded_unchanged_and_images_in_memory_as_png(tmp_path: Path) -> None:
    (path,) = write_images(tmp_path, "one.png")
    first, second = parse_page(Figure(path, "from a file"), Figure(gradient_image(7, 5), "from memory")).all("img")
    data = [base64.b64decode(str(each["src"]).removeprefix("data:image/png;base64,")) for each in (first, second)]
    assert data[0] == path.read_bytes()
    with Image.open(BytesIO(data[1])) as again:
        assert again.tobytes() == gradient_image(7, 5).tobytes()
    assert [(each["width"], each["height"], each["alt"]) for each in (first, second)] == [
        ("30", "20", "from a file"),
        ("7", "5", "from memory"),
    ]


@pytest.mark.parametrize("content", [b"", b"no image", "half"], ids=["empty", "text", "half"])
def test_a_file_that_is_not_a_complete_png_is_an_error(tmp_path: Path, content: bytes | str) -> None:
    (path,) = write_images(tmp_path, "one.png")
    path.write_bytes(content if isinstance(content, bytes) else path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError) as caught:
        Figure(path, "").to_html()
    assert str(caught.value) == f"{path}: cannot be read: not a complete PNG file. Write the image again"


def test_a_missing_image_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        Figure(tmp_path / "one.png", "").to_html()
    path = tmp_path / "one.png"
    assert str(caught.value) == f"{path}: cannot be read: No such file or directory. Write the image again"


def test_consecutive_charts_are_side_by_side() -> None:
    curves, bars = LineChart("A curve", {"a": [(0, 1), (1, 2)]}), BarChart("Bars", [("b", [1.0])], ["a"])
    groups = [each for each in parse_page(curves, bars, Text("And"), curves).all("div") if each["class"] == "charts"]
    assert len(groups) == 2


@pytest.mark.unchecked
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_shows_every_image_and_the_page_fits_a_narrow_window(tmp_path: Path) -> None:
    figures = [Figure(path, path.name) for path in write_images(tmp_path, "first.png", "second.png")]
    html = render_page(Page("A page", "A summary.", [*SECTIONS, *figures]))
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
    measured = json.loads(title[1])
    assert measured["widths"] == [30, 30]
    assert measured["lines"] == 3
    assert measured["overflow"] <= 0
