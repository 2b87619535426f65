"""Laws of two-branch methods, for each of the registered ones, and what is particular to one of them."""

from collections.abc import Iterator, Mapping
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.masks import Masks
from c2fmae.core.scene import SceneBatch
from c2fmae.core.training import TrainingConfig, plan_training
from c2fmae.exports.as_timm import timm_target
from c2fmae.masking.noise import RowGenerator
from c2fmae.methods import METHODS, Method, MethodTask, build_method
from c2fmae.methods.branches.cmae import CMAE
from c2fmae.methods.branches.collapse import measure_spread
from c2fmae.methods.branches.dino import Dino
from c2fmae.methods.branches.method import BranchMethod
from c2fmae.methods.branches.model import BranchModel
from c2fmae.methods.masked.model_inputs import standardise_maps
from c2fmae.models.autoencoder import encode_visible
from c2fmae.models.backbones import Backbone
from tests.methods import branch_processes
from tests.methods.tiny_branches import (
    BATCH,
    ENCODER,
    PLAN,
    TINY,
    Run,
    draw_scenes,
    make_method,
    perturb_teacher,
    split_batch,
    standardise_in_float64,
)


def assert_all_close(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=1e-9, msg=name)


@pytest.fixture(autouse=True)
def _float64_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let images be standardised in double precision."""
    monkeypatch.setattr("c2fmae.methods.branches.method.standardise_maps", standardise_in_float64)


@pytest.mark.parametrize("name", TINY)
def test_micro_batches_add_up_to_the_batch(name: str) -> None:
    whole, parts = Run.start(name), Run.start(name, micro_batch=2)
    torch.testing.assert_close(torch.tensor(parts.train()), torch.tensor(whole.train()), rtol=0, atol=1e-9)
    assert_all_close(parts.training.named_tensors(), whole.training.named_tensors())


@pytest.mark.parametrize("name", TINY)
def test_a_restored_run_ends_in_the_same_bits(name: str) -> None:
    whole, stopped = Run.start(name), Run.start(name)
    whole.train()
    batches = (draw_scenes(stopped.method, step) for step in range(2))
    list(stopped.loop.run(stopped.training, batches))
    saved = {key: tensor.clone() for key, tensor in stopped.training.named_tensors().items()}
    restored = Run.start(name)
    restored.training.restore(saved, step=2)
    restored.train()
    final = whole.training.named_tensors()
    assert all(torch.equal(tensor, final[key]) for key, tensor in restored.training.named_tensors().items())


@pytest.mark.parametrize("name", TINY)
def test_every_trained_parameter_gets_a_gradient(name: str) -> None:
    method = make_method(name)
    task = method.build_task(PLAN, seed=0)
    (part,) = task.split(draw_scenes(method), num_micro_batches=1, step=1, progress=0.25, world=World())
    task.compute_losses(method.model, part, {}).total.backward()
    missing = [key for key, value in method.model.named_parameters() if value.requires_grad and value.grad is None]
    assert missing == []
    assert method.teacher is None or all(value.grad is None for value in method.teacher.parameters())


@pytest.mark.parametrize("name", TINY)
def test_a_method_has_the_protocol_and_describes_itself(name: str) -> None:
    config = METHODS.get(name)().override([*ENCODER, *TINY[name]])
    with torch.device("meta"):
        method = build_method(config)
    assert isinstance(method, Method)
    assert isinstance(method, BranchMethod)
    assert isinstance(method.build_task(PLAN, seed=0), MethodTask)
    text, cost = method.describe(), method.compute_cost()
    names = {line.partition("  ")[0] for line in text.splitlines()}
    views, losses = ("main", *method.config.views), method.loss_weights
    assert {"student", "teacher", *(f"view {name}" for name in views), *(f"loss {name}" for name in losses)} <= names
    assert ("momentum" in text) == (method.teacher is not None)
    assert cost.flops > 0
    assert (cost.teacher_flops > 0) == (method.teacher is not None)
    assert type(config).from_dict(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("name", TINY)
def test_held_out_losses_are_sums_over_images(name: str) -> None:
    method = make_method(name)
    method.model.eval()
    with torch.no_grad():
        sums = method.sum_held_out_losses(draw_scenes(method), seed=3)
        again = method.sum_held_out_losses(draw_scenes(method), seed=3)
    assert sums.keys() == method.loss_weights.keys()
    assert all(count.item() == BATCH and total.isfinite() for total, count in sums.values())
    assert all(torch.equal(again[key][0], total) for key, (total, _) in sums.items())


@pytest.mark.parametrize("name", TINY)
def test_the_encoder_is_exported_to_timm(name: str, tmp_path: Path) -> None:
    method = make_method(name)
    model = method.model.float()
    backbone = Backbone(method.config.backbone_spec(), model.embeddings, model.encoder, nn.Identity()).eval()
    timm_target(backbone).write(tmp_path)
    exported: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(exported.forward_features(images), model.eval().encode(images))


@pytest.mark.parametrize("name", [name for name in TINY if name != "simclr"])
def test_the_teacher_computes_the_same_targets_twice(name: str) -> None:
    method = make_method(name, "encoder.drop_path=0.5")
    part = split_batch(method)
    first, second = method.compute_targets(part), method.compute_targets(part)
    assert all(torch.equal(first[key], value) for key, value in second.items())
    method.model.train()
    assert not torch.equal(*(method.model.encode(part.images("main")) for _ in range(2)))


def test_the_prototypes_are_held_in_the_first_epochs() -> None:
    method = make_method("dino", "held_epochs=1")
    task = method.build_task(PLAN, seed=0)
    (held,) = task.held_parameters(1)
    assert held is method.model.get_parameter("heads.prototypes.prototypes.weight")
    assert list(task.held_parameters(2)) == []


def test_hidden_patches_of_ibot_do_not_reach_the_student() -> None:
    method = make_method("ibot")
    (part,) = method.build_task(PLAN, seed=0).split(
        draw_scenes(method), num_micro_batches=1, step=0, progress=0.0, world=World()
    )
    is_masked = part.masks["main"]
    assert is_masked.any()
    pixels = is_masked.unflatten(1, (4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    images = part.images("main")
    changed = torch.where(pixels.unsqueeze(1), images + 1, images)
    with torch.no_grad():
        outputs = [method.model.compute_latents(each, is_masked=is_masked) for each in (images, changed)]
        assert torch.equal(*outputs)
        assert not torch.equal(method.model.encode(images), method.model.encode(changed))


def test_cmae_shows_whole_units() -> None:
    config = METHODS.get("cmae")()
    is_masked = CMAE.draw_masks(config, (14, 14), range(3, 8), RowGenerator(5))["main"]
    assert (~is_masked).sum(dim=1).tolist() == [68] * 5
    units = is_masked.unflatten(1, (7, 2, 7, 2))
    assert torch.equal(units.any(dim=4).any(dim=2), units.all(dim=4).all(dim=2))
    whole = CMAE.draw_masks(config, (14, 14), range(8), RowGenerator(5))["main"]
    assert torch.equal(whole[3:], is_masked)


def test_the_queue_holds_the_keys_of_the_last_steps() -> None:
    run = Run.start("moco-v1")
    before = run.method.model.get_buffer("heads.queue.keys").clone()
    run.train()
    queue = run.method.model.get_buffer("heads.queue.keys")
    assert not (queue == before).all(dim=1).any()
    torch.testing.assert_close(queue.norm(dim=1), torch.ones(16, dtype=queue.dtype))
    with pytest.raises(UserError, match=r"method\.queue_length: expected a multiple of the batch of 8, got 12"):
        make_method("moco-v1", "queue_length=12").build_task(run.loop.plan, seed=0)


def test_views_that_a_method_does_not_read_are_rejected() -> None:
    for override, text in (
        ("views={}", r"views\.second: simclr reads this view, but it is missing"),
        ("views.third={}", r"views\.third: simclr does not read this view\. Remove it\. Its views: second"),
        ("views.secnd={}", r"views\.secnd: simclr does not read this view\. Did you mean 'second'\? Its views: second"),
        ("granularities=[semantic, rgb]", r"granularities: simclr compares images"),
    ):
        with pytest.raises(UserError, match=text):
            METHODS.get("simclr")().override([override])


def test_the_centre_moves_towards_the_mean_of_the_teachers_logits() -> None:
    run = Run.start("dino")
    assert isinstance(run.method, Dino)
    scenes: Iterator[SceneBatch] = repeat(draw_scenes(run.method), 1)
    (part,) = run.method.build_task(run.loop.plan, seed=0).split(
        draw_scenes(run.method), num_micro_batches=1, step=0, progress=0.0, world=World()
    )
    logits = run.method.compute_teacher_logits(part.targets["image"])
    list(run.loop.run(run.training, scenes))
    centre = run.method.model.get_buffer("heads.image_centre.value")
    torch.testing.assert_close(centre, 0.1 * logits.mean(dim=(0, 1)))


@pytest.mark.parametrize(
    ("name", "override", "text"),
    [
        ("cmae", "mask_unit=3", r"method\.mask_unit: expected a divisor of 4×4 patches, got 3"),
        (
            "cmae",
            "mask_ratio=0.9",
            r"method\.mask_ratio: expected some .+ got 4 hidden ones of 4 \(0\.9\)\. Set it lower",
        ),
        (
            "conmim",
            "mask_ratio=0",
            r"method\.mask_ratio: expected some .+ got 0 hidden ones of 4 \(0\)\. Set it higher",
        ),
        ("ibot", "mask_ratio=[0.5, 0.1]", r"mask_ratio: expected two ascending numbers, got 0\.5 and 0\.1\. Swap them"),
        ("lut", "mask_ratio=0.95", r"method\.mask_ratio: expected some .+ got 16 hidden ones of 16 \(0\.95\)\. Set it"),
        ("dino", "views.local.size=[20, 16]", r"method\.views\.local\.size: 20 is not a multiple of the patch size 8"),
        ("simclr", "channels.rgb=4", r"colour: changes of colour need images of 3 channels, got 4"),
    ],
)
def test_settings_that_do_not_fit_are_rejected_before_the_first_step(name: str, override: str, text: str) -> None:
    with pytest.raises(UserError, match=text):
        make_method(name, override)


def test_a_batch_of_one_image_and_a_single_graph_are_rejected() -> None:
    one = plan_training(TrainingConfig(steps=1, batch_size=1, lr=1e-3), num_samples=1, world_size=1)
    method = make_method("moco-v3")
    with pytest.raises(UserError, match=r"training\.batch_size: .*expected at least 2, got 1"):
        method.build_task(one, seed=0)
    with pytest.raises(UserError, match=r"training\.compile: expected blocks or off"):
        method.build_task(PLAN, seed=0, compiled_parts="model")


def test_blocks_are_compiled_for_each_size_of_the_views() -> None:
    assert METHODS.get("dino")().num_image_sizes == 2
    assert METHODS.get("cmae")().num_image_sizes == 1
    assert METHODS.get("mae")().override(["early_image_sizes=[[0.5, [160, 160]]]"]).num_image_sizes == 2


def cross_entropy(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Return the loss of each query, whose positive is the key of the same row."""
    logits = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(queries)), reduction="none")


