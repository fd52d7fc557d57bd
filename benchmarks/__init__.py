"""Scripts that measure qsgd_jax.

Run them as `python -m benchmarks.NAME` in the repository's root, or from anywhere by their path.
"""

from benchmarks import requirements

EXTRAS = {
    "'qsgd_jax[benchmarks]'": ("matplotlib", "orbax", "rich", "scipy", "tqdm"),
    "'qsgd_jax[llm]'": ("gguf", "psutil", "safetensors", "tokenizers", "transformers"),
    "'qsgd_jax[devices]'": ("qiskit_aer", "qiskit_ibm_runtime"),
}
requirements.explain(EXTRAS)
