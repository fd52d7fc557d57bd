"""Does the spectral form train faster than AdamW? A first look, on two tasks."""
