from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch

from c2fmae.config.data import DataConfig, DatasetConfig, GeneratedOptions
from c2fmae.core.errors import UserError
from c2fmae.core.granularity import IGNORE
from c2fmae.core.scene import Scene
from c2fmae.data import CentralView, GeneratedScenes, RandomView, Sampler
from c2fmae.data.cached import CachedScenes
from tests.data.dataset_files import assert_user_error, make_samples, write_tar

ALL = ("semantic", "instance", "rgb")
TARGET: dict[str, Any] = {"size": (8, 8), "label_stride": 4, "max_instances": 3}


def config(**settings: Any) -> DataConfig:
    return DataConfig(**settings)


def test_missing_data_is_rejected() -> None:
    expected = "data.train: is required. Set it with --data PATH, or use --data generated"
    assert_user_error(lambda: config().open_training(ALL), expected)
    assert config().open_held_out(ALL) is None


def test_a_missing_source_is_rejected_with_its_setting(tmp_path: Path) -> None:
    fix = "Give a directory, a .tar shard, a pattern of shards, or one of: generated"
    expected = f"{tmp_path}/none.tar: does not exist. {fix}"
    assert_user_error(lambda: config(train=f"{tmp_path}/none.tar").open_training(ALL), f"data.train: {expected}")
    assert_user_error(lambda: config(held_out=f"{tmp_path}/none.tar").open_held_out(ALL), f"data.held_out: {expected}")
    assert_user_error(
        lambda: config(train="genrated").open_training(ALL),
        "data.train: genrated: does not exist. Did you mean 'generated'?",
    )


def test_options_that_a_source_does_not_have_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        DataConfig.from_dict({"train": "generated"}, ["train.options.sizes=64"], source="data")
    assert str(caught.value) == (
        "data: train.options.sizes: dataset 'generated' has no such option. Did you mean 'size'?"
    )
    shard = write_tar(tmp_path / "s.tar", make_samples("ab"))
    with pytest.raises(UserError, match=f"data: held_out.name: no dataset named '{shard}'. Known: generated"):
        DataConfig.from_dict({"held_out": str(shard)}, ["held_out.options.size=64"], source="data")
    too_small = DatasetConfig(name="generated", options={"size": 8})
    assert_user_error(
        lambda: config(train=too_small).open_training(ALL),
        "data.train: size: generated scenes need at least 32 pixels, got 8",
    )


def test_a_name_is_short_for_the_data_set_and_a_path_takes_precedence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    generated = DatasetConfig(name="generated")
    assert config(train="generated", held_out=["generated", "packs/a"]) == config(
        train=generated, held_out=(generated, "packs/a")
    )
    (tmp_path / "generated").mkdir()
    assert config(train="generated").train == "generated"
    assert config(train={"name": "generated"}).train == generated


def test_dumps_list_the_options_that_were_given(tmp_path: Path) -> None:
    each = DataConfig.from_dict({"train": "generated", "held_out": str(tmp_path)}, ["train.options.size=64"])
    for mode in ("python", "json"):
        tree = each.model_dump(mode=mode)
        assert (tree["train"], tree["held_out"]) == ({"name": "generated", "options": {"size": 64}}, str(tmp_path))
        assert DataConfig.from_dict(tree) == each
    assert len(each.override(["train.options.length=3"]).open_training(("rgb",))) == 3
    assert isinstance(each.train, DatasetConfig)
    assert each.train.with_defaults(size=32, length=5).given_options() == {"size": 64, "length": 5}


@pytest.mark.parametrize("value", [3, "", [], ["a", ["b"]]])
def test_invalid_sources_are_rejected(value: object) -> None:
    with pytest.raises(UserError) as caught:
        DataConfig.from_dict({"train": value}, source="data")
    assert str(caught.value) == f"data: train: expected a path, a registered name, or a list of these, got {value!r}"


