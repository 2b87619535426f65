"""Preparation of a model for training: compilation, sharding and the device."""

from torch import nn

from c2fmae.core.compilation import compile_model
from c2fmae.core.distributed import World
from c2fmae.core.training import TrainingConfig


def prepare_model(model: nn.Module, config: TrainingConfig, world: World, *, num_shapes: int = 1) -> None:
    """Compile, shard and move a model to the device, in place, as configured. Call it before the optimiser.

    `num_shapes` is the number of different shapes of micro-batches.

    A call of a block consists of three layers, from the inside to the outside:

    1. The graph of the block, which contains only its computation.
    2. FSDP's gathering of the block's weights before the graph runs, and their release after it.
    3. With `grad_checkpointing`, recomputation of both in the backward pass, by the encoder that calls the block.

    So collectives are never part of a graph, and a graph is the same with and without them. `wrap_ddp` wraps the
    prepared model in the training loop.
    """
    compile_model(model, config.choose_compiled_parts(world.device.type), num_shapes=num_shapes)
    if config.sharded:
        world.shard_model(model)
    model.to(world.device)
