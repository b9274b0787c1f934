"""Where the benchmarks leave their records, and what the pages are made of; DISTMETA_RESULTS puts them elsewhere."""

import os
from pathlib import Path

RESULTS = Path(os.environ.get("DISTMETA_RESULTS") or Path(__file__).parent / "results")
