"""Recipes for a laptop. They are from no paper: what they learn in minutes shows that everything works together."""

from c2fmae.recipes.registry import Recipe, register_recipe

_MOSTLY_RGB = "concentration={semantic: 0.3, instance: 0.3, rgb: 6}"
_MOSTLY_RGB_NOTE = "most of what is visible is of photos, since nothing else will be there downstream"
_VISIBLE_CONTEXT_NOTE = (
    "what the encoder saw and the stage before, instead of all tokens: with all tokens small models hardly learn to "
    "tell classes by photos (k-NN 15 against 33 in a first try)"
)

TINY_OVERRIDES = (
    "encoder.name=vit_tiny_patch16_224",
    "encoder.patch_size=8",
    "encoder.dim=128",
    "encoder.depth=4",
    "encoder.num_heads=4",
    "image_size=[32, 32]",
    "decoder.dim=64",
    "decoder.num_heads=4",
)
"""A ViT for photos of 32 pixels: 16 patches, a million weights, a step with 64 scenes in 60 ms on two cores."""

SCENE_OPTIONS = "size: 32, difficulty: plain"

SHORT_RUN_OVERRIDES = (
    "data.train=generated",
    f"data.options={{{SCENE_OPTIONS}, length: 8192}}",
    "data.held_out=generated",
    f"data.held_out_options={{{SCENE_OPTIONS}, length: 512, seed: 1}}",
    "data.scale=[0.5, 1.0]",
    "data.workers=0",
    "data.keep=true",
    "training.epochs=null",
    "training.steps=1500",
    "training.warmup_epochs=null",
    "training.warmup_steps=75",
    "training.batch_size=64",
    "training.base_lr=null",
    "training.lr=1.5e-3",
    "training.clip=1.0",
    "watching.held_out_every=100",
    "watching.pictures_every=500",
)
"""Two or three minutes on two cores."""

_TINY_METHODS = {
    "c2fmae": ("C2FMAE", ("decoder.depth=1", "decoder.context=visible", "num_visible=16", _MOSTLY_RGB)),
    "multimae": ("MultiMAE", ("decoder.depth=1", "num_visible=16", _MOSTLY_RGB)),
    "mae": ("MAE", ("decoder.depth=2",)),
}

for _method, (_display_name, _overrides) in _TINY_METHODS.items():
    register_recipe(
        Recipe(
            name=f"{_method}-tiny",
            title=(
                f"{_display_name} for a laptop: photos of 32 pixels, minutes on a CPU, on generated scenes or any "
                "of yours."
            ),
            method=_method,
            method_overrides=(*TINY_OVERRIDES, *_overrides),
            source="none; its settings are those with which C2FMAE learned most in three minutes on two cores",
            deviations={
                **({"decoder.context": _VISIBLE_CONTEXT_NOTE} if _method == "c2fmae" else {}),
                **({} if _method == "mae" else {"concentration": _MOSTLY_RGB_NOTE, "num_visible": "a third"}),
            },
            unmeasured=("larger photos, longer runs, other data than generated scenes and Pascal VOC",),
            run_overrides=SHORT_RUN_OVERRIDES,
        )
    )

register_recipe(
    Recipe(
        name="c2fmae-debug",
        title="C2FMAE in miniature: generated scenes of 64 pixels, a step in a fraction of a second on a CPU.",
        method="c2fmae",
        method_overrides=(
            "encoder.name=test_vit",
            "image_size=[64, 64]",
            "decoder.dim=64",
            "decoder.num_heads=4",
            "decoder.context=visible",
            _MOSTLY_RGB,
        ),
        source="none; it is for tests and first tries",
        deviations={"decoder.context": _VISIBLE_CONTEXT_NOTE, "concentration": _MOSTLY_RGB_NOTE},
        unmeasured=("what it learns",),
        run_overrides=(
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
    )
)
