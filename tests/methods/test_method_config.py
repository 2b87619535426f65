"""Method configs: defaults, options, and the messages of invalid options and scenes."""

from collections.abc import Callable

import pytest
import torch
import yaml
from torch import nn

from c2fmae.config.masked_method import MaskedConfig
from c2fmae.core.decoder_options import JointOptions
from c2fmae.core.errors import UserError
from c2fmae.core.granularity import COARSE_TO_FINE
from c2fmae.core.scene import SceneBatch
from c2fmae.methods import METHODS, MaskedAutoencoding, build_method
from c2fmae.models import DECODERS, DecoderLayout, MultiGranularAutoencoder
from tests.data.dataset_files import assert_user_error
from tests.methods.tiny_methods import (
    MASKED_METHODS,
    TINY_METHOD_OVERRIDES,
    build_tiny_method,
    child_names,
    draw_noise_scenes,
    make_tiny_config,
    named_gradients,
)

KNOWN = "Known: depth, instance, rgb, semantic"


def compute_step(method: MaskedAutoencoding, scenes: SceneBatch) -> None:
    method.compute_step_loss(scenes, progress=0.3, generator=torch.Generator().manual_seed(0))


def replace_maps(**maps: torch.Tensor) -> SceneBatch:
    scenes = draw_noise_scenes()
    return SceneBatch(scenes.keys, {**scenes.maps, **maps})


def remove_maps(*names: str) -> SceneBatch:
    scenes = draw_noise_scenes()
    return SceneBatch(scenes.keys, {name: map_ for name, map_ in scenes.maps.items() if name not in names})


@pytest.mark.parametrize("name", MASKED_METHODS)
def test_every_method_builds_at_full_size_with_a_description(name: str) -> None:
    config = METHODS.get(name)()
    assert config.name == name
    title, _, text = METHODS.describe(name).partition(": ")
    assert title.lower() == name
    assert text
    with torch.device("meta"):
        method = build_method(config)
    assert list(method.objectives) == [head.name for head in config.head_plans()]
    assert child_names(method, "heads") == list(method.objectives)
    assert method.patch_size == 16


@pytest.mark.parametrize("name", MASKED_METHODS)
def test_configs_are_equal_after_a_round_trip_through_yaml(name: str) -> None:
    changes = [
        "channels={rgb: 4}",
        "mean=[0.1, 0.2, 0.3, 0.4]",
        "decoder.options.order=[rgb]",
        "loss_weights={rgb: 0.5}",
    ]
    changes += ["num_visible=7", "concentration={rgb: 6}", "image_size=[96, 64]"]
    changed = make_tiny_config(name, *changes, granularities=["rgb"])
    for config in (METHODS.get(name)(), changed):
        assert MaskedConfig.from_dict(yaml.safe_load(config.to_yaml())) == config


def test_the_same_config_and_seed_give_the_same_weights() -> None:
    first, again, other = (build_method(make_tiny_config(), seed=seed).model.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("granularities", "expected"),
    [(COARSE_TO_FINE, 98), (("semantic", "rgb"), 65), (("instance", "rgb"), 65), (("rgb",), 49), (("semantic",), 49)],
)
def test_default_budgets_are_a_sixth_or_a_quarter_for_one_granularity(
    granularities: tuple[str, ...], expected: int
) -> None:
    assert MaskedConfig(granularities=granularities).resolve_num_visible(196) == expected


def test_default_budgets_are_rounded_to_the_nearest_integer() -> None:
    config = MaskedConfig(granularities=("semantic", "rgb"))
    assert [config.resolve_num_visible(num_patches) for num_patches in (7, 8, 9)] == [2, 3, 3]


@pytest.mark.parametrize("num_visible", [0, 1, 17, 48])
def test_num_visible_overrides_the_default_budget(num_visible: int) -> None:
    method = build_tiny_method("c2fmae", f"num_visible={num_visible}", size=(64, 64))
    masks = method.sample_masks(
        draw_noise_scenes(size=(64, 64)), progress=0.3, generator=torch.Generator().manual_seed(0)
    )
    assert masks.visible_idx.shape == (2, num_visible)
    assert ((~masks.is_masked).sum(dim=(1, 2)) == num_visible).all()


