"""The screening of the spectral form: its record is made from the stored runs."""

import re
from pathlib import Path

import numpy as np

from experiments.engine.results import read_results
from experiments.engine.statistics import Comparison
from experiments.spectral import __main__ as spectral

ROOT = Path(__file__).parents[2]
STORED = ROOT / "experiments" / "results" / "spectral"
RECORD = ROOT / "experiments" / "records" / "spectral_screening.md"


def test_the_record_is_made_from_the_stored_runs(tmp_path):
    written = tmp_path / RECORD.name
    spectral.main(["--output", str(STORED), "--report", str(written)])
    assert written.read_text() == RECORD.read_text()


def test_the_bar_compares_with_the_better_adamw():
    lines = read_results(STORED / spectral.PACKED)
    table = spectral.bar_table(Comparison(lines), {name: name for name in spectral.CONTENDERS})
    (row,) = (x for x in table.splitlines() if "word-problems: spectral-muon | 750" in x)

    def losses(contender: str, steps: int) -> np.ndarray:
        return np.array(
            [
                x["validation"][-1]
                for x in sorted(lines, key=lambda x: x["seed"])
                if (x["phase"], x["workload"], x["contender"], x["steps"])
                == ("final", "word-problems", contender, steps)
            ]
        )

    better = min((losses(name, 1000) for name in spectral.ADAMWS), key=lambda x: x.mean())
    change = 100 * (losses("spectral-muon", 750) / better - 1).mean()
    found = re.search(r"([+-][\d.]+) %", row)
    assert found is not None and float(found[1]) == round(change, 2)
