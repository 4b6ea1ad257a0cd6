"""Store the results of a benchmark in results/, from which `ssvd report` and the tables of docs/results.md are made.

    python scripts/store_results.py FOLDER NAME              # finished or not
    python scripts/store_results.py --restore NAME FOLDER    # and ssvd benchmark ... --out FOLDER goes on from there

FOLDER is what `ssvd benchmark --out FOLDER` left behind; results/NAME keeps its grid, records and hypotheses, without
speech, logs and adapters. The same results always give the same bytes.
"""

import sys
from pathlib import Path

from ssvd.benchmark.records import restore_study, store_study
from ssvd.errors import UserError

if __name__ == "__main__":
    restores = sys.argv[1:2] == ["--restore"]
    arguments = sys.argv[1 + restores :]
    if len(arguments) != 2:
        sys.exit("Usage: python scripts/store_results.py FOLDER NAME, or --restore NAME FOLDER")
    try:
        if restores:
            restore_study(Path("results") / arguments[0], Path(arguments[1]))
        else:
            store_study(Path(arguments[0]), Path("results") / arguments[1])
    except UserError as error:
        sys.exit(str(error))