def test_concentration_shifts_visible_patches_to_a_granularity() -> None:
    settings = ["concentration={semantic: 0.001, instance: 0.001, rgb: 1000}", "num_visible=16"]
    method = build_tiny_method("c2fmae", *settings, size=(64, 64))
    masks = method.sample_masks(
        draw_noise_scenes(size=(64, 64)), progress=0.3, generator=torch.Generator().manual_seed(0)
    )
    assert masks.num_masked.tolist() == [[16, 16, 0], [16, 16, 0]]


def test_initialisation_selects_the_bounds_of_initial_weights() -> None:
    for initialisation, matrices in [("split", 3), ("fused", 1)]:
        weights = build_tiny_method("mae", f"initialisation={initialisation}").model.state_dict()[
            "encoder.blocks.0.attn.qkv.weight"
        ]
        bound = (6 / (64 + 3 * 64 / matrices)) ** 0.5
        assert 0.99 * bound < weights.abs().max() <= bound
    assert [name for name in MASKED_METHODS if METHODS.get(name)().initialisation == "split"] == ["c2fmae", "multimae"]


def test_building_does_not_use_the_global_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    class RandomDecoder(nn.Module):
        def __init__(self, layout: DecoderLayout, options: JointOptions) -> None:
            super().__init__()
            self.inner = joint(layout, options)
            self.scale = nn.Parameter(torch.rand(3))  # as modules of other packages may do

        def forward(self, *inputs: object) -> object:
            return self.inner(*inputs)

    joint = DECODERS.get("joint")
    monkeypatch.setitem(DECODERS._entries, "joint", RandomDecoder)
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        method = build_tiny_method("mae")
        assert torch.equal(torch.get_rng_state(), before)
        states.append(method.model.state_dict())
    assert states[0]["decoder.scale"].ne(0).any()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_drop_path_and_norm_of_the_encoder_change_the_loss() -> None:
    totals = set()
    for settings in ([], ["encoder.drop_path=0.9"], ["encoder.has_norm=true"]):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            loss = build_tiny_method("c2fmae", *settings).compute_step_loss(
                draw_noise_scenes(), progress=0.3, generator=torch.Generator()
            )
        totals.add(loss.total.item())
    assert len(totals) == 3


def test_gradient_checkpointing_runs_blocks_twice_with_the_same_gradients() -> None:
    gradients, calls = [], []
    for is_on in ("false", "true"):
        runs: list[int] = []
        method = build_tiny_method("c2fmae", f"encoder.grad_checkpointing={is_on}")
        method.model.get_submodule("encoder.blocks.0").register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        method.compute_step_loss(draw_noise_scenes(), progress=0.3, generator=torch.Generator()).total.backward()
        gradients.append(list(named_gradients(method)))
        calls.append(len(runs))
    assert calls == [1, 2]
    for (name, plain), (_, again) in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain, msg=name)


def test_decoder_order_changes_stages_but_not_tokens() -> None:
    method = build_tiny_method("c2fmae", "decoder.options.order=[rgb, semantic, instance]")
    assert list(method.objectives) == child_names(method, "decoder.stages") == ["rgb", "semantic", "instance"]
    assert child_names(method, "embeddings") == list(COARSE_TO_FINE)


def test_a_second_target_has_a_longer_name_and_optionally_its_own_stage() -> None:
    settings = ["targets.rgb=[normalized_pixels, pixels]"]
    shared = [head[:2] for head in make_tiny_config("c2fmae", *settings).head_plans()]
    assert shared == [("semantic", "semantic"), ("instance", "instance"), ("rgb", "rgb"), ("rgb_pixels", "rgb")]
    own = make_tiny_config("c2fmae", *settings, "decoder.options.stage_per=target").head_plans()
    assert own[-1][:2] == ("rgb_pixels", "rgb_pixels")


