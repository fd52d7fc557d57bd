"""A Llama in Flax, its checkpoints and its fine-tuning on GSM8K, for `benchmarks.llm_finetune`."""
