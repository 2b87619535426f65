"""Tables V and VI of the C2FMAE paper, one recipe per row: another recipe with one setting replaced.

All rows are ViT-B, pre-trained for 400 epochs and fine-tuned on ImageNet-1K.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from c2fmae.config.decoder import DecoderConfig
from c2fmae.config.masked_method import MaskedConfig
from c2fmae.config.masking import CurriculumConfig, CurriculumOptions, MaskingConfig, MaskingOptions, Phase
from c2fmae.config.pretrain import PretrainConfig
from c2fmae.core.config import replace
from c2fmae.recipes.registry import Recipe, register_recipe
from c2fmae.recipes.standard import NOT_REPRODUCED, PAPER_CITATION, STANDARD_RECIPES


@dataclass(frozen=True)
class Change:
    """The replacement of one setting of a method."""

    override: str
    """The same replacement as an override, without `method.`. A test checks that both give the same config."""
    apply: Callable[[MaskedConfig], MaskedConfig]


@dataclass(frozen=True)
class Ablation:
    """A row of a table."""

    name: str
    description: str
    base_recipe: str
    change: Change | None
    """Change of the base recipe's method; None if the row is equal to the base."""
    top1: float
    """Top-1 accuracy in the paper, in %."""
    deviations: Mapping[str, str] = field(default_factory=dict)
    """Deviations of this row in addition to those of the base, by setting."""
    dropped_deviations: tuple[str, ...] = ()
    """Settings, or groups of settings, whose deviations in the base do not apply to this row."""


def _granularities(*names: str) -> Change:
    return Change(
        f"granularities=[{', '.join(names)}]", lambda method: replace(method, MaskedConfig, granularities=names)
    )


def _num_visible(number: int) -> Change:
    return Change(f"num_visible={number}", lambda method: replace(method, MaskedConfig, num_visible=number))


def _policy(name: str) -> Change:
    return Change(
        f"masking.name={name}", lambda method: replace(method, MaskedConfig, masking=MaskingConfig(name=name))
    )


def _phases(*order: Phase) -> Change:
    def apply(method: MaskedConfig) -> MaskedConfig:
        curriculum = CurriculumConfig(options=CurriculumOptions(order=order))
        masking = MaskingConfig(options=MaskingOptions(curriculum=curriculum))
        return replace(method, MaskedConfig, masking=masking)

    return Change(f"masking.options.curriculum.options.order=[{', '.join(order)}]", apply)


def _decoder(name: str) -> Change:
    return Change(
        f"decoder.name={name}", lambda method: replace(method, MaskedConfig, decoder=DecoderConfig(name=name))
    )


def _loss_weight(granularity: str, weight: float) -> Change:
    return Change(
        f"loss_weights.{granularity}={weight:g}",
        lambda method: replace(method, MaskedConfig, loss_weights={granularity: weight}),
    )


_NUM_VISIBLE_NOTE = {
    "method.num_visible": "the paper gives no number; as everywhere a sixth of all patches, a quarter of a lone "
    "granularity's"
}

