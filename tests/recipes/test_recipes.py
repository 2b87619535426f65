"""Every recipe is built on the meta device and compared with its source."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch

from c2fmae.config.data import DatasetConfig
from c2fmae.config.masked_method import MaskedConfig
from c2fmae.config.presets import mae
from c2fmae.config.pretrain import PretrainConfig
from c2fmae.core.config import replace
from c2fmae.core.errors import UserError
from c2fmae.core.scene import SceneBatch
from c2fmae.data import CentralView, open_scenes
from c2fmae.masking.policies import ProgressivePolicy
from c2fmae.methods import METHODS, MaskedAutoencoding, build_method
from c2fmae.methods.branches.method import BranchMethod
from c2fmae.methods.dataset_defaults import fill_from_dataset
from c2fmae.methods.masked.cost import compute_image_flops
from c2fmae.models import MultiGranularAutoencoder, PredictionHead
from c2fmae.models.decoders import CascadedDecoder, JointDecoder, ParallelDecoder, SelfAttentionDecoder, Stage
from c2fmae.models.decoders.wirings import DirectDecoder
from c2fmae.recipes import RECIPES
from c2fmae.recipes.ablations import ABLATIONS, Ablation
from c2fmae.recipes.config import RecipeConfig, data_overrides, init_overrides, load_recipe
from c2fmae.recipes.registry import Recipe

# Encoder: width×depth/patch, and whether a norm ends it. Patches: visible/all. Decoder: kind, what its stages read,
# width×blocks of a stage. Stages: `>` where one reads the one before it. Heads: predicted values of a patch, and the
# weight of the loss. Hidden: the masks in the order of training.
TABLE = """
recipe              encoder          patches  decoder                 stages   heads                  hidden
c2fmae-ti           192×12/16        98/588   Cascaded/all/256×3      S>I>R    S2128,I512,R768        SG>IG>RD
c2fmae-s            384×12/16        98/588   Cascaded/all/256×3      S>I>R    S2128,I512,R768        SG>IG>RD
c2fmae-b            768×12/16        98/588   Cascaded/all/256×3      S>I>R    S2128,I512,R768        SG>IG>RD
c2fmae-l            1024×24/16       98/588   Cascaded/all/256×3      S>I>R    S2128,I512,R768        SG>IG>RD
c2fmae-h            1280×32/14       128/768  Cascaded/all/256×3      S>I>R    S6517,I1568,R588       SG>IG>RD
mae-ti              192×12/16+norm   49/196   Joint/512×8             R        R768                   RD
mae-s               384×12/16+norm   49/196   Joint/512×8             R        R768                   RD
mae-b               768×12/16+norm   49/196   Joint/512×8             R        R768                   RD
mae-l               1024×24/16+norm  49/196   Joint/512×8             R        R768                   RD
mae-h               1280×32/14+norm  64/256   Joint/512×8             R        R588                   RD
multimae-ti         192×12/16        98/588   Parallel/visible/256×3  S|I|R|N  S2128,I512,R768,N768   RD
multimae-s          384×12/16        98/588   Parallel/visible/256×3  S|I|R|N  S2128,I512,R768,N768   RD
multimae-b          768×12/16        98/588   Parallel/visible/256×3  S|I|R|N  S2128,I512,R768,N768   RD
multimae-l          1024×24/16       98/588   Parallel/visible/256×3  S|I|R|N  S2128,I512,R768,N768   RD
multimae-h          1280×32/14       128/768  Parallel/visible/256×3  S|I|R|N  S6517,I1568,R588,N588  RD
table5-multimae     768×12/16        98/588   Parallel/visible/256×3  S|D|R|N  S2128,D256,R768,N768   RD
table5-own-labels   768×12/16        98/588   Parallel/visible/256×3  S|I|R|N  S2128,I512,R768,N768   RD
table5-cascade      768×12/16        98/588   Cascaded/all/256×3      S>I>R    S2128,I512,R768        RD
table5-curriculum   768×12/16        98/588   Cascaded/all/256×3      S>I>R    S2128,I512,R768        SG>IG>RD
table6a-98          768×12/16        98/588   Cascaded/all/256×3      S>I>R    S2128,I512,R768        SG>IG>RD
table6a-147         768×12/16        147/588  Cascaded/all/256×3      S>I>R    S2128,I512,R768        SG>IG>RD
table6a-196         768×12/16        196/588  Cascaded/all/256×3      S>I>R    S2128,I512,R768        SG>IG>RD
table6b-rd          768×12/16        98/588   Cascaded/all/256×3      S>I>R    S2128,I512,R768        RD
table6b-ig          768×12/16        98/588   Cascaded/all/256×3      S>I>R    S2128,I512,R768        IG
table6b-sg          768×12/16        98/588   Cascaded/all/256×3      S>I>R    S2128,I512,R768        SG
table6c-ig-sg-rd    768×12/16        98/588   Cascaded/all/256×3      S>I>R    S2128,I512,R768        IG>SG>RD
table6c-rd-ig-sg    768×12/16        98/588   Cascaded/all/256×3      S>I>R    S2128,I512,R768        RD>IG>SG
table6c-sg-ig-rd    768×12/16        98/588   Cascaded/all/256×3      S>I>R    S2128,I512,R768        SG>IG>RD
table6d-parallel    768×12/16        98/588   Parallel/all/256×3      S|I|R    S2128,I512,R768        SG>IG>RD
table6d-no-ca       768×12/16        98/588   SelfAttention/256×3     S|I|R    S2128,I512,R768        SG>IG>RD
table6d-r-i-s       768×12/16        98/588   Cascaded/all/256×3      R>I>S    S2128,I512,R768        SG>IG>RD
table6d-s-i-r       768×12/16        98/588   Cascaded/all/256×3      S>I>R    S2128,I512,R768        SG>IG>RD
table6e-r           768×12/16        49/196   Cascaded/all/256×3      R        R768                   RD
table6e-r-s         768×12/16        65/392   Cascaded/all/256×3      S>R      S2128,R768             RD
table6e-r-i         768×12/16        65/392   Cascaded/all/256×3      I>R      I512,R768              RD
table6e-r-i-s       768×12/16        98/588   Cascaded/all/256×3      S>I>R    S2128,I512,R768        RD
table6e-curriculum  768×12/16        98/588   Cascaded/all/256×3      S>I>R    S2128,I512,R768        SG>IG>RD
table6f-111         768×12/16        98/588   Cascaded/all/256×3      S>I>R    S2128,I512,R768        SG>IG>RD
table6f-112         768×12/16        98/588   Cascaded/all/256×3      S>I>R    S2128,I512,R768×2      SG>IG>RD
table6f-121         768×12/16        98/588   Cascaded/all/256×3      S>I>R    S2128,I512×2,R768      SG>IG>RD
table6f-211         768×12/16        98/588   Cascaded/all/256×3      S>I>R    S2128×2,I512,R768      SG>IG>RD
mae-b-budget        768×12/16+norm   20/196   Joint/512×1             R        R768                   RD
c2fmae-b-budget     768×12/16        59/588   Cascaded/all/256×2      S>I>R    S2128,I512,R768        SG>IG>RD
c2fmae-tiny-budget  128×4/8          15/147   Cascaded/visible/64×2   S>I>R    S532,I128,R192         SG>IG>RD
c2fmae-tiny         128×4/8          16/48    Cascaded/visible/64×2   S>I>R    S532,I128,R192         SG>IG>RD
mae-tiny            128×4/8+norm     4/16     Joint/64×2              R        R192                   RD
multimae-tiny       128×4/8          16/48    Parallel/visible/64×2   S|I|R|N  S532,I128,R192,N192    RD
simmim-b            768×12/16+norm   76/196   Direct/768×0            R        R768                   unit
simmim-tiny         128×4/8+norm     4/16     Direct/128×0            R        R192                   unit
maskfeat-b          768×12/16+norm   118/196  Direct/768×0            R        R108                   block
maskfeat-tiny       128×4/8+norm     10/16    Direct/128×0            R        R108                   block
c2fmae-debug        64×6/16          8/48     Cascaded/visible/64×3   S>I>R    S2128,I512,R768        SG>IG>RD
"""

# Training: epochs (or steps) × batch, learning rate (for 256 images; conmim-b and tiny recipes: for the batch), and
# final weight decay.
# Views: the smallest area of large views, then the sides of all views. Heads: those with a star are in the teacher too.
BRANCHES = """
recipe        encoder    training                views               heads
simclr-b      768×12/16  300×4096,0.00015,0.1    0.08:224+224        projector
moco-v1-b     768×12/16  200×256,0.00015,0.1     0.2:224+224         projector*,queue
moco-v3-b     768×12/16  300×4096,0.00015,0.1    0.08:224+224        projector*,predictor
dino-b        768×12/16  400×1024,0.00075,0.4    0.25:224+224+10×96  prototypes*,image_centre
ibot-b        768×12/16  400×1024,0.0005,0.4     0.32:224+224+10×96  prototypes*,image_centre,patch_centre
attmask-b     768×12/16  100×1024,0.0005,0.4     0.25:224+224+10×96  prototypes*,image_centre,patch_centre
mst-b         768×12/16  300×1024,0.00075,0.4    0.25:224+224+10×96  prototypes*,image_centre,restorer
cmae-b        768×12/16  1600×4096,0.00015,0.05  0.2:224+224         decoder,pixels,feature_decoder,features,projector*,predictor
lut-b         768×12/16  1600×4096,0.00015,0.05  0.2:224+224         decoder,pixels,projector*,predictor
conmim-b      768×12/16  800×2048,0.0015,0.05    0.2:224+224         projector*
simclr-tiny   128×4/8    450s×64,0.0015,0.05     0.5:32+32           projector
moco-v1-tiny  128×4/8    450s×64,0.0015,0.05     0.5:32+32           projector*,queue
moco-v3-tiny  128×4/8    450s×64,0.0015,0.05     0.5:32+32           projector*,predictor
dino-tiny     128×4/8    220s×64,0.0015,0.05     0.5:32+32+4×16      prototypes*,image_centre
ibot-tiny     128×4/8    220s×64,0.0015,0.05     0.5:32+32+4×16      prototypes*,image_centre,patch_centre
attmask-tiny  128×4/8    220s×64,0.0015,0.05     0.5:32+32+4×16      prototypes*,image_centre,patch_centre
mst-tiny      128×4/8    220s×64,0.0015,0.05     0.5:32+32+4×16      prototypes*,image_centre,restorer
cmae-tiny     128×4/8    450s×64,0.0015,0.05     0.5:32+32           decoder,pixels,feature_decoder,features,projector*,predictor
lut-tiny      128×4/8    450s×64,0.0015,0.05     0.5:32+32           decoder,pixels,projector*,predictor
conmim-tiny   128×4/8    450s×64,0.0015,0.05     0.5:32+32           projector*
"""  # noqa: E501

SHORT = {"semantic": "S", "instance": "I", "depth": "D", "rgb": "R", "rgb_normalized_pixels": "N"}
MASKS = {"semantic": "SG", "instance": "IG", "random": "RD"}
ROWS = {line.split()[0]: " ".join(line.split()) for line in TABLE.strip().splitlines()[1:]}
BRANCH_ROWS = {line.split()[0]: " ".join(line.split()) for line in BRANCHES.strip().splitlines()[1:]}
NAMES = list(RECIPES)  # before any example of the documentation adds its own
ABLATION_ROWS = [row for rows in ABLATIONS.values() for row in rows]


def described(recipe: RecipeConfig, method: MaskedAutoencoding) -> str:
    """Return a row of the table, read off what was built."""
    config, model = recipe.masked_method, method.model
    assert isinstance(model, MultiGranularAutoencoder)
    encoder, decoder = model.encoder, model.decoder
    num_patches = config.image_size[0] // method.patch_size * (config.image_size[1] // method.patch_size)
    kind = [type(decoder).__name__.removesuffix("Decoder")]
    stages: Iterable[str]
    if isinstance(decoder, JointDecoder):
        stages, depth = decoder.granularity_indices, len(decoder.blocks)
    elif isinstance(decoder, DirectDecoder):
        stages, depth = decoder.granularity_indices, 0
    else:
        assert isinstance(decoder, CascadedDecoder | ParallelDecoder | SelfAttentionDecoder)
        (depth,) = {1 + len(stage.rest) for stage in decoder.stages.values() if isinstance(stage, Stage)}
        stages = decoder.granularity_indices
        kind += [] if isinstance(decoder, SelfAttentionDecoder) else [decoder.context]
    size = f"{encoder.dim}×{len(list(encoder.blocks.children()))}/{method.patch_size}"
    heads = {name: head for name, head in model.heads.items() if isinstance(head, PredictionHead)}
    (dim,) = {head.in_features for head in heads.values()}
    weights = {name: f"×{objective.weight:g}".removesuffix("×1") for name, objective in method.objectives.items()}
    cells = [
        recipe.name,
        size + "+norm" * isinstance(encoder.norm, torch.nn.LayerNorm),
        f"{config.resolve_num_visible(num_patches)}/{len(config.granularities) * num_patches}",
        "/".join([*kind, f"{dim}×{depth}"]),
        (">" if isinstance(decoder, CascadedDecoder) else "|").join(SHORT[stage] for stage in stages),
        ",".join(f"{SHORT[name]}{head.out_features}{weights[name]}" for name, head in heads.items()),
        ">".join(hidden(method)),
    ]
    return " ".join(cells)


def described_branches(recipe: RecipeConfig, method: BranchMethod) -> str:
    """Return a row of the table of two-branch methods, read off what was built."""
    config, training, encoder = method.config, recipe.training, method.model.encoder
    main = config.image_size
    views = [(f"{view.count}×" * (view.count > 1), view.size or main) for view in config.views.values()]
    sides = "+".join(f"{count}{size[0]}" for count, size in [("", main), *views])
    length = f"{training.epochs:g}" if training.epochs else f"{training.steps}s"
    lr = training.lr or training.base_lr
    decay = training.weight_decay if training.final_weight_decay is None else training.final_weight_decay
    heads = dict(method.model.heads.named_children())
    teacher = {} if method.teacher is None else dict(method.teacher.heads.named_children())
    cells = [
        recipe.name,
        f"{encoder.dim}×{len(list(encoder.blocks.children()))}/{method.patch_size}",
        f"{length}×{training.batch_size},{lr:g},{decay:g}",
        f"{recipe.data.scale[0]:g}:{sides}",
        ",".join(f"{name}{'*' * (name in teacher)}" for name in heads),
    ]
    return " ".join(cells)


def hidden(method: MaskedAutoencoding) -> list[str]:
    """Return the masks that lead at the start, in the middle and at the end."""
    policy = method.policy
    if not isinstance(policy, ProgressivePolicy):
        name = type(policy).__name__.removesuffix("Policy").lower()
        return [MASKS.get(name, name)]
    leading = []
    for progress in (0.0, 0.5, 1.0):
        alpha, beta = policy.curriculum(progress)
        leading.append(max(zip((alpha, beta, 1 - alpha - beta), MASKS.values(), strict=True))[1])
    return leading


def leaves(tree: object, path: str) -> Iterator[tuple[str, object]]:
    """Yield every setting with its dotted path."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from leaves(value, f"{path}.{key}")
    else:
        yield path, tree


