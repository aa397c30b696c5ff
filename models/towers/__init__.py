"""Networks: the image and text towers, their backbones and tokenizers. Never their weights, never a heatmap."""
