"""The kinds of inputs: kind -> make(random) -> argv; see fuzz.py."""

from collections.abc import Callable
from functools import partial
from random import Random

from .case_runs import make_case_state
from .cases import ANNOTATIONS, make_case_list
from .checkpoints import make_legacy, make_pth_bytes, make_pth_opcodes, make_pth_zip
from .dicom import make_dicom
from .folders import make_folder
from .images import IMAGE_FORMATS, make_image
from .leftovers import make_cache, make_state
from .objects import make_openai, make_pth_objects, make_safetensors, make_torchscript
from .words import make_arguments, make_class_texts

KINDS: dict[str, Callable[[Random], list[str]]] = {
    **{kind: partial(make_image, kind) for kind in IMAGE_FORMATS},
    "dicom": make_dicom,
    "class-texts": make_class_texts,
    "arguments": make_arguments,
    "pth-bytes": make_pth_bytes,
    "pth-zip": make_pth_zip,
    "pth-objects": make_pth_objects,
    "pth-opcodes": make_pth_opcodes,
    "legacy": make_legacy,
    "safetensors": make_safetensors,
    "torchscript": make_torchscript,
    "openai": make_openai,
    "folder": make_folder,
    "cache": make_cache,
    "state": make_state,
    "case-list": make_case_list,
    **ANNOTATIONS,
    "case-state": make_case_state,
}
