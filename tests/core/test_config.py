from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError, field_validator

from c2fmae.core.config import RESUME_SAFE, Config, replace
from c2fmae.core.errors import UserError, unknown_name_error
from c2fmae.core.yaml_file import read_yaml


class Optimiser(Config):
    lr: Annotated[float, Field(gt=0)] = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)


class Run(Config):
    steps: Annotated[int, Field(ge=1)]
    precision: Literal["fp32", "bf16"] = "bf16"
    optimiser: Optimiser = Optimiser()
    warm_up: Optimiser | None = None
    decoder: str = "cascaded"

    @field_validator("decoder")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ("cascaded", "parallel"):
            raise unknown_name_error("decoder", name, ["cascaded", "parallel"])
        return name


def problems(values: dict[str, object], *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        Run.from_dict(values, overrides, source="run.yaml")
    return str(caught.value)


def test_a_misspelt_key_is_rejected_with_a_suggestion() -> None:
    assert (
        problems({"steps": 5, "optimiser": {"rl": 1}}) == "run.yaml: optimiser.rl: no such setting. Did you mean 'lr'?"
    )
    assert problems({"stesp": 5, "steps": 1}) == "run.yaml: stesp: no such setting. Did you mean 'steps'?"
    assert problems({"steps": 5, "warm_up": {"bates": [0, 0]}}) == (
        "run.yaml: warm_up.bates: no such setting. Did you mean 'betas'?"
    )


def test_an_unknown_key_without_a_similar_one_lists_all_keys() -> None:
    assert (
        problems({"steps": 5, "optimiser": {"zzz": 1}}) == "run.yaml: optimiser.zzz: no such setting. Known: lr, betas"
    )


def test_a_key_of_a_nested_setting_suggests_its_dotted_key() -> None:
    assert problems({"steps": 5, "betas": [0, 1]}) == (
        "run.yaml: betas: no such setting. Did you mean 'optimiser.betas'?"
    )


def test_all_problems_are_reported_at_once() -> None:
    text = problems(
        {"precision": "bf61", "optimiser": {"lr": -1}, "decoder": "cascade", "sede": 0}, "optimiser.betas=[0.9]", "oops"
    )
    assert text == "\n".join(
        [
            "run.yaml: 7 problems",
            "  'oops': expected key=value",
            "  steps: is required",
            "  precision: expected 'fp32' or 'bf16', got 'bf61'. Did you mean 'bf16'?",
            "  optimiser.lr: input should be greater than 0, got -1",
            "  optimiser.betas.1: is required",
            "  decoder: no decoder named 'cascade'. Did you mean 'cascaded'? Known: cascaded, parallel",
            "  sede: no such setting. Known: steps, precision, optimiser, warm_up, decoder",
        ]
    )


def test_overrides_change_single_settings_at_any_depth() -> None:
    config = Run.from_dict({"steps": 5}, ["optimiser.lr=1e-4", "warm_up.betas=[0, 0.5]", "precision=fp32"])
    assert config == Run(steps=5, optimiser=Optimiser(lr=1e-4), warm_up=Optimiser(betas=(0, 0.5)), precision="fp32")


def test_an_override_below_a_default_changes_a_part_of_it() -> None:
    class Slow(Config):
        optimiser: Optimiser = Optimiser(lr=1e-5)

    assert Slow.from_dict({}, ["optimiser.betas=[0, 0.5]"]).optimiser == Optimiser(lr=1e-5, betas=(0, 0.5))
    assert Slow.from_dict({"optimiser": {}}, ["optimiser.betas=[0, 0.5]"]).optimiser == Optimiser(betas=(0, 0.5))


def test_an_override_below_null_settings_creates_them() -> None:
    config = Run(steps=5)
    assert config.override(["warm_up.lr=0.5"]).warm_up == Optimiser(lr=0.5)
    assert Run.from_dict({"steps": 5, "warm_up": None}, ["warm_up.lr=0.5"]).warm_up == Optimiser(lr=0.5)


def test_an_override_below_a_number_is_rejected() -> None:
    assert problems({"steps": 5}, "steps.lr=3") == "run.yaml: steps.lr: steps is a number, which has no nested settings"


def test_input_values_are_not_modified() -> None:
    values = {"steps": 5, "optimiser": {"lr": 1.0}}
    Run.from_dict(values, ["optimiser.lr=2", "steps=6"])
    assert values == {"steps": 5, "optimiser": {"lr": 1.0}}


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Run(steps=5).steps = 6  # type: ignore[misc]


def test_a_config_survives_yaml(tmp_path: Path) -> None:
    config = Run(steps=5, optimiser=Optimiser(lr=3e-5), warm_up=Optimiser())
    path = tmp_path / "run.yaml"
    path.write_text(config.to_yaml())
    assert Run.from_yaml(path) == config
    assert Run.from_yaml(path, ["steps=7"]).steps == 7
    assert config.override(["optimiser.lr=1"]).optimiser == Optimiser(lr=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", "{path}: line 3, column 2: expected ',' or ']', but got ':'"),
        ("a: 1\nb: 2\na: 3\n", "{path}: line 3, column 1: 'a' is set twice"),
        ("a:\n  b: 1\n  b: 2\n", "{path}: line 3, column 3: 'b' is set twice"),
        ("- a\n- b\n", "{path}: expected `key: value` lines, got a list"),
        ("just words\n", "{path}: expected `key: value` lines, got text"),
        ("a: !!python/object/apply:os.getcwd []\n", None),
    ],
)
def test_invalid_yaml_is_rejected_with_its_position(tmp_path: Path, text: str, message: str | None) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_yaml(path)
    if message is None:
        assert "could not determine a constructor for the tag" in str(caught.value)
    else:
        assert str(caught.value) == message.format(path=path)


