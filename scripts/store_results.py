"""Store the results of a benchmark in results/, from which `ssvd report` and the tables of docs/results.md are made.

    python scripts/store_results.py FOLDER NAME

FOLDER is what `ssvd benchmark --out FOLDER` left behind; results/NAME keeps its grid, records and hypotheses, without
speech, logs and adapters. The same results always give the same bytes.
"""

import sys
from pathlib import Path

from ssvd.benchmark.records import store_study
from ssvd.errors import UserError

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("Usage: python scripts/store_results.py FOLDER NAME")
    try:
        store_study(Path(sys.argv[1]), Path("results") / sys.argv[2])
    except UserError as error:
        sys.exit(str(error))
