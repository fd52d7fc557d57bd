"""Scripts that measure qsgd_jax.

Run them as `python -m benchmarks.NAME` in the repository's root, or from anywhere by their path.
"""