def settings(name: str) -> dict[str, object]:
    return dict(leaves(RECIPES.get(name)().method.model_dump(), "method"))


def differing(one: dict[str, object], other: dict[str, object]) -> set[str]:
    """Return the settings that differ; an empty group, such as `weights`, is none beside its first entry."""
    paths = {path for path in one.keys() | other.keys() if one.get(path, "-") != other.get(path, "-")}
    return {path for path in paths if not any(longer.startswith(f"{path}.") for longer in paths)}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for each other are slow where cores are shared, and a small model needs none."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_table_lists_every_recipe() -> None:
    assert set(NAMES) == set(ROWS) | set(BRANCH_ROWS)
    assert {name.removesuffix("-b") for name in BRANCH_ROWS if name.endswith("-b")} == {
        name for name in METHODS if METHODS.get(name)().kind != "masked"
    }


@pytest.mark.parametrize("name", ROWS)
def test_recipes_build_the_architecture_of_their_source(name: str) -> None:
    recipe = RECIPES.get(name)()
    with torch.device("meta"):
        method = build_method(recipe.masked_method)
    assert described(recipe, method) == ROWS[name]


@pytest.mark.parametrize("name", BRANCH_ROWS)
def test_recipes_of_two_branches_build_what_their_source_has(name: str) -> None:
    recipe = RECIPES.get(name)()
    with torch.device("meta"):
        method = build_method(recipe.method)
    assert isinstance(method, BranchMethod)
    assert described_branches(recipe, method) == BRANCH_ROWS[name]


