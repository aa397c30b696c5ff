"""The CLIP model behind the heatmaps: two towers, the networks of the image tower, and checkpoint layouts."""

from .clip import CLIPModel, ImageEncoder, TextEncoder, create_model

__all__ = ["CLIPModel", "ImageEncoder", "TextEncoder", "create_model"]
