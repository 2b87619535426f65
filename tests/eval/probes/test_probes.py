from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import IGNORE
from c2fmae.core.scene import Scene
from c2fmae.data import CentralView, DatasetInfo, GeneratedScenes, open_scenes
from c2fmae.eval.probes import (
    PatchFeatures,
    PatchScores,
    accuracy,
    encode_scenes,
    fit_logistic_regression,
    make_colour_encoder,
    make_image_encoder,
    make_pixel_encoder,
    pool_concatenated,
    run_probes,
    score_patches,
    split_training_validation,
)
from tests.eval.probes.blobs import make_blobs, unit_vectors
from tests.methods.tiny_methods import build_tiny_method

VIEW = CentralView(size=(32, 32), label_stride=4)


class Drawn:
    """Scenes from tensors."""

    info = DatasetInfo()
    keys: Sequence[str]

    def __init__(self, scenes: list[Scene]) -> None:
        self._scenes = scenes
        self.keys = [scene.key for scene in scenes]

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> Scene:
        return self._scenes[index]

    def read_image_bytes(self, index: int) -> None:
        return None


def features_of(pooled: Tensor, labels: Tensor) -> PatchFeatures:
    return PatchFeatures(pooled, pooled[:, None], labels, labels[:, None])


# --- linear probes


def test_a_linear_probe_ends_where_its_gradient_is_nothing() -> None:
    train, labels, _, _ = make_blobs(200)
    fitted = fit_logistic_regression(train, labels, weight_decays=[0.01])
    rows = (train - train.mean(0)) / train.std(0, correction=0)
    shares = (rows @ fitted.weight.T + fitted.bias).softmax(1)
    errors = shares - nn.functional.one_hot(labels).float()
    assert (errors.T @ rows / 200 + 0.01 * fitted.weight).abs().max() < 1e-4
    assert errors.mean(0).abs().max() < 1e-4
    assert torch.equal(fitted.predict(train), (rows @ fitted.weight.T + fitted.bias).argmax(1))


@pytest.mark.parametrize("weight_decay", [0.1, 0.001])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_a_linear_probe_is_that_of_scikit_learn(weight_decay: float, scale: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    train, labels, test, truth = make_blobs(1000, spread=2.0, labels=10, dim=40)
    train, test = scale * train + 3, scale * test + 3
    fitted = fit_logistic_regression(train, labels, weight_decays=[weight_decay])
    ours = accuracy(fitted.predict(test), truth)

    mean, std = train.mean(0), train.std(0, correction=0)
    theirs = linear_model.LogisticRegression(C=1 / (weight_decay * len(train)), max_iter=1000, tol=1e-6)
    theirs.fit(((train - mean) / std).double().numpy(), labels.numpy())
    expected = theirs.score(((test - mean) / std).double().numpy(), truth.numpy())
    assert 0.3 < expected < 0.95
    assert abs(ours - expected) <= 0.003
    assert torch.from_numpy(theirs.coef_).sub(fitted.weight).abs().max() < 0.02 * fitted.weight.abs().max()


def test_of_several_weight_decays_the_one_is_taken_that_does_best_on_rows_held_out() -> None:
    rows, labels, _, _ = make_blobs(100, spread=3.0, dim=30, seed=1)
    decays = [3.0, 0.3, 0.0001]
    rest, held_out = split_training_validation(torch.arange(100), seed=0)
    fits = [fit_logistic_regression(rows[rest], labels[rest], weight_decays=[decay]) for decay in decays]
    shares = [accuracy(fit.predict(rows[held_out]), labels[held_out]) for fit in fits]
    assert shares[1] > max(shares[0], shares[2])
    taken = fit_logistic_regression(rows, labels, weight_decays=decays)
    assert taken.weight_decay == 0.3
    assert torch.equal(
        taken.weight, fit_logistic_regression(rows, labels, weight_decays=[0.3]).weight
    )  # to all rows, from nothing


def test_a_weight_decay_is_chosen_by_all_labels_though_they_take_turns() -> None:
    labels = torch.arange(200) % 5  # every fifth row shows the same
    rows = 2 * nn.functional.one_hot(labels, 5) + torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    assert fit_logistic_regression(rows, labels, weight_decays=[100.0, 0.01]).weight_decay == 0.01


def test_a_feature_that_never_changes_is_left_alone() -> None:
    train, labels, test, _ = make_blobs(200)
    constant = torch.full((200, 1), 0.1)  # whose deviation is not quite 0 when it is computed
    fitted = fit_logistic_regression(torch.cat([train, constant, 0 * constant], dim=1), labels)
    assert fitted.weight[:, -2:].abs().max() < 1e-4
    without = fit_logistic_regression(train, labels)
    found = fitted.predict(torch.cat([test, constant, 0 * constant], dim=1))
    assert (found == without.predict(test)).float().mean() > 0.99


def test_too_few_rows_for_a_linear_probe_are_refused() -> None:
    with pytest.raises(UserError, match="^a linear probe needs at least 5 training rows, got 4$"):
        fit_logistic_regression(unit_vectors(1, 2, 3, 4), torch.zeros(4, dtype=torch.long))


def test_fitting_leaves_the_generator_and_the_mode_of_gradients_alone() -> None:
    train, labels, _, _ = make_blobs(100)
    before = torch.get_rng_state()
    with torch.no_grad():
        one = fit_logistic_regression(train, labels)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)
    assert not one.weight.requires_grad
    assert torch.equal(one.weight, fit_logistic_regression(train, labels).weight)