@pytest.mark.parametrize("name", NAMES)
def test_recipes_have_provenance_and_survive_yaml(name: str, tmp_path: Path) -> None:
    recipe = RECIPES.get(name)()
    assert (recipe.name, recipe.title) == (name, RECIPES.describe(name))
    assert recipe.source
    assert recipe.unmeasured
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe


@pytest.mark.parametrize("row", ABLATION_ROWS, ids=[row.name for row in ABLATION_ROWS])
def test_an_ablation_is_another_recipe_with_one_setting_replaced(row: Ablation) -> None:
    expected = {f"method.{row.change.override.partition('=')[0]}"} if row.change else set()
    assert differing(settings(row.base_recipe), settings(row.name)) == expected
    overridden = RECIPES.get(row.base_recipe)().override([f"method.{row.change.override}"] if row.change else [])
    recipe = RECIPES.get(row.name)()
    assert overridden.method == recipe.method
    assert {f"{setting}: {text}" for setting, text in row.deviations.items()} <= set(recipe.deviations)


def test_the_documentation_lists_every_ablation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("| `table") and line.count("|") == 5]
    rows = [tuple(cell.strip(" `") for cell in line.split("|")[1:-1]) for line in lines]
    overrides = {row.name: row.change.override if row.change else "" for row in ABLATION_ROWS}
    assert rows == [(row.name, row.base_recipe, overrides[row.name], f"{row.top1}") for row in ABLATION_ROWS]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", [row.name for row in ABLATION_ROWS])
