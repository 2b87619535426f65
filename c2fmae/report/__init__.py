"""One page about a run, which needs nothing beside it: no network, no script, no other file.

>>> from c2fmae.report import Page, Text, as_lines, render
>>> print(render(Page("A run", "What it learned.", [Text("It is < 3 minutes old.")])).splitlines()[-4])
<p>It is &lt; 3 minutes old.</p>
"""

from c2fmae.report.charts import Curves
from c2fmae.report.page import Details, Facts, Page, Picture, Section, Table, Text, as_lines, render
from c2fmae.report.pretrain_page import run_page

__all__ = [
    "Curves",
    "Details",
    "Facts",
    "Page",
    "Picture",
    "Section",
    "Table",
    "Text",
    "as_lines",
    "render",
    "run_page",
]
