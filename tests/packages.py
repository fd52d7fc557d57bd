"""Build the sdist and the wheel, install each in an environment of its own, and use it there.

Run it as `python tests/packages.py`.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
LARGEST_SDIST = 400_000
# One step of the optimizer of the README's first example.
STEP = """
import jax.numpy as jnp

params = {"kernel": jnp.ones((8, 4)), "bias": jnp.zeros(4)}
updates, _ = tx.update(params, tx.init(params), params)
assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in updates.values())
print(qsgd.__version__, qsgd.__file__)
"""


def main() -> None:
    """Build both, and use both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--constraint", type=Path, required=True, help="versions to install")
    constraint = parser.parse_args().constraint.absolute()
    found = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    if found is None:
        raise SystemExit("README.md has no example.")
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "dist"
        subprocess.run([sys.executable, "-m", "build", "--outdir", built, ROOT], check=True)
        (sdist,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
        for package in sdist, wheel:
            print(f"{package.name}: {package.stat().st_size:,} bytes")
        if sdist.stat().st_size > LARGEST_SDIST:
            raise SystemExit(f"The sdist is larger than {LARGEST_SDIST:,} bytes.")
        for package in sdist, wheel:
            home = Path(folder) / package.suffix.lstrip(".")
            venv.create(home, with_pip=True)
            python = home / "bin" / "python"
            install = [python, "-m", "pip", "install", "--quiet", "--constraint", constraint]
            subprocess.run([*install, package], check=True)
            subprocess.run([python, "-I", "-c", found[1] + STEP], check=True, cwd=home)


if __name__ == "__main__":
    main()
