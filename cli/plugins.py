"""`c2fmae plugins`: everything that goes by a name."""


def plugins() -> None:
    """List every plug-in: masks, decoders, methods, recipes, … those of other packages included."""
    # Registries exist once the wings that hold them are imported: methods bring masking, models and data.
    import c2fmae.data.suites
    import c2fmae.eval.builtin
    import c2fmae.eval.classification.recipes
    import c2fmae.methods
    import c2fmae.recipes  # noqa: F401
    from c2fmae.core.registry import list_registries

    for registry in list_registries():
        print(registry.kind)
        names = list(registry)
        width = max(14, *map(len, names))
        for name in names:
            print(f"  {name:{width}s} {registry.describe(name)}")
