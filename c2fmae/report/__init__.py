"""Report pages, tables, charts and figures: HTML in a single file, without network access, scripts or other files.

>>> from c2fmae.report import Page, Text, render_page
>>> print(render_page(Page("A run", "Its losses.", [Text("The loss is < 3.")])).splitlines()[-4])
<p>The loss is &lt; 3.</p>
"""

from c2fmae.report.charts import BarChart, HeatMap, LineChart
from c2fmae.report.page import Details, Figure, KeyValues, Page, Section, Table, Text, render_page, table_to_lines

__all__ = [
    "BarChart",
    "Details",
    "Figure",
    "HeatMap",
    "KeyValues",
    "LineChart",
    "Page",
    "Section",
    "Table",
    "Text",
    "render_page",
    "table_to_lines",
]
