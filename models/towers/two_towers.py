"""What every CLIP offers, whoever trained it: images and texts embedded, compared, and turned into probabilities."""

import torch
from torch import nn

from ..class_texts import names_and_texts
from ..errors import InputError
from .similarity import check_text_features, cosines, embed_classes


class TwoTowers(nn.Module):
    """An `image_encoder` and a `text_encoder`, None once its texts are embedded; subclasses bring the two rules.

    `logits(cosines [..., K])` is what training compares, `probabilities(cosines [..., K])` in float32 what is said.
    """

    class_text_features: torch.Tensor | None = None  # [K, D], computed before or loaded with the model

    @property
    def independent_probabilities(self) -> bool:
        """Whether each text has a probability of its own, so that they need not sum to 1."""
        return self.logit_bias is not None

    def forward(self, images, texts=None, input_ids=None, attention_mask=None) -> torch.Tensor:
        """Images [B, 3, H, W] and K texts -> logits [B, K]."""
        text_features = self.embed_texts(texts, input_ids, attention_mask)
        return self.compute_similarity(self.image_encoder(images), text_features)

    def embed_texts(self, texts=None, input_ids=None, attention_mask=None) -> torch.Tensor:
        """K texts, each of one description or several, or token ids and mask [K, T] -> [K, D].

        InputError without a text tower.
        """
        if self.text_encoder is None:
            raise InputError("该模型没有文本编码器，不能编码文本；请给出 text_features，或用 load_clip_checkpoint 载入")
        if texts is None:
            return self.text_encoder(None, input_ids, attention_mask)
        return embed_classes(self.text_encoder, texts)

    def compute_similarity(self, image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
        """[B, D] and [K, D] -> logits [B, K]; InputError for text features of another shape."""
        return self.logits(cosines(image_features, text_features))

    @torch.no_grad()
    def precompute_class_text_features(self, class_texts, text_templates=()) -> torch.Tensor:
        """Embed the class texts (see `names_and_texts`) once, [K, D]; `predict` uses them from then on."""
        self.class_text_features = self.embed_texts(names_and_texts(class_texts, text_templates)[1])
        return self.class_text_features

    @torch.no_grad()
    def predict(
        self, images, class_texts=None, text_features=None, text_templates=()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (index of the most similar text [B], probabilities [B, K]).

        The texts are `text_features` [K, D], else `class_texts` in `text_templates` (see `names_and_texts`), else those
        whose features the model has. InputError for features that cannot be compared with the images, and
        for as many as there are not `class_texts`.
        """
        if text_features is None and class_texts is not None:
            text_features = self.precompute_class_text_features(class_texts, text_templates)
        if text_features is None:
            text_features = self.class_text_features
        if text_features is None:
            raise InputError("predict 需要 class_texts 或 text_features，或先调用 precompute_class_text_features")
        image_features, text_features = self.image_encoder(images), check_text_features(text_features)
        probabilities = self.probabilities(cosines(image_features, text_features))
        return probabilities.argmax(dim=-1), probabilities