def test_missing_and_binary_files_are_rejected(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    with pytest.raises(UserError) as caught:
        read_yaml(missing)
    assert (
        str(caught.value)
        == f"{missing}: cannot be read: No such file or directory. Check the path, or use another file"
    )
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="binary.yaml: is not UTF-8 text "):
        read_yaml(tmp_path / "binary.yaml")


def test_an_empty_file_has_no_settings(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    assert read_yaml(tmp_path / "empty.yaml") == {}


def test_replaced_fields_are_validated() -> None:
    changed = replace(Optimiser(betas=(0.5, 0.6)), Optimiser, lr=1)
    assert changed == Optimiser(lr=1.0, betas=(0.5, 0.6))
    with pytest.raises(ValidationError, match="lr"):
        replace(changed, Optimiser, lr=0)
    assert replace(Optimiser(), Optimiser, lr=1).model_fields_set == {"lr"}


class Loader(Config):
    workers: Annotated[int, RESUME_SAFE] = 8
    scale: float = 1.0


class Job(Config):
    name: Annotated[str, RESUME_SAFE, Field(min_length=1)] = "job"
    data: Loader | None = Loader()
    saving: Annotated[Optimiser, RESUME_SAFE] = Optimiser()


def test_resume_safe_settings_are_found_where_they_are_declared() -> None:
    assert Job.resume_safe_keys() == ["name", "data.workers", "saving"]
    keys = ["saving", "saving.lr", "data", "data.workers", "data.scale", "nam"]
    assert [key for key in keys if Job.is_resume_safe(key)] == ["saving", "saving.lr", "data.workers"]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"steps": 2**63}, "steps: expected an integer of at most 64 bits, got one of 64 bits"),
        ({"steps": -(10**5000)}, "steps: expected an integer of at most 64 bits, got one of 16610 bits"),
        ({"name": "a\0b"}, "name: contains a NUL character. Remove it"),
        ({"more": [{"x": "\0"}]}, "more.0.x: contains a NUL character. Remove it"),
        ([1], "expected a mapping of settings (key: value), got a list"),
        (None, "expected a mapping of settings (key: value), got NoneType"),
    ],
)
def test_values_that_no_setting_can_have_are_rejected(values: Any, problem: str) -> None:
    class Settings(Config):
        name: str = ""
        steps: int = 0

    with pytest.raises(UserError) as caught:
        Settings.from_dict(values, source="FILE")
    assert str(caught.value) == f"FILE: {problem}"


def test_a_long_value_is_abbreviated_in_an_error() -> None:
    class Settings(Config):
        steps: int = 0

    with pytest.raises(UserError) as caught:
        Settings.from_dict({"steps": "x" * 5000})
    assert len(str(caught.value)) < 400
