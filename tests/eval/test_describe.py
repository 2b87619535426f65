import re

import pytest

from c2fmae.eval.describe import describe
from c2fmae.methods import METHODS
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
heads       hidden patches count                                                           37.49 k    1.16 M
  semantic  labels, loss × 1                                                  16 × 368
  rgb       pixels, loss × 1                                                  16 × 768
total       forward, one image                                                            482.80 k    7.53 M"""


def test_the_table_says_what_reads_what_and_what_it_costs() -> None:
    changes = ["granularities=[semantic, rgb]", "channels.semantic=23", "encoder.name=test_vit", "image_size=[64, 64]"]
    changes += ["decoder.dim=32", "decoder.num_heads=4", "masking.policy=random"]
    assert describe(METHODS.get("c2fmae")().override(changes)) == CASCADE


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("decoder", list(DECODERS))
def test_every_method_with_every_decoder_has_a_table_whose_parts_add_up(method: str, decoder: str) -> None:
    changes = ["encoder.name=test_vit", "image_size=[64, 64]", "decoder.dim=32", "decoder.num_heads=4"]
    table = describe(METHODS.get(method)().override([*changes, f"decoder.name={decoder}"]))
    sizes = dict(re.findall(r"^(\w+) .*  ([\d.]+ [kMG])  +[\d.]+ [kMG]$", table, flags=re.MULTILINE))
    assert set(sizes) == {"embeddings", "encoder", "decoder", "heads", "total"}
    amount = {name: float(text[:-2]) * {"k": 1e3, "M": 1e6, "G": 1e9}[text[-1]] for name, text in sizes.items()}
    assert sum(amount.values()) == pytest.approx(2 * amount["total"], rel=0.01)
