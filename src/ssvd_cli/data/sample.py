"""`ssvd data sample`."""

from typing import Annotated

import typer

from ssvd_cli.data.corpus import CorpusName, CutsFile, DrawSeed, check_cuts_file, read
from ssvd_cli.divisions import write_parts
from ssvd_cli.options import LARGEST, SkipBad, finite


def sample(
    corpus: CorpusName,
    out: CutsFile,
    utterances: Annotated[int | None, typer.Option(min=1, max=LARGEST, help="Number of utterances to draw.")] = None,
    hours: Annotated[
        float | None, typer.Option(min=0, callback=finite, help="Maximum number of hours to draw.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD", help="Keep the share of each value of this field: 'gender', or bands 'age:6-10,11-15'."
        ),
    ] = None,
    seed: DrawSeed = 0,
    skip_bad: SkipBad = False,
) -> None:
    """Write a random sample of the utterances of a corpus.

    The same seed gives the same sample, whatever the order of the utterances.
    """
    check_cuts_file(out, corpus)
    from ssvd.corpora.sampling import sample as draw

    write_parts({out: draw(read(corpus, skip_bad).cuts, utterances=utterances, hours=hours, by=by, seed=seed)})
