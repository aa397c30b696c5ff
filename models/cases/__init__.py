"""Cases: the list of images with what is true of them, and where experts drew it.

Never a model and no heatmap: labels are indices of texts, annotations are masks of the image's size.
"""
