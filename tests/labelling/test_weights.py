import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from c2fmae.core.errors import UserError
from c2fmae.labelling.families import SAM3, ModelFamily
from c2fmae.labelling.model_folder import compute_model_digest, read_licence
from c2fmae.labelling.weights import PretrainedModel, load_pretrained

TinyModel = Callable[[str], Path]

FAMILIES = {
    "grounding-dino": ModelFamily("GroundingDinoForObjectDetection", "GroundingDinoProcessor", has_tokenizer=True),
    "sam_hq": ModelFamily("SamHQModel", "SamHQProcessor"),
}

pytestmark = pytest.mark.usefixtures("no_network")


def load(folder: Path | str) -> PretrainedModel:
    return load_pretrained(str(folder), FAMILIES, option="instances.detector")


@pytest.fixture
def detector(tiny_model: TinyModel, tmp_path: Path) -> Path:
    """Return a copy of a tiny detector that a test may change."""
    return Path(shutil.copytree(tiny_model("grounding-dino"), tmp_path / "detector"))


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_model_is_loaded_in_float32_for_evaluation(tiny_model: TinyModel) -> None:
    loaded = load(f"hf:{tiny_model('sam-hq')}")

    parameters = list(loaded.model.parameters())
    assert loaded.model_type == "sam_hq"
    assert not loaded.model.training
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in parameters)
    assert loaded.unexpected == ()
    assert loaded.licence == "licence not stated"


def test_loading_leaves_the_messages_of_transformers_as_they_were(
    tiny_model: TinyModel, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load(tiny_model("sam-hq"))

    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert "".join(capfd.readouterr()) == ""


def use_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def remove_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def truncate_tokenizer(folder: Path) -> None:
    remove_tokenizer(folder)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")


def shorten_vocabulary(folder: Path) -> None:
    change_json(
        folder / "config.json",
        text_config={**json.loads((folder / "config.json").read_text())["text_config"], "vocab_size": 500},
    )


def truncate_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


DEFECTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), r"has no config\.json"),
    "pickle only": (use_pickle, r"pytorch_model\.bin only.*c2fmae import labeller \S+ OUT"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"has no model\.safetensors"),
    "code of its own": (
        lambda folder: change_json(folder / "config.json", auto_map={"AutoModel": "modeling.Model"}),
        r"config\.json: brings its own code \(auto_map\)",
    ),
    "code of its processor": (
        lambda folder: change_json(folder / "processor_config.json", auto_map={"AutoProcessor": "processing.P"}),
        r"processor_config\.json: brings its own code",
    ),
    "code of its tokenizer": (
        lambda folder: change_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokens.T", None]}),
        r"tokenizer_config\.json: brings its own code",
    ),
    "a kernel of the hub": (
        lambda folder: change_json(folder / "config.json", attn_implementation="kernels-community/flash-attn"),
        r"names code to download",
    ),
    "an adapter": (lambda folder: (folder / "adapter_config.json").write_text("{}"), r"is an adapter"),
    "quantized": (
        lambda folder: change_json(folder / "config.json", quantization_config={"quant_method": "gptq"}),
        r"quantized",
    ),
    "another model": (
        lambda folder: change_json(folder / "config.json", model_type="detr"),
        r"type 'detr'.*Supported: grounding-dino, sam_hq",
    ),
    "a missing parameter": (
        lambda folder: change_weights(folder, lambda tensors: tensors.pop("model.level_embed")),
        r"1 missing: model\.level_embed\. ",
    ),
    "a wrong shape": (
        lambda folder: change_weights(
            folder, lambda tensors: tensors.update({"model.level_embed": torch.zeros(7, 32)})
        ),
        r"1 of another shape: model\.level_embed \(shape 7×32, expected 4×32\)",
    ),
    "another vocabulary": (shorten_vocabulary, r"word_embeddings\.weight \(shape 1030×32, expected 500×32\)"),
    "no tokenizer": (remove_tokenizer, r"has no tokenizer \(expected tokenizer\.json, or vocab\.txt, or"),
    "half a tokenizer": (
        truncate_tokenizer,
        r"its tokenizer has \d tokens, but its model 1,030",
    ),
    "no processor": (lambda folder: (folder / "processor_config.json").unlink(), r"has no image processor"),
    "damaged weights": (truncate_weights, r"cannot load it as GroundingDinoForObjectDetection"),
    "a damaged config": (
        lambda folder: change_json(folder / "config.json", d_model="wide"),
        r"cannot load it as GroundingDinoForObjectDetection: .*d_model",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defective_folder_is_refused_with_the_reason(detector: Path, defect: str) -> None:
    (detector / "modeling.py").write_text("raise SystemExit('the code of the folder ran')")
    damage, reason = DEFECTS[defect]
    damage(detector)

    with pytest.raises(UserError, match=rf"(?s)^{detector}.*{reason}") as error:
        load(detector)

    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("facebook/sam3", r"never downloaded.*the folder sam3 instead:\n  hf download facebook/sam3 --local-dir sam3$"),
        ("hf:facebook/sam3", r"hf download facebook/sam3"),
        ("./nowhere/at/all", r"\./nowhere/at/all does not exist .*\. Check the path$"),
        (__file__, r"is a file .*\. Use its folder$"),
    ],
)
def test_a_path_that_is_no_folder_is_never_fetched(path: str, reason: str) -> None:
    with pytest.raises(UserError, match=rf"(?s)^instances\.detector: .*{reason}"):
        load(path)


def test_unexpected_parameters_are_reported(detector: Path, caplog: pytest.LogCaptureFixture) -> None:
    change_weights(detector, lambda tensors: tensors.update({"extra.weight": torch.zeros(1), "more": torch.zeros(1)}))

    assert load(detector).unexpected == ("extra.weight", "more")
    (message,) = caplog.messages
    assert message == (
        f"{detector}: 2 of its parameters are not in GroundingDinoForObjectDetection and are not used: extra.weight, …"
    )


def test_the_tracker_of_a_video_model_is_not_reported(tiny_model: TinyModel, caplog: pytest.LogCaptureFixture) -> None:
    load_pretrained(str(tiny_model("sam3-video")), SAM3, option="instances.model")

    assert caplog.messages == []


def test_the_digest_depends_on_what_the_maps_depend_on(detector: Path) -> None:
    before = compute_model_digest(detector)
    (detector / "README.md").write_text("# A detector")
    assert compute_model_digest(detector) == before

    change_json(detector / "processor_config.json", size={"shortest_edge": 48})
    assert compute_model_digest(detector) != before


@pytest.mark.parametrize(
    ("name", "text", "licence"),
    [
        ("README.md", "---\nlanguage: en\nlicense: apache-2.0\n---\n# A model", "apache-2.0"),
        ("README.md", "---\nlicense: other\nlicense_name: sam-license\n---\n", "sam-license"),
        ("README.md", "# A model\nlicense: everything", "licence not stated"),
        ("LICENSE", "\n                    Apache License\n  Version 2.0", "Apache License"),
    ],
)
def test_the_licence_is_what_the_folder_states(tmp_path: Path, name: str, text: str, licence: str) -> None:
    (tmp_path / name).write_text(text)

    assert read_licence(tmp_path) == licence