def test_images_are_standardised_with_the_mean_and_std_of_the_config() -> None:
    scenes = draw_noise_scenes()
    images = scenes.maps["rgb"] / 255

    def prepare_rgb(*settings: str) -> torch.Tensor:
        return build_tiny_method("mae", *settings).prepare_inputs(scenes)["rgb"]

    def standardise_by(mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
        return (images - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)

    torch.testing.assert_close(
        prepare_rgb(), standardise_by((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), atol=1e-5, rtol=1e-5
    )
    prepared = prepare_rgb("mean=[0.1, 0.2, 0.3]", "std=[0.4, 0.5, 0.6]")
    torch.testing.assert_close(prepared, standardise_by((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), atol=1e-5, rtol=1e-5)
    assert make_tiny_config("mae", "channels.rgb=2").mean_and_std("rgb") == ((0.5, 0.5), (0.25, 0.25))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("granularities=[semantics]", f"no granularity named 'semantics'. Did you mean 'semantic'? {KNOWN}"),
        ("granularities=[rgb, semantic, rgb]", "granularities: 'rgb' is listed twice"),
        ("channels.rbg=3", f"channels: no granularity named 'rbg'. Did you mean 'rgb'? {KNOWN}"),
        ("targets.rbg=[pixels]", f"targets: no granularity named 'rbg'. Did you mean 'rgb'? {KNOWN}"),
        ("concentration.rbg=2", f"concentration: no granularity named 'rbg'. Did you mean 'rgb'? {KNOWN}"),
        (
            "targets.rgb=[pixel]",
            "targets.rgb.0.name: no target named 'pixel'. Did you mean 'pixels'? "
            "Known: absolute, hog, labels, normalized_pixels, pixels",
        ),
        ("targets.rgb=[]", "targets.rgb: expected at least one target, got none. Remove the key"),
        ("targets.rgb=[pixels, pixels]", "targets.rgb: 'pixels' is listed twice"),
        ("targets.semantic=[pixels]", "targets.semantic: 'pixels' is for maps of kind image or continuous, not ids"),
        ("targets.rgb=[labels]", "targets.rgb: 'labels' is for maps of kind ids, not image"),
        ("loss_weights.rbg=1", "loss_weights: no loss named 'rbg'. Did you mean 'rgb'? Known: instance, rgb, semantic"),
        ("loss_weights.rgb_pixels=1", "loss_weights: no loss named 'rgb_pixels'. Known: instance, rgb, semantic"),
        ("loss_weights.rgb=-1", "loss_weights.rgb: input should be greater than or equal to 0, got -1"),
        ("concentration.rgb=0", "concentration.rgb: input should be greater than 0, got 0"),
        ("decoder.options.order=[rgb, rgb, semantic]", "decoder.options.order: 'rgb' is listed twice"),
        ("decoder.options.order=[semantic, rgb]", "decoder.options.order: instance is missing. List all granularities"),
        (
            "decoder.options.order=[semantic, instanse, rgb]",
            "decoder.options.order: no stage named 'instanse'. Did you mean 'instance'? Known: instance, rgb, semantic",
        ),
        ("channels.semantic=256", "channels.semantic: expected at most 255 classes, got 256"),
        ("mean=[0.5]", "mean: expected 3 numbers, one for each channel of rgb, got 1"),
        ("std=[0.5, 0.5, 0.5, 0.5]", "std: expected 3 numbers, one for each channel of rgb, got 4"),
        ("std=[0.5, 0.5, 0]", "std.2: input should be greater than 0, got 0"),
        ("decoder.options.num_heads=7", "decoder.options: num_heads: 7 heads do not divide dim=256"),
        (
            "decoder.name=cascade",
            "decoder.name: no decoder named 'cascade'. Did you mean 'cascaded'? "
            "Known: cascaded, direct, joint, parallel, reversed, self_attention",
        ),
        ("num_visible=-1", "num_visible: input should be greater than or equal to 0, got -1"),
        ("loss_average=sample", "loss_average: expected 'samples' or 'cells', got 'sample'. Did you mean 'samples'?"),
        ("decoder.options.context=hidden", "decoder.options.context: expected 'all' or 'visible', got 'hidden'"),
        ("nmae=x", "nmae: no such setting. Did you mean 'name'?"),
    ],
)
def test_invalid_options_are_rejected(override: str, message: str) -> None:
    assert_user_error(lambda: METHODS.get("c2fmae")().override([override]), f"--set: {message}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["image_size=[64, 72]"],
            "image_size: 72 is not a multiple of the patch size 16 (of test_vit). Nearest: 64 or 80",
        ),
        (
            ["image_size=[60, 64]"],
            "image_size: 60 is not a multiple of the patch size 16 (of test_vit). Nearest: 48 or 64",
        ),
        (
            ["image_size=[64, 64]", "num_visible=49"],
            "num_visible: expected at most 3 × 16 patches, got 49. Set it lower",
        ),
        (
            ["encoder.name=vit_tiny_patch16_22"],
            "encoder: timm has no model named 'vit_tiny_patch16_22'. Did you mean 'vit_tiny_patch16_224'?",
        ),
    ],
)
def test_invalid_model_sizes_are_rejected(overrides: list[str], message: str) -> None:
    assert_user_error(
        lambda: build_method(METHODS.get("c2fmae")().override([*TINY_METHOD_OVERRIDES, *overrides])), message
    )


