"""`ssvd data select`."""

from ssvd_cli.data.corpus import CorpusName, CutsFile, check_cuts_file, read
from ssvd_cli.divisions import write_parts
from ssvd_cli.options import SkipBad, Where


def select(corpus: CorpusName, out: CutsFile, where: Where = [], skip_bad: SkipBad = False) -> None:
    """Write the utterances of a corpus that meet all conditions."""
    check_cuts_file(out, corpus)
    from ssvd.corpora.selection import select as choose

    write_parts({out: choose(read(corpus, skip_bad).cuts, where)})
