"""What the benchmarks are made of: `goals` is shared by all; every other module measures a part of a script, or helps
those that do.

Its import puts the checkout on the path: `jobs`, which benchmarks measure, is in no wheel. And it sets what Ray reads at its
own import, as a job does.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from jobs.run.session import set_environment  # the checkout is on the path from here on

set_environment()
