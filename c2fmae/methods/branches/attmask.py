"""AttMask (Kakogeorgiou et al., 2022)."""

from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from c2fmae.config.distilling import AttMaskConfig, IBOTConfig
from c2fmae.masking.attention_guided import high_attention_mask, show_hints
from c2fmae.masking.noise import RowGenerator
from c2fmae.methods.branches.dino import split_views
from c2fmae.methods.branches.ibot import IBOT
from c2fmae.methods.branches.method import ImageLosses
from c2fmae.methods.branches.model import BranchModel
from c2fmae.methods.branches.views import ViewBatch


class AttMask(IBOT):
    """iBOT, but the patches that the teacher attends to most are hidden; some of them are shown again, as hints."""

    config: AttMaskConfig

    @staticmethod
    def draw_masks(
        config: IBOTConfig, grid: tuple[int, int], rows: range, generator: RowGenerator
    ) -> dict[str, Tensor]:
        """Draw what does not depend on the teacher: how many patches are hidden and shown again, and noise for hints.

        The ratios are the same for all images of a step. In some views nothing is hidden.
        """
        assert isinstance(config, AttMaskConfig)
        num_patches, (low, high) = grid[0] * grid[1], config.mask_ratio
        ratio, hint_ratio = (low + (high - low) * generator.draw_uniform(1, range(1), 2)[0].double()).tolist()
        is_chosen = generator.draw_uniform(2, rows, 2) < config.mask_chance
        return {
            "num_hidden": is_chosen * int(ratio * num_patches),
            "num_hints": torch.full((len(rows),), int(hint_ratio * config.hint_fraction * num_patches)),
            "hint_noise": generator.draw_uniform(3, rows, 2 * num_patches).unflatten(1, (2, num_patches)),
        }

    def compute_targets(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Return the teacher's tokens of both large views, and the attention of its class tokens in the last block."""
        assert self.teacher is not None
        tokens, attention = self.teacher.forward_with_cls_attention(batch.images("main", "second"))
        patches = tokens[:, self.teacher.encoder.num_prefix_tokens :]
        outputs = {"image": tokens[:, 0], "patch": patches, "attention": attention.mean(dim=1)}
        return {name: split_views(output) for name, output in outputs.items()}

    def compute_losses(self, model: BranchModel, batch: ViewBatch) -> ImageLosses:
        """Return the losses of iBOT, with masks that depend on the teacher."""
        return super().compute_losses(model, replace(batch, masks=self.choose_masks(batch)))

    def choose_masks(self, batch: ViewBatch) -> dict[str, Bool[Tensor, "batch patch"]]:
        """Return the masks of both large views."""
        draw, attention = batch.masks, batch.targets["attention"]
        num_candidates = torch.full_like(draw["num_hints"], int(self.config.hint_fraction * attention.shape[2]))
        masks = {}
        for view, name in enumerate(("main", "second")):
            is_masked = high_attention_mask(attention[:, view], draw["num_hidden"][:, view])
            masks[name] = show_hints(
                is_masked,
                attention[:, view],
                draw["hint_noise"][:, view],
                num_candidates=num_candidates,
                num_shown=draw["num_hints"],
            )
        return masks

    def summarise(self) -> dict[str, str]:
        """Return what describes the method."""
        hints = f", but a few of the top {self.config.hint_fraction:.0%} are shown" if self.config.hint_fraction else ""
        return {**super().summarise(), "masks": f"hide what the teacher's class token attends to most{hints}"}
