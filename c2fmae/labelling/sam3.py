"""The labeller `sam3`: SAM 3 finds all objects of a name, and their masks, in one pass for each image and name."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from c2fmae.core.config import PositiveInt
from c2fmae.core.labels import ClassInfo
from c2fmae.labelling.candidates import (
    MaskCandidateRules,
    MaskCandidates,
    join_candidates,
    keep_best,
    label_mask_candidates,
    select_candidates,
)
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.families import SAM3
from c2fmae.labelling.image_names import describe_names, resolve_names
from c2fmae.labelling.image_processors import check_fixed_size
from c2fmae.labelling.name_tokens import embed_names
from c2fmae.labelling.precision import make_autocast
from c2fmae.labelling.protocol import LabelInput, LabelResult
from c2fmae.labelling.registry import LABELLERS
from c2fmae.labelling.weights import PretrainedModel, load_pretrained

_MAX_FOUND = 1000  # masks of an image above the lowest threshold, before those that overlap are removed


class Sam3Config(MaskCandidateRules):
    """Settings of `sam3`."""

    path_options: ClassVar[tuple[str, ...]] = ("model",)

    model: str
    """Folder of SAM 3."""
    pairs_per_pass: PositiveInt = 16
    """Pairs of an image and a name in a pass of the detector, at most. Fewer need less memory."""


@LABELLERS.register("sam3", options=Sam3Config)
class Sam3Labeller:
    """Objects by name: the masks that SAM 3 finds for each name."""

    granularities = frozenset({"instance"})
    classes: tuple[ClassInfo, ...] = ()

    def __init__(self, config: Sam3Config, context: LabellerContext) -> None:
        self._config, self._context = config, context
        self._names = resolve_names(context.names, context.info)
        pretrained = load_pretrained(config.model, SAM3, option="instances.model", device=context.device)
        self._segmenter = NameSegmenter(
            pretrained, self._names.list_all(), rules=config, autocast=make_autocast(context)
        )

    @property
    def maps_know_labels(self) -> bool:
        """Whether names depend on the label of the image."""
        return self._names.know_labels

    def batch_key(self, height: int, width: int) -> Hashable:
        """Return one value, because all images are resized to one size."""
        return None

    def label(self, inputs: Sequence[LabelInput], stride: int) -> list[LabelResult]:
        """Return the instance maps and the objects of images."""
        candidates = self._segmenter.find(
            [each.image for each in inputs], [self._names.list_names(each.label) for each in inputs]
        )
        return [
            label_mask_candidates(
                found, stride=stride, image_size=(each.image.shape[1], each.image.shape[2]), rules=self._config
            )
            for each, found in zip(inputs, candidates, strict=True)
        ]

    def describe(self) -> Mapping[str, Any]:
        """Return the model, names, settings and the version of transformers."""
        from importlib.metadata import version

        return {
            "labeller": "sam3",
            "segmenter": self._segmenter.describe(),
            **describe_names(self._names, self._context.names),
            "prompts": len(self._names.list_some()),
            **self._config.model_dump(mode="json", exclude={"model"}),
            "precision": self._context.precision,
            "transformers": version("transformers"),
        }


class NameSegmenter:
    """Finds the masks of names. Features of names do not depend on the image and are computed once."""

    def __init__(
        self,
        pretrained: PretrainedModel,
        names: Sequence[str],
        *,
        rules: Sam3Config,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._pretrained, self._rules, self._autocast = pretrained, rules, autocast
        check_fixed_size(
            pretrained.folder,
            pretrained.processor.image_processor,
            expected=pretrained.model.config.vision_config.backbone_config.image_size,
        )
        self._rows = {name: row for row, name in enumerate(names)}
        with torch.inference_mode():
            self._features, self._mask = embed_names(
                pretrained.processor.tokenizer,
                names,
                self._embed_names,
                max_tokens=pretrained.model.config.text_config.max_position_embeddings,
                device=pretrained.model.device,
            )

    @torch.inference_mode()
    def find(self, images: Sequence[UInt8[Tensor, "3 _ _"]], names: Sequence[tuple[str, ...]]) -> list[MaskCandidates]:
        """Return the masks of the names of each image, selected by the rules.

        Masks are selected from those of all names at once, so the selection depends neither on the batch nor on
        `pairs_per_pass`. Until then, an image keeps its 1,000 masks with the highest scores.
        """
        device, at_once = self._pretrained.model.device, self._rules.pairs_per_pass
        found = [MaskCandidates(torch.zeros((0, 1, 1), device=device), torch.zeros(0), (), ())] * len(images)
        if not any(names):
            return found
        processor = self._pretrained.processor.image_processor
        values = [processor(images=[image.to(device)], return_tensors="pt")["pixel_values"] for image in images]
        with self._autocast():
            vision = self._pretrained.model.get_vision_features(torch.cat(values))
        for start in range(0, max(map(len, names)), at_once):
            pairs = [(row, name) for row, each in enumerate(names) for name in each[start : start + at_once]]
            parts: dict[int, list[MaskCandidates]] = {row: [found[row]] if found[row].names else [] for row, _ in pairs}
            for (row, _), candidates in zip(pairs, self._search_pairs(vision, pairs), strict=True):
                parts[row].append(candidates)
            for row, each in parts.items():
                found[row] = keep_best(join_candidates(each), max(_MAX_FOUND, self._rules.max_masks))
        return [select_candidates(each, self._rules) if each.names else each for each in found]

    def describe(self) -> dict[str, Any]:
        """Return the model."""
        return self._pretrained.describe()

    def _search_pairs(self, vision: Any, pairs: Sequence[tuple[int, str]]) -> Iterator[MaskCandidates]:
        """Yield the masks above the lowest threshold for each pair of the row of an image and a name."""
        for start in range(0, len(pairs), self._rules.pairs_per_pass):
            group = pairs[start : start + self._rules.pairs_per_pass]
            outputs = self._forward(vision, [row for row, _ in group], [self._rows[name] for _, name in group])
            # The score of a mask, times that of the presence of the name anywhere in the image.
            scores = (outputs.pred_logits.float().sigmoid() * outputs.presence_logits.float().sigmoid()).cpu()
            for (_, name), mask_logits, each in zip(group, outputs.pred_masks, scores, strict=True):
                chosen = (each >= self._rules.thresholds[-1]).nonzero().flatten()
                yield MaskCandidates(
                    mask_logits[chosen.to(mask_logits.device)].float(),
                    each[chosen],
                    (name,) * len(chosen),
                    (None,) * len(chosen),
                )

    def _forward(self, vision: Any, image_rows: Sequence[int], name_rows: Sequence[int]) -> Any:
        """Return the outputs for pairs of images and names, by their rows."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        levels = (vision.fpn_hidden_states[:-1], vision.fpn_position_encoding[:-1])
        states, encodings = (tuple(each[list(image_rows)] for each in level) for level in levels)
        images = type(vision)(  # the model removes the last level, so it is not repeated for each name
            fpn_hidden_states=(*states, vision.fpn_hidden_states[-1]),
            fpn_position_encoding=(*encodings, vision.fpn_position_encoding[-1]),
        )
        texts = BaseModelOutputWithPooling(pooler_output=self._features[list(name_rows)])
        with self._autocast():
            return self._pretrained.model(
                vision_embeds=images,
                text_embeds=texts,  # the model reads `pooler_output` of it
                attention_mask=self._mask[list(name_rows)],  # without which it attends to padding
            )

    def _embed_names(self, ids: Tensor, mask: Tensor) -> Float[Tensor, "name token feature"]:
        with self._autocast():
            features = self._pretrained.model.get_text_features(input_ids=ids, attention_mask=mask)
        embeddings: Tensor = features.pooler_output
        return embeddings.float()
