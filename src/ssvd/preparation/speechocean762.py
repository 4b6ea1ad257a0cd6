"""speechocean762: English read by native speakers of Mandarin, half of them children (arXiv 2104.01378)."""

from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ssvd.corpora.readers.kaldi import read_kaldi
from ssvd.corpora.readers.text_files import read_text
from ssvd.corpora.utterances import Skipped, Utterance
from ssvd.documents import checked, parse_json
from ssvd.errors import UserError

_PARTS = ("train", "test")


class _Scores(BaseModel):
    """Scores of a sentence by five experts, from 0 to 10; those of its words and phones are not read."""

    model_config = ConfigDict(allow_inf_nan=False)

    accuracy: int | float | None = None
    completeness: int | float | None = None
    fluency: int | float | None = None
    prosodic: int | float | None = None
    total: int | float | None = None


def read_speechocean762(folder: Path) -> list[Utterance | Skipped]:
    """Read the utterances of the official train and test parts, which share no speaker.

    Fields are age, gender and, if `scores.json` is in the folder or in its resource/, the scores of the utterance:
    accuracy, completeness, fluency, prosodic, total.

    Raises:
        UserError: There is neither part, or the scores are damaged.
    """
    parts = [part for part in _PARTS if (folder / part / "text").is_file()]
    if not parts:
        raise UserError(f"{folder} does not hold speechocean762: there is neither train/text nor test/text in it.")
    scores = _scores(folder)
    items = [(part, item) for part in parts for item in read_kaldi(folder / part)]
    return [
        item
        if isinstance(item, Skipped)
        else replace(item, part=part, language="en", fields={**item.fields, **scores.get(item.id, {})})
        for part, item in items
    ]


def _scores(folder: Path) -> dict[str, dict[str, float]]:
    path = next(
        (path for path in (folder / "scores.json", folder / "resource" / "scores.json") if path.is_file()), None
    )
    if path is None:
        return {}
    try:
        utterances = checked(dict[str, _Scores], parse_json(read_text(path)))
    except ValueError as error:
        raise UserError(
            f"{path} does not hold scores by utterance ({error}); take it from the corpus again."
        ) from error
    return {name: scores.model_dump(exclude_none=True) for name, scores in utterances.items()}
