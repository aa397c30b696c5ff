"""The CLIP model behind the heatmaps: two towers, the networks of the image tower, and checkpoint layouts."""

__all__ = ["CLIPModel", "ImageEncoder", "TextEncoder", "create_model"]


def __getattr__(name):
    """Import torch with the first name that needs it (PEP 562), not with the package."""
    if name in __all__:
        from . import clip

        return getattr(clip, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