def set_ids(name: str, *values: int) -> SceneBatch:
    """Return scenes with these ids in some cells of the second scene."""
    ids = draw_noise_scenes().maps[name].clone()
    ids[1, 2, : len(values)] = torch.tensor(values, dtype=torch.uint8)
    return replace_maps(**{name: ids})


@pytest.mark.parametrize(
    ("scenes", "message"),
    [
        (
            lambda: draw_noise_scenes(size=(40, 32)),
            "rgb: 40×32 is not divisible into patches of 16×16. Resize it to multiples of 16",
        ),
        (
            lambda: draw_noise_scenes(size=(32, 36)),
            "rgb: 32×36 is not divisible into patches of 16×16. Resize it to multiples of 16",
        ),
        (
            lambda: set_ids("semantic", 6),
            "scene-1: expected semantic ids from 0 to 5, or 255 where unlabelled, got 6. "
            "Set channels.semantic to the number of ids",
        ),
        (
            lambda: set_ids("instance", 7, 254, 5),
            "scene-1: expected instance ids from 0 to 4, or 255 where unlabelled, got 254. "
            "Set channels.instance to the number of ids",
        ),
        (
            lambda: replace_maps(rgb=draw_noise_scenes().maps["rgb"].float()),
            "rgb: expected uint8 images [batch, 3, height, width], got float32 (2, 3, 32, 32). Set channels.rgb",
        ),
        (
            lambda: draw_noise_scenes(channels=4),
            "rgb: expected uint8 images [batch, 3, height, width], got uint8 (2, 4, 32, 32). Set channels.rgb",
        ),
        (
            lambda: replace_maps(rgb=draw_noise_scenes().maps["rgb"][:, 0]),
            "rgb: expected uint8 images [batch, 3, height, width], got uint8 (2, 32, 32). Set channels.rgb",
        ),
        (
            lambda: draw_noise_scenes(stride=1),
            "semantic: expected 8×8 cells, one per 4×4 pixels, got 32×32. Crop the scenes with label_stride=4",
        ),
        (
            lambda: replace_maps(instance=draw_noise_scenes(stride=2).maps["instance"]),
            "instance: expected 8×8 cells, one per 4×4 pixels, got 16×16. Crop the scenes with label_stride=4",
        ),
        (
            lambda: replace_maps(semantic=draw_noise_scenes().maps["semantic"].to(torch.int64) - 300),
            "scene-0: expected semantic ids from 0 to 5, or 255 where unlabelled, got -45. "
            "Set channels.semantic to the number of ids",
        ),
        (
            lambda: replace_maps(semantic=draw_noise_scenes().maps["semantic"].float()),
            "semantic: expected integer ids [batch, rows, columns], got float32 (2, 8, 8)",
        ),
        (
            lambda: replace_maps(instance=draw_noise_scenes().maps["instance"].unsqueeze(1)),
            "instance: expected integer ids [batch, rows, columns], got uint8 (2, 1, 8, 8)",
        ),
        (
            lambda: remove_maps("instance"),
            "instance: the scenes have no such map (got semantic, rgb). "
            "Use data with instance maps, or remove instance from granularities",
        ),
        (
            lambda: remove_maps(*COARSE_TO_FINE),
            "semantic: the scenes have no such map (got no maps). "
            "Use data with semantic maps, or remove semantic from granularities",
        ),
    ],
)
def test_scenes_that_do_not_fit_the_method_are_rejected(scenes: Callable[[], SceneBatch], message: str) -> None:
    assert_user_error(lambda: compute_step(build_tiny_method(), scenes()), message)


