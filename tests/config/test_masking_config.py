from functools import partial
from typing import get_type_hints

import pytest
import yaml

from c2fmae.config.masking import CurriculumConfig, CurriculumOptions, MaskingConfig, MaskingOptions
from c2fmae.core.choice import Choice
from c2fmae.core.errors import UserError
from c2fmae.masking.curricula import cosine, piecewise, triangle
from c2fmae.masking.policies import InstancePolicy, ProgressivePolicy, RandomPolicy, SemanticPolicy


def problem(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        MaskingConfig.from_dict({}, overrides, source="run.yaml")
    return str(caught.value)


def test_the_default_is_the_papers() -> None:
    policy = MaskingConfig().build()
    assert isinstance(policy, ProgressivePolicy)
    assert policy.base_policies == (SemanticPolicy(), InstancePolicy(object_share=0.75), RandomPolicy())
    assert policy.blend == "topk"
    assert [policy.curriculum(t / 8) for t in range(9)] == [triangle(t / 8) for t in range(9)]


def test_every_option_reaches_the_policy() -> None:
    policy = MaskingConfig.from_dict(
        {},
        [
            "options.blend=quota",
            "options.object_share=0.9",
            "options.max_objects=2",
            "options.weights=[1, 0.5]",
            "options.curriculum.name=cosine",
            "options.curriculum.options.order=[random, instance, semantic]",
        ],
    ).build()
    assert isinstance(policy, ProgressivePolicy)
    assert (policy.blend, policy.object_share, policy.max_objects, policy.weights) == ("quota", 0.9, 2, (1.0, 0.5))
    backwards = partial(cosine, order=("random", "instance", "semantic"))
    assert [policy.curriculum(t / 8) for t in range(9)] == [backwards(t / 8) for t in range(9)]


def test_pure_policies_have_options_of_their_own() -> None:
    instance = MaskingConfig.from_dict({}, ["name=instance", "options.object_share=0.6"])
    assert instance.build() == InstancePolicy(object_share=0.6)
    semantic = MaskingConfig.from_dict({}, ["name=semantic", "options.weights=[1, 2]"])
    assert semantic.build() == SemanticPolicy(weights=(1.0, 2.0))
    assert MaskingConfig.from_dict({}, ["name=random"]).build() == RandomPolicy()


def test_options_are_converted_to_their_types() -> None:
    config = CurriculumConfig.from_dict({}, ["name=piecewise", "options.knots=[[0, '1', 0], [1, 0, 1]]"])
    assert config.build()(0.25) == piecewise(0.25, knots=((0.0, 1.0, 0.0), (1.0, 0.0, 1.0)))


def test_all_mistakes_in_options_are_reported_at_once() -> None:
    order = "options.curriculum.options.order=[random, instence, semantic]"
    assert problem("options.curriculum.options.odrer=1", order).splitlines() == [
        "run.yaml: 2 problems",
        "  options.curriculum.options.order.1: expected 'semantic', 'instance' or 'random', got 'instence'. "
        "Did you mean 'instance'?",
        "  options.curriculum.options.odrer: curriculum 'triangle' has no such option. Did you mean 'order'?",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("name=semantc", "name: no mask named 'semantc'. Did you mean 'semantic'? Known: blocks, instance, progre"),
        ("options.curriculum=cosin", "options.curriculum.name: no curriculum named 'cosin'. Did you mean 'cosine'? "),
        (
            "options.curriculum.options.order=[random, random, semantic]",
            "options.curriculum: order: expected semantic, instance and random in any order, got random, random, ",
        ),
        ("options.object_share=1.5", "object_share: expected a number in [0, 1], got 1.5"),
        ("options.weights=[1, -1]", "weights: expected numbers of at least 0, got (1.0, -1.0)"),
        ("options.weights=3", "options.weights: expected a list, got 3"),
        ("options.evry=3", "options.evry: mask 'progressive' has no such option. Options: curriculum, blend, "),
        ("policy=random", "policy: no such setting. Known: name, options"),
    ],
)
def test_invalid_settings_are_rejected(override: str, message: str) -> None:
    assert problem(override).startswith(f"run.yaml: {message}")


def test_an_option_that_does_not_apply_is_rejected() -> None:
    assert problem("name=semantic", "options.blend=quota") == (
        "run.yaml: options.blend: mask 'semantic' has no such option. Options: weights"
    )


def test_a_config_survives_yaml() -> None:
    config = MaskingConfig.from_dict({}, ["name=instance", "options.object_share=0.6"])
    assert MaskingConfig.from_dict(yaml.safe_load(config.to_yaml())) == config


@pytest.mark.parametrize(
    ("config", "options"), [(MaskingConfig, MaskingOptions), (CurriculumConfig, CurriculumOptions)]
)
def test_typed_options_are_those_of_the_built_in_entries(config: type[Choice], options: type) -> None:
    registry = config.registry()  # examples of the documentation, in the same process, may have added others
    names = [name for name in registry if registry.get(name).__module__.startswith("c2fmae.")]
    fields = {field for name in names for field in config.option_class(name).model_fields}
    assert set(get_type_hints(options)) == fields
