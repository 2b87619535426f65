"""Tiny models with random weights in folders of transformers' layout, which are built once for each test session.

Words of their tokenizers are letters, and the ids of `[CLS]`, `[SEP]`, `.` and `?` are those of BERT, at which
Grounding DINO divides a prompt into phrases. With other ids, every token would be a phrase of its own.
"""

import json
import string
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from c2fmae.data.label_spaces import COCO_PANOPTIC

BERT_IDS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
"""Ids of BERT's vocabulary that Grounding DINO relies on."""

_CHARACTERS = string.ascii_lowercase + string.digits + "-'&,()/:;!éèüñçöäå"


def build_letter_tokenizer() -> Any:
    """Return a BERT tokenizer whose tokens are single characters, with the special ids of BERT."""
    from transformers import BertTokenizer

    vocabulary = dict(BERT_IDS)
    tokens = [*_CHARACTERS, *(f"##{character}" for character in _CHARACTERS)]
    free_ids = (number for number in range(1030) if number not in BERT_IDS.values())
    vocabulary |= {token: next(free_ids) for token in tokens}
    vocabulary |= {f"[unused{number}]": number for number in free_ids}
    return BertTokenizer(vocab=dict(sorted(vocabulary.items(), key=lambda item: item[1])), do_lower_case=True)


def build_clip_tokenizer() -> Any:
    """Return a CLIP tokenizer whose tokens are single characters."""
    from transformers import CLIPTokenizer

    characters = [*string.ascii_lowercase, *string.digits]
    tokens = [*characters, *(f"{character}</w>" for character in characters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[])


def _detector_options(num_tokens: int) -> dict[str, Any]:
    """Return the options that Grounding DINO and MM-Grounding-DINO share."""
    from transformers import BertConfig

    return {
        "backbone_config": {
            "model_type": "swin",
            "image_size": 64,
            "embed_dim": 16,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 2, 2, 4],
            "window_size": 4,
            "out_features": ["stage2", "stage3", "stage4"],
        },
        "text_config": BertConfig(
            vocab_size=num_tokens,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=256,
        ),
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "num_queries": 20,
    }


def build_grounding_dino(folder: Path) -> None:
    """Write a tiny Grounding DINO."""
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    processor = _grounding_dino_processor()
    config = GroundingDinoConfig(**_detector_options(len(processor.tokenizer)))
    _save(folder, GroundingDinoForObjectDetection(config), processor)


def build_mm_grounding_dino(folder: Path) -> None:
    """Write a tiny MM-Grounding-DINO."""
    from transformers import MMGroundingDinoConfig, MMGroundingDinoForObjectDetection

    processor = _grounding_dino_processor()
    config = MMGroundingDinoConfig(**_detector_options(len(processor.tokenizer)))
    _save(folder, MMGroundingDinoForObjectDetection(config), processor)


def _grounding_dino_processor() -> Any:
    from transformers import GroundingDinoImageProcessor

    image_processor = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    return _make_processor("GroundingDinoProcessor", image_processor, build_letter_tokenizer())


def build_owlv2(folder: Path) -> None:
    """Write a tiny OWLv2."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor

    tokenizer = build_clip_tokenizer()
    shared = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Owlv2Config(
        text_config={
            **shared,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 32,  # letters are tokens
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={**shared, "image_size": 64, "patch_size": 16},
        projection_dim=32,
    )
    image_processor = Owlv2ImageProcessor(size={"height": 64, "width": 64})
    _save(folder, Owlv2ForObjectDetection(config), _make_processor("Owlv2Processor", image_processor, tokenizer))


_PROMPT_ENCODER = {
    "hidden_size": 16,
    "image_size": 64,
    "patch_size": 8,
    "mask_input_channels": 4,
    "num_point_embeddings": 4,
}
_MASK_DECODER = {
    "hidden_size": 16,
    "mlp_dim": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "iou_head_hidden_dim": 16,
}
_SAM_ENCODER = {
    "hidden_size": 32,
    "output_channels": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 8,
    "global_attn_indexes": [1],
    "window_size": 2,
    "mlp_dim": 64,
    "num_pos_feats": 8,
}


def build_sam(folder: Path) -> None:
    """Write a tiny SAM."""
    from transformers import SamConfig, SamModel

    config = SamConfig(
        vision_config=_SAM_ENCODER, prompt_encoder_config=_PROMPT_ENCODER, mask_decoder_config=_MASK_DECODER
    )
    _save(folder, _smooth_masks(SamModel(config)), _make_processor("SamProcessor", _sam_image_processor()))


def build_sam_hq(folder: Path) -> None:
    """Write a tiny SAM-HQ."""
    from transformers import SamHQConfig, SamHQModel

    config = SamHQConfig(
        vision_config=_SAM_ENCODER,
        prompt_encoder_config=_PROMPT_ENCODER,
        mask_decoder_config={**_MASK_DECODER, "vit_dim": 32},
    )
    _save(folder, _smooth_masks(SamHQModel(config)), _make_processor("SamHQProcessor", _sam_image_processor()))


def _smooth_masks(model: Any) -> Any:
    """Make masks of few large pieces, with a predicted IoU of at least 0.7, instead of noise."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.ConvTranspose2d):
                module.weight.copy_(module.weight.mean(dim=(2, 3), keepdim=True).expand_as(module.weight))
        model.mask_decoder.iou_prediction_head.proj_out.bias.fill_(1.0)
    return model


