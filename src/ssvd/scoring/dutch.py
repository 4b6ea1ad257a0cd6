"""A normaliser of Dutch text for scoring. There is no customary one; these rules are our own.

1. Unicode NFKC, lower case. The acute accent is removed: it marks stress, which writers show or not (één, vóór).
   Other accents belong to the spelling and stay (hè, coëfficiënt, crème).
2. Text in < >, [ ] or ( ) is removed.
3. Numbers in digits become words as the Dutch spelling rules (Taalunie) write them: one word up to duizend, a blank
   after duizend and around miljoen and miljard. 1100 to 1999 are read in hundreds, as years and most counts are
   (negentienhonderdvierentachtig); a comma is read as komma, a point separates thousands, ordinals (2e, 3de, 8ste)
   become words; a number with a leading 0 or more than 12 digits is read digit by digit. %, €, & and + become procent,
   euro, en and plus. Numbers become words, rather than words becoming digits, because een is also the article.
4. Reduced forms with a single meaning are expanded: 'k 't 'n 'm z'n m'n are ik het een hem zijn mijn, 'ns is eens, da's
   is dat is. Others stay (d'r is haar or er, 's is des or is).
5. Apostrophes between two letters stay (foto's, zo'n); all other signs, hyphens too, separate words: zee-eend is two
   words. Compounds otherwise stay as written, so lange termijn and langetermijn differ.
6. Hesitations (uh, uhm, eh, euh, hm, mm ...) are removed, as in Whisper's normaliser for English.
"""

import re
import unicodedata

from num2words import num2words

_BRACKETED = re.compile(r"<[^<>]*>|\[[^][]*\]|\([^()]*\)")
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ`´‛′", "'"))
_AMOUNT = re.compile(r"€\s*([0-9.]+)(?:,([0-9]{2})\b)?")  # €5,50 is read as 5 euro 50
_SIGNS = {"%": " procent ", "€": " euro ", "&": " en ", "+": " plus "}
_THOUSANDS = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(\.[0-9]{3})+(?![0-9]|\.[0-9])")
_NUMBER = re.compile(r"([0-9]+)(?:,([0-9]+)|(ste|de|e)\b)?")
_REDUCED = {"'k": "ik", "'t": "het", "'n": "een", "'m": "hem", "z'n": "zijn", "m'n": "mijn", "'ns": "eens"}
_REDUCED |= {"da's": "dat is"}
_REDUCED_FORM = re.compile(rf"(?<!\w)(?:{'|'.join(_REDUCED)})(?!\w)")
# After duizend a number continues as a separate word, however it was written; duizendpoot is not a number.
_AFTER_THOUSAND = re.compile(
    r"duizend(?=een|twee|drie|vier|vijf|zes|zeven|acht|negen|tien|elf|twaalf|dertig|dertien|veertig|veertien|twintig"
    r"|tachtig|honderd)"
)
_OTHER_SIGNS = re.compile(r"(?<![^\W\d_])'|'(?![^\W\d_])|[^\w']|_")
_HESITATIONS = re.compile(r"(?<![\w'])(?:e?uhm?|ehm?|um|h+m+|m{2,}|mhm)(?![\w'])")
_MOST_DIGITS = 12


def normalise_dutch(text: str) -> str:
    """Normalise a text by the rules above; runs of blanks are left as they are."""
    text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).lower()
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).replace("\N{COMBINING ACUTE ACCENT}", ""))
    text = _BRACKETED.sub(" ", text)
    text = _AMOUNT.sub(r"\1 euro \2 ", text)
    text = _THOUSANDS.sub(lambda match: match[0].replace(".", ""), text)
    text = _NUMBER.sub(_in_words, text)
    for sign, word in _SIGNS.items():
        text = text.replace(sign, word)
    text = _REDUCED_FORM.sub(lambda match: _REDUCED[match[0]], text)
    text = _AFTER_THOUSAND.sub("duizend ", text)
    return _HESITATIONS.sub(" ", _OTHER_SIGNS.sub(" ", text))


def _in_words(match: re.Match[str]) -> str:
    digits, decimals, ordinal = match.groups()
    words = _ordinal(int(digits)) if ordinal and len(digits) <= _MOST_DIGITS else _cardinal(digits)
    if decimals:
        words += f" komma {_cardinal(decimals)}"
    return f" {words} "


def _cardinal(digits: str) -> str:
    """Spell out a whole number that is given in digits."""
    if len(digits) > _MOST_DIGITS or (digits[0] == "0" and len(digits) > 1):
        return " ".join(map(_spelled, map(int, digits)))
    number = int(digits)
    if 1100 <= number < 2000:
        rest = number % 100
        return f"{_spelled(number // 100)}honderd{_spelled(rest) if rest else ''}"
    return _spelled(number)


def _spelled(number: int) -> str:
    return str(num2words(number, lang="nl")).replace("é", "e")  # num2words has honderdéén, the spelling honderdeen


def _ordinal(number: int) -> str:
    return str(num2words(number, lang="nl", to="ordinal")).replace("é", "e")
