"""The kinds of model that can be loaded: each reader recognises a content and loads it; the first one counts.

A reader is a module with `recognises(content) -> bool` and `load(content, request, cached) -> model`; `folder` takes
every folder, so one for folders of another kind stands before it.

Texts' features are kept between runs: `find_tokenizer = unless_cached(cached, find_tokenizer, *settings)` is None
where the cache has them, and the reader then builds no text tower and reads none of its weights, as where the request
wants none. `find_tokenizer` is of `towers.tokenizers`, `settings` what the text tower depends on that stands neither in
the checkpoint nor in its folder's JSON files.

The model is a `TwoTowers`: an `image_encoder` that
offers `embed`, `token_grid`, `patch_size` and `transformer` as `towers.image.ImageEncoder` does, a `text_encoder`,
`logits` and `probabilities`, an `image_encoder_name` that ENCODERS of `models.explain.defaults` has, and `img_size`
or a `preprocessing` of its own.
"""

from typing import TYPE_CHECKING

from ..heavy import HeavyModule
from . import own

if TYPE_CHECKING:
    from . import folder, open_clip, openai
else:  # with the networks that they build: imported where a content is none of our own
    openai, folder = HeavyModule(f"{__package__}.openai"), HeavyModule(f"{__package__}.folder")
    open_clip = HeavyModule(f"{__package__}.open_clip")

READERS = (own, open_clip, openai, folder)
