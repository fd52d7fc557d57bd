"""A Llama in Flax, its checkpoints and its fine-tuning on GSM8K, for `benchmarks.llm_finetune`."""

import os

# Only tokenizers and configurations are read by transformers, which would advise PyTorch.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
