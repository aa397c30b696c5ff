"""The kinds of model that can be loaded: each reader recognises a content and loads it; the first one counts."""

from typing import TYPE_CHECKING

from ..heavy import HeavyModule
from . import own

if TYPE_CHECKING:
    from . import folder, openai
else:  # with the networks that they build: imported where a content is none of our own
    openai, folder = HeavyModule(f"{__package__}.openai"), HeavyModule(f"{__package__}.folder")

READERS = (own, openai, folder)  # modules with recognises(content) and load(content, request, cached)
