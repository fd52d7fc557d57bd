"""What a user has without qsgd_jax; each peer runs in an environment of its own."""
