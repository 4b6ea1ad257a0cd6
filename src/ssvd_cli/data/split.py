"""`ssvd data split`."""

from typing import Any

from ssvd_cli import options
from ssvd_cli.data.corpus import CorpusName, read
from ssvd_cli.divisions import write_parts
from ssvd_cli.errors import CommandError
from ssvd_cli.terminal import console
from ssvd_options.preparation import PARTS, portions_of

_NAMES = [f"{part}.jsonl.gz" for part in PARTS]
_CHECKSUMS = "split.sha256"


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
    try:
        portions = portions_of(split)
    except ValueError:
        raise CommandError(f"--split {split} is not three shares that add up to 100, such as 80/10/10.") from None
    from ssvd.corpora.sources import files_of
    from ssvd.corpora.splits import split_by_speaker, text_overlap
    from ssvd.files import check_not_input, check_own, replaced_files

    check_not_input([out / name for name in _NAMES], files_of(corpus))
    check_own(out, _NAMES, _CHECKSUMS)
    parts: dict[str, Any] = split_by_speaker(read(corpus, skip_bad).cuts, portions, seed, balance=balance)
    overlap = text_overlap(parts) if "train" in parts else {}
    files = {part: out / f"{part}.jsonl.gz" for part in PARTS}
    for part in PARTS:
        if part not in parts and files[part].exists():
            console.print(f"Removed {files[part]}, of an earlier division, whose speakers may be in other parts now.")
    with replaced_files(out, _NAMES, _CHECKSUMS) as folder:
        write_parts(
            {files[part]: cuts for part, cuts in parts.items()},
            {files[part]: share for part, share in overlap.items()},
            folder,
        )
