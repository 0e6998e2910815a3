"""The benchmark suite (`asv run`), the main job (`python -m benchmarks`) and a quick comparison (`pytest benchmarks`).

asv imports every module in this folder, in environments that have only the library's own dependencies. So rich, plotly,
jinja2, torch and pytest are imported by the functions that need them, and no name here starts like a benchmark of asv's
(time_, mem_, peakmem_, track_) unless it is one.
"""

import os
from pathlib import Path

# asv reuses one environment for many commits, and numba's cache would hand the machine code of one commit to the next:
# a planted slowdown stayed invisible that way. This runs before anything imports numba.
if "ASV_COMMIT" in os.environ:
    _folder = Path(os.environ["ASV_ENV_DIR"]) / "numba-cache" / os.environ["ASV_COMMIT"]
    _folder.mkdir(parents=True, exist_ok=True)
    os.environ["NUMBA_CACHE_DIR"] = str(_folder)
