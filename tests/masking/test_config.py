from functools import partial

import pytest

from c2fmae.core.errors import UserError
from c2fmae.masking.config import MaskingConfig
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


def test_every_setting_reaches_the_policy() -> None:
    policy = MaskingConfig.from_dict(
        {},
        [
            "blend=quota",
            "object_share=0.9",
            "max_objects=2",
            "weights=[1, 0.5]",
            "curriculum.name=cosine",
            "curriculum.options.order=[random, instance, semantic]",
        ],
    ).build()
    assert isinstance(policy, ProgressivePolicy)
    assert (policy.blend, policy.object_share, policy.max_objects, policy.weights) == ("quota", 0.9, 2, (1.0, 0.5))
    backwards = partial(cosine, order=("random", "instance", "semantic"))
    assert [policy.curriculum(t / 8) for t in range(9)] == [backwards(t / 8) for t in range(9)]


def test_a_pure_policy_takes_the_settings_that_it_has() -> None:
    assert MaskingConfig.from_dict({}, ["policy=instance", "object_share=0.6"]).build() == InstancePolicy(
        object_share=0.6
    )
    assert MaskingConfig.from_dict({}, ["policy=semantic", "weights=[1, 2]"]).build() == SemanticPolicy(
        weights=(1.0, 2.0)
    )
    assert MaskingConfig.from_dict({}, ["policy=random"]).build() == RandomPolicy()


def test_a_setting_that_the_policy_does_not_look_at_is_refused() -> None:
    assert problem("policy=semantic", "blend=quota") == (
        "run.yaml: mask 'semantic' does not look at blend; leave it out"
    )


def test_options_are_given_their_types() -> None:
    config = MaskingConfig.from_dict(
        {}, ["curriculum.name=piecewise", "curriculum.options.knots=[[0, '1', 0], [1, 0, 1]]"]
    )
    assert config.curriculum.build()(0.25) == piecewise(0.25, knots=((0.0, 1.0, 0.0), (1.0, 0.0, 1.0)))


def test_all_mistakes_in_options_are_reported_at_once() -> None:
    assert problem("curriculum.options.odrer=1", "curriculum.options.order=[random, instence, semantic]") == (
        "run.yaml: curriculum: curriculum 'triangle' has no option 'odrer'. Did you mean 'order'?; "
        "options.order.1: expected 'semantic', 'instance' or 'random', got 'instence'. Did you mean 'instance'?"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("curriculum.name=cosin", "curriculum: no curriculum named 'cosin'. Did you mean 'cosine'? Known: constant, "),
        ("curriculum=cosine", "curriculum: expected settings of its own (key: value), got 'cosine'"),
        ("curriculum.options.order=[random, random, semantic]", "curriculum: order: expected semantic, instance and "),
        ("object_share=1.5", "object_share: input should be less than or equal to 1, got 1.5"),
        ("weights=[1, -1]", "weights.1: input should be greater than or equal to 0, got -1"),
        ("weights=3", "weights: expected a list, got 3"),
        ("options.evry=3", "mask 'progressive' has no option 'evry'. Known: curriculum, blend, object_share, "),
    ],
)
def test_mistakes_are_put_into_words(override: str, message: str) -> None:
    assert problem(override).startswith(f"run.yaml: {message}")


def test_a_config_survives_yaml() -> None:
    import yaml

    config = MaskingConfig.from_dict({}, ["policy=instance", "object_share=0.6"])
    assert MaskingConfig.from_dict(yaml.safe_load(config.to_yaml())) == config
