"""Heatmaps: methods, layers and attention, what is captured of a forward pass, maps as colours, and their measures.

Never a file, a page or a table.
"""
