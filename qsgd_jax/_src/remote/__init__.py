"""Probing beside the training loop: the prober, its process, and what runs there."""
