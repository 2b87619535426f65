"""`c2fmae plugins`: everything that is registered by name."""


def plugins() -> None:
    """List every registered masking policy, decoder, method, data set, evaluation, recipe, …, those of plug-ins too."""
    # A registry exists once its package is imported; `methods` imports masking, models and data.
    import c2fmae.data.suites
    import c2fmae.eval.builtin
    import c2fmae.eval.classification.recipes
    import c2fmae.eval.detection.recipes
    import c2fmae.eval.segmentation.recipes
    import c2fmae.labelling.builtin
    import c2fmae.methods
    import c2fmae.models.segmenters
    import c2fmae.recipes  # noqa: F401
    from c2fmae.core.registry import list_registries

    for registry in list_registries():
        print(registry.kind)
        names = list(registry)
        width = max(14, *map(len, names))
        for name in names:
            print(f"  {name:{width}s} {registry.describe(name)}")