def test_each_view_of_moco_v3_finds_the_other_one() -> None:
    method = make_method("moco-v3")
    teacher, model = perturb_teacher(method), method.model
    part = split_batch(method)

    def project(network: BranchModel, name: str) -> Tensor:
        return network.heads["projector"](network.encode(part.images(name))[:, 0])  # type: ignore[no-any-return]

    queries = {name: model.heads["predictor"](project(model, name)) for name in ("main", "second")}
    keys = {name: project(teacher, name) for name in queries}
    expected = cross_entropy(queries["main"], keys["second"], 0.2) + cross_entropy(queries["second"], keys["main"], 0.2)
    torch.testing.assert_close(method.compute_losses(model, part).losses["contrast"], 2 * 0.2 * expected)


def test_the_teacher_of_cmae_pools_patches_before_the_last_norm() -> None:
    method = make_method("cmae")
    teacher = perturb_teacher(method)
    part = split_batch(method)
    last = len(teacher.encoder.blocks)
    tokens = teacher.embeddings["rgb"](part.images("target"), torch.arange(BATCH * 16)).unflatten(0, (BATCH, 16))
    tokens = tokens + teacher.encoder.positions((4, 4), tokens.device)
    (latents,) = teacher.encoder.get_intermediate_layers(tokens, [last], normed=False)
    expected = teacher.heads["projector"](latents[:, 1:].mean(dim=1))
    torch.testing.assert_close(part.keys_of_batch["target"], expected)
    losses = method.compute_losses(method.model, part).losses
    heads, masks = method.model.heads, Masks.from_mask(part.masks["main"].unsqueeze(1), ("rgb",), num_visible=4)
    visible, grid = encode_visible(method.model.embeddings, method.model.encoder, {"rgb": part.images("main")}, masks)
    features = heads["features"](heads["feature_decoder"](visible, masks, grid)["rgb"]).mean(dim=1)
    queries = heads["predictor"](heads["projector"](features))
    torch.testing.assert_close(losses["contrast"], 2 * 0.07 * cross_entropy(queries, expected, 0.07))


