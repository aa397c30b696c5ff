"""Text towers, texts -> embeddings on the unit sphere: the BERT of our own checkpoints, CLIP's own, a published one."""

import inspect
import os
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import InputError
from ..heavy import transformers
from ..messages import Message
from ..weights.configs import plain_part
from ..weights.hub import as_input_error, read_json, text_encoder_folder
from ..weights.names import CLIP_TEXT
from .tokenizers import find_clip_tokenizer, load_tokenizer
from .unread import Unread, unread_part, warnings_of
from .words import Span, offsets_in, word_spans

MAX_TOKENS = 128  # of a text of our own checkpoints
WORDS = "token_embedding", "word_embeddings"  # names of the table of words
POSITIONS = "position_embedding", "position_embeddings"
CANNOT_TOKENIZE = Message("分词器不能处理这些文本")


class TextTower(nn.Module):
    """A text model of transformers, its pooling and its projection: texts -> unit embeddings [K, D].

    `find_tokenizer` loads the tokenizer when the first text comes. `first_token`: what the text model says at its first
    token counts, not what it pools itself (Chinese-CLIP). `padded`: every text is filled up to the full length,
    as SigLIP was trained.
    """

    def __init__(
        self,
        backbone: nn.Module,
        projection: nn.Module,
        find_tokenizer: Callable | None = None,
        padded: bool = False,
        first_token: bool = False,
    ):
        super().__init__()
        self.backbone, self.projection = backbone, projection
        self.find_tokenizer, self.padded, self.first_token = find_tokenizer, padded, first_token
        self._tokenizer = None

    download = False  # whether CLIP's vocabulary may be downloaded

    @property
    def tokenizer(self):
        """The tokenizer, loaded on first use."""
        if self._tokenizer is None:
            self._tokenizer = self.load_tokenizer()
        return self._tokenizer

    def load_tokenizer(self):
        return self.find_tokenizer()

    @property
    def max_tokens(self) -> int:
        """The longest text in tokens: what the tokenizer says, at most what the model has position codes for."""
        return min(self.tokenizer.model_max_length, count_positions(self.backbone))

    def unread(self, texts: list[str]) -> list[Unread]:
        """Of each text that is not read whole, what is not: all that embedding the texts warns of."""
        with as_input_error(CANNOT_TOKENIZE):
            parts = [unread_part(self.tokenizer, self.clean(text), self.max_tokens) for text in texts]
        return [part for part in parts if part]

    def tokenize(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Texts -> what the text model takes, int64 [K, T]; see `inputs`. Warns of each text that is not read whole."""
        for warning in warnings_of(self.unread(texts)):
            warnings.warn(warning, stacklevel=3)
        return self.inputs(texts)

    def inputs(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Texts, cut where they are too long -> what the text model takes, int64 [K, T].

        InputError where the tokenizer gives a token that the model does not know.
        """
        tokens = self._encode(texts)
        if not tokens["input_ids"].numel():
            raise InputError("分词器没有给出任何词元：请检查文本和分词器的文件")
        words, most = _embedding(self.backbone, *WORDS), int(tokens["input_ids"].max())
        if most >= words.num_embeddings:
            raise InputError("分词器给出词元 {}，模型只有 {} 个：分词器与模型不是一套文件", most, words.num_embeddings)
        parameters = inspect.signature(self.backbone.forward).parameters
        return {name: ids.to(words.weight.device) for name, ids in tokens.items() if name in parameters}

    def _encode(self, texts: list[str], **wanted: bool):
        """What the tokenizer says of texts, cut and filled up to one length; `wanted`: what beside the tokens."""
        padding = "max_length" if self.padded else True
        limits = {"padding": padding, "truncation": True, "max_length": self.max_tokens}
        with as_input_error(CANNOT_TOKENIZE):
            return self.tokenizer([*map(self.clean, texts)], **limits, return_tensors="pt", verbose=False, **wanted)

    def words(self, text: str) -> list[Span]:
        """The words of a text as far as it is read, without what the tokenizer puts around it.

        InputError for a tokenizer that does not say where in the text its tokens stand.
        """
        if not self.tokenizer.is_fast:
            raise InputError("分词器 {} 不说明词元在文本中的位置，不能算出各词的贡献", type(self.tokenizer).__name__)
        encoded = self._encode([text], return_offsets_mapping=True, return_special_tokens_mask=True)
        offsets, special = encoded["offset_mapping"][0].tolist(), encoded["special_tokens_mask"][0].tolist()
        offsets = offsets_in(text, self.clean, offsets)
        return word_spans(text, [None if is_special else offset for offset, is_special in zip(offsets, special)])

    def with_shares(self, text: str, shares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A text n times over, with shares [n, t] of its tokens' embeddings -> (those embeddings, unit features).

        The embeddings [n, T, H] are a leaf, on whose graph the features [n, D] are. Tokens behind the first t are
        whole, as are the places and types of all.
        """
        tokens, leaves = self.inputs([text]), []
        tokens = {name: part.expand(len(shares), -1) for name, part in tokens.items()}
        shares = F.pad(shares, (0, tokens["input_ids"].shape[1] - shares.shape[1]), value=1.0)

        def share(module, inputs, output):
            leaves.append((output.detach() * shares[..., None].to(output)).requires_grad_())
            return leaves[0]

        handle = _embedding(self.backbone, *WORDS).register_forward_hook(share)
        try:
            with torch.enable_grad():
                features = self._embed(tokens)
        finally:
            handle.remove()
        return leaves[0], features

    def forward(self, texts=None, input_ids=None, attention_mask=None) -> torch.Tensor:
        """Embed `texts` (a list of K strings) or token ids and mask, each [K, T]."""
        if texts is None:
            tokens = {"input_ids": input_ids, "attention_mask": attention_mask}
        else:
            tokens = self.tokenize([texts] if isinstance(texts, str) else list(texts))
        return self._embed(tokens)

    def _embed(self, tokens: Mapping[str, torch.Tensor | None]) -> torch.Tensor:
        """What the text model takes -> unit embeddings [K, D]."""
        with as_input_error(Message("文本模型不能处理分词器给出的词元")):
            output = self.backbone(**tokens)
        return F.normalize(self.projection(self.pool(output, tokens)).float(), dim=-1)

    def clean(self, text: str) -> str:
        """What the tokenizer is given of a text."""
        return text

    def pool(self, output, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What the text model says of the `tokens`, [K, T] each -> [K, D] for the projection."""
        return output.last_hidden_state[:, 0] if self.first_token else output.pooler_output


def count_positions(text_model: nn.Module) -> int:
    """How many tokens a text model has position codes for."""
    return _embedding(text_model, *POSITIONS).num_embeddings - _first_position(text_model)


def _first_position(text_model: nn.Module) -> int:
    """Where the position codes of a text begin: RoBERTa's behind those of the padding."""
    padding = _embedding(text_model, *POSITIONS).padding_idx
    return 0 if padding is None else padding + 1


def _embedding(text_model: nn.Module, *names: str) -> nn.Embedding:
    """The embedding of a text model that has one of these names; InputError where it has none."""
    for path, module in text_model.named_modules():
        if isinstance(module, nn.Embedding) and path.rpartition(".")[2] in names:
            return module
    raise InputError("文本模型 {} 没有 {}，其结构不受支持", type(text_model).__name__, names[0])


class TextEncoder(TextTower):
    """BERT, `[CLS]` of its last hidden state, linear projection, L2 norm: texts -> embeddings [K, embed_dim].

    `model_name`: bert-base-chinese (shipped), a local folder, or a BERT in the local cache of the hub. `text_config`
    overrides sizes in the names of BertConfig. Weights are random until a checkpoint brings them.
    """

    def __init__(self, model_name: str = "bert-base-chinese", embed_dim: int = 512, text_config: Mapping | None = None):
        config = _bert_config(model_name, text_config or {})
        with as_input_error(Message("无法按文本编码器 {!r} 的 config.json 建立 BERT", model_name)):
            backbone = transformers.BertModel(config, add_pooling_layer=False)
        projection = nn.Linear(backbone.config.hidden_size, embed_dim)
        super().__init__(backbone, projection, first_token=True)
        self.model_name = model_name

    def load_tokenizer(self):
        """The tokenizer that belongs to `model_name`; InputError where it has more words than the weights."""
        tokenizer = load_tokenizer(text_encoder_folder(self.model_name), "BertTokenizer")
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # whatever its file says
        vocab_size = self.backbone.config.vocab_size
        if len(tokenizer) > vocab_size:
            raise InputError(
                "文本编码器 {!r} 的词表有 {} 个词，检查点的词嵌入只有 {} 个；"
                "请用 --text-encoder 指定训练时的文本编码器",
                self.model_name,
                len(tokenizer),
                vocab_size,
            )
        return tokenizer

    @property
    def max_tokens(self) -> int:
        return min(MAX_TOKENS, self.backbone.config.max_position_embeddings)

    def inputs(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Texts -> {"input_ids", "attention_mask"}, int64 [K, T], T <= 128."""
        tokens = super().inputs(texts)
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}


def _bert_config(name: str, sizes: Mapping):
    """BertConfig of the encoder `name`, with the `sizes` read off a checkpoint in place of its own."""
    file = text_encoder_folder(name) / "config.json"
    if not file.is_file():
        raise InputError("文本编码器 {!r} 的文件夹 {} 中没有 config.json", name, file.parent)
    settings = read_json(file)
    if settings.get("model_type") != "bert":
        model_type = str(settings.get("model_type"))[:60]
        raise InputError("文本编码器 {!r} 是 {} 模型；本工具只支持 BERT，不运行文件夹自带的代码", name, model_type)
    settings = plain_part(settings, file)
    usual = transformers.BertConfig()
    own_size, hidden_size = (part.get("hidden_size", usual.hidden_size) for part in (settings, {**settings, **sizes}))
    if hidden_size != own_size:  # heads are in no shape: 64 wide in nearly every BERT, else 12 of them
        settings["num_attention_heads"] = hidden_size // 64 if hidden_size % 64 == 0 else 12
    return transformers.BertConfig(**{**settings, **sizes})


class ClipTextEncoder(TextTower):
    """CLIP's text transformer, its state at the end of the text, linear projection, L2 norm: [K, embed_dim].

    The text tower `clip:ViT-B/32` and the like of a checkpoint of our own. Sizes are those of `text_config`, in the
    names of CLIPTextConfig, else ViT-B/32's; `model_name` may be a folder with the tokenizer's files.
    """

    def __init__(self, model_name: str, embed_dim: int = 512, text_config: Mapping | None = None):
        sizes = {key: value for key, value in (text_config or {}).items() if key != "model_type"}
        width, words = sizes.get("hidden_size", 512), sizes.get("vocab_size", 49408)
        usual = {"num_attention_heads": max(1, width // 64), "bos_token_id": words - 2, "eos_token_id": words - 1}
        backbone = transformers.CLIPTextModel(transformers.CLIPTextConfig(**{**usual, **sizes}))
        backbone = getattr(backbone, "text_model", backbone)  # transformers 4 wraps it
        folder = model_name if os.path.isdir(str(model_name)) else None
        super().__init__(backbone, nn.Linear(width, embed_dim), None)
        self.model_name, self.folder = model_name, folder

    def load_tokenizer(self):
        """CLIP's tokenizer, of the folder or of the places where it is looked for."""
        return find_clip_tokenizer(self.folder, download=self.download)()


def is_clip_text(name: str, text_config: Mapping | None) -> bool:
    """Whether a text encoder is CLIP's own: by its name, `clip:ViT-B/32` say, or by what its weights were read as."""
    return str(name).startswith("clip:") or (text_config or {}).get("model_type") == CLIP_TEXT


def build_text_encoder(name: str, embed_dim: int, text_config: Mapping | None) -> TextTower:
    """The text tower `name`: a BERT, or CLIP's own."""
    encoder = ClipTextEncoder if is_clip_text(name, text_config) else TextEncoder
    return encoder(name, embed_dim, text_config)