# --- patches


def test_patches_are_scored_by_hand() -> None:
    found, truth = torch.tensor([0, 0, 1, 1, 5, 2]), torch.tensor([0, 1, 1, 1, 2, 2])
    # 0: 1 of 2; 1: 2 of 3; 2: 1 of 2; 5: said once and never there, 0 of 1; 3 and 4 are not there
    miou, share = score_patches(found, truth)
    assert miou == pytest.approx((1 / 2 + 2 / 3 + 1 / 2 + 0) / 4)
    assert share == pytest.approx(4 / 6)


def test_patches_that_nobody_labelled_are_left_out() -> None:
    tokens = torch.eye(3)[torch.tensor([[0, 1, 2, 0]])].repeat(20, 1, 1)
    classes = torch.tensor([[3, 7, 0, IGNORE]]).repeat(20, 1)
    known = PatchFeatures(tokens.mean(1), tokens, torch.full((20,), -1), classes)
    assert run_probes(known, known) == (None, None, PatchScores(1.0, 1.0))
    wrong = PatchFeatures(
        tokens.mean(1), tokens, torch.full((20,), -1), torch.tensor([[3, 7, 7, IGNORE]]).repeat(20, 1)
    )
    assert run_probes(known, wrong).dense == pytest.approx(((1 + 1 / 2 + 0) / 3, 2 / 3))
    unlabelled = PatchFeatures(tokens.mean(1), tokens, torch.full((20,), -1), torch.full((20, 4), IGNORE))
    assert run_probes(known, unlabelled).dense is None


# --- all of them


def test_what_can_be_told_is_told_and_labels_at_random_are_a_matter_of_chance() -> None:
    train, labels, test, truth = make_blobs(600, spread=0.3)
    good = run_probes(features_of(train, labels), features_of(test, truth))
    assert good.knn is not None
    assert good.linear is not None
    assert good.dense is not None
    assert min(good.knn, good.linear, good.dense.accuracy, good.dense.miou) > 0.9

    train, labels, test, truth = make_blobs(600, spread=3.0)
    permuted = labels[torch.randperm(600, generator=torch.Generator().manual_seed(5))]
    chance = run_probes(features_of(train, permuted), features_of(test, truth))
    assert chance.knn == pytest.approx(0.25, abs=0.05)
    assert chance.linear == pytest.approx(0.25, abs=0.05)


def test_scenes_without_labels_have_only_a_dense_score() -> None:
    train, labels, test, truth = make_blobs(100)
    scores = run_probes(
        features_of(train, labels), PatchFeatures(test, test[:, None], -torch.ones_like(truth), truth[:, None])
    )
    assert (scores.knn, scores.linear) == (None, None)
    assert scores.dense is not None


# --- features