def test_a_tiny_ablation_takes_a_step(name: str) -> None:
    few = ["method.num_visible=9"] if settings(name)["method.num_visible"] else []
    small = ["method.encoder.name=test_vit", "method.image_size=[32, 48]", "method.decoder.options.dim=32", *few]
    method = build_method(load_recipe(name, small).masked_method)
    noise = torch.Generator().manual_seed(0)
    maps = {
        "rgb": torch.randint(256, (2, 3, 32, 48), generator=noise, dtype=torch.uint8),
        "depth": torch.randint(1000, (2, 32, 48), generator=noise, dtype=torch.int32),
        "semantic": torch.randint(133, (2, 8, 12), generator=noise, dtype=torch.uint8),
        "instance": torch.randint(32, (2, 8, 12), generator=noise, dtype=torch.uint8),
    }
    loss = method.compute_step_loss(SceneBatch(("a", "b"), maps), progress=0.5, generator=noise)
    loss.total.backward()
    assert set(loss.terms) == set(method.objectives)
    assert all(value > 0 for value in loss.terms.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.model.parameters())


@pytest.mark.parametrize("size", ["ti", "s", "l", "h"])
@pytest.mark.parametrize("family", ["c2fmae", "mae", "multimae"])
def test_sizes_differ_in_the_encoder_alone(family: str, size: str) -> None:
    assert differing(settings(f"{family}-b"), settings(f"{family}-{size}")) == {"method.encoder.name"}


