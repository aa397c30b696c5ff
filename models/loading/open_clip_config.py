"""What an open_clip_config.json says of a model whose towers are timm's or Hugging Face's: all that no shape shows."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..messages import Joined, Message
from ..towers.cleaning import CLEANERS
from ..towers.open_clip_text import POOLERS
from ..weights.configs import SWITCH, WIDTH, WORD, Kind, check_fields, one_of, one_or_several, real
from .openai import OPEN_CLIP_FIELDS, TEXT_FIELDS, VISION_FIELDS, open_clip_parts
from .processors import SIDE

HUGGING_FACE, BIDIRECTIONAL, CAUSAL = "hugging face", "bidirectional", "causal"  # kinds of text tower
NAME = Kind(Message("一个名称"), lambda value: isinstance(value, str) and value.isprintable() and len(value) <= 1000)
FIELDS = {
    **{name: OPEN_CLIP_FIELDS[name] for name in ("model_cfg", "preprocess_cfg")},
    "vision_cfg": {
        "timm_model_name": WORD,
        "timm_pool": one_of("", "tok", "token", "map"),
        "image_size": one_or_several(SIDE),
        "head_width": WIDTH,
    },
    "text_cfg": {
        **{"hf_model_name": NAME, "hf_tokenizer_name": NAME, "hf_pooler_type": one_of(*POOLERS)},
        **{"context_length": WIDTH, "heads": WIDTH, "no_causal_mask": SWITCH, "pool_type": one_of("argmax", "last")},
    },
    "tokenizer_kwargs": {"clean": one_of(*CLEANERS)},
    "norm_kwargs": {"eps": real(0, 1)},
    "act_kwargs": {"approximate": one_of("none", "tanh")},
}
OF_THE_TEXT = ("tokenizer_kwargs", "norm_kwargs", "act_kwargs")  # objects in text_cfg

# what a part may say: the rest is an error. What is not in FIELDS has no effect, or is seen in the weights.
MODEL_FIELDS = {*FIELDS["model_cfg"], "embed_dim", "custom_text", "init_logit_scale", "nonscalar_logit_scale"}
MODEL_FIELDS |= {"vision_cfg", "text_cfg"}
TIMM_FIELDS = VISION_FIELDS | {f"timm_{name}" for name in ("model_name", "model_pretrained", "pool", "proj")}
TIMM_FIELDS |= {f"timm_{name}" for name in ("proj_bias", "drop", "drop_path")}
_TOKENIZER_FIELDS = {"hf_tokenizer_name", "tokenizer_kwargs"}
_TRANSFORMER_FIELDS = {"pool_type", "proj_type", "proj_bias", "mlp_ratio", "norm_kwargs", "act_kwargs"}
TEXT_FIELDS_OF = {
    HUGGING_FACE: {
        *(TEXT_FIELDS | _TOKENIZER_FIELDS),
        *(f"hf_{name}" for name in ("model_name", "model_pretrained", "pooler_type", "proj_type")),
    },
    BIDIRECTIONAL: TEXT_FIELDS | _TOKENIZER_FIELDS | _TRANSFORMER_FIELDS | {"no_causal_mask", "pad_id", "eos_id"},
    CAUSAL: TEXT_FIELDS | _TRANSFORMER_FIELDS,
}
POOL_OF = {BIDIRECTIONAL: "last", CAUSAL: "argmax"}


class OpenClipConfig(NamedTuple):
    """The fields of each part, checked; a field that the file leaves out is open_clip's default."""

    file: Path
    model: dict
    vision: dict
    text: dict  # tokenizer_kwargs, norm_kwargs and act_kwargs among it
    preprocess: dict

    @property
    def text_kind(self) -> str:
        return _text_kind(self.text)

    @property
    def image_side(self) -> int:
        """The side of the square input; InputError where it is none."""
        size = self.vision.get("image_size", 224)
        sides = {*size} if isinstance(size, list) else {size}
        if len(sides) != 1:
            raise InputError("{} 的 image_size 是 {}，本工具只支持正方形", self.file, str(size)[:60])
        return sides.pop()

    @property
    def text_activation(self) -> str:
        """Of open_clip's own text transformer."""
        if self.model.get("quick_gelu"):
            return "quick_gelu"
        return "gelu_pytorch_tanh" if self.text["act_kwargs"].get("approximate") == "tanh" else "gelu"


def _text_kind(text: Mapping) -> str:
    if "hf_model_name" in text:
        return HUGGING_FACE
    return BIDIRECTIONAL if text.get("no_causal_mask") else CAUSAL


def read_config(file: Path) -> OpenClipConfig:
    """The config in a file; InputError where there is none, or where it says what we cannot build."""
    if not file.is_file():
        raise InputError(
            "文件夹 {} 中没有 open_clip_config.json，这种模型的结构和预处理只有它能说明：请把模型仓库中的这个文件放在"
            "权重旁；自己训练的，用 open_clip 的 model_configs 中的 JSON 文件",
            file.parent,
        )
    parts = open_clip_parts(file)
    parts |= {name: parts["text_cfg"].get(name) or {} for name in OF_THE_TEXT}
    if "timm_model_name" in parts["vision_cfg"]:  # open_clip's defaults, where null says something else
        parts["vision_cfg"] = {"timm_pool": "avg", **parts["vision_cfg"]}
    parts["text_cfg"] = {"hf_pooler_type": "mean_pooler", **parts["text_cfg"]}
    read = {name: check_fields(parts[name], fields, file, f"{name}.") for name, fields in FIELDS.items()}
    vision, text = read["vision_cfg"], read["text_cfg"]
    kind = _text_kind(text)
    _refuse_others(parts["model_cfg"], MODEL_FIELDS, file)
    _refuse_others(parts["vision_cfg"], TIMM_FIELDS if "timm_model_name" in vision else VISION_FIELDS, file)
    _refuse_others(parts["text_cfg"], TEXT_FIELDS_OF[kind] | {"hf_pooler_type"}, file)
    for name in OF_THE_TEXT:
        _refuse_others(parts[name], set(FIELDS[name]), file)
        text[name] = read[name]
    pool = text.get("pool_type", "argmax")
    if pool != POOL_OF.get(kind, pool):
        raise InputError(
            "{} 的 pool_type 是 {!r}，而 no_causal_mask 是 {}；支持：因果的用 argmax，双向的用 last",
            file,
            pool,
            kind == BIDIRECTIONAL,
        )
    return OpenClipConfig(file, read["model_cfg"], vision, text, read["preprocess_cfg"])


def _refuse_others(part: Mapping, fields: set[str], file: Path) -> None:
    """InputError where a part says something, other than no, that is none of the fields."""
    others = [str(name)[:60] for name, value in part.items() if value and name not in fields]
    if others:
        raise InputError("{} 中的 {} 不受支持", file, Joined("、", others[:3]))