def test_what_is_extracted_lines_up_with_labels_and_with_the_classes_of_patches() -> None:
    semantic = torch.zeros(32, 32, dtype=torch.uint8)
    semantic[:16, 16:] = 4
    semantic[16:, :16] = IGNORE
    semantic[17, 1] = 9  # in a cell's corner, where no cell's middle is
    photo = torch.arange(3 * 32 * 32).view(3, 32, 32).remainder(256).byte()
    scenes = Drawn(
        [
            Scene("a", {"semantic": semantic, "rgb": photo}, label=3),
            Scene("b", {"semantic": semantic.T.contiguous(), "rgb": 255 - photo}),
        ]
    )
    found = encode_scenes(make_pixel_encoder(16, [0.0] * 3, [1.0] * 3), scenes, VIEW, pool=pool_concatenated)
    assert found.labels.tolist() == [3, -1]
    assert found.classes.tolist() == [[0, 4, IGNORE, 0], [0, IGNORE, 4, 0]]
    # Patches run over rows, then columns; their values over rows, columns and channels
    expected = torch.stack([photo, 255 - photo]).float().div(255)[:, :, :16, 16:].permute(0, 2, 3, 1).flatten(1)
    assert torch.allclose(found.patches[:, 1], expected)
    assert torch.equal(found.pooled, found.patches.flatten(1))


def test_scenes_without_a_semantic_map_have_no_classes() -> None:
    photos = open_scenes("generated", granularities=("rgb",), size=32, length=3)
    found = encode_scenes(make_colour_encoder(8), photos, VIEW)
    assert found.classes.shape == (3, 16)
    assert (found.classes == IGNORE).all()


def test_colours_are_counted_in_64_boxes() -> None:
    photos = torch.zeros(1, 3, 4, 8, dtype=torch.uint8)
    photos[0, :, :, 4:] = torch.tensor([255, 64, 130]).view(3, 1, 1)
    photos[0, 0, 0, 0] = 63
    photos[0, 0, 0, 1] = 64
    shares = make_colour_encoder(4)(photos)
    assert shares.shape == (1, 2, 64)
    assert shares[0, 0, [0, 16]].tolist() == [15 / 16, 1 / 16]
    assert shares[0, 1, 3 * 16 + 1 * 4 + 2] == 1
    assert shares.sum() == 2


def test_what_is_extracted_does_not_depend_on_the_size_of_batches() -> None:
    encode, scenes = (
        make_image_encoder(build_tiny_method("c2fmae", "encoder.drop_path=0.5", "channels.semantic=23")),
        GeneratedScenes(size=32, length=7),
    )
    whole = encode_scenes(encode, scenes, VIEW)
    assert whole.pooled.shape == (7, 64)
    assert whole.patches.shape == (7, 4, 64)
    for size in (1, 3, 7):
        parts = encode_scenes(encode, scenes, VIEW, batch_size=size)
        assert torch.allclose(parts.pooled, whole.pooled, atol=1e-5)
        assert torch.equal(parts.labels, whole.labels)
        assert torch.equal(parts.classes, whole.classes)


def test_photos_are_encoded_in_evaluation_mode_without_the_global_token_and_the_mode_stays_as_it_was() -> None:
    method = build_tiny_method("c2fmae", "encoder.drop_path=0.9")
    method.model.train()
    method.model.get_submodule("heads").eval()
    encode = make_image_encoder(method)
    photos = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = encode(photos), encode(photos)
    assert torch.equal(one, other)
    assert method.model.training
    assert not method.model.get_submodule("heads").training

    method.model.eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in method.config.mean_and_std("rgb"))
    with torch.no_grad():
        expected = method.model.encode((photos / 255 - mean) / std)  # type: ignore[operator]
    assert expected.shape[1] == 5  # a global token and four patches
    assert torch.allclose(one, expected[:, 1:], atol=1e-5)


def test_nothing_that_is_extracted_has_a_graph() -> None:
    found = encode_scenes(make_image_encoder(build_tiny_method()), GeneratedScenes(size=32, length=2), VIEW)
    assert not found.patches.requires_grad
    assert not found.pooled.requires_grad