@pytest.mark.parametrize("name", ["mae-b", "c2fmae-b"])
def test_budget_recipes_differ_in_masks_depth_and_image_sizes_and_state_their_predicted_time(name: str) -> None:
    recipe = RECIPES.get(f"{name}-budget")()
    assert differing(settings(name), settings(recipe.name)) == {
        "method.early_image_sizes",
        "method.num_visible",
        "method.decoder.options.depth",
    }
    assert isinstance(recipe.method, MaskedConfig)
    assert recipe.method.early_image_sizes == ((0.4, (160, 160)), (0.7, (192, 192)))
    images_per_second = 355e12 / compute_image_flops(recipe.method)
    hours = (recipe.training.epochs or 0) * 1_281_167 / images_per_second / 3600
    assert recipe.unmeasured[1] == (
        f"its time: predicted {hours:.1f} hours on one GPU that computes 355 TFLOP/s, if the data keeps up with "
        f"{round(images_per_second, -3):,.0f} images/s"
    )


def test_multimae_and_the_cascade_differ_in_decoder_and_fourth_loss() -> None:
    assert differing(settings("table5-own-labels"), settings("table5-cascade")) == {
        "method.name",
        "method.decoder.name",
        "method.decoder.options.context",
        "method.decoder.options.query_residual",
        "method.decoder.options.entry",
        "method.decoder.options.stage_per",
        "method.targets.rgb",
    }
    (note,) = [text for text in RECIPES.get("table5-cascade")().deviations if text.startswith("method.decoder:")]
    assert "two from the row above, table5-own-labels: decoder, and targets" in note


