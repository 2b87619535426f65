"""Classification of generated scenes: `python -m benchmarks.generated_labels [easy medium hard]`.

A label must require shapes: a small ViT can be trained to predict it, while a perceptron on colour histograms, of the
image or of each cell of a 4 × 4 grid, stays near chance. All are trained on the same scenes and tested on others.
"""

import sys
import time
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2fmae.data.generated import GeneratedScenes
from c2fmae.data.generated.difficulty import DIFFICULTY_LEVELS, Difficulty
from c2fmae.data.generated.domains import Domain

SIZE, NUM_TRAIN, NUM_TEST, BATCH = 64, 5000, 1000, 50
NUM_LABELS = len(GeneratedScenes.labels)


class SmallViT(nn.Module):
    """Three blocks over 8 × 8 tokens from a convolutional stem: with so few scenes, linear patches train badly."""

    def __init__(self, dim: int = 64) -> None:
        super().__init__()
        layers = [
            nn.Sequential(nn.Conv2d(low, high, 3, stride=2, padding=1), nn.BatchNorm2d(high), nn.ReLU())
            for low, high in pairwise((3, 24, 48, dim))
        ]
        self.stem = nn.Sequential(*layers)
        self.positions = nn.Parameter(0.02 * torch.randn((SIZE // 8) ** 2, dim))
        block = nn.TransformerEncoderLayer(dim, 4, 2 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 3, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, NUM_LABELS))

    def forward(self, images: Tensor) -> Tensor:
        if self.training and torch.rand(()) < 0.5:
            images = images.flip(3)
        tokens = self.stem((images.float() - 128) / 64).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.blocks(tokens).mean(1))
        return logits


def make_perceptron(width: int) -> nn.Module:
    return nn.Sequential(nn.Dropout(0.2), nn.Linear(width, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, NUM_LABELS))


def draw_labelled_images(
    seed: int, length: int, difficulty: Difficulty, domain: Domain = "photo"
) -> tuple[Tensor, Tensor]:
    """Return images [N, 3, size, size] and labels."""
    source = GeneratedScenes(size=SIZE, length=length, seed=seed, difficulty=difficulty, domain=domain)
    scenes = [source[index] for index in range(length)]
    labels = [scene.label for scene in scenes if scene.label is not None]
    return torch.stack([scene.maps["rgb"] for scene in scenes]), torch.tensor(labels)


def colour_histograms(images: Tensor, cells: int) -> Tensor:
    """Return the square roots of histograms of 4 × 4 × 4 colours in `cells` × `cells` parts of each image."""
    red, green, blue = (images // 64).long().unbind(1)
    position = torch.arange(SIZE) * cells // SIZE
    cell = torch.arange(len(images))[:, None, None] * cells**2 + position[:, None] * cells + position
    counts = torch.bincount((64 * cell + 16 * red + 4 * green + blue).flatten(), minlength=len(images) * cells**2 * 64)
    return (counts.view(len(images), -1) * (cells / SIZE) ** 2).sqrt()


def train(model: nn.Module, inputs: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, epochs * (NUM_TRAIN // BATCH))
    for _ in range(epochs):
        for batch in torch.randperm(NUM_TRAIN).split(BATCH):
            loss = F.cross_entropy(model(inputs[batch]), labels[batch], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()


@torch.inference_mode()
def compute_accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    predictions = torch.cat([model(part).argmax(1) for part in inputs.split(250)])
    return (predictions == labels).float().mean().item()


def measure_accuracies(difficulty: Difficulty) -> dict[str, float]:
    """Return the test accuracy of each model, and that of the ViT on other domains."""
    torch.manual_seed(0)
    (train_images, labels), (test_images, test_labels) = (
        draw_labelled_images(0, NUM_TRAIN, difficulty),
        draw_labelled_images(1, NUM_TEST, difficulty),
    )
    accuracies = {"chance": test_labels.bincount().max().item() / NUM_TEST}
    for name, cells in (("colours", 1), ("4 x 4", 4)):
        model = train(make_perceptron(64 * cells**2), colour_histograms(train_images, cells), labels, epochs=24)
        accuracies[name] = compute_accuracy(model, colour_histograms(test_images, cells), test_labels)
    vit = train(SmallViT(), train_images, labels, epochs=7)
    accuracies["ViT"] = compute_accuracy(vit, test_images, test_labels)
    domains: tuple[Domain, ...] = ("sketch", "rendition", "displaced")
    return accuracies | {
        domain: compute_accuracy(vit, *draw_labelled_images(1, NUM_TEST, difficulty, domain)) for domain in domains
    }


def main(difficulties: list[Difficulty]) -> None:
    torch.set_num_threads(1)
    print(f"Accuracy, %: {NUM_LABELS} labels, {NUM_TRAIN} training and {NUM_TEST} test scenes of {SIZE} px")
    for difficulty in difficulties:
        start = time.perf_counter()
        accuracies = measure_accuracies(difficulty)
        line = ", ".join(f"{name} {100 * value:.1f}" for name, value in accuracies.items())
        print(f"{difficulty}: {line} ({time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main([name for name in DIFFICULTY_LEVELS if name in sys.argv[1:]] or ["easy", "medium"])
