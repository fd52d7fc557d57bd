"""The examples: they learn, and what makes them superpositional is one line."""

import re
import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(FOLDER.glob("train_*.py"))


def _run(path, capsys):
    """Losses and test accuracy as a run of the script prints them."""
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]
    (accuracy,) = re.findall(r"test accuracy ([\d.]+)%", printed)
    return losses, float(accuracy)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_learns_and_so_it_does_with_adamw_after_a_swap_of_one_line(path, tmp_path, capsys):
    losses, accuracy = _run(path, capsys)
    assert losses[-1] < losses[0] / 10
    assert accuracy >= 95
    pattern = r"^tx = qsgd\.superpositional_adamw\(.*\)  # (optax\.adamw\(.*\))$"
    plain, swaps = re.subn(pattern, r"tx = \1", path.read_text(), flags=re.MULTILINE)
    assert swaps == 1
    swapped = tmp_path / "swapped.py"
    swapped.write_text(plain)
    adamw_losses, adamw_accuracy = _run(swapped, capsys)
    assert adamw_accuracy >= 95
    assert adamw_losses[0] == losses[0]  # the same model and data
    assert adamw_losses[1:] != losses[1:]  # another optimizer


def test_the_hybrid_example_learns(capsys):
    losses, accuracy = _run(FOLDER / "hybrid_classifier.py", capsys)
    assert losses[-1] < losses[0] / 10
    assert accuracy >= 95


def test_there_is_an_example_of_each_flax_api():
    assert [path.stem for path in EXAMPLES] == ["train_linen", "train_nnx"]


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")  # PennyLane's own
def test_the_natural_gradient_finds_the_ground_state_sooner_than_adam(
    tmp_path, monkeypatch, capsys
):
    pytest.importorskip("matplotlib")  # the package itself does not need it
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(FOLDER / "vqe.py"), run_name="__main__")
    errors = re.findall(r"(.*): relative error ([\d.]+)", capsys.readouterr().out)
    assert [name for name, _ in errors] == ["natural gradient", "Adam"]
    assert float(errors[0][1]) < min(1e-3, float(errors[1][1]))
    assert (tmp_path / "vqe.png").stat().st_size > 10_000


def test_the_hybrid_example_learns_by_both_gradients(capsys):
    losses, accuracy = _run(FOLDER / "hybrid_natural_gradient.py", capsys)
    assert losses[-1] < losses[0] / 10
    assert accuracy >= 95
