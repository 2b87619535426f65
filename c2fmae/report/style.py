"""The style sheet of a report page: wide and narrow windows, light and dark themes, and print."""

from c2fmae.report.drawing import SERIES_COLOURS


def _series_variables(colours: tuple[tuple[int, int, int], ...]) -> str:
    return " ".join(f"--s{number}: rgb{colour};" for number, colour in enumerate(colours))


def _lighten(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = (round(255 - 0.66 * (255 - part)) for part in colour)
    return red, green, blue


STYLE = (
    f"""
:root {{ color-scheme: light dark; --paper: #fff; --ink: #1f242d; --muted: #69707c; --rule: #e2e5ea; --tint: #f6f7f9;
  {_series_variables(SERIES_COLOURS)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ --paper: #15181d; --ink: #e3e6eb; --muted: #98a0ad;
  --rule: #2d323b; --tint: #1d2127; {_series_variables(tuple(map(_lighten, SERIES_COLOURS)))} }} }}
"""
    + "".join(f".s{number} {{ --colour: var(--s{number}); }}\n" for number in range(len(SERIES_COLOURS)))
    + """\
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; background: var(--paper); color: var(--ink); }
body { margin: 0; font: 1.0625rem/1.6 Charter, "Bitstream Charter", "Sitka Text", Cambria, Georgia, serif; }
main { max-width: 66rem; margin: 0 auto; padding: clamp(1.5rem, 5vw, 4.5rem) clamp(1.1rem, 4vw, 3rem) 5rem; }
h1, h2, h3 { font-weight: 600; line-height: 1.2; text-wrap: balance; }
h1 { font-size: clamp(1.8rem, 5vw, 2.6rem); letter-spacing: -0.015em; margin: 0 0 0.6rem; }
h2 { font-size: 1.4rem; margin: 3.6rem 0 0.8rem; padding-top: 1.1rem; border-top: 1px solid var(--rule); }
p { max-width: 42rem; margin: 0 0 1rem; text-wrap: pretty; }
.lead { font-size: 1.2rem; color: var(--muted); margin-bottom: 2rem; }
h3, figcaption, dl, table, summary, svg, .key, .note {
  font-family: system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif;
}
h3 { font-size: 0.95rem; margin: 0; }
figure { margin: 1.6rem 0; min-width: 0; }
figcaption { font-size: 0.95rem; font-weight: 600; line-height: 1.4; max-width: 46rem; margin-bottom: 0.6rem; }
.note { font-size: 0.85rem; line-height: 1.5; color: var(--muted); margin: 0.6rem 0 0; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: 1.1rem 2rem; margin: 1.6rem 0; }
dt { font-size: 0.8rem; color: var(--muted); }
dd { margin: 0; font-size: 1rem; line-height: 1.4; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.95rem; line-height: 1.4; font-variant-numeric: tabular-nums; }
th, td { padding: 0.45rem 0 0.45rem 2.2rem; text-align: right; white-space: nowrap; }
th, td { border-bottom: 1px solid var(--rule); font-weight: 400; }
th:first-child { padding-left: 0; text-align: left; white-space: normal; min-width: 9rem; }
th.text, td.text { min-width: 9rem; max-width: 24rem; white-space: normal; overflow-wrap: anywhere; }
thead th { color: var(--muted); font-size: 0.85rem; vertical-align: bottom; border-bottom-color: var(--muted); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(25rem, 100%), 1fr)); gap: 2rem 3rem; }
.charts figure { margin: 0; max-width: 34rem; }
.key { display: flex; flex-wrap: wrap; gap: 0 1.1rem; margin: 0.15rem 0 0.5rem; }
.key { font-size: 0.8rem; color: var(--muted); }
.key i { display: inline-block; width: 0.9rem; height: 0.18rem; margin-right: 0.4rem; vertical-align: middle; }
.key i { border-radius: 1px; background: var(--colour); }
.key b { font-weight: 600; color: var(--ink); font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-size: 12px; fill: var(--muted); font-variant-numeric: tabular-nums; }
svg path { fill: none; stroke: var(--colour); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg rect { fill: var(--colour); }
svg .rule { stroke: var(--rule); stroke-width: 1; }
svg .fine { stroke-width: 1.2; }
svg .cell { fill: var(--ink); }
svg.heat { max-width: none; }
svg .dot { stroke-width: 5; }
img { display: block; width: 100%; min-width: 46rem; height: auto; border: 1px solid var(--rule); border-radius: 4px; }
@media screen and (prefers-color-scheme: dark) { img { filter: brightness(0.9); } }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 0.85em; }
pre { background: var(--tint); border-radius: 4px; padding: 0.9rem 1.1rem; margin: 0 0 1rem; }
pre { overflow-x: auto; line-height: 1.5; }
code { background: var(--tint); border-radius: 3px; padding: 0.1em 0.3em; }
summary { cursor: pointer; font-size: 0.95rem; padding: 0.5rem 0; }
details { border-bottom: 1px solid var(--rule); }
@media print {
  @page { margin: 16mm; }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  img { min-width: 0; }
  pre { white-space: pre-wrap; }
  figure, tr { break-inside: avoid; }
  h2, h3, figcaption { break-after: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
}"""
)
