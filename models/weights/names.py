"""Names of weights that more than one file speaks of: of the towers, of wrappers, and rules that rename."""

import re
from collections.abc import Iterable

Rules = tuple[tuple[str, str], ...]  # (pattern, replacement), each tried once per key, in order
TEXT_TOWER = "text_encoder."
BACKBONE, TEXT_BACKBONE = "image_encoder.backbone.", TEXT_TOWER + "backbone."
CLIP_TEXT = "clip_text_model"  # model_type of CLIP's own text tower
CLIP_WORDS = tuple(wrapper + "token_embedding.weight" for wrapper in ("embeddings.", "text_model.embeddings.", ""))
BATCH_COUNTER = ".num_batches_tracked"
WRAPPER_PREFIX = re.compile(r"^(?:module\.|model\.|_orig_mod\.)+")

# What PEFT, LoRA and their kin put among a model's weights.
ADAPTER = re.compile(r"(?:^|\.)(?:lora_\w+|base_layer|modules_to_save|original_module|ia3_\w+|hada_w\w+)(?:\.|$)")


def first_adapter(names: Iterable[str]) -> str | None:
    """The first name that belongs to an adapter; None where there is none."""
    return next((name for name in names if ADAPTER.search(name)), None)


def rename(key: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key