def test_the_patch_projection_of_moco_v3_stays_random() -> None:
    run = Run.start("moco-v3")
    before = {name: value.clone() for name, value in run.method.model.state_dict().items()}
    run.train()
    is_changed = {name: not torch.equal(value, before[name]) for name, value in run.method.model.state_dict().items()}
    assert not any(changed for name, changed in is_changed.items() if name.startswith("embeddings."))
    assert is_changed["encoder.cls_token"]
    assert is_changed["heads.predictor.0.weight"]


def test_both_centres_of_ibot_are_means_over_views_images_and_patches() -> None:
    method = make_method("ibot")
    assert isinstance(method, Dino)
    part = split_batch(method)
    sums = method.average(method.compute_losses(method.model, part), part.total).sums
    for name, dims in (("image", (0, 1)), ("patch", (0, 1, 2))):
        logits = method.compute_teacher_logits(part.targets[name])
        torch.testing.assert_close(sums[name], logits.mean(dim=dims))


def test_centres_have_full_precision_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("c2fmae.methods.branches.method.standardise_maps", standardise_maps)
    method = make_method("ibot")
    assert isinstance(method, Dino)
    assert method.teacher is not None
    method.model.float(), method.teacher.float()
    with torch.autocast("cpu", torch.bfloat16):
        part = split_batch(method)
        sums = method.compute_losses(method.model, part).sums
        for name, dims in (("image", (0, 1)), ("patch", (0, 1, 2))):
            logits = method.compute_teacher_logits(part.targets[name])
            assert logits.dtype == torch.bfloat16
            assert sums[name].dtype == torch.float32
            torch.testing.assert_close(sums[name].double(), logits.double().mean(dim=dims), rtol=1e-5, atol=1e-7)


