"""One image's result and what shows it: figures, overlays, arrays, as bytes of files. Never a call of the model."""
