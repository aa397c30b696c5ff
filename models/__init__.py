"""All that the script stands on, a folder for each subject; the four names that it hands on are of the CLIP model."""

__all__ = ["CLIPModel", "ImageEncoder", "TextEncoder", "create_model"]


def __getattr__(name):
    """Import torch with the first name that needs it (PEP 562), not with the package."""
    if name in __all__:
        from . import clip

        return getattr(clip, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
