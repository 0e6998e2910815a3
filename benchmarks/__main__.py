"""python -m benchmarks: verify, time and report. `--help` says the rest."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from benchmarks.job import main

    sys.exit(main())
