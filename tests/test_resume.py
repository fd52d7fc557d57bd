"""Resume: a training killed with SIGKILL and restored from orbax is the one left alone.

The trainer saves after the first step and every 5, asynchronously, and reports after each step a
SHA-256 of all that it holds: parameters, optimizer state, the random state of dropout. Once it has
reported a step drawn at random, or one beyond, it may run for up to a tenth of a second, in which
it takes further steps and saves; then it is killed, and the next one gets what lies on disk, half
a save included. SIGKILL is not a power cut: what the killed process has written, the operating
system still has.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.trainer import digest

STEPS = 40
KILLS = 3
LONGEST_DELAY = 0.1  # seconds; a save takes about as long


def pytest_generate_tests(metafunc):
    if "seed" in metafunc.fixturenames:  # each fourth has another of the four forms
        metafunc.parametrize("seed", range(metafunc.config.getoption("trainings")))


@pytest.mark.bits
@pytest.mark.slow
def test_a_training_killed_three_times_is_bit_for_bit_the_one_left_alone(tmp_path, seed):
    left_alone, killed = tmp_path / "left_alone", tmp_path / "killed"
    left_alone.mkdir()
    killed.mkdir()
    expected, _ = _live(left_alone, seed)
    rng = np.random.default_rng(seed)
    kills = 0
    for victim in np.sort(rng.choice(np.arange(1, STEPS - 4), KILLS, replace=False)):
        reported, hit = _live(killed, seed, victim, LONGEST_DELAY * rng.uniform())
        _assert_same(reported, expected)
        kills += hit
    assert kills == KILLS, "a training ended before its kill"
    reported, _ = _live(killed, seed)
    _assert_same(reported, expected)
    assert max(reported) == STEPS
    assert min(reported) > 0, "begun again, not restored from a checkpoint"


def _assert_same(reported: dict[int, str], expected: dict[int, str]) -> None:
    assert reported == {step: expected[step] for step in reported}


def _live(
    folder: Path, seed: int, victim: int | None = None, delay: float = 0.0
) -> tuple[dict[int, str], bool]:
    """Run one trainer to the end, or kill it `delay` seconds after it has reported the `victim`.

    Returns the SHA-256 of each step that it reported, and whether it was killed.
    """
    trainer = Path(__file__).with_name("trainer.py")
    cache = {
        "JAX_COMPILATION_CACHE_DIR": f"{folder}_compiled",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    reported: dict[int, str] = {}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, trainer, folder, str(seed), str(STEPS)],
            env=os.environ | cache,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                step, sha = line.split()
                reported[int(step)] = sha
                # It must have taken a step itself, else no kill would ever move on.
                if victim is not None and int(step) >= victim and len(reported) > 1:
                    time.sleep(delay)
                    process.kill()  # what it had reported by then is still in the pipe
                    victim = None
            process.wait()
        finally:
            process.kill()
        errors.seek(0)
        assert process.returncode in (0, -signal.SIGKILL), errors.read()
    return reported, process.returncode != 0


@pytest.mark.parametrize("change", ["one bit", "the random key"])
def test_digest_sees_every_bit(change):
    tree = {"weight": jnp.ones((3, 2)), "key": jax.random.key(0)}
    changed = dict(tree)
    if change == "one bit":
        changed["weight"] = tree["weight"].at[2, 1].set(jnp.nextafter(1.0, 2.0))
    else:
        changed["key"] = jax.random.key(1)
    assert digest(tree) == digest(jax.tree.map(jnp.copy, tree))
    assert digest(changed) != digest(tree)
