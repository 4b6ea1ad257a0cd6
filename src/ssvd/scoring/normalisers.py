"""The text normalisers that are applied to references and hypotheses before they are scored."""

from collections.abc import Callable
from functools import cache, lru_cache

from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from ssvd.errors import UserError
from ssvd.scoring.dutch import normalise_dutch

# Without preserve_marks, Whisper's normaliser cuts words of Indic and other scripts at their vowel signs. Texts whose
# marks all have composed forms, such as those in Latin script, come out the same either way.
_NORMALISERS: dict[str, Callable[[], Callable[[str], str]]] = {
    "none": lambda: lambda text: text,
    "basic": lambda: BasicTextNormalizer(preserve_marks=True),
    "english": EnglishTextNormalizer,
    "dutch": lambda: normalise_dutch,
}
_USUAL = {"en": "english", "english": "english", "nl": "dutch", "dutch": "dutch"}
_CACHED_TEXTS = 1 << 17


@cache
def normaliser(name: str) -> Callable[[str], str]:
    """Return the text normaliser with the given name; all of them reduce runs of white space to one blank.

    "none" changes nothing else; "basic" is Whisper's normaliser for any language (lower case, no punctuation, nothing
    in brackets); "english" is Whisper's normaliser for English (also spelling, contractions, numbers, fillers); "dutch"
    is our own (see `ssvd.scoring.dutch`).

    Raises:
        UserError: There is no normaliser of that name.
    """
    if name not in _NORMALISERS:
        raise UserError(f"There is no normaliser {name!r}; choose one of {', '.join(_NORMALISERS)}.")
    normalise = _NORMALISERS[name]()
    # Comparisons normalise the same texts repeatedly, and Whisper's English normaliser is slower than the alignment.
    return lru_cache(maxsize=_CACHED_TEXTS)(lambda text: " ".join(normalise(text).split()))


def usual_normaliser(language: str | None, *, of_phones: bool = False) -> str:
    """Return the name of the usual normaliser for a language ("nl", "nl-BE", "Dutch"); None means several languages.

    Texts of phones are not normalised.
    """
    if of_phones:
        return "none"
    return _USUAL.get((language or "").partition("-")[0].lower(), "basic")
