"""Another alphabet for a model with a CTC head: the symbols of a file, such as the phones of IPA."""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2PhonemeCTCTokenizer

from ssvd.errors import UserError
from ssvd.files import write_whole
from ssvd.recognisers.agreement import MARK

VOCABULARY = "vocabulary.txt"
"""Name of the file beside an adapter that holds the symbols of its head."""
BOUNDARY = "|"
"""The symbol between words, as wav2vec 2.0 has it; texts have a blank there."""

_MARKS = ("<pad>", "<s>", "</s>", "<unk>")  # the blank is the first; wav2vec 2.0 has the others too
_FOREIGN_MARKS = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}  # of the vocab.json of other models


@dataclass(frozen=True)
class Vocabulary:
    """The symbols that a new head writes.

    With `BOUNDARY` among them, texts consist of words with blanks between them, and the symbols in a word are matched
    the longest first. Without it, blanks stand between symbols.

    Attributes:
        symbols: In the order of their tokens.
        source: Where they come from, for the messages of errors.
    """

    symbols: tuple[str, ...]
    source: str

    @classmethod
    def read(cls, path: str | Path) -> "Vocabulary":
        """Read a file with a symbol on each line, or the vocab.json of a model, whose marks are left out.

        Raises:
            UserError: There is no such file, or it holds no symbols, one of them twice, or one with a blank in it.
        """
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise UserError(f"The vocabulary {path} cannot be read ({error}): name a text file in UTF-8.") from None
        if text.lstrip().startswith("{"):
            symbols = _of_json(text, path)
        else:
            symbols = [line.strip() for line in text.splitlines() if line.strip()]
        if not set(symbols) - {BOUNDARY}:
            raise UserError(f"The vocabulary {path} holds no symbols: write one on each line.")
        for number, symbol in enumerate(symbols):
            if symbol in symbols[:number]:
                raise UserError(f"The vocabulary {path} holds {symbol!r} twice: leave one out.")
            if len(symbol.split()) != 1:
                raise UserError(f"The vocabulary {path} holds {symbol!r}, with a blank in it: write one symbol a line.")
            if MARK.fullmatch(symbol):
                raise UserError(f"The vocabulary {path} holds {symbol}, a mark for models that nobody says: remove it.")
        return cls(tuple(symbols), str(path))

    def write(self, path: Path) -> None:
        """Write a file that `read` takes."""
        write_whole(path, "".join(f"{symbol}\n" for symbol in self.symbols))

    def tokenizer(self) -> Any:
        """Return a tokenizer of Transformers for these symbols, whose token 0 is the blank of CTC."""
        kind = Wav2Vec2CTCTokenizer if BOUNDARY in self.symbols else Wav2Vec2PhonemeCTCTokenizer
        options = {} if BOUNDARY in self.symbols else {"do_phonemize": False}
        with TemporaryDirectory() as folder:
            file = Path(folder) / "vocab.json"
            tokens = {symbol: token for token, symbol in enumerate((*_MARKS, *self.symbols))}
            file.write_text(json.dumps(tokens), encoding="utf-8")
            return kind(str(file), **options)


def _of_json(text: str, path: str | Path) -> list[str]:
    """Return the symbols of a vocab.json in the order of their tokens."""
    try:
        tokens = json.loads(text)
        ordered = sorted(tokens, key=lambda symbol: int(tokens[symbol]))
    except (ValueError, TypeError) as error:
        raise UserError(f"The vocabulary {path} is not a vocab.json of symbols and numbers ({error}).") from None
    return [symbol for symbol in ordered if not MARK.fullmatch(symbol) and symbol not in _FOREIGN_MARKS]
