"""The kinds of model that can be loaded: each reader recognises a content and loads it; the first one counts."""

from . import folder, openai, own

READERS = (own, openai, folder)  # modules with recognises(content) and load(content, request, cached)
