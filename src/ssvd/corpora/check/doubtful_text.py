"""Doubtful transcripts: leftover marks, damaged encodings, look-alike letters."""

import re
import unicodedata

_USUAL = re.compile(r"[^\W_]|[ .,;:!?'’\"“”„«»…/&%€$£–—-]")  # texts of these characters alone need no further look
_BRACKETS = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\{[^{}]*\}|\(\([^()]*\)\)")
_SYMBOLS = re.compile(r"[*#@^~|\\=+_<>{}\[\]]")
# UTF-8 bytes read as Latin-1 or Windows-1252: é becomes Ã©, ’ becomes â€™.
_MISREAD = re.compile(r"[ÂÃ][\u0080-\u00bf]|â€.|Ã[ŠšŒœŽžŸƒˆ˜‚„†‡•‰‹›€™]")
_WORD = re.compile(r"[^\W\d_]+")
# Scripts whose letters look alike. Japanese and others mix scripts legitimately.
_ALIKE = ("LATIN", "CYRILLIC", "GREEK")


def doubt(text: str) -> str | None:
    """Return what is doubtful in a transcript, such as "the mark '<noise>'", or None."""
    if not any(character.isalnum() for character in text):
        return "no letter or digit"
    if text.isascii() and not _USUAL.sub("", text):
        return None
    for pattern, meaning in (
        (_MISREAD, "UTF-8 read as another encoding:"),
        (_BRACKETS, "the mark"),
        (_SYMBOLS, "the symbol"),
    ):
        if match := pattern.search(text):
            return f"{meaning} {match[0]!r}"
    for character in text:
        if character == "\ufffd":
            return "the sign U+FFFD, which stands for a character that was lost"
        if unicodedata.category(character) in ("Cc", "Cf", "Co", "Cn") and character not in "\u200c\u200d\u00ad":
            return f"the invisible character U+{ord(character):04X}"  # joiners and soft hyphens belong to the spelling
    for word in [] if text.isascii() else _WORD.findall(text):
        scripts = {script for letter in word for script in _ALIKE if unicodedata.name(letter, "").startswith(script)}
        if len(scripts) > 1:
            return f"letters of two scripts in one word: {word!r} ({' and '.join(sorted(scripts)).lower()})"
    return None
