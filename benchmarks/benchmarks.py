"""What a script of this folder finds as `benchmarks` if it is run by its path, from anywhere.

Other distributions install a `benchmarks` too, which Python would find first.
"""

import importlib
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])
del sys.modules[__name__]  # for the package of this name
importlib.import_module(__name__)
