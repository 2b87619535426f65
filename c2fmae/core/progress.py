"""What a person sees of a long training: a bar on a terminal, plain lines elsewhere, always on stderr.

No thread draws: a worker that is forked while one does would inherit its lock, and wait for it forever.
"""

import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import rich.console
    import rich.live

SMOOTHING_STEPS = 50
"""Speed is averaged over about so many steps."""

REDRAW_SECONDS = 0.25
"""Seconds from one drawing of the bar to the next, at least."""

LINE_SECONDS = (10.0, 30.0)
"""Seconds from one plain line to the next: at least, however fast the steps; at most, unless one step takes longer."""

RankedText = tuple[int, str]
"""Something to show, with its rank: where there is no room for all, the highest ranks are left out."""


class ProgressDisplay:
    """Steps done, speed, time left and losses of a training: enter it, then call `update` after each step.

    `start_step` steps were made by an earlier run: they count towards the total, not towards the speed. If stderr fails
    (its terminal is gone, its disk full), the training goes on unseen.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        start_step: int = 0,
        samples_per_step: int,
        log_every: int = 10,
        is_quiet: bool = False,
        console: "rich.console.Console | None" = None,
    ) -> None:
        from rich.console import Console

        self.total_steps, self.log_every, self.is_quiet = total_steps, log_every, is_quiet
        self._console = console or Console(stderr=True)
        self._display: rich.live.Live | None = None
        self._exit_stack = ExitStack()
        self._pace = SpeedMeter(samples_per_step)
        self._step, self._values = start_step, dict[str, Any]()
        self._shown_step, self._shown_at = start_step, -math.inf

    def __enter__(self) -> "ProgressDisplay":
        if self._console.is_terminal and not self._console.is_dumb_terminal and not self.is_quiet:
            from rich.live import Live

            self._display = Live(
                console=self._console,
                auto_refresh=False,
                redirect_stdout=sys.stdout.isatty(),  # what goes into a file is none of the terminal's
                get_renderable=self._build_bar,
            )
            self._exit_stack.enter_context(suppress(OSError))
            before = (sys.stdout, sys.stderr)
            self._exit_stack.enter_context(self._display)
            self._exit_stack.enter_context(
                _redirect_log_handlers(dict(zip(before, (sys.stdout, sys.stderr), strict=True)))
            )
            self._console.show_cursor(True)  # a process that is killed could not bring it back
            self._render(monotonic())
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown_step != self._step:
            self._render(monotonic())
        self._exit_stack.close()
        self._display = None

    def update(self, step: int, values: Mapping[str, Any], *, seconds: float, wait_fraction: float) -> None:
        """Tell of a step: how many are done, its row of metrics, its duration, and the share of it spent waiting."""
        if self.is_quiet:
            return
        now = monotonic()
        self._pace.add(seconds, wait_fraction, now)
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

    def print_line(self, text: str) -> None:
        """Show a line of text: above the bar, where there is one."""
        if not self.is_quiet:
            with suppress(OSError):
                self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _render(self, now: float) -> None:
        self._shown_step, self._shown_at = self._step, now
        with suppress(OSError):
            if self._display:
                self._display.refresh()
            else:
                items = [*self._status_items(), *describe_values(self._values)]
                print("  ".join(text for _, text in items), file=self._console.file, flush=True)

    def _status_items(self) -> list[RankedText]:
        return [(0, f"step {self._step:,}/{self.total_steps:,}"), *self._pace.describe(self.total_steps - self._step)]

    def _build_bar(self) -> "_ProgressBar":
        return _ProgressBar(self._step / max(self.total_steps, 1), self._status_items(), describe_values(self._values))


class SpeedMeter:
    """How fast steps are: averaged over the last ones, and the first, which compiles and warms up, soon forgotten."""

    def __init__(self, samples_per_step: int) -> None:
        self.samples_per_step, self.steps = samples_per_step, 0
        self.seconds = self.wait_seconds = self.busy_seconds = self.started_at = self.warmed_up_at = (
            self.last_step_at
        ) = 0.0

    def add(self, seconds: float, wait_fraction: float, now: float) -> None:
        """Count a step that ended now."""
        self.steps += 1
        if self.steps == 1:
            self.started_at = now - seconds
        if self.steps <= 2:
            self.seconds, self.wait_seconds, self.busy_seconds, self.warmed_up_at = (
                seconds,
                seconds * wait_fraction,
                0.0,
                now - seconds,
            )
        weight = 1 / min(self._num_counted, SMOOTHING_STEPS)
        self.seconds += weight * (seconds - self.seconds)
        self.wait_seconds += weight * (seconds * wait_fraction - self.wait_seconds)
        self.busy_seconds += seconds
        self.last_step_at = now

    @property
    def _num_counted(self) -> int:
        return max(self.steps - 1, 1)

    def describe(self, steps_left: int) -> list[RankedText]:
        """Return speed, time for the steps that are left (or, at the end, the time taken), and share of waiting."""
        if not self.steps:
            return []
        speed = self.samples_per_step / self.seconds if self.seconds else math.nan
        wait_fraction = self.wait_seconds / self.seconds if self.seconds else math.nan
        pause_seconds = (
            max(self.last_step_at - self.warmed_up_at - self.busy_seconds, 0) / self._num_counted
        )  # a step: what saves and the like take
        time = (
            f"{_format_duration(steps_left * (self.seconds + pause_seconds))} left"
            if steps_left
            else f"in {_format_duration(self.last_step_at - self.started_at)}"
        )
        waiting = f"{wait_fraction:.0%}" if math.isfinite(wait_fraction) else "–"
        return [(2, f"{_format_number(speed, 3)} samples/s"), (1, time), (3, f"data {waiting}")]


def describe_values(values: Mapping[str, Any]) -> list[RankedText]:
    """Return what of a row of metrics is shown: losses, the curriculum's coefficients, and the gradient's norm.

    >>> describe_values({"loss": 2.1, "loss/rgb": None, "alpha": 0.5, "beta": 0.25})
    [(0, 'loss 2.100'), (1, 'rgb –'), (3, 'α 0.500 β 0.250')]
    """
    items = [(0, f"loss {_format_number(values['loss'])}")] if "loss" in values else []
    items += [(1, f"{key[5:]} {_format_number(value)}") for key, value in values.items() if key.startswith("loss/")]
    if "alpha" in values and "beta" in values:
        items.append((3, f"α {_format_number(values['alpha'])} β {_format_number(values['beta'])}"))
    if "grad_norm" in values:
        items.append((2, f"gradient {_format_number(values['grad_norm'])}"))
    return items


def join_fitting(items: Sequence[RankedText], width: int) -> str:
    """Join as many pieces as fit: of the highest rank the last is left out first; one always stays.

    >>> join_fitting([(0, "loss 2.1"), (1, "rgb 0.7"), (2, "gradient 1.0")], 20)
    'loss 2.1  rgb 0.7'
    """
    shown = list(items)
    while len(text := "  ".join(text for _, text in shown)) > width and len(shown) > 1:
        last = max(range(len(shown)), key=lambda i: (shown[i][0], i))
        del shown[last]
    return text


class _ProgressBar:
    """Two lines that fit any terminal: the bar and the pace, and the values."""

    def __init__(self, share: float, pace: Sequence[RankedText], values: Sequence[RankedText]) -> None:
        self.fraction, self.speed_items, self.value_items = share, pace, values

    def __rich_console__(
        self, _: "rich.console.Console", options: "rich.console.ConsoleOptions"
    ) -> "rich.console.RenderResult":
        from rich.text import Text

        width = options.max_width - 1  # some terminals break a line that is full
        pace = join_fitting(self.speed_items, width)
        room = min(width - len(pace) - 2, 40)
        full, rest = "#-" if options.ascii_only else "━─"
        filled = int(room * self.fraction)
        bar: list[str | tuple[str, str]] = (
            [(filled * full, "green"), ((room - filled) * rest, "bright_black"), "  "] if room >= 8 else []
        )
        yield Text.assemble(*bar, pace, no_wrap=True, overflow="ellipsis")
        if self.value_items:
            yield Text(join_fitting(self.value_items, width), no_wrap=True, overflow="ellipsis")


def _format_number(value: object, digits: int = 4) -> str:
    """Return a number in about as many characters whatever its size; what is none is a dash."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size and not 0.001 <= size < 10**6:
        return f"{value:.{digits - 2}e}"
    whole = len(f"{size:.0f}")
    return f"{value:,.{max(digits - whole, 0)}f}"


def _format_duration(seconds: float) -> str:
    """Return a time to read.

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
    """Let log handlers write to other streams for a while: they keep the one they were made with."""
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