def test_reported_figures_are_the_papers_and_not_claimed_as_measured() -> None:
    assert {table: [row.top1 for row in rows] for table, rows in ABLATIONS.items()} == {
        "V": [82.7, 83.0, 83.3, 83.7],
        "VI a": [83.7, 83.7, 83.5],
        "VI b": [83.3, 83.5, 83.4],
        "VI c": [83.5, 83.5, 83.7],
        "VI d": [83.3, 83.2, 83.5, 83.7],
        "VI e": [82.9, 83.2, 83.1, 83.3, 83.7],
        "VI f": [83.7, 83.7, 83.4, 83.5],
    }
    for table, rows in ABLATIONS.items():
        for row in rows:
            recipe = RECIPES.get(row.name)()
            assert recipe.reported == (
                f"Table {table}: {row.top1} % top-1 on ImageNet-1K, fine-tuned after 400 epochs",
            )
            assert recipe.unmeasured[0].endswith("no figure that is reported has been reproduced")


@pytest.mark.parametrize("name", NAMES)
def test_deviations_name_settings_that_exist_and_apply(name: str) -> None:
    recipe = RECIPES.get(name)()
    tree = recipe.model_dump(mode="json")
    about = [deviation.partition(":")[0] for deviation in recipe.deviations]
    assert len(about) == len(set(about))
    for setting in about:
        if setting.startswith("method.channels."):
            assert setting.rpartition(".")[2] in recipe.method.granularities
            continue
        node = tree
        for key in setting.split("."):
            node = node[key]
        if setting == "method.decoder.options.carry":
            assert len(recipe.method.granularities) > 1


def test_overrides_are_listed_among_the_deviations() -> None:
    recipe = RECIPES.get("c2fmae-b")()
    changes = ["method.decoder.name=parallel", "method.num_visible=147"]
    changed = recipe.override(changes)
    assert changed.deviations == (*recipe.deviations, *(f"changed: {change}" for change in changes))
    assert (changed.masked_method.decoder.name, changed.masked_method.num_visible) == ("parallel", 147)
    assert recipe.override([]) == recipe