def _sam_image_processor() -> Any:
    from transformers import SamImageProcessor

    return SamImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})


def build_sam2(folder: Path) -> None:
    """Write a tiny SAM 2."""
    from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model

    config = Sam2Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": 16,
                "num_attention_heads": 1,
                "image_size": [64, 64],
                "blocks_per_stage": [1, 2, 2, 1],
                "embed_dim_per_stage": [16, 32, 64, 128],
                "num_attention_heads_per_stage": [1, 2, 4, 8],
                "window_size_per_stage": [4, 4, 4, 2],
                "global_attention_blocks": [4],
                "window_positional_embedding_background_size": [4, 4],
            },
            "backbone_channel_list": [128, 64, 32, 16],
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            "fpn_hidden_size": 16,
        },
        prompt_encoder_config={**_PROMPT_ENCODER, "patch_size": 16},
        mask_decoder_config=_MASK_DECODER,
    )
    processor = _make_processor("Sam2Processor", Sam2ImageProcessor(size={"height": 64, "width": 64}))
    _save(folder, _smooth_masks(Sam2Model(config)), processor)


def build_sam3(folder: Path) -> None:
    """Write a tiny SAM 3."""
    from transformers import Sam3Model

    _save(folder, _spread_scores(Sam3Model(_sam3_config())), _sam3_processor())


