"""Fine-tuning: a classifier on a pre-trained ViT, by the recipes of the papers or one's own."""

from c2fmae.eval.classification.config import FinetuneConfig
from c2fmae.eval.classification.experiment import Finetuning, build_finetuning, finetune

__all__ = ["FinetuneConfig", "Finetuning", "build_finetuning", "finetune"]
