"""The options of `ssvd prepare`, one model for each kind of corpus."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

PARTS = ("train", "dev", "test")
COMPONENTS = "abcdefghijklmno"
"""The letters of the components of CGN."""
VARIETIES = ("nl", "vl")
"""The varieties of Dutch in CGN: of the Netherlands and of Flanders."""
# The paper (arXiv 2509.02830) leaves out "c (spontaneous interview), d (discussion), f (telephone)". According to the
# documentation of the corpus, c and d are the telephone dialogues, interviews are b and f, and discussions f and g.
SELECTIONS = {"paper-letters": "abeghijklmno", "paper-names": "aehijklmno"}
"""The components of CGN in the two readings of the paper's selection."""


def portions_of(split: str) -> dict[str, float]:
    """Return the share of train, dev and test that "80/10/10" says, as a fraction; a part without one is left out.

    Raises:
        ValueError: These are not three shares that add up to 100.
    """
    try:
        shares = [float(share) for share in split.split("/")]
    except ValueError:
        shares = []
    # Written so that NaN is refused too.
    if len(shares) != len(PARTS) or not all(share >= 0 for share in shares) or not abs(sum(shares) - 100) <= 0.01:
        raise ValueError(f"split must be three shares that add up to 100, such as 80/10/10, but is {split!r}")
    return {part: share / 100 for part, share in zip(PARTS, shares, strict=True) if share}


class PreparationOptions(BaseModel, ABC):
    """Options for the preparation of any corpus."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    where: list[str] = Field(
        [], description="Condition on the fields of an utterance, such as 'age<=15'; utterances must meet all of them."
    )
    balance: str | None = Field(
        None, description="Field, such as age, over whose range the speakers of each part are spread evenly."
    )
    seed: int = Field(0, description="Random seed of the division by speaker.")
    skip_bad: bool = Field(False, description="Leave out unusable utterances and list them, instead of stopping.")
    filter_model: str | None = Field(
        None,
        description="Checkpoint of a recogniser; utterances that it decodes with too high a WER (filter_wer) are left "
        "out, as Kid-Whisper does.",
    )
    filter_wer: str = Field(
        "50",
        description="Largest WER in percent that the filter keeps: a number, or one for each group of a field, "
        "'age:3-4=60,5-7=40'; 50 in all other groups.",
    )
    filter_parts: str = Field("train,dev,test", description="Parts that are filtered, separated by commas.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="Device that the filter computes on; auto takes a GPU where there is one."
    )
    batch_size: int = Field(16, ge=1, description="Number of utterances that the filter decodes per batch.")

    @field_validator("filter_parts")
    @classmethod
    def _check_filter_parts(cls, filter_parts: str) -> str:
        if not set(filter_parts.split(",")) <= set(PARTS):
            raise ValueError(f"filter_parts must name some of {','.join(PARTS)}, but is {filter_parts!r}")
        return filter_parts

    @property
    def filtered(self) -> list[str]:
        """Return the parts that are filtered; none without a model."""
        return self.filter_parts.split(",") if self.filter_model else []

    @property
    @abstractmethod
    def portions(self) -> dict[str, float]:
        """Return the share of each part, as a fraction; parts without a share are left out."""


class _SplitOptions(PreparationOptions):
    split: str = Field("80/10/10", description="Percentages of train, dev and test, which share no speaker.")

    @field_validator("split")
    @classmethod
    def _check_split(cls, split: str) -> str:
        portions_of(split)
        return split

    @property
    def portions(self) -> dict[str, float]:
        """Return the share of each part, as a fraction; parts without a share are left out."""
        return portions_of(self.split)


class SourceOptions(_SplitOptions):
    """Options for the preparation of a corpus without rules of its own."""


class MystOptions(_SplitOptions):
    """Options for the preparation of MyST."""

    rules: Literal["default", "espnet"] = Field(
        "default", description="Rules for transcripts; espnet follows its recipe egs2/myst/asr1."
    )
    ids: list[str] = Field(
        [], description="File that lists the utterances to keep, or, as train=FILE, the utterances of one part."
    )
    split: str = Field("80/10/10", description="Percentages of train, dev and test in version 0.3.0, which has none.")


class CgnOptions(_SplitOptions):
    """Options for the preparation of CGN."""

    components: str | None = Field(
        None, description="Letters of the components to take, such as 'a,b,f'; by default, all from a to o."
    )
    selection: str | None = Field(
        None,
        description="Components of the paper instead: paper-letters (without c, d and f, as it writes) or paper-names "
        "(without b, c, d, f and g: the interviews, discussions and telephone dialogues that it names).",
    )
    varieties: str = Field("nl,vl", description="Varieties of Dutch: nl (the Netherlands) and vl (Flanders).")
    overlap: Literal["keep", "drop"] = Field(
        "keep", description="Whether to keep utterances that overlap with another speaker's."
    )
    unknown_speakers: bool = Field(False, description="Keep the tiers of speakers without a code.")
    audio: Path | None = Field(
        None, description="Folder of the audio, with comp-a and so on; by default, data/audio/wav of the corpus."
    )
    recordings: list[str] = Field(
        [],
        description="File that lists the recordings to keep, or, as dev=FILE, those of one part; the rest "
        "becomes train.",
    )
    split: str = Field("70/10/20", description="Percentages of train, dev and test, which share no speaker.")

    @model_validator(mode="after")
    def _check_choices(self) -> "CgnOptions":
        if self.selection is not None and (self.selection not in SELECTIONS or self.components is not None):
            raise ValueError(f"selection must be one of {', '.join(SELECTIONS)}, without components")
        if unknown := sorted(set(self.letters) - set(COMPONENTS)):
            raise ValueError(f"CGN has no component {unknown[0]!r}; its letters are a to o")
        if unknown := sorted(set(self.chosen_varieties) - set(VARIETIES)):
            raise ValueError(f"CGN has no variety {unknown[0]!r}; there are nl (the Netherlands) and vl (Flanders)")
        return self

    @property
    def letters(self) -> str:
        """Return the letters of the components to take, in order."""
        if self.selection is not None:
            return SELECTIONS[self.selection]
        return "".join(sorted((self.components or COMPONENTS).replace(",", "")))

    @property
    def chosen_varieties(self) -> list[str]:
        """Return the varieties to take, in order."""
        return sorted(self.varieties.split(","))


class Speechocean762Options(PreparationOptions):
    """Options for the preparation of speechocean762."""

    dev: float = Field(10, ge=0, lt=100, description="Percentage of the official train part that becomes dev.")
    balance: str | None = Field(
        "age", description="Field over whose range the speakers of train and dev are spread evenly."
    )

    @property
    def portions(self) -> dict[str, float]:
        """Return the shares of train and dev in the official train part, as fractions."""
        return {"train": 1 - self.dev / 100, "dev": self.dev / 100} if self.dev else {"train": 1.0}
