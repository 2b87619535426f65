import math
from typing import Any

import pytest

from c2fmae.core.loading_speed import LoadingSpeed, LoadTimes, summarise_loading

MILLISECONDS = {"decode": 1.5, "crop": 0.25, "stack": 0.25, "mask": 0.0}
COST = "A sample takes 2 ms to load: 75% reading and decoding, 12% cropping, 12% stacking."
SMALLER = (
    " Images and maps that are stored smaller decode faster (c2fmae data pack with --short-side and --label-stride); "
    "with data.cache=true, scenes that fit in memory are decoded once."
)


def speed(**values: Any) -> LoadingSpeed:
    defaults: dict[str, Any] = {"milliseconds": MILLISECONDS, "num_workers": 2, "waited": 0.4, "ceiling": 1900.0}
    return LoadingSpeed(**defaults | values)


def test_times_of_samples_add_up() -> None:
    first, second = LoadTimes(0.5, 0.25, 0.125, 0.5, num_samples=4), LoadTimes(1.5, 0.25, 0.125, num_samples=4)
    assert first.plus(second) == LoadTimes(2.0, 0.5, 0.25, 0.5, num_samples=8)
    assert first.plus(second).minus(first) == second
    assert first.plus(second).milliseconds() == {"decode": 250.0, "crop": 62.5, "stack": 31.25, "mask": 62.5}
    assert all(map(math.isnan, LoadTimes().milliseconds().values()))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"waited": 0.03}, f"Loading does not limit training, which waits for data about 5% of the time. {COST}"),
        (
            {},
            f"Loading limits training, which waits for data about 47% of the time. {COST} 2 workers can load 1,000 "
            "samples/s, and training could take 1,900: about 4 workers would keep up, with an idle core for each.",
        ),
        (
            {"num_workers": 1, "ceiling": 450.0, "waited": 0.2},
            f"Loading limits training, which waits for data about 20% of the time. {COST} 1 worker can load 500 "
            "samples/s, and training could take 450, so more may not help.",
        ),
        (
            {"num_workers": 0},
            f"Loading limits training, which waits for data about 40% of the time. {COST} The training process loads "
            "batches itself, between steps. With data.workers, about 4 workers would keep up, with an idle core for "
            "each.",
        ),
    ],
)
def test_the_description_names_what_limits(values: dict[str, Any], text: str) -> None:
    loading = speed(**({"ceiling": 1050.0} if values.get("waited") == 0.03 else {}) | values)
    assert loading.describe() == text + (SMALLER if "limits" in text else "")


def test_advice_on_decoding_is_only_given_where_it_is_most_of_the_work() -> None:
    assert "decode faster" in speed().describe()
    assert "decode faster" not in speed(milliseconds=MILLISECONDS | {"decode": 0.5, "crop": 1.5}).describe()


def test_masking_is_listed_where_it_takes_time() -> None:
    assert speed(milliseconds=MILLISECONDS | {"mask": 0.5}).describe().count("10% stacking, 20% masking.") == 1
    assert "masking" not in speed().describe()


def test_prefetched_batches_do_not_hide_that_workers_are_too_slow() -> None:
    assert speed(waited=0.0).expected_wait == pytest.approx(1 - 1000 / 1900)
    assert speed(waited=0.0, num_workers=0).expected_wait == 0


def test_rows_are_averaged_without_the_first() -> None:
    stages = {"decode_ms": 2.0, "crop_ms": 1.0, "stack_ms": 0.5, "workers": 2}
    first = {"step": 1, "seconds": 60.0, "samples_per_second": 1.0, "waited": 0.9, **stages, "decode_ms": 50.0}
    rows = [{"step": step, "seconds": 0.5, "samples_per_second": 128.0, "waited": 0.2, **stages} for step in (2, 3)]
    expected = LoadingSpeed(
        milliseconds={"decode": 2.0, "crop": 1.0, "stack": 0.5, "mask": 0.0}, num_workers=2, waited=0.2, ceiling=80.0
    )
    assert summarise_loading([first, *rows], world_size=2) == expected
    assert (
        summarise_loading([{"step": 1, "seconds": 1.0, "samples_per_second": 8.0, "waited": 0.1}], world_size=1) is None
    )
    assert summarise_loading([{**first, "crop_ms": None}, *rows], world_size=2) is not None
    assert summarise_loading([first], world_size=1) is not None
    for damaged in ({"crop_ms": "1.0"}, {"waited": "0.2"}, {"seconds": None}, {"workers": "2"}, {"mask_ms": "no"}):
        assert summarise_loading([first, *rows, {**rows[0], **damaged}], world_size=2) == expected
    masked = summarise_loading([{**row, "mask_ms": 0.25} for row in rows], world_size=2)
    assert masked is not None
    assert masked.milliseconds == {**expected.milliseconds, "mask": 0.25}
