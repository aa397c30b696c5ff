"""Images: which ones the user means, what their results are called, their pixels, and how these become model input.

Never a forward pass, and nothing of what is explained.
"""