ABLATIONS = {
    "V": (
        Ablation(
            "table5-multimae", "MultiMAE on images, depth and semantic maps", "multimae-b",
            _granularities("semantic", "depth", "rgb"), 82.7,
            {"method.granularities": "MultiMAE's own; its depth and semantic maps are by a DPT and a Mask2Former"},
        ),
        Ablation(
            "table5-own-labels", "MultiMAE on images, instance and semantic maps", "multimae-b", None, 83.0
        ),
        Ablation(
            "table5-cascade", "a cascaded decoder, random masks", "c2fmae-b", _policy("random"), 83.3,
            {
                "method.decoder": "one setting away from c2fmae-b, but two from the row above, table5-own-labels: "
                "decoder, and targets, since MultiMAE has a fourth loss on normalised pixels, which Eq. 12 has not",
            },
            dropped_deviations=("method.masking",),
        ),
        Ablation("table5-curriculum", "a cascaded decoder, a curriculum of masks", "c2fmae-b", None, 83.7),
    ),
    "VI a": (
        Ablation("table6a-98", "98 visible tokens", "c2fmae-b", None, 83.7),
        Ablation("table6a-147", "147 visible tokens", "c2fmae-b", _num_visible(147), 83.7),
        Ablation("table6a-196", "196 visible tokens", "c2fmae-b", _num_visible(196), 83.5),
    ),
    "VI b": (
        Ablation(
            "table6b-rd", "random masks", "c2fmae-b", _policy("random"), 83.3,
            dropped_deviations=("method.masking",),
        ),
        Ablation(
            "table6b-ig", "instance-guided masks", "c2fmae-b", _policy("instance"), 83.5,
            dropped_deviations=("method.masking.options.curriculum", "method.masking.options.blend"),
        ),
        Ablation(
            "table6b-sg", "semantic-guided masks", "c2fmae-b", _policy("semantic"), 83.4,
            dropped_deviations=("method.masking",),
        ),
    ),
    "VI c": (
        Ablation(
            "table6c-ig-sg-rd", "instance-guided, then semantic-guided, then random masks", "c2fmae-b",
            _phases("instance", "semantic", "random"), 83.5,
        ),
        Ablation(
            "table6c-rd-ig-sg", "random, then instance-guided, then semantic-guided masks", "c2fmae-b",
            _phases("random", "instance", "semantic"), 83.5,
        ),
        Ablation(
            "table6c-sg-ig-rd", "semantic-guided, then instance-guided, then random masks", "c2fmae-b", None, 83.7
        ),
    ),
    "VI d": (
        Ablation(
            "table6d-parallel", "no stage reads another", "c2fmae-b", _decoder("parallel"), 83.3,
            {
                "method.decoder.name": "the cascade without its carry, so that nothing else differs; MultiMAE's "
                "decoder, as in multimae-b, reads visible tokens alone and has no query residual",
            },
            dropped_deviations=("method.decoder.options.carry",),
        ),
        Ablation(
            "table6d-no-ca", "no cross-attention", "c2fmae-b", _decoder("self_attention"), 83.2,
            {
                "method.decoder.name": "a self-attention block replaces cross-attention, so stages keep their depth "
                "and read nothing but their own granularity; the paper does not specify the replacement",
            },
            dropped_deviations=("method.decoder",),
        ),
        Ablation(
            "table6d-r-i-s", "from pixels to semantics", "c2fmae-b", _decoder("reversed"), 83.5,
            {
                "method.decoder.name": "the cascade alone is reversed, the curriculum is not; the paper does not "
                "specify it"
            },
        ),
        Ablation("table6d-s-i-r", "from semantics to pixels", "c2fmae-b", None, 83.7),
    ),
    "VI e": (
        Ablation(
            "table6e-r", "images alone, random masks", "table6b-rd", _granularities("rgb"), 82.9,
            {
                **_NUM_VISIBLE_NOTE,
                "method.decoder": "the cascade shortened to one stage, 256 wide; MAE's decoder is in mae-b",
            },
            dropped_deviations=("method.channels.instance", "method.decoder.options.carry"),
        ),
        Ablation(
            "table6e-r-s", "images and semantic maps, random masks", "table6b-rd",
            _granularities("semantic", "rgb"), 83.2,
            {**_NUM_VISIBLE_NOTE, "method.decoder": "the cascade shortened to two stages"},
            dropped_deviations=("method.channels.instance",),
        ),
        Ablation(
            "table6e-r-i", "images and instance maps, random masks", "table6b-rd",
            _granularities("instance", "rgb"), 83.1,
            {**_NUM_VISIBLE_NOTE, "method.decoder": "the cascade shortened to two stages"},
        ),
        Ablation("table6e-r-i-s", "all granularities, random masks", "table6b-rd", None, 83.3),
        Ablation("table6e-curriculum", "all granularities, a curriculum of masks", "c2fmae-b", None, 83.7),
    ),
    "VI f": (
        Ablation("table6f-111", "losses of equal weight", "c2fmae-b", None, 83.7),
        Ablation("table6f-112", "the loss of images counts twice", "c2fmae-b", _loss_weight("rgb", 2), 83.7),
        Ablation(
            "table6f-121", "the loss of instance maps counts twice", "c2fmae-b", _loss_weight("instance", 2), 83.4
        ),
        Ablation(
            "table6f-211", "the loss of semantic maps counts twice", "c2fmae-b", _loss_weight("semantic", 2), 83.5
        ),
    ),
}  # fmt: skip
"""Ablations by table of the paper, in its order."""


def make_ablation_config(base: Recipe, change: Change) -> PretrainConfig:
    """Return the config of a recipe with one setting of its method replaced."""
    config = base.make()
    return config.model_copy(update={"method": change.apply(config.masked_method)})


def _ablation_recipe(table: str, row: Ablation, base: Recipe) -> Recipe:
    dropped_prefixes = tuple(f"{setting}." for setting in row.dropped_deviations)
    base_deviations = {
        setting: text
        for setting, text in base.deviations.items()
        if setting not in row.deviations and not f"{setting}.".startswith(dropped_prefixes)
    }
    changed = f" with method.{row.change.override}" if row.change else ", unchanged"
    return dataclasses.replace(
        base,
        name=row.name,
        title=f"Table {table}: {row.description}; {row.top1} % in the paper.",
        make=partial(make_ablation_config, base, row.change) if row.change else base.make,
        source=f"{PAPER_CITATION}, Table {table}: {row.base_recipe}{changed}",
        reported=(f"Table {table}: {row.top1} % top-1 on ImageNet-1K, fine-tuned after 400 epochs",),
        deviations={**row.deviations, **base_deviations},
        unmeasured=(NOT_REPRODUCED,),
    )


def _ablation_recipes() -> Iterator[Recipe]:
    known = dict(STANDARD_RECIPES)
    for table, rows in ABLATIONS.items():
        for row in rows:
            known[row.name] = _ablation_recipe(table, row, known[row.base_recipe])
            yield known[row.name]


for _ablation in _ablation_recipes():
    register_recipe(_ablation)
