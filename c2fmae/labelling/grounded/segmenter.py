"""SAM, SAM-HQ and SAM 2: the mask of a box.

The encoder reads a batch of images. The decoder reads one image at a time, because images have different numbers of
boxes, in groups of boxes, whose logits are brought to the cells of the image before the next group.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from c2fmae.labelling.canvases import compute_cell_weights, fill_masks
from c2fmae.labelling.weights import PretrainedModel


@dataclass(frozen=True)
class EncodedImage:
    """The features of an image."""

    size: tuple[int, int]
    """Height and width of the image in pixels."""
    resized_size: tuple[int, int]
    """That at which the encoder reads it."""
    decoder_inputs: dict[str, Any]


class BoxSegmenter:
    """Finds the masks of boxes."""

    def __init__(
        self,
        pretrained: PretrainedModel,
        *,
        boxes_per_pass: int = 32,
        hq_token_only: bool = False,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._pretrained, self._autocast = pretrained, autocast
        self._boxes_per_pass = boxes_per_pass
        self._options = {"hq_token_only": hq_token_only} if pretrained.model_type == "sam_hq" else {}
        self._is_square = pretrained.model_type.startswith("sam2")
        size = pretrained.processor.image_processor.size
        self.max_aspect = math.inf if self._is_square else float(size.longest_edge)

    @torch.inference_mode()
    def encode(self, images: Sequence[UInt8[Tensor, "3 _ _"]]) -> list[EncodedImage]:
        """Return the features of each image, computed in one batch."""
        model, processor = self._pretrained.model, self._pretrained.processor.image_processor
        inputs = [processor(images=image.to(model.device), return_tensors="pt") for image in images]
        values = torch.cat([each["pixel_values"] for each in inputs])
        with self._autocast():
            features = model.get_image_embeddings(values)
        encoded = []
        for index, (image, each) in enumerate(zip(images, inputs, strict=True)):
            height, width = image.shape[1:]
            resized = values.shape[2:] if self._is_square else each["reshaped_input_sizes"][0].tolist()
            encoded.append(
                EncodedImage((height, width), (resized[0], resized[1]), self._select_features(features, index))
            )
        return encoded

    @torch.inference_mode()
    def segment(
        self, encoded: EncodedImage, boxes: Float[Tensor, "box 4"], stride: int, masks: Bool[Tensor, "box row column"]
    ) -> Float[Tensor, " box"]:
        """Write the masks of boxes at the stored cells into `masks`, and return their predicted IoU, on the CPU.

        Boxes are x0, y0, x1 and y1 in pixels of the image. At least one is required.
        """
        qualities = []
        groups = zip(boxes.split(self._boxes_per_pass), masks.split(self._boxes_per_pass), strict=True)
        for group, group_masks in groups:
            logits, predicted = self._decode(encoded, group)
            qualities.append(predicted.float().cpu())
            fill_masks(group_masks, logits, *self._compute_weights(encoded, logits, stride))
        return torch.cat(qualities)

    def describe(self) -> dict[str, Any]:
        """Return the model and its options."""
        return {**self._pretrained.describe(), **self._options}

    def _select_features(self, features: Any, index: int) -> dict[str, Any]:
        """Return the inputs of the decoder for one image of a batch."""
        if self._pretrained.model_type == "sam_hq":
            embeddings, intermediate = features
            return {
                "image_embeddings": embeddings[index : index + 1],
                "intermediate_embeddings": [each[index : index + 1] for each in intermediate],
            }
        if self._is_square:
            return {"image_embeddings": [each[index : index + 1] for each in features]}
        return {"image_embeddings": features[index : index + 1]}

    def _decode(
        self, encoded: EncodedImage, boxes: Float[Tensor, "box 4"]
    ) -> tuple[Float[Tensor, "box row column"], Float[Tensor, " box"]]:
        model = self._pretrained.model
        (height, width), (rows, columns) = encoded.size, encoded.resized_size
        scale = boxes.new_tensor([columns / width, rows / height] * 2)
        with self._autocast():
            outputs = model(
                **encoded.decoder_inputs,
                **self._options,
                input_boxes=(boxes * scale).float()[None].to(model.device),
                multimask_output=False,
            )
        return outputs.pred_masks[0, :, 0], outputs.iou_scores[0, :, 0]

    def _compute_weights(
        self, encoded: EncodedImage, logits: Float[Tensor, "box row column"], stride: int
    ) -> list[Float[Tensor, "cell logit"]]:
        """Return the weights of the rows of logits, and of their columns, for the stored cells."""
        canvas = self._get_canvas()
        return [
            compute_cell_weights(
                num_logits,
                [(size, size)] if self._is_square else [(side, resized), (size, size)],
                stride,
                device=logits.device,
            )
            for num_logits, side, resized, size in zip(
                logits.shape[1:], canvas, encoded.resized_size, encoded.size, strict=True
            )
        ]

    def _get_canvas(self) -> tuple[int, int]:
        """Return the size to which the encoder's images are padded."""
        if self._is_square:
            return (0, 0)
        size = self._pretrained.processor.image_processor.pad_size
        return size.height, size.width