def test_numbers_and_momentum_follow_their_ramps() -> None:
    method = make_method("dino", "teacher_temperature={start: 0.04, end: 0.08, shape: linear, epochs: 2}")
    task = method.build_task(PLAN, seed=0)
    assert [split_batch(method, step).numbers["teacher_temperature"] for step in (0, 1, 2, 3)] == [
        0.04,
        0.04,
        0.08,
        0.08,
    ]
    assert [round(task.teacher_momentum(step), 6) for step in (0, 2)] == [0.996, 0.998]


def test_masks_depend_on_the_step_and_not_on_the_ranks() -> None:
    preparer = make_method("ibot").build_task(PLAN, seed=0).preparer
    method = make_method("ibot")

    def masks(step: int, world: World) -> Tensor:
        scenes = draw_scenes(method, world=world)
        (part,) = preparer.prepare(scenes, num_micro_batches=1, step=step, progress=0.0, world=world)
        return part.masks["main"]

    assert torch.equal(torch.cat([masks(1, World(rank, 2)) for rank in range(2)]), masks(1, World()))
    assert not torch.equal(masks(0, World()), masks(1, World()))


def test_outputs_of_the_teacher_are_joined_over_micro_batches() -> None:
    method = make_method("moco-v1")
    plan = plan_training(
        TrainingConfig(steps=4, batch_size=BATCH, micro_batch=4, lr=1e-3), num_samples=16, world_size=1
    )
    parts = method.build_task(plan, seed=0).split(
        draw_scenes(method), num_micro_batches=2, step=0, progress=0.0, world=World()
    )

    class Gathering(type(method)):  # type: ignore[misc]
        gathered_targets = ("second",)

    joined = Gathering(method.config, method.model, method.teacher, method.patch_size).add_targets(parts)
    expected = torch.cat([part.targets["second"] for part in parts])
    assert all(torch.equal(part.keys_of_batch["second"], expected) for part in joined)


def test_the_spread_is_one_of_independent_features_and_zero_of_equal_ones() -> None:
    features = torch.randn(4096, 32, generator=torch.Generator().manual_seed(0))
    assert measure_spread(features).item() == pytest.approx(1, abs=0.02)
    assert measure_spread(features[:1].expand(64, -1)).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.unchecked
def test_two_processes_equal_one(tmp_path: Path) -> None:
    spawn(branch_processes.run_rank, args=(tmp_path,), nprocs=branch_processes.WORLD_SIZE)
    for name in TINY:
        whole = Run.start(name)
        losses, expected = torch.tensor(whole.train()), whole.training.named_tensors()
        for rank in range(branch_processes.WORLD_SIZE):
            results = torch.load(tmp_path / f"{rank}.pt")
            for key in (key for key in results if key.partition(",")[0] == name):
                found_losses, found = results[key]
                torch.testing.assert_close(torch.tensor(found_losses), losses, rtol=0, atol=1e-9, msg=key)
                assert_all_close(found, expected)
