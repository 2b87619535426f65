"""Grounding DINO and MM-Grounding-DINO, of which LLMDet has the architecture."""

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from c2fmae.labelling.canvases import get_max_aspect, pad_to_canvas, round_up_canvas
from c2fmae.labelling.grounded.detector import Detections, centre_to_corners, join_detections
from c2fmae.labelling.prompts import Prompt, build_prompts, check_phrase_ends, score_names
from c2fmae.labelling.weights import PretrainedModel


class GroundingDinoDetector:
    """Reads an image together with a prompt of names, once for each prompt."""

    def __init__(
        self,
        pretrained: PretrainedModel,
        *,
        names_per_prompt: int,
        reduction: Literal["max", "mean"],
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._pretrained, self._autocast = pretrained, autocast
        self._tokenizer = pretrained.processor.tokenizer
        self._image_processor = pretrained.processor.image_processor
        self._names_per_prompt = names_per_prompt
        self._reduction: Literal["max", "mean"] = reduction
        self._max_tokens = pretrained.model.config.max_text_len
        check_phrase_ends(self._tokenizer.convert_tokens_to_ids, str(pretrained.folder))
        self.max_aspect = get_max_aspect(self._image_processor.size)
        self._build_prompts = lru_cache(maxsize=1 << 16)(self._build_prompts_once)
        self._get_canvas = lru_cache(maxsize=1 << 16)(self._get_canvas_once)

    def batch_key(self, height: int, width: int) -> Hashable:
        """Return the canvas."""
        return self._get_canvas(height, width)

    def count_prompts(self, names: Sequence[str]) -> int:
        """Return the number of prompts for these names."""
        return len(self._build_prompts(tuple(names)))

    @torch.inference_mode()
    def detect(self, images: Sequence[UInt8[Tensor, "3 _ _"]], names: Sequence[tuple[str, ...]]) -> list[Detections]:
        """Return the boxes of the names of each image. All images have one canvas."""
        device = self._pretrained.model.device
        canvas = self._get_canvas(*images[0].shape[1:])
        values, mask = pad_to_canvas([self._read_image(image.to(device)) for image in images], canvas)
        prompts = [self._build_prompts(each) for each in names]
        parts: list[list[Detections]] = [[] for _ in images]
        offsets = [0] * len(images)
        for turn in range(max(map(len, prompts), default=0)):
            rows = [row for row, each in enumerate(prompts) if turn < len(each)]
            turn_prompts = [prompts[row][turn] for row in rows]
            logits, boxes = self._forward(values[rows], mask[rows], turn_prompts)
            for index, (row, prompt) in enumerate(zip(rows, turn_prompts, strict=True)):
                scores, best = score_names(logits[index], prompt.spans, self._reduction).cpu().max(dim=1)
                corners = centre_to_corners(boxes[index], *images[row].shape[1:])
                parts[row].append(Detections(corners, scores, best + offsets[row]))
                offsets[row] += len(prompt.names)
        return [join_detections(each) for each in parts]

    def describe(self) -> dict[str, Any]:
        """Return the model, and how scores of tokens become scores of names."""
        return {**self._pretrained.describe(), "names_per_prompt": self._names_per_prompt, "reduction": self._reduction}

    def _forward(
        self, values: Float[Tensor, "image 3 height width"], mask: Tensor, prompts: Sequence[Prompt]
    ) -> tuple[Float[Tensor, "image query token"], Float[Tensor, "image query 4"]]:
        """Return the logits of tokens, and boxes relative to the images without their padding."""
        text = self._tokenizer([prompt.text for prompt in prompts], padding=True, return_tensors="pt").to(values.device)
        with self._autocast():
            outputs = self._pretrained.model(
                pixel_values=values,
                pixel_mask=mask,
                input_ids=text["input_ids"],
                token_type_ids=text["token_type_ids"],
                attention_mask=text["attention_mask"],
            )
        return outputs.logits.float(), outputs.pred_boxes.float()

    def _read_image(self, image: UInt8[Tensor, "3 _ _"]) -> Float[Tensor, "3 _ _"]:
        values: Tensor = self._image_processor(images=image, do_pad=False, return_tensors="pt")["pixel_values"]
        return values[0]

    def _get_canvas_once(self, height: int, width: int) -> tuple[int, int]:
        image = torch.empty((1, 3, height, width), dtype=torch.uint8, device="meta")
        return round_up_canvas(*self._image_processor.resize(image, size=self._image_processor.size).shape[2:])

    def _build_prompts_once(self, names: tuple[str, ...]) -> tuple[Prompt, ...]:
        return build_prompts(
            lambda text: self._tokenizer(text, add_special_tokens=False).input_ids,
            names,
            max_tokens=self._max_tokens,
            max_names=self._names_per_prompt,
            unknown=self._tokenizer.unk_token_id,
        )
