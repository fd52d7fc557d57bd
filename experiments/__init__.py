"""Studies that used qsgd_jax; README.md lists them."""

from benchmarks import requirements

requirements.explain({"--editable experiments": ("sklearn",)})
