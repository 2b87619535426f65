import re

import pytest

from c2fmae.methods import METHODS
from c2fmae.methods.masked.describe import describe_architecture
from c2fmae.models import DECODERS

CASCADE = """\
                                                                        tokens × width  parameters      FLOP
in          4×4 patches of 16×16 pixels
  semantic  16×16 ids of 23, 4×4 a patch                                            16
  rgb       64×64 pixels, 3 channels                                                16
masks       random, 5 of 32 patches visible
embeddings  of visible patches, with positions                                  5 × 64    116.35 k  589.82 k
encoder     test_vit, 6 blocks                                              1 + 5 × 64    250.43 k    3.00 M
decoder     cascaded, semantic → rgb                                           32 × 32     78.53 k    2.78 M
  semantic  cross-attention to T; 2 self-attention blocks                      16 × 32     38.18 k    1.38 M
  rgb       cross-attention to T + F semantic; 2 self-attention blocks         16 × 32     38.18 k    1.38 M
heads       the losses count hidden patches alone                                          37.49 k    1.16 M
  semantic  labels, loss × 1                                                  16 × 368
  rgb       pixels, loss × 1                                                  16 × 768
total       forward, one image                                                            482.80 k    7.53 M"""


def test_the_table_says_what_reads_what_and_what_it_costs() -> None:
    changes = ["granularities=[semantic, rgb]", "channels.semantic=23", "encoder.name=test_vit", "image_size=[64, 64]"]
    changes += ["decoder.options.dim=32", "decoder.options.num_heads=4", "masking.name=random"]
    assert describe_architecture(METHODS.get("c2fmae")().override(changes)) == CASCADE


def what(*changes: str) -> dict[str, str]:
    """The second column by the first, of a small model; of a name that is there twice, the stage's."""
    small = ["encoder.name=test_vit", "image_size=[64, 64]", "decoder.options.dim=32", "decoder.options.num_heads=4"]
    rows = (
        describe_architecture(METHODS.get("c2fmae")().override([*small, *changes]))
        .partition("\ndecoder")[2]
        .splitlines()
    )
    cells = [re.split(r"  +", f"decoder{rows[0]}"), *(re.split(r"  +", row.strip()) for row in rows[1:4])]
    return {row[0]: row[1] for row in cells}


@pytest.mark.parametrize(
    ("changes", "reads"),
    [
        ([], ["", " + F semantic", " + F instance"]),
        (["decoder.options.carry=all"], ["", " + F semantic", " + F semantic + F instance"]),
        (["decoder.name=reversed"], [" + F instance", " + F rgb", ""]),
        (["decoder.name=parallel"], ["", "", ""]),
    ],
)
def test_a_stage_reads_what_the_table_says(changes: list[str], reads: list[str]) -> None:
    table = what(*changes)
    for name, carried in zip(("semantic", "instance", "rgb"), reads, strict=True):
        assert table[name] == f"cross-attention to T{carried}; 2 self-attention blocks"


@pytest.mark.parametrize(
    ("changes", "wiring"),
    [
        ([], "cascaded, semantic → instance → rgb"),
        (["decoder.name=reversed"], "cascaded, rgb → instance → semantic"),
        (["decoder.options.order=[instance, rgb, semantic]"], "cascaded, instance → rgb → semantic"),
        (["decoder.name=self_attention"], "self_attention"),
    ],
)
def test_the_order_of_the_stages_is_told(changes: list[str], wiring: str) -> None:
    assert what(*changes)["decoder"] == wiring


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("decoder", list(DECODERS))
def test_every_method_with_every_decoder_has_a_table_whose_parts_add_up(method: str, decoder: str) -> None:
    changes = ["encoder.name=test_vit", "image_size=[64, 64]"]
    changes += [f"decoder={decoder}", "decoder.options.dim=32", "decoder.options.num_heads=4"]
    table = describe_architecture(METHODS.get(method)().override(changes))
    sizes = dict(re.findall(r"^(\w+) .*  ([\d.]+ [kMG])  +[\d.]+ [kMG]$", table, flags=re.MULTILINE))
    assert set(sizes) == {"embeddings", "encoder", "decoder", "heads", "total"}
    amount = {name: float(text[:-2]) * {"k": 1e3, "M": 1e6, "G": 1e9}[text[-1]] for name, text in sizes.items()}
    assert sum(amount.values()) == pytest.approx(2 * amount["total"], rel=0.01)
