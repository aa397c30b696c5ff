"""The colours that a page draws heatmaps with, as tables of a heatmap's 256 levels, and those of words."""

import base64
from collections.abc import Mapping

from ..errors import InputError
from ..explain.heatmap import colour_table
from ..results.colours import BLENDS, COLORMAPS, DEFAULT_COLOURS, choose_colours
from ..results.shading import AGAINST, LINE, SUPPORT


def colour_tables() -> dict:
    """{"colormaps": {name: base64 of 256 RGB triples}, "opacity": {name: 256 shares of alpha}}"""
    triples = {name: colour_table(number).tobytes() for name, number in COLORMAPS.items()}
    return {
        "colormaps": {name: base64.b64encode(table).decode("ascii") for name, table in triples.items()},
        "opacity": {name: blend.opacity.tolist() for name, blend in BLENDS.items()},
    }


def word_colours() -> dict:
    """{"support", "against", "line"}: [R, G, B] of the words that add and that take most, and of the line below."""
    return {"support": SUPPORT, "against": AGAINST, "line": LINE}


def colour_choice(settings: Mapping) -> dict:
    """What the page opens with: the colours of a run's own overlays, by its settings; today's where these have none."""
    values = (settings.get(name) for name in ("colormap", "blend", "alpha"))
    try:
        return choose_colours(*values)._asdict()
    except (InputError, TypeError):  # the settings may be a stranger's
        return DEFAULT_COLOURS._asdict()
