"""How CTC models write: texts as tokens, and tokens as texts, by the tokenizer of the checkpoint."""

import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2PhonemeCTCTokenizer

from ssvd.errors import UserError
from ssvd.recognisers.agreement import MARK, letters_of


class Alphabet(ABC):
    """The symbols that a CTC model writes.

    Args:
        tokenizer: Tokenizer of Transformers.

    Attributes:
        symbols: What can be said, by its token; "" for the blank and other marks. A symbol that begins with a blank
            begins a word, and " " alone parts two words.
        special: Symbols with a meaning of their own, such as the blank.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.special: Sequence[str] = tokenizer.all_special_tokens
        self.symbols: dict[int, str] = dict.fromkeys(tokenizer.get_vocab().values(), "")
        self.symbols |= self._sayable()

    @abstractmethod
    def _sayable(self) -> dict[int, str]:
        """Return the symbols that can be said, by their tokens."""

    @abstractmethod
    def _encode(self, text: str) -> list[int] | None:
        """Return the tokens of a text; None if it has what they cannot write."""

    def phones(self, text: str) -> list[str]:
        """Return the symbols of a text, without the boundaries of words; what is none of them counts as one each."""
        return text.split()

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text.

        Raises:
            UserError: It is empty, or it has a character or symbol that the vocabulary lacks.
        """
        tokens = self._encode(text)
        if tokens is None:
            raise UserError(f"Its text has marks that the model's vocabulary lacks: {text!r}.")
        if not tokens:
            raise UserError("It has no text to learn: transcribe it, or leave it out.")
        return tokens

    def spell(self, tokens: Iterable[int]) -> list[str]:
        """Return what the token of each frame spells.

        Raises:
            UserError: The tokenizer lacks a token that the network writes.
        """
        try:
            return [self.symbols[token] for token in tokens]
        except KeyError as error:
            raise UserError(
                f"The network writes the token {error}, and the tokenizer has no symbol for it: copy vocab.json from "
                "the model that the network comes from."
            ) from None

    def text(self, frames: Iterable[int]) -> str:
        """Return the text of the tokens of all frames: equal neighbours are one."""
        return "".join(self.spell(token for token, _ in groupby(frames))).strip()


class Letters(Alphabet):
    """Letters, or symbols of several characters, which are matched the longest first; blanks part words."""

    def __init__(self, tokenizer: Any) -> None:
        self._letters = letters_of(tokenizer)
        super().__init__(tokenizer)
        longest_first = sorted(self._letters, key=len, reverse=True)
        self._letter = re.compile("|".join([*map(re.escape, longest_first), "."]))
        characters = {letter for letter in self._letters if len(letter) == 1}
        self._written = _Writing(characters)

    def _sayable(self) -> dict[int, str]:
        lower = self._tokenizer.do_lower_case
        return {token: letter.lower() if lower else letter for letter, token in self._letters.items()}

    def phones(self, text: str) -> list[str]:
        """Return the symbols of a text, the longest first, without the boundaries of words."""
        return [symbol for symbol in self._letter.findall(self._written(text)) if not symbol.isspace()]

    def _encode(self, text: str) -> list[int] | None:
        letters = self._letter.findall(self._written(text))
        return [self._letters[letter] for letter in letters] if self._letters.keys() >= {*letters} else None


class Phones(Alphabet):
    """Symbols with blanks between them, such as phones."""

    def _sayable(self) -> dict[int, str]:
        special = {*self.special, ""}
        return {
            token: f" {symbol}"
            for symbol, token in self._tokenizer.get_vocab().items()
            if symbol not in special and not MARK.fullmatch(symbol)
        }

    def _encode(self, text: str) -> list[int] | None:
        known = {symbol.strip(): token for token, symbol in self.symbols.items() if symbol}
        if lacking := [symbol for symbol in text.split() if symbol not in known]:
            raise UserError(
                f"Its text has {lacking[0]!r}, which is no symbol of the vocabulary: correct the text ({text!r}), or "
                "add the symbol."
            )
        return [known[symbol] for symbol in text.split()]


class Pieces(Alphabet):
    """Pieces of words, as tokenizers of the kind of SentencePiece cut them: a piece with ▁ in front begins a word."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self._written = _Writing({character for symbol in self.symbols.values() for character in symbol})

    def _sayable(self) -> dict[int, str]:
        special = {*self.special}
        return {
            token: piece.replace("\N{LOWER ONE EIGHTH BLOCK}", " ")
            for piece, token in self._tokenizer.get_vocab().items()
            if piece not in special and not MARK.fullmatch(piece)
        }

    def _encode(self, text: str) -> list[int] | None:
        tokens: list[int] = self._tokenizer(self._written(text), add_special_tokens=False).input_ids
        return tokens if all(self.symbols.get(token) for token in tokens) else None


def alphabet_of(tokenizer: Any) -> Alphabet:
    """Return how a model with this tokenizer of Transformers writes."""
    if isinstance(tokenizer, Wav2Vec2PhonemeCTCTokenizer):
        return Phones(tokenizer)
    return Letters(tokenizer) if isinstance(tokenizer, Wav2Vec2CTCTokenizer) else Pieces(tokenizer)


class _Writing:
    """What writes a text in the case of a vocabulary, and without punctuation that its `characters` lack."""

    def __init__(self, characters: set[str]) -> None:
        self._characters = characters | {" "}
        alphabet = "".join(characters - {" "})
        self._fold = str.upper if alphabet.isupper() else str.lower if alphabet.islower() else str

    def __call__(self, text: str) -> str:
        folded = self._fold(text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
        return " ".join("".join(map(self._kept, folded)).split())

    def _kept(self, character: str) -> str:
        if character in self._characters or not unicodedata.category(character).startswith("P"):
            return character
        return "" if character == "'" else " "
