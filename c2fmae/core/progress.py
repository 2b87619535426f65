"""The progress display of long work: a bar on a terminal, plain lines elsewhere, always on stderr.

It starts no thread: a worker process forked while a thread draws would inherit its lock and wait for it forever.
"""

import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from c2fmae.core.text import escape_controls

if TYPE_CHECKING:
    import rich.console
    import rich.live

SMOOTHING_STEPS = 50
"""The speed is averaged over about this many steps."""

REDRAW_SECONDS = 0.25
"""Minimum seconds between two drawings of the bar."""

LINE_SECONDS = (10.0, 30.0)
"""Minimum and maximum seconds between two plain lines. A step that takes longer than the maximum delays its line."""

NO_LABELS: Mapping[str, str] = MappingProxyType({})

RankedText = tuple[int, str]
"""A piece of text with its rank: where the terminal is too narrow for all, those of the highest rank are left out."""


class ProgressDisplay:
    """A display of steps done, speed, time left and the values of the last step. Use it as a context manager.

    Training calls `update` after each step; work whose items finish in groups calls `advance`. If stderr fails (its
    terminal is closed, its disk full), the work continues without a display.

    Args:
        total_steps: number of steps (or items) of all the work.
        start_step: steps done by an earlier run; they count towards the total, not towards the speed.
        samples_per_step: samples in a step, for the speed.
        name: what is counted or done, as in "step 3/10" or "packing 3/10".
        unit: what the speed counts per second.
        log_every: minimum steps between two plain lines.
        value_labels: further values to show, by key, with the label of each. Losses and the gradient norm are always
            shown.
        is_quiet: show nothing.
        console: where to draw instead of stderr.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        start_step: int = 0,
        samples_per_step: int = 1,
        name: str = "step",
        unit: str = "samples",
        log_every: int = 10,
        value_labels: Mapping[str, str] = NO_LABELS,
        is_quiet: bool = False,
        console: "rich.console.Console | None" = None,
    ) -> None:
        from rich.console import Console

        self.total_steps, self.log_every, self.is_quiet = total_steps, log_every, is_quiet
        self.name, self.value_labels = name, value_labels
        self._console = console or Console(stderr=True)
        self._display: rich.live.Live | None = None
        self._exit_stack = ExitStack()
        self._speed = SpeedMeter(samples_per_step, unit)
        self._step, self._values = start_step, dict[str, Any]()
        self._shown_step, self._shown_at = start_step, -math.inf
        self._advanced_at = monotonic()

    def __enter__(self) -> "ProgressDisplay":
        if self._console.is_terminal and not self._console.is_dumb_terminal and not self.is_quiet:
            from rich.live import Live

            self._display = Live(
                console=self._console,
                auto_refresh=False,
                redirect_stdout=sys.stdout.isatty(),  # stdout may be a file
                get_renderable=self._build_bar,
            )
            self._exit_stack.enter_context(suppress(OSError))
            before = (sys.stdout, sys.stderr)
            self._exit_stack.enter_context(self._display)
            self._exit_stack.enter_context(
                _redirect_log_handlers(dict(zip(before, (sys.stdout, sys.stderr), strict=True)))
            )
            self._console.show_cursor(True)  # a process that is killed could not restore it
            self._render(monotonic())
        self._advanced_at = monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown_step != self._step:
            self._render(monotonic())
        self._exit_stack.close()
        self._display = None

    def update(self, step: int, values: Mapping[str, Any], *, seconds: float, wait_fraction: float) -> None:
        """Show a step that is done: the number of steps so far, its row of metrics, and its duration.

        `wait_fraction` is the fraction of its duration spent waiting for data.
        """
        self._count(step, values, seconds, wait_fraction, monotonic())

    def advance(self, num_steps: int = 1) -> None:
        """Count steps that are done; their duration is the time since the last call."""
        now = monotonic()
        self._count(self._step + num_steps, {}, now - self._advanced_at, None, now)
        self._advanced_at = now

    def print_line(self, text: str) -> None:
        """Print a line of text, above the bar if there is one."""
        if not self.is_quiet:
            with suppress(OSError):
                self._console.print(escape_controls(text), markup=False, highlight=False, soft_wrap=True)

    def _count(
        self, step: int, values: Mapping[str, Any], seconds: float, wait_fraction: float | None, now: float
    ) -> None:
        if self.is_quiet or step == self._step:
            return
        self._speed.add(seconds, wait_fraction, now, num_steps=step - self._step)
        self._step, self._values = step, dict(values)
        elapsed = now - self._shown_at
        if self._display:
            is_due = elapsed >= REDRAW_SECONDS
        else:
            is_due = elapsed >= LINE_SECONDS[1] or (
                elapsed >= LINE_SECONDS[0] and step - self._shown_step >= self.log_every
            )
        if is_due or step >= self.total_steps:
            self._render(now)

    def _render(self, now: float) -> None:
        self._shown_step, self._shown_at = self._step, now
        with suppress(OSError):
            if self._display:
                self._display.refresh()
            else:
                items = [*self._status_items(), *self._value_items()]
                print("  ".join(text for _, text in items), file=self._console.file, flush=True)

    def _status_items(self) -> list[RankedText]:
        steps_left = self.total_steps - self._step
        return [(0, f"{self.name} {self._step:,}/{self.total_steps:,}"), *self._speed.describe(steps_left)]

    def _value_items(self) -> list[RankedText]:
        return describe_values(self._values, self.value_labels)

    def _build_bar(self) -> "_ProgressBar":
        return _ProgressBar(self._step / max(self.total_steps, 1), self._status_items(), self._value_items())


class SpeedMeter:
    """The speed of steps, averaged over the last ones. The first step (compilation, warm-up) counts only at first."""

    def __init__(self, samples_per_step: int, unit: str = "samples") -> None:
        self.samples_per_step, self.unit = samples_per_step, unit
        self.num_measurements = 0
        self.seconds = self.wait_seconds = self.busy_seconds = 0.0
        self.started_at = self.warmed_up_at = self.measured_at = 0.0
        self.measures_waiting = False

    def add(self, seconds: float, wait_fraction: float | None, now: float, *, num_steps: int = 1) -> None:
        """Add steps that took `seconds` in total and ended at `now`. `wait_fraction` is None if it is not measured."""
        self.measures_waiting = wait_fraction is not None
        step_seconds, wait_seconds = seconds / num_steps, seconds / num_steps * (wait_fraction or 0)
        self.num_measurements += 1
        if self.num_measurements == 1:
            self.started_at = now - seconds
        if self.num_measurements <= 2:
            self.seconds, self.wait_seconds = step_seconds, wait_seconds
            self.busy_seconds, self.warmed_up_at = 0.0, now - seconds
        weight = 1 / min(self._num_counted, SMOOTHING_STEPS)
        self.seconds += weight * (step_seconds - self.seconds)
        self.wait_seconds += weight * (wait_seconds - self.wait_seconds)
        self.busy_seconds += seconds
        self.measured_at = now

    @property
    def _num_counted(self) -> int:
        return max(self.num_measurements - 1, 1)

    def describe(self, steps_left: int) -> list[RankedText]:
        """Return the speed, the time left (at the end, the time taken), and the percentage spent waiting for data."""
        if not self.num_measurements:
            return []
        speed = self.samples_per_step / self.seconds if self.seconds else math.nan
        # Seconds between steps, for saving and the like.
        pause_seconds = max(self.measured_at - self.warmed_up_at - self.busy_seconds, 0) / self._num_counted
        time = (
            f"{_format_duration(steps_left * (self.seconds + pause_seconds))} left"
            if steps_left
            else f"in {_format_duration(self.measured_at - self.started_at)}"
        )
        items = [(2, f"{_format_number(speed, 3)} {self.unit}/s"), (1, time)]
        if self.measures_waiting:
            items.append((3, f"data {self.wait_seconds / self.seconds:.0%}" if self.seconds else "data –"))
        return items


def describe_values(values: Mapping[str, Any], labels: Mapping[str, str] = NO_LABELS) -> list[RankedText]:
    """Return the text for a row of metrics: losses, the gradient norm, and the values that have a label.

    >>> describe_values({"loss": 2.1, "loss/rgb": None, "alpha": 0.5, "beta": 0.25}, {"alpha": "α", "beta": "β"})
    [(0, 'loss 2.100'), (1, 'rgb –'), (3, 'α 0.500 β 0.250')]
    >>> describe_values({"failed": 1200}, {"failed": "failed"})
    [(3, 'failed 1,200')]
    """
    items = [(0, f"loss {_format_number(values['loss'])}")] if "loss" in values else []
    items += [(1, f"{key[5:]} {_format_number(value)}") for key, value in values.items() if key.startswith("loss/")]
    labelled = [f"{label} {_format_value(values[key])}" for key, label in labels.items() if key in values]
    items += [(3, " ".join(labelled))] if labelled else []
    if "grad_norm" in values:
        items.append((2, f"gradient {_format_number(values['grad_norm'])}"))
    return items


def join_fitting(items: Sequence[RankedText], width: int) -> str:
    """Join as many items as fit in `width` characters, at least one: the last of the highest rank is left out first.

    >>> join_fitting([(0, "loss 2.1"), (1, "rgb 0.7"), (2, "gradient 1.0")], 20)
    'loss 2.1  rgb 0.7'
    """
    shown = list(items)
    while len(text := "  ".join(text for _, text in shown)) > width and len(shown) > 1:
        last = max(range(len(shown)), key=lambda i: (shown[i][0], i))
        del shown[last]
    return text


class _ProgressBar:
    """Two lines that fit a terminal of any width: the bar with the status, and the values."""

    def __init__(self, fraction: float, status: Sequence[RankedText], values: Sequence[RankedText]) -> None:
        self.fraction, self.status_items, self.value_items = fraction, status, values

    def __rich_console__(
        self, _: "rich.console.Console", options: "rich.console.ConsoleOptions"
    ) -> "rich.console.RenderResult":
        from rich.text import Text

        width = options.max_width - 1  # some terminals wrap a full line
        status = join_fitting(self.status_items, width)
        bar_width = min(width - len(status) - 2, 40)
        done, remaining = "#-" if options.ascii_only else "━─"
        num_done = int(bar_width * self.fraction)
        bar: list[str | tuple[str, str]] = (
            [(num_done * done, "green"), ((bar_width - num_done) * remaining, "bright_black"), "  "]
            if bar_width >= 8
            else []
        )
        yield Text.assemble(*bar, status, no_wrap=True, overflow="ellipsis")
        if self.value_items:
            yield Text(join_fitting(self.value_items, width), no_wrap=True, overflow="ellipsis")


def _format_value(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else _format_number(value)


def _format_number(value: object, digits: int = 4) -> str:
    """Return a number in about `digits` digits whatever its size; a value that is not a finite number is a dash."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size and not 0.001 <= size < 10**6:
        return f"{value:.{digits - 2}e}"
    num_integer_digits = len(f"{size:.0f}")
    return f"{value:,.{max(digits - num_integer_digits, 0)}f}"


def _format_duration(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds.

    >>> [_format_duration(seconds) for seconds in (5.2, 3725, 200_000)]
    ['0:05', '1:02:05', '2 days 7:33']
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} days {hours % 24}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def _redirect_log_handlers(replacements: Mapping[Any, Any]) -> Iterator[None]:
    """Make log handlers write to the replacements of their streams: each holds the stream it was created with."""
    loggers = [logging.root, *logging.Logger.manager.loggerDict.values()]
    handlers = {handler for logger in loggers if isinstance(logger, logging.Logger) for handler in logger.handlers}
    moved = [h for h in handlers if isinstance(h, logging.StreamHandler) and h.stream in replacements]
    before = [handler.stream for handler in moved]
    try:
        for handler in moved:
            handler.setStream(replacements[handler.stream])
        yield
    finally:
        for handler, stream in zip(moved, before, strict=True):
            handler.setStream(stream)
