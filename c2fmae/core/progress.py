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

SMOOTH = 50
"""Speed is averaged over about so many steps."""

REDRAW = 0.25
"""Seconds from one drawing of the bar to the next, at least."""

LINES = (10.0, 30.0)
"""Seconds from one plain line to the next: at least, however fast the steps; at most, unless one step takes longer."""

Piece = tuple[int, str]
"""Something to show, with its rank: where there is no room for all, the highest ranks are left out."""


class Progress:
    """Steps done, speed, time left and losses of a training: enter it, then call `step` after each step.

    `done` steps were made by an earlier run: they count towards the total, not towards the speed. If stderr fails
    (its terminal is gone, its disk full), the training goes on unseen.
    """

    def __init__(
        self,
        *,
        total: int,
        done: int = 0,
        samples_per_step: int,
        every: int = 10,
        is_quiet: bool = False,
        console: "rich.console.Console | None" = None,
    ) -> None:
        from rich.console import Console

        self.total, self.every, self.is_quiet = total, every, is_quiet
        self._console = console or Console(stderr=True)
        self._display: rich.live.Live | None = None
        self._exits = ExitStack()
        self._pace = Pace(samples_per_step)
        self._step, self._values = done, dict[str, Any]()
        self._shown_step, self._shown_at = done, -math.inf

    def __enter__(self) -> "Progress":
        if self._console.is_terminal and not self._console.is_dumb_terminal and not self.is_quiet:
            from rich.live import Live

            self._display = Live(
                console=self._console,
                auto_refresh=False,
                redirect_stdout=sys.stdout.isatty(),  # what goes into a file is none of the terminal's
                get_renderable=self._bar,
            )
            self._exits.enter_context(suppress(OSError))
            before = (sys.stdout, sys.stderr)
            self._exits.enter_context(self._display)
            self._exits.enter_context(_logs_moved(dict(zip(before, (sys.stdout, sys.stderr), strict=True))))
            self._console.show_cursor(True)  # a process that is killed could not bring it back
            self._show(monotonic())
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown_step != self._step:
            self._show(monotonic())
        self._exits.close()
        self._display = None

    def step(self, step: int, values: Mapping[str, Any], *, seconds: float, waited: float) -> None:
        """Tell of a step: how many are done, its row of metrics, its duration, and the share of it spent waiting."""
        if self.is_quiet:
            return
        now = monotonic()
        self._pace.add(seconds, waited, now)
        self._step, self._values = step, dict(values)
        since = now - self._shown_at
        if self._display:
            is_due = since >= REDRAW
        else:
            is_due = since >= LINES[1] or (since >= LINES[0] and step - self._shown_step >= self.every)
        if is_due or step >= self.total:
            self._show(now)

    def say(self, text: str) -> None:
        """Show a line of text: above the bar, where there is one."""
        if not self.is_quiet:
            with suppress(OSError):
                self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _show(self, now: float) -> None:
        self._shown_step, self._shown_at = self._step, now
        with suppress(OSError):
            if self._display:
                self._display.refresh()
            else:
                pieces = [*self._state(), *describe_values(self._values)]
                print("  ".join(text for _, text in pieces), file=self._console.file, flush=True)

    def _state(self) -> list[Piece]:
        return [(0, f"step {self._step:,}/{self.total:,}"), *self._pace.describe(self.total - self._step)]

    def _bar(self) -> "_Bar":
        return _Bar(self._step / max(self.total, 1), self._state(), describe_values(self._values))


class Pace:
    """How fast steps are: averaged over the last ones, and the first, which compiles and warms up, soon forgotten."""

    def __init__(self, samples_per_step: int) -> None:
        self.samples_per_step, self.steps = samples_per_step, 0
        self.seconds = self.waited = self.busy = self.begin = self.warm = self.now = 0.0

    def add(self, seconds: float, waited: float, now: float) -> None:
        """Count a step that ended now."""
        self.steps += 1
        if self.steps == 1:
            self.begin = now - seconds
        if self.steps <= 2:
            self.seconds, self.waited, self.busy, self.warm = seconds, seconds * waited, 0.0, now - seconds
        weight = 1 / min(self._counted, SMOOTH)
        self.seconds += weight * (seconds - self.seconds)
        self.waited += weight * (seconds * waited - self.waited)
        self.busy += seconds
        self.now = now

    @property
    def _counted(self) -> int:
        return max(self.steps - 1, 1)

    def describe(self, left: int) -> list[Piece]:
        """Return speed, time for the steps that are left (or, at the end, the time taken), and share of waiting."""
        if not self.steps:
            return []
        speed = self.samples_per_step / self.seconds if self.seconds else math.nan
        share = self.waited / self.seconds if self.seconds else math.nan
        between = max(self.now - self.warm - self.busy, 0) / self._counted  # a step: what saves and the like take
        time = (
            f"{_duration(left * (self.seconds + between))} left" if left else f"in {_duration(self.now - self.begin)}"
        )
        waiting = f"{share:.0%}" if math.isfinite(share) else "–"
        return [(2, f"{_number(speed, 3)} samples/s"), (1, time), (3, f"data {waiting}")]


