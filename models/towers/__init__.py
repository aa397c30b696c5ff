"""Networks: the image and text towers, their backbones and tokenizers. Never a file of weights, or a heatmap."""
