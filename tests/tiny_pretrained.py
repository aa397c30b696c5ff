"""Tiny random models of other libraries, saved to folders as they are published: weights, tokenizer, preprocessor."""

import json
from pathlib import Path

import torch
import transformers
from tiny import gradient_picture, randomise_norms

from models.towers.tokenizers import byte_letters

TEXTS = ["a cat", "正常假体", "two dogs on the loose hip", "感染"]
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXT = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGE, FREE = {"image_size": 32, "patch_size": 8}, {"patch_size": 8, "num_patches": 16}
LETTERS = "abcdefghijklmnopqrstuvwxyz正常假体感染松动"
CLIP_MERGES = ["c a", "ca t</w>", "d o", "t h", "th e</w>"]


class Payload:
    """An object whose pickle calls `function(*arguments)` in whoever unpickles it."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def write_clip_bpe(folder) -> int:
    """vocab.json and merges.txt of CLIP's kind; returns the number of tokens."""
    letters = byte_letters()
    words = [*letters, *(letter + "</w>" for letter in letters), *(merge.replace(" ", "") for merge in CLIP_MERGES)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: index for index, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *CLIP_MERGES]) + "\n", encoding="utf-8")
    return len(words)


def _save_bert(folder) -> int:
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    BertTokenizer.from_pretrained(folder, model_max_length=20).save_pretrained(folder)
    return len(words)


def _save_clip(folder) -> int:
    size = write_clip_bpe(folder)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 16, "pad_token": "<|endoftext|>"}
    settings |= {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return size


def _save_letters(folder, special: dict, first: str, names=("input_ids", "attention_mask"), **settings) -> int:
    """A tokenizer of single letters with `special` = {role: token} at ids 0, 1, ..., made by the tokenizers library."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*special.values(), *LETTERS]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token=special["unk_token"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    end = special["eos_token"]
    template = f"{first} $A {end}".strip()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(word, words.index(word)) for word in {first, end} - {""}]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=list(names), **special, **settings)
    fast.save_pretrained(folder)
    return len(words)


ROLES = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def _save_siglip(folder) -> int:
    return _save_letters(folder, ROLES, "", ("input_ids",), padding_side="right")


def _save_roberta(folder) -> int:
    return _save_letters(folder, {"bos_token": "<s>", **ROLES}, "<s>", model_max_length=16)


def _save_gemma(folder) -> int:
    special = {**ROLES, "bos_token": "<bos>", "mask_token": "<mask>"}
    return _save_letters(folder, special, "", ("input_ids",), padding_side="right")


CLIP_TEXT = {**TEXT, "max_position_embeddings": 16}
METACLIP_TEXT = {**CLIP_TEXT, "eos_token_id": 2, "pad_token_id": 1}
SIGLIP_TEXT = {**CLIP_TEXT, "hidden_size": 32, "pad_token_id": 0}
BERT_TEXT = {**TEXT, "max_position_embeddings": 20, "initializer_range": 0.5}
ALT_TEXT = {**TEXT, "max_position_embeddings": 18, "pad_token_id": 1, "project_dim": 20}
SQUARE = {"size": {"height": 32, "width": 32}}
CLIP_PIXELS = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 36}, "crop_size": 32}
SIGLIP_PIXELS = {"image_processor_type": "SiglipImageProcessor", "resample": 2, **SQUARE}
CHINESE_PIXELS = {"image_processor_type": "ChineseCLIPImageProcessor", "do_center_crop": False, **SQUARE}
SIGLIP2_PIXELS = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 8, "max_num_patches": 20}
JOINT = {"projection_dim": 28}

# family -> class, save tokenizer, text config, vision config, config, preprocessor
FAMILIES = {
    "clip": ("CLIP", _save_clip, CLIP_TEXT, {**VISION, **IMAGE}, JOINT, CLIP_PIXELS),
    "chinese_clip": ("ChineseCLIP", _save_bert, BERT_TEXT, {**VISION, **IMAGE}, JOINT, CHINESE_PIXELS),
    "altclip": ("AltCLIP", _save_roberta, ALT_TEXT, {**VISION, **IMAGE}, JOINT, CLIP_PIXELS),
    "metaclip_2": ("MetaClip2", _save_roberta, METACLIP_TEXT, {**VISION, **IMAGE}, JOINT, CLIP_PIXELS),
    "siglip": ("Siglip", _save_siglip, SIGLIP_TEXT, {**VISION, **IMAGE}, {}, SIGLIP_PIXELS),
    "siglip2": ("Siglip2", _save_gemma, SIGLIP_TEXT, {**VISION, **FREE}, {}, SIGLIP2_PIXELS),
}
SAVE_TOKENIZER = {name: family[1] for name, family in FAMILIES.items()}
FAMILIES = {name: family for name, family in FAMILIES.items() if hasattr(transformers, f"{family[0]}Model")}


def make_network(family: str, tokens: int, seed: int = 0, **vision):
    """A random network of a family, in eval mode, every weight large enough to matter."""
    name, _, text_config, vision_config, joint, _ = FAMILIES[family]
    ends = {"bos_token_id": tokens - 2, "eos_token_id": tokens - 1}  # as in CLIP's vocabulary
    text_config = {**ends, **text_config, "vocab_size": tokens}
    configs = {"text_config": text_config, "vision_config": {**vision_config, **vision}}
    torch.manual_seed(seed)
    network = getattr(transformers, name + "Model")(getattr(transformers, name + "Config")(**configs, **joint))
    return randomise(network, seed)


def randomise(network, seed=0):
    """Weights that tell: fresh ones are so small that neither attention nor position codes matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim >= 2 or "embedding" in name:
                fan_in = parameter[0].numel() if parameter.ndim >= 2 and "embedding" not in name else 1
                parameter.normal_(0, 1.5 / fan_in**0.5, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.2, generator=generator)
        if hasattr(network, "logit_scale"):
            network.logit_scale.fill_(1.5)
        if getattr(network, "logit_bias", None) is not None:
            network.logit_bias.fill_(-0.7)
    return randomise_norms(network, seed).eval()


def save_pretrained(folder, family: str, seed: int = 0, pixels: dict | None = None, save=None, **vision):
    """A folder with a model of a family, its tokenizer and preprocessor; returns (folder, network)."""
    folder = Path(folder)
    tokens = FAMILIES[family][1](folder)
    network = make_network(family, tokens, seed, **vision)
    (save or (lambda network, folder: network.save_pretrained(folder)))(network, folder)
    settings = {**FAMILIES[family][-1], **(pixels or {})}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder, network


def library_pixels(folder, pixels):
    """What the library's own PIL processor of a folder makes of uint8 [H, W, 3]: a dict of tensors."""
    kind = json.loads((Path(folder) / "preprocessor_config.json").read_text())["image_processor_type"]
    processor = getattr(transformers, kind + "Pil", None) or getattr(transformers, kind)
    return processor.from_pretrained(folder)(images=pixels, return_tensors="pt")


def library_outputs(folder, network):
    """The library's own `model(**processor(text, image))` of TEXTS and the gradient picture."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    options = {"padding": True, "truncation": True, "return_tensors": "pt"}
    if "siglip" in network.config.model_type:
        options |= {"padding": "max_length", "max_length": 16}
    return network(**tokenizer(TEXTS, **options), **library_pixels(folder, gradient_picture()))
