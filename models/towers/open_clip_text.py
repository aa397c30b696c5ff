"""Text towers that open_clip gave another library's tokenizer: its Hugging Face encoders and SigLIP's transformer."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from .text import TextTower, count_positions


def _mean(output, mask: torch.Tensor) -> torch.Tensor:
    mask = mask.unsqueeze(-1)
    return (output.last_hidden_state * mask).sum(1) / mask.sum(1)


# open_clip's poolers (hf_model.py): the text model's output and its mask [K, T] -> [K, D]; its max_pooler cannot run
POOLERS: dict[str, Callable] = {
    "cls_pooler": lambda output, mask: output.pooler_output,
    "cls_last_hidden_state_pooler": lambda output, mask: output.last_hidden_state[:, 0],
    "mean_pooler": _mean,
}


class OpenClipTextTower(TextTower):
    """A text model that reads what open_clip's HFTokenizer makes of a text: cleaned, cut at `context` tokens.

    With a `padding` token no other token attends to it, and filling up changes nothing; without one (SigLIP) all
    tokens count, and each text is filled up to the full length.
    """

    def __init__(
        self,
        backbone: nn.Module,
        projection: nn.Module,
        find_tokenizer: Callable,
        context: int,
        clean: Callable,
        pooler: str = "cls_pooler",
        padding: int | None = None,
    ):
        super().__init__(backbone, projection, find_tokenizer, padded=padding is None)
        self.context, self.clean, self.pooler, self.padding = context, clean, POOLERS[pooler], padding

    @property
    def max_tokens(self) -> int:
        """What open_clip cuts a text at, whatever the tokenizer's own limit; at most the position codes."""
        return min(self.context, count_positions(self.backbone))

    def load_tokenizer(self):
        tokenizer = super().load_tokenizer()
        self.padded = tokenizer.pad_token_id != self.padding  # else what is filled up is masked
        return tokenizer

    def inputs(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Texts -> {"input_ids"} and, with a padding token, {"attention_mask"}, int64 [K, T]."""
        ids = super().inputs(texts)["input_ids"]
        return {"input_ids": ids} if self.padding is None else {"input_ids": ids, "attention_mask": self._mask(ids)}

    def _mask(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(ids) if self.padding is None else (ids != self.padding).long()

    def pool(self, output, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        mask = tokens.get("attention_mask")
        return self.pooler(output, self._mask(tokens["input_ids"]) if mask is None else mask)
