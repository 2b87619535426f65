"""Mask2Former, OneFormer and EoMT: a mask and a class for each query.

Only their forward pass is used. The post-processing of transformers stretches the padding of a batch (Mask2Former,
OneFormer) or of the canvas (semantic maps of EoMT) into the map.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.labelling.canvases import (
    compute_cell_weights,
    get_max_aspect,
    pad_to_canvas,
    round_up_canvas,
    sample_cells,
)
from c2fmae.labelling.image_processors import check_free_size
from c2fmae.labelling.weights import PretrainedModel

_TASK = "the task is panoptic"  # of OneFormer, which has one for each kind of map; this one has the queries of both
_MAX_BYTES = 1 << 24  # of masks at the cells of an image in float32


@dataclass(frozen=True)
class QueryOutputs:
    """The queries of an image."""

    mask_logits: Float[Tensor, "query row column"]
    """On the canvas."""
    class_logits: Float[Tensor, "query label"]
    """The last one is that of "no object"."""
    canvas: tuple[int, int]
    resized_size: tuple[int, int]
    """Height and width of the part of the canvas that is the image."""
    size: tuple[int, int]
    """Height and width of the image in pixels."""

    def sample_masks(self, stride: int) -> Iterator[Float[Tensor, "query row column"]]:
        """Yield the probabilities of the masks at the stored cells, a few rows of the image at a time.

        The logits are resized to the canvas, cut to the image, and resized to its pixels.
        """
        rows, columns = (
            compute_cell_weights(num_logits, [(side, valid), (pixels, pixels)], stride, device=self.mask_logits.device)
            for num_logits, side, valid, pixels in zip(
                self.mask_logits.shape[1:], self.canvas, self.resized_size, self.size, strict=True
            )
        )
        at_once = max(_MAX_BYTES // (4 * len(self.mask_logits) * len(columns)), 1)
        for part in rows.split(at_once):
            yield sample_cells(self.mask_logits, part, columns).sigmoid_()


class UniversalSegmenter:
    """Finds masks and their classes."""

    def __init__(self, pretrained: PretrainedModel, *, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        self._pretrained, self._autocast = pretrained, autocast
        self._has_fixed_canvas = pretrained.model_type.startswith("eomt")
        is_oneformer = pretrained.model_type == "oneformer"
        self._image_processor = pretrained.processor.image_processor if is_oneformer else pretrained.processor
        self._task_tokens = _tokenize_task(pretrained) if is_oneformer else None
        self.max_aspect = get_max_aspect(self._image_processor.size)
        self._get_resized_size = lru_cache(maxsize=1 << 16)(self._get_resized_size_once)
        if self._has_fixed_canvas:
            self._check_canvas()
        else:
            check_free_size(pretrained.folder, self._image_processor)

    def batch_key(self, height: int, width: int) -> Hashable:
        """Return the canvas."""
        return self._get_canvas(height, width)

    @torch.inference_mode()
    def predict(self, images: Sequence[UInt8[Tensor, "3 _ _"]]) -> list[QueryOutputs]:
        """Return the queries of each image. All images have one canvas."""
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        canvas, options = self._get_canvas(*sizes[0]), {}
        if self._task_tokens is not None:
            options["task_inputs"] = self._task_tokens.expand(len(images), -1)
        values = self._read_images(images, canvas)
        # Mask2Former of transformers 5.17 draws a number for each layer, on which nothing depends in evaluation.
        with self._autocast(), torch.random.fork_rng(devices=[]):
            outputs = self._pretrained.model(pixel_values=values, **options)
        return [
            QueryOutputs(mask_logits, class_logits, canvas, self._get_resized_size(*size), size)
            for mask_logits, class_logits, size in zip(
                outputs.masks_queries_logits.float(), outputs.class_queries_logits.float(), sizes, strict=True
            )
        ]

    def describe(self) -> dict[str, Any]:
        """Return the model."""
        return self._pretrained.describe()

    def _read_images(
        self, images: Sequence[UInt8[Tensor, "3 _ _"]], canvas: tuple[int, int]
    ) -> Float[Tensor, "image 3 height width"]:
        # EoMT is trained on images that are padded with black, the others with the mean.
        options = {"do_pad": True, "do_split_image": False} if self._has_fixed_canvas else {}
        device = self._pretrained.model.device
        read: list[Tensor] = [
            self._image_processor(images=[image.to(device)], return_tensors="pt", **options)["pixel_values"][0]
            for image in images
        ]
        return pad_to_canvas(read, canvas)[0]

    def _get_canvas(self, height: int, width: int) -> tuple[int, int]:
        if self._has_fixed_canvas:
            side = int(self._pretrained.model.config.image_size)
            return side, side
        return round_up_canvas(*self._get_resized_size(height, width))

    def _get_resized_size_once(self, height: int, width: int) -> tuple[int, int]:
        """Return the size at which the model reads an image."""
        options = {}
        if self._pretrained.model_type == "mask2former":  # which stretches an image to multiples
            options["size_divisor"] = self._image_processor.size_divisor
        image = torch.empty((1, 3, height, width), dtype=torch.uint8, device="meta")
        rows, columns = self._image_processor.resize(image, size=self._image_processor.size, **options).shape[2:]
        return rows, columns

    def _check_canvas(self) -> None:
        """Refuse image processors of EoMT that divide an image into crops, or do not fit it to the canvas."""
        folder, (side, _) = self._pretrained.folder, self._get_canvas(1, 1)
        if self._image_processor.do_split_image:
            raise UserError(
                f"{folder}: reads an image in several crops (do_split_image), as models without a panoptic head do. Use"
                " a model that is trained for panoptic segmentation"
            )
        size = self._image_processor.size
        if (size.shortest_edge, size.longest_edge) != (side, side):
            raise UserError(
                f"{folder}: its image processor fits images to {size.shortest_edge}×{size.longest_edge} pixels"
                f" (expected {side}×{side}, as in config.json). Use the processor that belongs to the weights"
            )


def _tokenize_task(pretrained: PretrainedModel) -> Int64[Tensor, "1 token"]:
    """Return the tokens of OneFormer's task, with zeros for padding."""
    tokens = pretrained.processor.tokenizer(
        [_TASK],
        padding="max_length",
        max_length=pretrained.model.config.task_seq_len,
        truncation=True,
        return_tensors="pt",
    )
    ids: Tensor = tokens["input_ids"] * tokens["attention_mask"]
    return ids.to(pretrained.model.device)
