"""From a path to a model: content, read once -> the reader that recognises it -> the model, with its texts' features.

`load.load_clip_checkpoint` is the one way in. Never the definition of a network (`models.towers`).
"""