def describe_values(values: Mapping[str, Any]) -> list[Piece]:
    """Return what of a row of metrics is shown: losses, the curriculum's coefficients, and the gradient's norm.

    >>> describe_values({"loss": 2.1, "loss/rgb": None, "alpha": 0.5, "beta": 0.25})
    [(0, 'loss 2.100'), (1, 'rgb –'), (3, 'α 0.500 β 0.250')]
    """
    pieces = [(0, f"loss {_number(values['loss'])}")] if "loss" in values else []
    pieces += [(1, f"{key[5:]} {_number(value)}") for key, value in values.items() if key.startswith("loss/")]
    if "alpha" in values and "beta" in values:
        pieces.append((3, f"α {_number(values['alpha'])} β {_number(values['beta'])}"))
    if "grad_norm" in values:
        pieces.append((2, f"gradient {_number(values['grad_norm'])}"))
    return pieces


def fit(pieces: Sequence[Piece], width: int) -> str:
    """Join as many pieces as fit: of the highest rank the last is left out first; one always stays.

    >>> fit([(0, "loss 2.1"), (1, "rgb 0.7"), (2, "gradient 1.0")], 20)
    'loss 2.1  rgb 0.7'
    """
    kept = list(pieces)
    while len(text := "  ".join(text for _, text in kept)) > width and len(kept) > 1:
        last = max(range(len(kept)), key=lambda i: (kept[i][0], i))
        del kept[last]
    return text


class _Bar:
    """Two lines that fit any terminal: the bar and the pace, and the values."""

    def __init__(self, share: float, pace: Sequence[Piece], values: Sequence[Piece]) -> None:
        self.share, self.pace, self.values = share, pace, values

    def __rich_console__(
        self, _: "rich.console.Console", options: "rich.console.ConsoleOptions"
    ) -> "rich.console.RenderResult":
        from rich.text import Text

        width = options.max_width - 1  # some terminals break a line that is full
        pace = fit(self.pace, width)
        room = min(width - len(pace) - 2, 40)
        full, rest = "#-" if options.ascii_only else "━─"
        filled = int(room * self.share)
        bar: list[str | tuple[str, str]] = (
            [(filled * full, "green"), ((room - filled) * rest, "bright_black"), "  "] if room >= 8 else []
        )
        yield Text.assemble(*bar, pace, no_wrap=True, overflow="ellipsis")
        if self.values:
            yield Text(fit(self.values, width), no_wrap=True, overflow="ellipsis")


def _number(value: object, digits: int = 4) -> str:
    """Return a number in about as many characters whatever its size; what is none is a dash."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size and not 0.001 <= size < 10**6:
        return f"{value:.{digits - 2}e}"
    whole = len(f"{size:.0f}")
    return f"{value:,.{max(digits - whole, 0)}f}"


def _duration(seconds: float) -> str:
    """Return a time to read.

    >>> [_duration(seconds) for seconds in (5.2, 3725, 200_000)]
    ['0:05', '1:02:05', '2 days 7:33']
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} days {hours % 24}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def _logs_moved(moves: Mapping[Any, Any]) -> Iterator[None]:
    """Let log handlers write to other streams for a while: they keep the one they were made with."""
    loggers = [logging.root, *logging.Logger.manager.loggerDict.values()]
    handlers = {handler for logger in loggers if isinstance(logger, logging.Logger) for handler in logger.handlers}
    moved = [h for h in handlers if isinstance(h, logging.StreamHandler) and h.stream in moves]
    before = [handler.stream for handler in moved]
    try:
        for handler in moved:
            handler.setStream(moves[handler.stream])
        yield
    finally:
        for handler, stream in zip(moved, before, strict=True):
            handler.setStream(stream)
