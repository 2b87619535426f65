"""CSV as text."""

import csv
import io
from collections.abc import Iterable, Sequence


def format_csv(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    r"""Return CSV with a header.

    >>> format_csv(("name", "count"), [("sky, clouds", 3)])
    'name,count\n"sky, clouds",3\n'
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def parse_csv(text: str) -> list[dict[str, str]]:
    """Return the rows below the header, by its names."""
    return list(csv.DictReader(io.StringIO(text)))
