"""What devices make of the function of singular values."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.engine import report
from experiments.learned_cascades.cascades import hand_set
from experiments.noisy_cascades.probing import EXACT, REFITTED, from_numbers
from experiments.noisy_cascades.study import Cascades

SIGMA = np.geomspace(1e-3, 1, 300)


def functions(path: Path, cascades: Cascades) -> None:
    """Draw f of every probe of each device, over that of exact circuits.

    Args:
        path: The PNG.
        cascades: What `probing` has written.
    """
    like = hand_set()
    devices = [device for device in cascades if device != EXACT]
    figure, axes = report.panels(len(devices), 2.6)
    for panel, device in zip(axes, devices, strict=True):
        for how, each in cascades[device].items():
            color = "C0" if how == REFITTED else "C1"
            for i, numbers in enumerate(each):
                f = from_numbers(np.array(numbers), like).evaluate(SIGMA)
                label = None if i else how
                panel.plot(SIGMA, f, color=color, linewidth=0.6, label=label)
        panel.plot(SIGMA, like.evaluate(SIGMA), color="black", linewidth=1, label=EXACT)
        panel.set(title=device, xlabel="σ", ylabel="f(σ)", xscale="log")
    axes[0].legend(fontsize="small")
    report.save(figure, path)