def build_sam3_video(folder: Path) -> None:
    """Write a tiny SAM 3 in the layout of its video model: the detector with a prefix, beside a tracker."""
    from safetensors.torch import save_file
    from transformers import Sam3Model

    model = _spread_scores(Sam3Model(_sam3_config()))
    _save(folder, model, _sam3_processor())
    config = {"model_type": "sam3_video", "detector_config": model.config.to_dict()}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {f"detector_model.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file({**tensors, "tracker_model.weight": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})


def _sam3_config() -> Any:
    from transformers import Sam3Config

    tokenizer = build_clip_tokenizer()
    layer = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    return Sam3Config(
        vision_config={
            "backbone_config": {
                **layer,
                "model_type": "sam3_vit_model",
                "num_hidden_layers": 2,
                "image_size": 56,
                "patch_size": 14,
                "window_size": 2,
                "global_attn_indexes": [1],
                "pretrain_image_size": 28,
            },
            "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        text_config={
            **layer,
            "vocab_size": len(tokenizer),
            "num_hidden_layers": 2,
            "projection_dim": 32,
            "max_position_embeddings": 32,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        geometry_encoder_config={**layer, "num_layers": 1},
        detr_encoder_config={**layer, "num_layers": 1},
        detr_decoder_config={**layer, "num_layers": 2, "num_queries": 9},
        mask_decoder_config={"hidden_size": 32, "num_upsampling_stages": 2, "num_attention_heads": 2},
    )


def _sam3_processor() -> Any:
    from transformers import Sam3ImageProcessor

    image_processor = Sam3ImageProcessor(size={"height": 56, "width": 56})
    return _make_processor("Sam3Processor", image_processor, build_clip_tokenizer())


def _spread_scores(model: Any) -> Any:
    """Make the scores of masks differ, instead of almost equal ones."""
    with torch.no_grad():
        for projection in (model.dot_product_scoring.text_proj, model.dot_product_scoring.query_proj):
            projection.weight.copy_(torch.randn_like(projection.weight) / 4)
        model.detr_decoder.presence_head.layer3.bias.fill_(1.0)
    return model


def build_rf_detr(folder: Path, names: dict[int, str] | None = None) -> None:
    """Write a tiny RF-DETR whose outputs are the category ids of COCO, by default without names."""
    from transformers import RfDetrConfig, RfDetrForInstanceSegmentation, RfDetrImageProcessor

    config = RfDetrConfig(
        backbone_config={
            "model_type": "rf_detr_dinov2",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "mlp_ratio": 2,
            "image_size": 64,
            "patch_size": 8,
            "num_windows": 2,
            "out_features": ["stage1", "stage2"],
        },
        d_model=32,
        decoder_layers=2,
        decoder_self_attention_heads=2,
        decoder_cross_attention_heads=2,
        decoder_n_points=2,
        decoder_ffn_dim=64,
        num_queries=9,
        group_detr=2,
        intermediate_size=64,
        id2label=names or {index: f"LABEL_{index}" for index in range(91)},
    )
    model: Any = RfDetrForInstanceSegmentation(config)
    with torch.no_grad():  # scores that differ
        model.model.class_embed.weight.copy_(torch.randn_like(model.model.class_embed.weight))
    _save(folder, model, RfDetrImageProcessor(size={"height": 64, "width": 64}))


_SWIN: dict[str, Any] = {
    "model_type": "swin",
    "image_size": 64,
    "embed_dim": 16,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 2, 4],
    "window_size": 4,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
_QUERY_DECODER: dict[str, Any] = {
    "hidden_dim": 32,
    "encoder_feedforward_dim": 64,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "dim_feedforward": 64,
    "num_queries": 7,
}


def _coco_labels() -> dict[int, str]:
    return {index: entry.name for index, entry in enumerate(COCO_PANOPTIC.classes)}


def build_mask2former(folder: Path) -> None:
    """Write a tiny Mask2Former."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

    config = Mask2FormerConfig(
        backbone_config=_SWIN, feature_size=32, mask_feature_size=32, **_QUERY_DECODER, id2label=_coco_labels()
    )
    image_processor = Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}, size_divisor=32)
    _save(folder, _sharpen_queries(Mask2FormerForUniversalSegmentation(config)), image_processor)


def build_oneformer(folder: Path) -> None:
    """Write a tiny OneFormer, whose image processor names a file of the hub."""
    from transformers import OneFormerConfig, OneFormerForUniversalSegmentation, OneFormerImageProcessor

    tokenizer = build_clip_tokenizer()
    config = OneFormerConfig(
        backbone_config=_SWIN,
        conv_dim=32,
        mask_dim=32,
        **_QUERY_DECODER,
        query_dec_layers=1,
        text_encoder_width=32,
        text_encoder_num_layers=1,
        text_encoder_vocab_size=len(tokenizer),
        id2label=_coco_labels(),
    )
    image_processor: Any = OneFormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
    image_processor.class_info_file = "coco_panoptic.json"
    processor = _make_processor("OneFormerProcessor", image_processor, tokenizer)
    _save(folder, _sharpen_queries(OneFormerForUniversalSegmentation(config)), processor)


_EOMT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
    "num_blocks": 1,
    "num_queries": 7,
    "num_upscale_blocks": 1,
    "num_register_tokens": 0,
}


def build_eomt(folder: Path) -> None:
    """Write a tiny EoMT."""
    from transformers import EomtConfig, EomtForUniversalSegmentation

    config = EomtConfig(**_EOMT, mlp_ratio=2, id2label=_coco_labels())
    _save(folder, _sharpen_queries(EomtForUniversalSegmentation(config)), _eomt_processor())


def build_eomt_dinov3(folder: Path) -> None:
    """Write a tiny EoMT-DINOv3."""
    from transformers import EomtDinov3Config, EomtDinov3ForUniversalSegmentation

    config = EomtDinov3Config(**_EOMT, intermediate_size=64, id2label=_coco_labels())
    _save(folder, _sharpen_queries(EomtDinov3ForUniversalSegmentation(config)), _eomt_processor())


def _eomt_processor() -> Any:
    from transformers import EomtImageProcessor

    return EomtImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}, do_pad=True, do_split_image=False)


def _sharpen_queries(model: Any) -> Any:
    """Make queries differ in their classes and in their masks, which have high contrast, as those of trained models."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim != 2:
                continue
            if "class_predictor" in name or "class_embed" in name:
                parameter.copy_(torch.randn_like(parameter))
            elif "mask_embed" in name or "mask_head" in name:
                parameter.copy_(torch.randn_like(parameter) * 2 / parameter.shape[1] ** 0.5)
            elif len(parameter) == model.config.num_queries:  # what distinguishes the queries
                parameter.copy_(torch.randn_like(parameter) * 3)
            elif "query_transformer" in name:  # of OneFormer
                parameter.mul_(10)
    return model


BUILDERS: dict[str, Callable[[Path], None]] = {
    "grounding-dino": build_grounding_dino,
    "mm-grounding-dino": build_mm_grounding_dino,
    "owlv2": build_owlv2,
    "mask2former": build_mask2former,
    "oneformer": build_oneformer,
    "eomt": build_eomt,
    "eomt-dinov3": build_eomt_dinov3,
    "sam": build_sam,
    "sam-hq": build_sam_hq,
    "sam2": build_sam2,
    "sam3": build_sam3,
    "sam3-video": build_sam3_video,
    "rf-detr": build_rf_detr,
}
"""Functions that write a tiny model into a folder, by name."""


def _make_processor(name: str, *arguments: Any) -> Any:
    import transformers

    return getattr(transformers, name)(*arguments)  # whose constructors have no annotations


def _save(folder: Path, model: Any, processor: Any) -> None:
    from transformers.utils import logging

    with _quiet(logging):
        model.eval().save_pretrained(folder)
        processor.save_pretrained(folder)


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            logging.enable_progress_bar()
