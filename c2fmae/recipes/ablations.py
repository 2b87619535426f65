"""Tables V and VI of the C2FMAE paper, a recipe a row: another recipe with one setting replaced.

All rows are ViT-B, pre-trained for 400 epochs and fine-tuned on ImageNet-1K.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from c2fmae.recipes.registry import Recipe, register_recipe
from c2fmae.recipes.standard import NOT_REPRODUCED, PAPER_CITATION, STANDARD_RECIPES


@dataclass(frozen=True)
class Ablation:
    """A row of a table."""

    name: str
    description: str
    base_recipe: str
    override: str
    """The one setting of the method that differs from the base's; nothing where the row *is* the base."""
    top1: float
    """The paper's."""
    deviations: Mapping[str, str] = field(default_factory=dict)
    """Deviations of this row's own."""
    dropped_deviations: tuple[str, ...] = ()
    """Settings, or groups of them, whose deviations in the base mean nothing here."""


_NUM_VISIBLE_NOTE = {
    "num_visible": "the paper gives no count; as everywhere a sixth of all patches, a quarter of photos alone"
}

ABLATIONS = {
    "V": (
        Ablation(
            "table5-multimae", "MultiMAE on photos, depth and semantic maps", "multimae-b",
            "granularities=[semantic, depth, rgb]", 82.7,
            {"granularities": "MultiMAE's own; its depth and semantic maps are by a DPT and a Mask2Former"},
        ),
        Ablation("table5-own-labels", "MultiMAE on photos, instance and semantic maps", "multimae-b", "", 83.0),
        Ablation(
            "table5-cascade", "a cascaded decoder, random masks", "c2fmae-b", "masking.policy=random", 83.3,
            {
                "decoder": "one setting away from c2fmae-b, but two from the row above, table5-own-labels: decoder, "
                "and targets, since MultiMAE has a fourth loss on normalised pixels, which Eq. 12 has not",
            },
            dropped_deviations=("masking",),
        ),
        Ablation("table5-curriculum", "a cascaded decoder, a curriculum of masks", "c2fmae-b", "", 83.7),
    ),
    "VI a": (
        Ablation("table6a-98", "98 visible tokens", "c2fmae-b", "", 83.7),
        Ablation("table6a-147", "147 visible tokens", "c2fmae-b", "num_visible=147", 83.7),
        Ablation("table6a-196", "196 visible tokens", "c2fmae-b", "num_visible=196", 83.5),
    ),
    "VI b": (
        Ablation(
            "table6b-rd", "random masks", "c2fmae-b", "masking.policy=random", 83.3, dropped_deviations=("masking",),
        ),
        Ablation(
            "table6b-ig", "instance-guided masks", "c2fmae-b", "masking.policy=instance", 83.5,
            dropped_deviations=("masking.curriculum", "masking.blend"),
        ),
        Ablation(
            "table6b-sg", "semantic-guided masks", "c2fmae-b", "masking.policy=semantic", 83.4,
            dropped_deviations=("masking",),
        ),
    ),
    "VI c": (
        Ablation(
            "table6c-ig-sg-rd", "instance-guided, then semantic-guided, then random masks", "c2fmae-b",
            "masking.curriculum.options.order=[instance, semantic, random]", 83.5,
        ),
        Ablation(
            "table6c-rd-ig-sg", "random, then instance-guided, then semantic-guided masks", "c2fmae-b",
            "masking.curriculum.options.order=[random, instance, semantic]", 83.5,
        ),
        Ablation("table6c-sg-ig-rd", "semantic-guided, then instance-guided, then random masks", "c2fmae-b", "", 83.7),
    ),
    "VI d": (
        Ablation(
            "table6d-parallel", "no stage reads another", "c2fmae-b", "decoder.name=parallel", 83.3,
            {
                "decoder.name": "the cascade without its carry, so that nothing else differs; MultiMAE's decoder, as "
                "in multimae-b, reads visible tokens alone and has no query residual",
            },
            dropped_deviations=("decoder.carry",),
        ),
        Ablation(
            "table6d-no-ca", "no cross-attention", "c2fmae-b", "decoder.name=self_attention", 83.2,
            {
                "decoder.name": "a self-attention block takes the place of cross-attention, so stages keep their "
                "depth and read nothing but their own granularity; the paper does not say what takes it",
            },
            dropped_deviations=("decoder",),
        ),
        Ablation(
            "table6d-r-i-s", "from pixels to semantics", "c2fmae-b", "decoder.name=reversed", 83.5,
            {"decoder.name": "the cascade alone is reversed, the curriculum is not; the paper does not say"},
        ),
        Ablation("table6d-s-i-r", "from semantics to pixels", "c2fmae-b", "", 83.7),
    ),
    "VI e": (
        Ablation(
            "table6e-r", "photos alone, random masks", "table6b-rd", "granularities=[rgb]", 82.9,
            {**_NUM_VISIBLE_NOTE, "decoder": "the cascade shortened to one stage, 256 wide; MAE's decoder is in mae-b"},
            dropped_deviations=("channels.instance", "decoder.carry"),
        ),
        Ablation(
            "table6e-r-s", "photos and semantic maps, random masks", "table6b-rd",
            "granularities=[semantic, rgb]", 83.2,
            {**_NUM_VISIBLE_NOTE, "decoder": "the cascade shortened to two stages"},
            dropped_deviations=("channels.instance",),
        ),
        Ablation(
            "table6e-r-i", "photos and instance maps, random masks", "table6b-rd",
            "granularities=[instance, rgb]", 83.1,
            {**_NUM_VISIBLE_NOTE, "decoder": "the cascade shortened to two stages"},
        ),
        Ablation("table6e-r-i-s", "all granularities, random masks", "table6b-rd", "", 83.3),
        Ablation("table6e-curriculum", "all granularities, a curriculum of masks", "c2fmae-b", "", 83.7),
    ),
    "VI f": (
        Ablation("table6f-111", "losses of equal weight", "c2fmae-b", "", 83.7),
        Ablation("table6f-112", "the loss of photos counts twice", "c2fmae-b", "weights.rgb=2", 83.7),
        Ablation("table6f-121", "the loss of instance maps counts twice", "c2fmae-b", "weights.instance=2", 83.4),
        Ablation("table6f-211", "the loss of semantic maps counts twice", "c2fmae-b", "weights.semantic=2", 83.5),
    ),
}  # fmt: skip
"""By the paper's table, in its order."""


def _ablation_recipe(table: str, row: Ablation, base: Recipe) -> Recipe:
    dropped_prefixes = tuple(f"{setting}." for setting in row.dropped_deviations)
    base_deviations = {
        setting: text
        for setting, text in base.deviations.items()
        if setting not in row.deviations and not f"{setting}.".startswith(dropped_prefixes)
    }
    changed = f" with method.{row.override}" if row.override else ", as it stands"
    return replace(
        base,
        name=row.name,
        title=f"Table {table}: {row.description}; {row.top1} % in the paper.",
        method_overrides=(*base.method_overrides, row.override) if row.override else base.method_overrides,
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
