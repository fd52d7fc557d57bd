"""Compare the Flax Llama with Hugging Face's transformers on PyTorch, logits and greedy text.

Run it as `make llm-parity`, or as `python -m benchmarks.llm_parity`; `--help` is the manual.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import reporting
from benchmarks.llm.checkpoints import CheckpointError, load_model, open_checkpoint, save_model
from benchmarks.llm.text import Text, open_text
from benchmarks.llm.training import greedy

DESCRIPTION = """\
Load each model here and in transformers, which runs in an environment of its own (--python), and
compare the logits of the same token ids in float32: a prompt's, and random ones. A .gguf file is
dequantised by each side for itself. A folder of llama2.c, which transformers does not read, is
written as a Hugging Face folder first. The prompt is then continued greedily by both.
"""

PEER = Path(__file__).parent / "peers" / "transformers_logits.py"
QUESTION = "What is the capital of France?"
STORY = "Once upon a time"
BAR = 1e-3


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print the table, write JSON, and fail where a bar is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.llm_parity",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="as in llm_finetune")
    parser.add_argument(
        "--python", type=Path, required=True, help="interpreter that has transformers and torch"
    )
    parser.add_argument("--new-tokens", type=int, default=16, help="of the text (default: 16)")
    parser.add_argument("--output", type=Path, default=Path("results/llm_parity"))
    args = parser.parse_args(argv)
    try:
        rows = [compare(path, args.python, args.new_tokens) for path in args.models]
    except (CheckpointError, OSError) as error:
        parser.error(str(error))
    content = {"benchmark": "llm_parity", "provenance": reporting.provenance(), "models": rows}
    reporting.write_json(args.output / "llm_parity.json", content)
    reporting.print_table(
        "Logits against transformers, float32",
        ["model", "tokens", "largest difference", "largest logit", "same greedy text"],
        [
            [
                row["name"],
                str(row["tokens"]),
                f"{row['largest_difference']:.1e}",
                f"{row['largest_logit']:.1f}",
                "yes" if row["same_text"] else "NO",
            ]
            for row in rows
        ],
        [f"{row['name']}: {row['text']!r}" for row in rows],
    )
    if not all(row["largest_difference"] <= BAR and row["same_text"] for row in rows):
        raise SystemExit(f"The two differ by more than {BAR}, or continue differently.")


def compare(path: Path, python: Path, new_tokens: int) -> dict[str, Any]:
    """Return how far the logits of one model are from those of transformers."""
    checkpoint = open_checkpoint(path)
    text = open_text(path, checkpoint.config)
    model = load_model(checkpoint)
    graph, params = nnx.split(model)
    prompt = _prompt(path, text)
    drawn = np.random.default_rng(0).integers(checkpoint.config.vocab_size, size=(2, 128))
    drawn[0, : len(prompt)] = prompt

    @jax.jit
    def ours(tokens: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(tokens)

    continued = greedy(
        graph, params, jnp.array([prompt]), jnp.array([len(prompt)]), new_tokens=new_tokens, stop=[]
    )
    said = np.asarray(continued)[0].tolist()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = path
        if _is_llama2c(path):
            source = folder / "model"
            save_model(source, model, path)
        rows = [np.array([prompt]), drawn]
        theirs = [_run(python, source, tokens, folder, new_tokens) for tokens in rows]
    differences = [
        np.abs(np.asarray(ours(jnp.asarray(tokens))) - one["logits"]).max()
        for tokens, one in zip(rows, theirs, strict=True)
    ]
    return {
        "name": path.name,
        "tokens": len(prompt) + drawn.size,
        "largest_difference": float(max(differences)),
        "largest_logit": float(max(np.abs(one["logits"]).max() for one in theirs)),
        "same_text": theirs[0]["tokens"][0, len(prompt) :].tolist() == said,
        "text": text.decode(text.ended(said)),
    }


def _is_llama2c(path: Path) -> bool:
    return path.suffix != ".gguf" and not (path / "config.json").is_file()


def _prompt(path: Path, text: Text) -> list[int]:
    if _is_llama2c(path):  # it only tells stories
        return [*text.begin, *text.tokenizer.encode(STORY, add_special_tokens=False).ids]
    return text.prompt(QUESTION)


def _run(
    python: Path, model: Path, tokens: np.ndarray, folder: Path, new_tokens: int
) -> dict[str, np.ndarray]:
    np.save(folder / "tokens.npy", tokens)
    out = folder / "theirs.npz"
    subprocess.run(
        [str(python), str(PEER), str(model), str(folder / "tokens.npy"), str(out), str(new_tokens)],
        check=True,
    )
    with np.load(out) as content:
        return dict(content)


if __name__ == "__main__":
    main()
