"""One image's result and what shows it: figures, overlays, arrays, and their files. Never a call of the model."""
