"""Recipes for a laptop and generated scenes. They run in no time and are from no paper."""

from c2fmae.recipes.registry import Recipe, register

register(
    Recipe(
        name="c2fmae-debug",
        title="C2FMAE in miniature: generated scenes of 64 pixels, a step in a fraction of a second on a CPU.",
        method="c2fmae",
        changes=(
            "encoder.name=test_vit",
            "image_size=[64, 64]",
            "decoder.dim=64",
            "decoder.num_heads=4",
            "decoder.context=visible",
            "concentration={semantic: 0.3, instance: 0.3, rgb: 6}",
        ),
        source="none; it is for tests and first tries",
        deviations={
            "decoder.context": "what the encoder saw and the stage before, instead of all tokens: in a first look at "
            "small models all tokens hardly taught them to tell classes by photos",
            "concentration": "most of what is visible is of photos, since nothing else will be there downstream",
        },
        run=(
            "data.train=generated",
            "data.options={size: 64, length: 64, difficulty: easy}",
            "data.held_out=generated",
            "data.held_out_options={size: 64, length: 16, difficulty: easy, seed: 1}",
            "data.workers=0",
            "training.epochs=null",
            "training.steps=20",
            "training.warmup_epochs=null",
            "training.warmup_steps=2",
            "training.batch_size=8",
            "training.base_lr=null",
            "training.lr=1e-3",
            "training.clip=1.0",
        ),
        unmeasured=("what it learns",),
    )
)
