"""`ssvd data split`."""

from ssvd_cli import options
from ssvd_cli.data.corpus import CorpusName, read
from ssvd_cli.divisions import write_split


def split(
    corpus: CorpusName,
    out: options.OutFolder,
    split: options.Split = "80/10/10",
    balance: options.Balance = None,
    seed: options.SplitSeed = 0,
    skip_bad: options.SkipBad = False,
) -> None:
    """Split a corpus by speaker into train, dev and test.

    The division is the same each time, whatever the order of the utterances; the parts are files of Lhotse cuts.
    """
    write_split(read(corpus, skip_bad).cuts, out, split, balance, seed)
