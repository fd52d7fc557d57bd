"""Learning the numbers of a gate that makes AdamW's step better: meta-training."""
