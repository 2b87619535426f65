"""The sections of a report page, and their HTML."""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from itertools import groupby
from pathlib import Path
from textwrap import dedent
from typing import Protocol, runtime_checkable

from PIL import Image

from c2fmae.core.errors import UserError
from c2fmae.core.files import read_file
from c2fmae.core.text import escape_lines
from c2fmae.report.charts import BarChart, LineChart
from c2fmae.report.style import STYLE

TableCell = str | int | float | None

_MAX_UNWRAPPED_LENGTH = 24  # characters: a value with its interval is shorter, the name of a class may be longer

_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # the browser loads nothing but this file
)


@runtime_checkable
class Section(Protocol):
    """Anything that renders itself as HTML."""

    def to_html(self) -> str:
        """Return HTML in which all text of the section is escaped."""
        ...


@dataclass(frozen=True)
class Text:
    """Paragraphs separated by blank lines; an indented paragraph and words between backticks are code."""

    text: str
    title: str = ""

    def to_html(self) -> str:
        """Return the heading, if there is a title, and the paragraphs."""
        heading = [f"<h2>{escape(self.title)}</h2>"] if self.title else []
        return "\n".join([*heading, *map(_paragraph_html, filter(str.strip, self.text.split("\n\n")))])


@dataclass(frozen=True)
class KeyValues:
    """A few names with their values."""

    items: Mapping[str, str]

    def to_html(self) -> str:
        """Return a definition list."""
        items = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in self.items.items())
        return f"<dl>{''.join(items)}</dl>"


@dataclass(frozen=True)
class Table:
    """Rows whose first cell is a name, below a caption."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[TableCell]]
    footnote: str = ""

    def to_html(self) -> str:
        """Return a table that scrolls horizontally where the window is too narrow; columns with long texts wrap."""
        cells = list(zip(self.columns, *self.rows, strict=True))
        classes = [' class="text"' if _has_long_texts(column) else "" for column in cells]
        head = "".join(
            f'<th scope="col"{kind}>{escape(column)}</th>' for kind, column in zip(classes, self.columns, strict=True)
        )
        columns = [_format_column(column) for _, *column in cells]
        body = "".join(
            f'<tr><th scope="row">{name}</th>'
            f"{''.join(f'<td{kind}>{value}</td>' for kind, value in zip(classes[1:], values, strict=True))}</tr>"
            for name, *values in zip(*columns, strict=True)
        )
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        footnote = f'<p class="note">{escape(self.footnote)}</p>' if self.footnote else ""
        return (
            f'<figure><figcaption>{escape(self.caption)}</figcaption><div class="wide">{table}</div>{footnote}</figure>'
        )


@dataclass(frozen=True)
class Figure:
    """A PNG file, or an image in memory."""

    image: Path | Image.Image
    caption: str

    def to_html(self) -> str:
        """Return the image as a data URL with its caption."""
        data, (width, height) = _read_png(self.image)
        data_url, text = f"data:image/png;base64,{b64encode(data).decode()}", escape(self.caption)
        image = f'<img alt="{text}" width="{width}" height="{height}" src="{data_url}">'
        return f'<figure><figcaption>{text}</figcaption><div class="wide">{image}</div></figure>'


@dataclass(frozen=True)
class Details:
    """Preformatted text that is folded until the reader opens it."""

    title: str
    text: str

    def to_html(self) -> str:
        """Return a `details` element."""
        return f"<details><summary>{escape(self.title)}</summary><pre>{escape(self.text)}</pre></details>"


@dataclass(frozen=True)
class Page:
    """A title, a summary of a sentence or two, and sections."""

    title: str
    summary: str
    sections: Sequence[Section]


def render_page(page: Page) -> str:
    """Return a page as a single HTML document; consecutive charts are placed side by side."""
    body = []
    for are_charts, sections in groupby(page.sections, key=lambda section: isinstance(section, LineChart | BarChart)):
        section_html = "\n".join(section.to_html() for section in sections)
        body.append(f'<div class="charts">\n{section_html}\n</div>' if are_charts else section_html)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_CONTENT_SECURITY_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(page.title)}</title>
<style>
{STYLE}
</style>
</head>
<body>
<main>
<h1>{escape(page.title)}</h1>
<p class="lead">{escape(page.summary)}</p>
{chr(10).join(body)}
</main>
</body>
</html>
"""


def table_to_lines(table: Table) -> list[str]:
    """Return the lines of a table in plain text, columns aligned."""
    rows = [tuple(escape_lines(str(cell)) for cell in row) for row in (table.columns, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _paragraph_html(text: str) -> str:
    if text.startswith("    "):
        return f"<pre>{escape(dedent(text))}</pre>"
    code_html = re.sub("`(.+?)`", r"<code>\1</code>", escape(text))
    return f"<p>{code_html}</p>"


def _format_column(column: Sequence[TableCell]) -> list[str]:
    """Return the cells of a column; its floats share the number of decimals that the longest one needs."""
    texts = [f"{cell:.4g}" for cell in column if isinstance(cell, float)]
    num_decimals = max((len(text.partition(".")[2]) for text in texts), default=0)
    number_format = ".4g" if any("e" in text for text in texts) else f".{num_decimals}f"
    return [
        "–" if cell is None else f"{cell:{number_format}}" if isinstance(cell, float) else escape(str(cell))
        for cell in column
    ]


def _has_long_texts(column: Sequence[TableCell]) -> bool:
    return any(isinstance(cell, str) and len(cell) > _MAX_UNWRAPPED_LENGTH for cell in column)


def _read_png(image: Path | Image.Image) -> tuple[bytes, tuple[int, int]]:
    """Return the PNG bytes of an image, and its width and height."""
    if isinstance(image, Image.Image):
        encoded = BytesIO()
        image.save(encoded, format="PNG", optimize=True)
        return encoded.getvalue(), image.size
    try:
        data = read_file(image, fix="Write the image again")
        with Image.open(BytesIO(data), formats=["PNG"]) as opened:
            opened.load()
            return data, opened.size
    except OSError as error:
        reason = error.strerror or "not a complete PNG file"
        raise UserError(f"{image}: cannot be read: {reason}. Write the image again") from error
