"""The report of a run: a page for a browser without a network, with all images, heatmaps and a reader's marks."""
