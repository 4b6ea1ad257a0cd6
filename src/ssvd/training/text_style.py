"""Writing labels as a model writes: a corpus in capitals only would teach it to shout."""

import re
from collections.abc import Iterable

STYLES = ("lower", "upper", "sentence", "keep")


def text_style(texts: Iterable[str]) -> str:
    """Return the style of most texts: "lower", "upper", "sentence" (cased, with a full stop) or "keep" (any other).

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
    most = max(counts, key=counts.__getitem__)
    return most if counts[most] > sum(counts.values()) / 2 else "keep"


def choose_style(labels: Iterable[str], hypotheses: Iterable[str]) -> tuple[str, str]:
    """Choose the model's own style for labels that are all in one case, if the model writes otherwise.

    Args:
        labels: Texts to train on.
        hypotheses: Texts as the base model writes them.

    Returns:
        A style of `STYLES`, and a sentence on why it was chosen; ("keep", "") where labels stay as they are.
    """
    given, model = text_style(labels), text_style(hypotheses)
    if given not in ("lower", "upper") or model in (given, "keep"):
        return "keep", ""
    reason = (
        f"The labels are all in {given} case and the model writes {model} case, in which it is trained on them "
        "(text_style: keep leaves them as they are)."
    )
    return model, reason


def write_in(style: str, text: str) -> str:
    """Return a text in a style of `STYLES`; "sentence" of a text in one case restores no names but the English I."""
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
