"""What a script of this folder finds as `benchmarks` if it is run by its path, from anywhere.

Other distributions install a `benchmarks` too, which Python would find first.
"""

import sys
from pathlib import Path

__path__ = [str(Path(__file__).parent)]
sys.path[0] = str(Path(__file__).parents[1])
