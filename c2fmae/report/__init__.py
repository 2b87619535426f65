"""One page about a run, which needs nothing beside it: no network, no script, no other file.

>>> from c2fmae.report import Page, Text, table_to_lines, render_page
>>> print(render_page(Page("A run", "What it learned.", [Text("It is < 3 minutes old.")])).splitlines()[-4])
<p>It is &lt; 3 minutes old.</p>
"""

from c2fmae.report.charts import BarChart, LineChart
from c2fmae.report.page import Details, Figure, KeyValues, Page, Section, Table, Text, render_page, table_to_lines
from c2fmae.report.pretrain_page import build_pretrain_page

__all__ = [
    "BarChart",
    "Details",
    "Figure",
    "KeyValues",
    "LineChart",
    "Page",
    "Section",
    "Table",
    "Text",
    "build_pretrain_page",
    "render_page",
    "table_to_lines",
]
