"""Writing labels as a model writes: corpora in capitals only would teach it to shout."""

import re
from collections.abc import Iterable

STYLES = ("lower", "upper", "sentence", "keep")


def text_style(texts: Iterable[str]) -> str:
    """How texts are written, by majority: "lower", "upper", "sentence" (cased, full stop at the end) or "keep" (other).

    Texts without letters do not count.
    """
    counts = dict.fromkeys(STYLES, 0)
    for text in texts:
        if not re.search(r"[^\W\d_]", text):
            continue
        if text == text.lower():
            counts["lower"] += 1
        elif text == text.upper():
            counts["upper"] += 1
        elif re.search(r"[.!?…][\"'»”’)]*$", text):
            counts["sentence"] += 1
        else:
            counts["keep"] += 1
    best = max(counts, key=counts.__getitem__)
    return best if counts[best] > sum(counts.values()) / 2 else "keep"


def write_in(style: str, text: str) -> str:
    """A text in a style of `STYLES`; from single-case text, "sentence" knows no names, but the English I."""
    match style:
        case "lower":
            return text.lower()
        case "upper":
            return text.upper()
        case "sentence":
            text = re.sub(r"\bi\b", "I", text.lower())
            first = text[:1].upper()
            text = first + text[1:] if len(first) == 1 else text  # ß would become SS
            return text if text.endswith((".", "!", "?")) else text + "."
    return text
