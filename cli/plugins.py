"""`c2fmae plugins`: everything that goes by a name."""


def plugins() -> None:
    """List every plug-in: masks, curricula, granularities, … those of other packages included."""
    # Registries exist once the wings that hold them are imported.
    import c2fmae.core.scene
    import c2fmae.data
    import c2fmae.masking  # noqa: F401
    from c2fmae.core.registry import registries

    for registry in registries():
        print(registry.kind)
        for name in registry:
            print(f"  {name:14s} {registry.describe(name)}")
