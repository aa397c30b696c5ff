"""Heatmaps: methods, layers and attention, what is captured of a forward pass, and what can be measured of a map.

Never a file, a picture or a word to the reader but for why a map is empty.
"""
