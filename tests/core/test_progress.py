import logging
import subprocess
import sys
import threading
from contextlib import suppress
from io import StringIO

import pytest
from rich.console import Console

import c2fmae.core.progress
from c2fmae.core.progress import ProgressDisplay, SpeedMeter, describe_values, join_fitting

LABELS = {"alpha": "α", "beta": "β"}
ROW = {
    "step": 1,
    "progress": 0.1,
    "loss": 2.0,
    "loss/semantic": 0.75,
    "loss/instance": 0.5,
    "loss/rgb": 0.25,
    "alpha": 0.125,
    "beta": 0.5,
    "grad_norm": 1234.5,
}


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(c2fmae.core.progress, "monotonic", clock)
    return clock


def terminal(width: int = 120) -> Console:
    return Console(file=StringIO(), force_terminal=True, width=width, color_system=None, legacy_windows=False)


def plain() -> Console:
    return Console(file=StringIO(), force_terminal=False)


def written(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def last_drawing(console: Console) -> list[str]:
    """Return the bar as it was left: the lines after the last erased one."""
    return written(console).rpartition("\x1b[2K")[2].replace("\x1b[?25h", "").splitlines()


def train(progress: ProgressDisplay, clock: Clock, steps: range, seconds: float = 1.0) -> None:
    for step in steps:
        clock.now += seconds
        progress.update(step, ROW, seconds=seconds, wait_fraction=0.25)


def test_a_terminal_shows_a_bar_with_status_and_values(clock: Clock) -> None:
    console = terminal()
    with ProgressDisplay(total_steps=4000, samples_per_step=64, value_labels=LABELS, console=console) as progress:
        train(progress, clock, range(1, 1001), seconds=0.5)
        assert last_drawing(console) == [
            "━━━━━━━━━━──────────────────────────────  step 1,000/4,000  128 samples/s  25:00 left  data 25%",
            "loss 2.000  semantic 0.750  instance 0.500  rgb 0.250  α 0.125 β 0.500  gradient 1,234",
        ]
        train(progress, clock, range(1001, 4001), seconds=0.5)
    assert last_drawing(console)[0].endswith("━━  step 4,000/4,000  128 samples/s  in 33:20  data 25%")


@pytest.mark.parametrize(
    ("width", "status", "values"),
    [
        (
            100,
            5 * "━" + 35 * "─" + "  step 500/4,000  64.0 samples/s  58:20 left  data 25%",
            "loss 2.000  semantic 0.750  instance 0.500  rgb 0.250  α 0.125 β 0.500  gradient 1,234",
        ),
        (
            80,
            3 * "━" + 22 * "─" + "  step 500/4,000  64.0 samples/s  58:20 left  data 25%",
            "loss 2.000  semantic 0.750  instance 0.500  rgb 0.250  gradient 1,234",
        ),
        (
            60,
            "step 500/4,000  64.0 samples/s  58:20 left  data 25%",
            "loss 2.000  semantic 0.750  instance 0.500  rgb 0.250",
        ),
        (40, "━──────────  step 500/4,000  58:20 left", "loss 2.000  semantic 0.750"),
        (20, "step 500/4,000", "loss 2.000"),
        (8, "step 50…", "loss 2.…"),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
def test_a_narrow_terminal_leaves_out_the_highest_ranks_first(
    clock: Clock, width: int, status: str, values: str
) -> None:
    console = terminal(width)
    with ProgressDisplay(total_steps=4000, samples_per_step=64, value_labels=LABELS, console=console) as progress:
        train(progress, clock, range(1, 501))
    assert last_drawing(console) == [status, values]


def test_the_bar_is_drawn_at_most_four_times_a_second_without_a_thread(clock: Clock) -> None:
    console, threads = terminal(), threading.active_count()
    with ProgressDisplay(total_steps=10_000, samples_per_step=64, value_labels=LABELS, console=console) as progress:
        assert threading.active_count() == threads
        train(progress, clock, range(1, 1002), seconds=0.01)
    assert 38 <= written(console).count("samples/s") <= 41


def test_the_cursor_stays_visible_while_the_bar_is_drawn() -> None:
    console = terminal()
    with ProgressDisplay(total_steps=10, samples_per_step=1, console=console):
        assert written(console).rfind("\x1b[?25h") > written(console).rfind("\x1b[?25l")


def test_printed_and_logged_lines_appear_above_the_bar(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    console, log = terminal(), logging.getLogger("c2fmae.test_progress")
    handler = logging.StreamHandler(sys.stderr)
    before = (sys.stdout, sys.stderr)
    log.addHandler(handler)
    try:
        with ProgressDisplay(total_steps=10, samples_per_step=1, console=console) as progress:
            train(progress, clock, range(1, 3))
            progress.print_line("saved [/red] 1")
            log.warning("a warning")
            print("an error of a library", file=sys.stderr)
            print("a result")
        log.warning("afterwards")
    finally:
        log.removeHandler(handler)
    erased = "\r\x1b[2K\x1b[1A\x1b[2K"
    for line in ("saved [/red] 1", "a warning", "an error of a library"):
        assert f"{erased}{line}\n━━━━━━━━────" in written(console)
    assert last_drawing(console)[0].startswith("━━━━━━━━────")
    assert (sys.stdout, sys.stderr) == before
    captured = capsys.readouterr()
    assert captured.out == "a result\n"  # stdout is no terminal here
    assert captured.err == "afterwards\n"


def test_plain_lines_are_printed_without_a_terminal(clock: Clock) -> None:
    console = plain()
    with ProgressDisplay(total_steps=40, samples_per_step=64, value_labels=LABELS, console=console) as progress:
        train(progress, clock, range(1, 21))
        progress.print_line("saved checkpoints/step-00000020")
        train(progress, clock, range(21, 41))
    values = "loss 2.000  semantic 0.750  instance 0.500  rgb 0.250  α 0.125 β 0.500  gradient 1,234"
    assert written(console).splitlines() == [
        f"step 1/40  64.0 samples/s  0:39 left  data 25%  {values}",
        f"step 11/40  64.0 samples/s  0:29 left  data 25%  {values}",
        "saved checkpoints/step-00000020",
        f"step 21/40  64.0 samples/s  0:19 left  data 25%  {values}",
        f"step 31/40  64.0 samples/s  0:09 left  data 25%  {values}",
        f"step 40/40  64.0 samples/s  in 0:40  data 25%  {values}",
    ]


def steps_shown(console: Console) -> list[int]:
    return [int(line.split()[1].split("/")[0].replace(",", "")) for line in written(console).splitlines()]


@pytest.mark.parametrize(
    ("seconds", "every", "shown"),
    [
        (0.0625, 10, [1, 161, 321, 400]),  # a line in ten seconds, however fast the steps
        (0.0625, 200, [1, 201, 400]),
        (4.0, 10, [1, 9, 17, 25, 33]),  # in half a minute, however few they are
        (4.0, 5, [1, 6, 11, 16, 21, 26, 31, 33]),
        (45.0, 10, [1, 2, 3, 4]),
    ],
)
def test_plain_lines_have_a_minimum_and_a_maximum_interval(
    clock: Clock, seconds: float, every: int, shown: list[int]
) -> None:
    console = plain()
    with ProgressDisplay(total_steps=shown[-1], samples_per_step=1, log_every=every, console=console) as progress:
        train(progress, clock, range(1, shown[-1] + 1), seconds=seconds)
    assert steps_shown(console) == shown


def test_the_last_step_of_an_interrupted_run_is_shown(clock: Clock) -> None:
    console = plain()
    with suppress(KeyboardInterrupt), ProgressDisplay(total_steps=100, samples_per_step=1, console=console) as progress:
        train(progress, clock, range(1, 6))
        raise KeyboardInterrupt
    assert steps_shown(console) == [1, 5]


def test_the_speed_of_a_resumed_run_counts_only_its_own_steps(clock: Clock) -> None:
    console = plain()
    with ProgressDisplay(total_steps=1100, start_step=1000, samples_per_step=10, console=console) as progress:
        train(progress, clock, range(1001, 1002), seconds=2.0)
        assert written(console).startswith("step 1,001/1,100  5.00 samples/s  3:18 left  data 25%")
        train(progress, clock, range(1002, 1101), seconds=2.0)
    assert "step 1,100/1,100  5.00 samples/s  in 3:20  data 25%" in written(console)


def status_after(durations: list[float], between: float = 0.0) -> list[str]:
    speed, now = SpeedMeter(64), 0.0
    for seconds in durations:
        now += seconds
        speed.add(seconds, 0.5, now)
        now += between
    return [text for _, text in speed.describe(100)]


def test_the_second_step_replaces_the_first_in_the_speed() -> None:
    assert status_after([60.0]) == ["1.07 samples/s", "1:40:00 left", "data 50%"]
    assert status_after([60.0, 1.0]) == ["64.0 samples/s", "1:40 left", "data 50%"]


def test_the_speed_is_averaged_over_about_fifty_steps() -> None:
    assert status_after([1.0] * 1000 + [2.0]) == ["62.7 samples/s", "1:42 left", "data 50%"]
    assert status_after([1.0] * 1000 + [2.0] * 300) == ["32.0 samples/s", "3:20 left", "data 50%"]


def test_the_time_left_includes_pauses_between_steps() -> None:
    assert status_after([1.0] * 1001, between=0.5) == ["64.0 samples/s", "2:30 left", "data 50%"]


def test_the_speed_is_unknown_before_the_first_step_and_with_a_stopped_clock() -> None:
    assert status_after([]) == []
    assert status_after([0.0, 0.0]) == ["– samples/s", "0:00 left", "data –"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (float("-inf"), "–"),
        (0, "0.000"),
        (-2.34567, "-2.346"),
        (123.456, "123.5"),
        (99999.4, "99,999"),
        (0.00012345, "1.23e-04"),
        (-12345678.0, "-1.23e+07"),
    ],
)
def test_numbers_have_about_four_digits_and_missing_ones_are_dashes(value: float | None, shown: str) -> None:
    assert describe_values({"loss": value}) == [(0, f"loss {shown}")]


def test_at_least_one_item_is_shown() -> None:
    assert join_fitting([(1, "abc"), (0, "defg")], 1) == "defg"
    assert join_fitting([], 1) == ""


def test_a_quiet_display_writes_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    for console in (terminal(), plain()):
        before = sys.stderr
        with ProgressDisplay(total_steps=3, samples_per_step=1, is_quiet=True, console=console) as progress:
            assert sys.stderr is before
            train(progress, clock, range(1, 4))
            progress.print_line("hello")
        assert written(console) == ""


def test_the_default_stream_is_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay(total_steps=1, samples_per_step=1) as progress:
        progress.update(1, {"loss": 1.0}, seconds=1.0, wait_fraction=0.0)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "step 1/1  1.00 samples/s  in 0:01  data 0%  loss 1.000\n"


class ClosableTerminal(StringIO):
    """A terminal whose writes fail after it `is_closed`."""

    is_closed = False

    def write(self, text: str) -> int:
        if self.is_closed:
            raise OSError(5, "Input/output error")
        return super().write(text)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_closed_terminal_does_not_stop_the_training(clock: Clock, is_terminal: bool) -> None:
    file, before = ClosableTerminal(), (sys.stdout, sys.stderr)
    console = Console(file=file, force_terminal=is_terminal)
    with ProgressDisplay(total_steps=100, samples_per_step=1, console=console) as progress:
        train(progress, clock, range(1, 20))
        file.is_closed = True
        train(progress, clock, range(20, 90))
        progress.print_line("hello")
    assert (sys.stdout, sys.stderr) == before


def test_items_that_finish_in_groups_are_counted(clock: Clock) -> None:
    console = plain()
    with ProgressDisplay(total_steps=964, name="packing", unit="scenes", console=console) as progress:
        for seconds, count in [(20.0, 64), *[(4.0, 100)] * 9]:
            clock.now += seconds
            progress.advance(count)
    assert written(console).splitlines() == [
        "packing 64/964  3.20 scenes/s  4:41 left",
        "packing 364/964  25.0 scenes/s  0:24 left",
        "packing 664/964  25.0 scenes/s  0:12 left",
        "packing 964/964  25.0 scenes/s  in 0:56",
    ]


@pytest.mark.unchecked
def test_importing_the_module_does_not_import_rich() -> None:
    script = "import sys; import c2fmae.core.progress; print('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