def test_a_recipe_is_read_by_name_or_from_a_file_with_changes(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_text(load_recipe("mae-s", ["method.num_visible=30"]).to_yaml(), encoding="utf-8")
    recipe = load_recipe(str(path), ["method.num_visible=40"])
    assert recipe.masked_method.num_visible == 40
    assert recipe.deviations[-2:] == ("changed: method.num_visible=30", "changed: method.num_visible=40")


def test_a_recipe_returns_its_config_with_its_provenance() -> None:
    def make() -> PretrainConfig:
        return PretrainConfig(method=replace(mae(), MaskedConfig, num_visible=20))

    recipe = Recipe(name="mine", title="For a test.", make=make, source="me")
    assert recipe().method == mae().override(["num_visible=20"])
    assert (recipe().deviations, recipe().reported, recipe().unmeasured) == ((), (), ())


@pytest.mark.usefixtures("one_thread")
def test_the_debug_recipe_reduces_its_loss_on_generated_scenes() -> None:
    scenes, view = open_scenes("generated", size=64, length=8), CentralView(size=(64, 64), label_stride=4)
    method = build_method(fill_from_dataset(RECIPES.get("c2fmae-debug")().masked_method, scenes.info))
    assert method.config.concentration == {"semantic": 0.3, "instance": 0.3, "rgb": 6}
    assert len(scenes.info.classes) == method.config.num_channels("semantic")
    batch = SceneBatch.stack([view(scenes[index]) for index in range(8)])
    optimiser = torch.optim.AdamW(method.model.parameters(), lr=2e-3)
    losses = []
    for _ in range(20):
        loss = method.compute_step_loss(batch, progress=0.0, generator=torch.Generator().manual_seed(0)).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def problem(source: str, *changes: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(source, changes)
    return str(caught.value)


def test_an_unknown_recipe_is_rejected_with_a_suggestion() -> None:
    known = ", ".join(RECIPES)
    assert problem("c2fmae-bb") == f"no recipe named 'c2fmae-bb'. Did you mean 'c2fmae-b'? Known: {known}"


def test_all_misspelt_settings_are_reported_at_once() -> None:
    assert problem("c2fmae-b", "method.decodr.name=x", "method.decoder.options.context=seen") == (
        "--set: 2 problems\n"
        "  method.decoder.options.context: expected 'all' or 'visible', got 'seen'\n"
        "  method.decodr: no such setting. Did you mean 'decoder'?"
    )


def test_an_option_that_does_not_apply_is_rejected() -> None:
    assert problem("table6b-rd", "method.masking.options.blend=quota") == (
        "--set: method.masking.options.blend: mask 'random' has no such option. Options: none"
    )


def test_a_mistake_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ntitel: x\nsource: me\nmethod: {}\n")
    assert problem(str(path)) == (
        f"{path}: 2 problems\n  title: is required\n  titel: no such setting. Did you mean 'title'?"
    )


def test_other_data_replaces_the_settings_of_a_recipes_own_scenes() -> None:
    own = load_recipe("c2fmae-tiny")
    assert own.data.cache
    assert data_overrides(own, ["generated"]) == []
    other = own.override(data_overrides(own, ["a folder", "packs/b-*.tar"]))
    assert (other.data.train, other.data.held_out) == (("a folder", "packs/b-*.tar"), None)
    assert (other.data.cache, other.data.workers) == (False, 2)
    large = load_recipe("c2fmae-b")
    generated = large.override(data_overrides(large, ["generated"])).data.train
    assert isinstance(generated, DatasetConfig)
    assert (generated.name, generated.given_options()) == ("generated", {"size": 224, "length": 16384})


def test_position_embeddings_of_timm_weights_are_loaded() -> None:
    recipe = load_recipe("mae-b")
    initialised = recipe.override(init_overrides("timm:vit_base_patch16_224@file: x"))
    assert initialised.init == "timm:vit_base_patch16_224@file: x"
    assert initialised.method.encoder.keep_positions
    assert not recipe.override(init_overrides("runs/a")).method.encoder.keep_positions


def test_a_folder_that_is_not_a_run_is_not_taken_for_an_unknown_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("foreign").mkdir()
    with pytest.raises(UserError, match="^foreign: is a folder, but not a run: it has no config.yaml. Give a recipe "):
        load_recipe("foreign")
    Path("c2fmae-b").mkdir()
    assert load_recipe("c2fmae-b").name == "c2fmae-b"
