"""Compute logits by Hugging Face's transformers on PyTorch; test_parity starts it.

Arguments: the model (a folder or a .gguf file), an .npy file of token ids (rows, length), an
.npy file for the logits in float32, and how many tokens to continue the first row by, greedily.
"""

import sys
from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from transformers import AutoModelForCausalLM  # pyright: ignore[reportMissingImports]


def main() -> None:
    """Write the logits, and as `tokens` the first row with what is likeliest to follow."""
    path, tokens, out, new_tokens = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    source = (path.parent, {"gguf_file": path.name}) if path.suffix == ".gguf" else (path, {})
    model = AutoModelForCausalLM.from_pretrained(
        source[0], dtype=torch.float32, attn_implementation="eager", **source[1]
    ).eval()
    rows = torch.from_numpy(np.load(tokens).astype(np.int64))
    with torch.no_grad():
        logits = model(rows).logits.numpy()
        first = rows[:1]
        for _ in range(new_tokens):
            following = model(first).logits[:, -1:].argmax(dim=-1)
            first = torch.cat([first, following], dim=1)
    np.savez(out, logits=logits, tokens=first.numpy())


if __name__ == "__main__":
    main()
