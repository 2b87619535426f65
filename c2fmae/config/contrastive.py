"""Configs of contrastive methods: SimCLR and MoCo."""

from typing import ClassVar, Literal

from c2fmae.config.branches import BranchConfig, Momentum, Temperature
from c2fmae.config.method import METHOD_KINDS
from c2fmae.core.config import PositiveInt
from c2fmae.core.ramps import Ramp


class ProjectorConfig(BranchConfig):
    """A method whose features are projected by an MLP before they are compared."""

    hidden: PositiveInt = 4096
    """Width of the hidden layers of the heads."""
    out: PositiveInt = 256
    """Width of the features that are compared."""


@METHOD_KINDS.register("simclr")
class SimCLRConfig(ProjectorConfig):
    """SimCLR: two views of an image find each other among all views of the batch (Chen et al., 2020)."""

    implementation: ClassVar[str] = "c2fmae.methods.branches.simclr:SimCLR.build"
    required_views: ClassVar[tuple[str, ...]] = ("second",)

    kind: Literal["simclr"] = "simclr"
    name: str = "simclr"
    out: PositiveInt = 128
    temperature: Temperature = 0.1


@METHOD_KINDS.register("moco-v1")
class MoCoV1Config(BranchConfig):
    """MoCo: a view finds the teacher's output for the other view among those of earlier batches (He et al., 2020)."""

    implementation: ClassVar[str] = "c2fmae.methods.branches.moco_v1:MoCoV1.build"
    required_views: ClassVar[tuple[str, ...]] = ("second",)

    kind: Literal["moco-v1"] = "moco-v1"
    name: str = "moco-v1"
    out: PositiveInt = 128
    """Width of the features that are compared."""
    temperature: Temperature = 0.07
    momentum: Momentum = 0.999
    queue_length: PositiveInt = 65536
    """Outputs of the teacher for earlier images that are stored; a multiple of the batch size."""


@METHOD_KINDS.register("moco-v3")
class MoCoV3Config(ProjectorConfig):
    """MoCo v3: each view finds the teacher's output for the other one among those of the batch (Chen et al., 2021)."""

    implementation: ClassVar[str] = "c2fmae.methods.branches.moco_v3:MoCoV3.build"
    required_views: ClassVar[tuple[str, ...]] = ("second",)

    kind: Literal["moco-v3"] = "moco-v3"
    name: str = "moco-v3"
    temperature: Temperature = 0.2
    momentum: Momentum = Ramp(start=0.99, end=1.0)