def test_typed_options_are_those_of_generated_scenes() -> None:
    assert set(get_type_hints(GeneratedOptions)) == set(DatasetConfig.option_class("generated").model_fields)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"workers": -1}, "workers: input should be greater than or equal to 0, got -1"),
        ({"prefetch": 0}, "prefetch: input should be greater than or equal to 1, got 0"),
        ({"repeats": 0}, "repeats: input should be greater than or equal to 1, got 0"),
        ({"scale": (0.0, 1.0)}, "scale.0: input should be greater than 0, got 0.0"),
        ({"flip": 1.5}, "flip: input should be less than or equal to 1, got 1.5"),
        ({"on_broken": "stop"}, "on_broken: expected 'skip' or 'error', got 'stop'. Did you mean 'skip'?"),
        (
            {"overflow": "backgroun"},
            "overflow: expected 'ignore' or 'background', got 'backgroun'. Did you mean 'background'?",
        ),
        ({"held_out_samples": 0}, "held_out_samples: input should be greater than or equal to 1, got 0"),
        ({"trian": "generated"}, "trian: no such setting. Did you mean 'train'?"),
    ],
)
def test_invalid_loading_settings_are_rejected(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        DataConfig.from_dict(settings, source="data")
    assert str(caught.value) == f"data: {expected}"


def test_scenes_have_the_required_maps_of_the_source() -> None:
    options = {"size": 32, "length": 3}
    train, held_out = (DatasetConfig(name="generated", options={**options, "seed": seed}) for seed in (5, 6))
    each = config(train=train, held_out=held_out)
    for seed, scenes in ((5, each.open_training(("rgb",))), (6, each.open_held_out(("rgb",)))):
        assert scenes is not None
        assert (len(scenes), scenes.info.granularities) == (3, ("rgb",))
        expected = GeneratedScenes(size=32, length=3, seed=seed)[1]
        assert list(scenes[1].maps) == ["rgb"]
        assert torch.equal(scenes[1].maps["rgb"], expected.maps["rgb"])


def test_several_sources_are_concatenated(tmp_path: Path) -> None:
    shards = [write_tar(tmp_path / f"{keys}.tar", make_samples(keys)) for keys in ("ab", "cde")]
    scenes = config(train=tuple(map(str, shards))).open_training(ALL)
    assert list(scenes.keys) == ["a", "b", "c", "d", "e"]


def test_scenes_are_cached_on_request() -> None:
    source = DatasetConfig(name="generated", options={"size": 32, "length": 3})
    assert isinstance(config(train=source, cache=True).open_training(ALL), CachedScenes)
    assert not isinstance(config(train=source).open_training(ALL), CachedScenes)


def test_settings_reach_views_and_loader() -> None:
    scenes = GeneratedScenes(size=32, length=8)
    sampler = Sampler(num_samples=8, batch_size=4)
    each = config(
        scale=(0.5, 0.75),
        ratio=(0.5, 2.0),
        flip=0.25,
        overflow="background",
        workers=3,
        prefetch=5,
        on_broken="error",
        max_broken=0.5,
    )
    loader = each.build_loader(scenes, each.build_training_view(**TARGET), sampler)
    view = RandomView(scale=(0.5, 0.75), ratio=(0.5, 2.0), flip=0.25, overflow="background", **TARGET)
    assert (loader.scenes, loader.sampler, loader.transform) == (scenes, sampler, view)
    assert (loader.workers, loader.prefetch, loader.on_broken, loader.max_broken) == (3, 5, "error", 0.5)
    assert each.build_held_out_view(**TARGET) == CentralView(overflow="background", **TARGET)


def test_a_held_out_view_applies_the_overflow_setting() -> None:
    ids = torch.arange(64, dtype=torch.uint8).view(8, 8) // 8  # eight objects, one of them background
    scene = Scene("a", {"instance": ids, "rgb": torch.zeros(3, 8, 8, dtype=torch.uint8)})
    for overflow, rest in (("ignore", IGNORE), ("background", 0)):
        cut = config(overflow=overflow).build_held_out_view(size=(8, 8), max_instances=3)(
            scene, np.random.default_rng(0)
        )
        assert cut.maps["instance"][:, 0].tolist() == [0, 1, 2, *[rest] * 5]
