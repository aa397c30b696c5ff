"""How well heatmaps agree with what experts drew: of one heatmap, and of all images of a list."""
