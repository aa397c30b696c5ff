"""The colours that a page draws heatmaps with, as tables of a heatmap's 256 levels."""

import base64
from collections.abc import Mapping

import numpy as np

from ..explain.heatmap import OVERLAY_ALPHA, jet

LEVELS = np.linspace(0, 1, 256, dtype=np.float32)


def colour_tables() -> dict:
    """{"colormaps": {name: base64 of 256 RGB triples}, "opacity": {name: 256 shares of alpha}}"""
    jet_triples = jet(LEVELS[None])[0].tobytes()
    return {
        "colormaps": {"jet": base64.b64encode(jet_triples).decode("ascii")},
        "opacity": {"constant": [1.0] * len(LEVELS)},
    }


def colour_choice(settings: Mapping) -> dict:
    """What the page opens with: the colours of a run's own overlays, by its settings."""
    return {"colormap": "jet", "blend": "constant", "alpha": OVERLAY_ALPHA}
