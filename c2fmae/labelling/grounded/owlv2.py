"""OWLv2, which has a score for each name. Features of names do not depend on the image and are computed once."""

import math
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from c2fmae.labelling.grounded.detector import Detections, centre_to_corners
from c2fmae.labelling.name_tokens import embed_names
from c2fmae.labelling.weights import PretrainedModel

NAME_TEMPLATE = "a photo of a {name}"
"""The text of a name, as in the training of OWLv2."""


class Owlv2Detector:
    """Reads an image once, on a square canvas, whatever the number of names."""

    max_aspect = math.inf

    def __init__(
        self,
        pretrained: PretrainedModel,
        names: Sequence[str],
        *,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._pretrained, self._autocast = pretrained, autocast
        self._rows = {name: row for row, name in enumerate(names)}
        with torch.inference_mode():
            self._features, _ = embed_names(
                pretrained.processor.tokenizer,
                [NAME_TEMPLATE.format(name=name) for name in names],
                self._embed_names,
                max_tokens=pretrained.model.config.text_config.max_position_embeddings,
                device=pretrained.model.device,
            )

    def batch_key(self, height: int, width: int) -> Hashable:
        """Return one value, because all images have the same canvas."""
        return None

    def count_prompts(self, names: Sequence[str]) -> int:
        """Return 1."""
        return 1

    @torch.inference_mode()
    def detect(self, images: Sequence[UInt8[Tensor, "3 _ _"]], names: Sequence[tuple[str, ...]]) -> list[Detections]:
        """Return the boxes of the names of each image."""
        model, device = self._pretrained.model, self._pretrained.model.device
        processor = self._pretrained.processor.image_processor
        values = torch.cat(
            [processor(images=image.to(device), return_tensors="pt")["pixel_values"] for image in images]
        )
        with self._autocast():
            feature_maps, _ = model.image_embedder(values)
            boxes = model.box_predictor(feature_maps.flatten(1, 2), feature_maps)
        return [
            self._score_image(feature_map.flatten(0, 1), image_boxes, each, max(image.shape[1:]))
            for feature_map, image_boxes, each, image in zip(feature_maps, boxes, names, images, strict=True)
        ]

    def describe(self) -> dict[str, Any]:
        """Return the model and the text around a name."""
        return {**self._pretrained.describe(), "template": NAME_TEMPLATE}

    def _score_image(
        self, features: Float[Tensor, "box feature"], boxes: Float[Tensor, "box 4"], names: Sequence[str], side: int
    ) -> Detections:
        """Return the boxes of an image that was padded to a square of `side` pixels."""
        rows = self._features[[self._rows[name] for name in names]]
        with self._autocast():
            logits, _ = self._pretrained.model.class_predictor(features[None], rows[None])
        scores, best = logits[0].float().sigmoid().cpu().max(dim=1)
        return Detections(centre_to_corners(boxes.float(), side, side), scores, best)

    def _embed_names(
        self, ids: Int64[Tensor, "name token"], mask: Int64[Tensor, "name token"]
    ) -> Float[Tensor, "name feature"]:
        with self._autocast():
            features = self._pretrained.model.owlv2.get_text_features(input_ids=ids, attention_mask=mask)
        embeddings: Tensor = features.pooler_output
        return embeddings.float()
