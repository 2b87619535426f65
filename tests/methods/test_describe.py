import pytest

from c2fmae.methods.masked.describe import ArchitectureRow, describe_architecture, format_architecture
from c2fmae.models import DECODERS
from tests.methods.tiny_methods import MASKED_METHODS, override_method

SMALL = ["encoder.name=test_vit", "image_size=[64, 64]", "decoder.options.dim=32", "decoder.options.num_heads=4"]
CASCADE = """\
                                                                        tokens × width  parameters      FLOP
input       4×4 patches of 16×16 pixels
  semantic  16×16 cells of 23 ids, 4×4 per patch                                    16
  rgb       64×64 pixels, 3 channels                                                16
masks       random, 5 of 32 patches visible
embeddings  visible patches, with positions                                     5 × 64    116.35 k  589.82 k
encoder     test_vit, 6 blocks                                              1 + 5 × 64    250.43 k    3.00 M
decoder     cascaded, semantic → rgb                                           32 × 32     78.53 k    2.78 M
  semantic  cross-attention to T; 2 self-attention blocks                      16 × 32     38.18 k    1.38 M
  rgb       cross-attention to T + F semantic; 2 self-attention blocks         16 × 32     38.18 k    1.38 M
heads       losses of hidden patches only                                                  37.49 k    1.16 M
  semantic  labels, loss × 1                                                  16 × 368
  rgb       pixels, loss × 1                                                  16 × 768
total       forward, one image                                                            482.80 k    7.53 M"""


def describe_small(method: str, *overrides: str) -> list[ArchitectureRow]:
    return describe_architecture(override_method(method, *SMALL, *overrides))


def decoder_descriptions(*overrides: str) -> dict[str, str]:
    """Return the descriptions of the decoder and its stages, by name."""
    rows = describe_small("c2fmae", *overrides)
    start = [row.name for row in rows].index("decoder")
    return {row.name.strip(): row.description for row in rows[start : start + 4]}


def test_the_table_lists_wiring_shapes_and_costs() -> None:
    overrides = ["granularities=[semantic, rgb]", "channels.semantic=23", "masking.name=random"]
    assert format_architecture(describe_small("c2fmae", *overrides)) == CASCADE


@pytest.mark.parametrize(
    ("overrides", "carried_stages"),
    [
        ([], ["", " + F semantic", " + F instance"]),
        (["decoder.options.carry=all"], ["", " + F semantic", " + F semantic + F instance"]),
        (["decoder=reversed"], [" + F instance", " + F rgb", ""]),
        (["decoder=parallel"], ["", "", ""]),
    ],
)
def test_a_stage_is_described_with_its_carried_stages(overrides: list[str], carried_stages: list[str]) -> None:
    descriptions = decoder_descriptions(*overrides)
    for name, carried in zip(("semantic", "instance", "rgb"), carried_stages, strict=True):
        assert descriptions[name] == f"cross-attention to T{carried}; 2 self-attention blocks"


@pytest.mark.parametrize(
    ("overrides", "wiring"),
    [
        ([], "cascaded, semantic → instance → rgb"),
        (["decoder=reversed"], "cascaded, rgb → instance → semantic"),
        (["decoder.options.order=[instance, rgb, semantic]"], "cascaded, instance → rgb → semantic"),
        (["decoder=self_attention"], "self_attention"),
    ],
)
def test_the_decoder_is_described_with_the_order_of_its_stages(overrides: list[str], wiring: str) -> None:
    assert decoder_descriptions(*overrides)["decoder"] == wiring


def test_an_encoder_with_mask_tokens_reads_all_patches() -> None:
    rows = {row.name: row for row in describe_small("simmim")}
    assert (rows["encoder"].shape, rows["decoder"].description) == ("1 + 16 × 64", "direct: none")
    assert rows["encoder"].description.endswith("norm, mask tokens for hidden patches")


@pytest.mark.parametrize("method", MASKED_METHODS)
@pytest.mark.parametrize("decoder", list(DECODERS))
def test_the_costs_of_the_modules_add_up_for_every_method_and_decoder(method: str, decoder: str) -> None:
    rows = describe_small(method, f"decoder={decoder}")
    costs = {row.name: row.cost for row in rows if row.cost and not row.name.startswith(" ")}
    total = costs.pop("total")
    assert set(costs) == {"embeddings", "encoder", "decoder", "heads"}
    for quantity in ("parameters", "flops"):
        assert sum(getattr(cost, quantity) for cost in costs.values()) == getattr(total, quantity)
    table = format_architecture(rows).splitlines()
    assert [line.split("  ")[0].strip() for line in table[1:]] == [row.name.split("  ")[0] for row in rows]