@pytest.mark.parametrize("policy", ["semantic", "instance", "progressive"])
def test_a_guided_policy_requires_its_maps_even_if_the_model_does_not(policy: str) -> None:
    method = build_tiny_method("c2fmae", f"masking.name={policy}", granularities=["rgb"])
    compute_step(method, draw_noise_scenes())
    missing = "instance" if policy == "instance" else "semantic"
    message = (
        f"masking: {policy!r} needs {missing} maps, but the scenes have none. "
        f"Use masking.name=random, or data with {missing} maps"
    )
    assert_user_error(lambda: compute_step(method, remove_maps(missing)), message)


def test_maps_that_a_policy_does_not_use_may_be_missing() -> None:
    compute_step(build_tiny_method("mae"), remove_maps("semantic", "instance"))
    compute_step(build_tiny_method("c2fmae", "masking.name=semantic", granularities=["rgb"]), remove_maps("instance"))


def test_full_size_maps_are_rejected_by_a_model_without_rgb() -> None:
    method = build_tiny_method("c2fmae", granularities=["semantic", "instance"])
    message = "semantic: expected 8×8 cells, one per 4×4 pixels, got 32×32. Crop the scenes with label_stride=4"
    assert_user_error(lambda: compute_step(method, draw_noise_scenes(stride=1)), message)


@pytest.mark.parametrize(
    ("cells", "batch", "shape"),
    [((9, 8), 2, "2 × 9 × 8"), ((1, 1), 2, "2 × 1 × 1"), ((8, 16), 2, "2 × 8 × 16"), ((8, 8), 3, "3 × 8 × 8")],
)
def test_a_guiding_map_that_is_no_input_of_the_model_must_fit_the_patches(
    cells: tuple[int, int], batch: int, shape: str
) -> None:
    method = build_tiny_method("mae", "masking.name=semantic")
    scenes = replace_maps(semantic=torch.zeros(batch, *cells, dtype=torch.uint8))
    assert_user_error(
        lambda: method.compute_step_loss(scenes, progress=0.0, generator=torch.Generator()),
        f"semantic: expected a map to guide masks of 2 × 2 × 2 patches, got {shape} cells. "
        "Crop all maps of a scene together",
    )


@pytest.mark.parametrize("setting", ["loss_weights.rgb=.inf", "mean=[.nan, 0, 0]", "decoder.options.mlp_ratio=.inf"])
def test_options_that_are_not_finite_are_rejected(setting: str) -> None:
    with pytest.raises(UserError, match=r"input should be a finite number, got (inf|nan)$"):
        METHODS.get("c2fmae")().override([setting])


def test_encoding_images_requires_the_rgb_granularity() -> None:
    model = build_tiny_method("c2fmae", granularities=["semantic"]).model
    assert isinstance(model, MultiGranularAutoencoder)
    with pytest.raises(ValueError, match=r"^this model has no rgb embedding: its granularities are semantic$"):
        model.encode(torch.zeros(1, 3, 32, 32))
