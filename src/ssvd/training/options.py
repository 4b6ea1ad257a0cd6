"""Checks of the options of a run, before any corpus is read."""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ssvd.corpora.sources import Source
from ssvd.errors import UserError, shortened
from ssvd.methods import Budget, find_method
from ssvd.recognisers.layers import check_choice
from ssvd.scoring import normaliser
from ssvd.training.augmentation import Augmentation
from ssvd_options import AdaptOptions


def parse_kept(text: str) -> tuple[str, float]:
    """Return the corpus and the percentage points of an item of the option `keep`, such as "adults.csv:1.0".

    Raises:
        UserError: It cannot be read.
    """
    corpus, _, points = text.rpartition(":")
    try:
        bound = float(points)
    except ValueError:
        bound = -1.0
    if not corpus or not 0 <= bound <= 100:
        raise UserError(f"keep {text!r} cannot be read: write a corpus and points of WER, as adults.csv:1.0")
    return corpus, bound


# Options that change how fast a run is, and its results by rounding at most: a resumed run may change them.
CHANGEABLE = {"workers", "prefetch", "log", "device", "devices", "nodes", "strategy", "checkpointing"}

_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
}
# What stands in for a missing required option while the others are checked.
_REQUIRED: dict[str, object] = {"model": "", "train": []}


def checked_options(values: Mapping[str, object], source: str = "") -> AdaptOptions:
    """Return the options with these values, with absolute paths, so that a run can be resumed from any folder.

    Args:
        values: Options by their names in `config.yaml`; the others keep their defaults.
        source: What the message of an error begins with, such as the name of a file and a colon.

    Raises:
        UserError: Options are unknown, missing, out of range or meaningless; the message lists all of them.
    """
    mistakes: list[str] = []
    wrong: set[int | str] = set()
    try:
        options = AdaptOptions.model_validate(dict(values))
    except ValidationError as error:
        mistakes = [_in_words(list(alternatives)) for _, alternatives in groupby(error.errors(), _place)]
        wrong = {details["loc"][0] for details in error.errors()}
        sound = {name: value for name, value in values.items() if name not in wrong}
        options = AdaptOptions.model_validate(_REQUIRED | sound)
    changed: dict[str, object] = {}
    for name, check in _CHECKS.items():
        if name in wrong:
            continue
        try:
            changed[name] = check(getattr(options, name))
        except UserError as error:
            mistakes.append(str(error).removesuffix("."))
    if len(mistakes) == 1:
        raise UserError(f"{source}{mistakes[0]}.")
    if mistakes:
        numbered = "; ".join(f"({number}) {mistake}" for number, mistake in enumerate(mistakes, start=1))
        raise UserError(f"{source}{len(mistakes)} options are wrong: {numbered}.")
    return options.model_copy(update=changed)


def changed_options(options: AdaptOptions, stored: AdaptOptions) -> list[str]:
    """Return the names of the options that differ and decide what is learnt, unlike those in `CHANGEABLE`."""
    fixed = [name for name in AdaptOptions.model_fields if name not in CHANGEABLE]
    return [name for name in fixed if getattr(options, name) != getattr(stored, name)]


def _place(details: ErrorDetails) -> tuple[int | str, ...]:
    """Return the option, and for an item of a list its number; alternatives of one value have the same place."""
    name, *inner = details["loc"]
    return name, *(part for part in inner if isinstance(part, int))


def _in_words(alternatives: Sequence[ErrorDetails]) -> str:
    """Return in our words what pydantic found wrong with an option, by each of the kinds of value that it may have."""
    details = alternatives[0]
    name, *item = map(str, _place(details))
    if details["type"] == "missing":
        return f"{name} is missing"
    if details["type"] == "extra_forbidden":
        similar = get_close_matches(name, AdaptOptions.model_fields, n=1)
        return f"there is no option {name!r}" + (f" (did you mean {similar[0]!r}?)" if similar else "")
    if item:
        name = f"item {int(item[0]) + 1} of {name}"
    return f"{name} must be {' or '.join(map(_wanted, alternatives))}, but is {shortened(details['input'])}"


def _wanted(details: ErrorDetails) -> str:
    kind, context = details["type"], details.get("ctx", {})
    if kind in _BOUNDS:
        key, relation = _BOUNDS[kind]
        return f"{relation} {context[key]:.10g}"
    if kind == "literal_error":
        return str(context["expected"]).replace("'", "")
    return _KINDS.get(kind.partition("_")[0], "valid")


def _existing_path(model: str) -> str:
    return str(Path(model).resolve()) if Path(model).exists() else model


def _vocabulary(path: str | None) -> str | None:
    return None if path is None else str(Path(path).resolve())


def _absolute_paths(corpora: Sequence[str]) -> list[str]:
    return [path if Source.parse(path) else str(Path(path).resolve()) for path in corpora]


def _training_corpora(corpora: Sequence[str]) -> list[str]:
    if not corpora:
        raise UserError("train names no corpus to train on")
    return _absolute_paths(corpora)


def _method(name: str) -> str:
    if find_method(name).name == "frozen":
        raise UserError("The method 'frozen' trains nothing: evaluate the model instead")
    return name


def _budget(text: str) -> str:
    Budget.parse(text)
    return text


def _layers(wanted: Sequence[str]) -> list[str]:
    check_choice(wanted)
    return list(wanted)


def _normaliser(name: str | None) -> str | None:
    if name is not None:
        normaliser(name)
    return name


def _kept(texts: Sequence[str]) -> list[str]:
    parsed = [parse_kept(text) for text in texts]
    return [f"{path}:{points:g}" for corpus, points in parsed for path in _absolute_paths([corpus])]


def _augmentations(texts: Sequence[str]) -> list[str]:
    return [str(Augmentation.parse(text)) for text in texts]


# What each option means, beyond its type and bounds: the value to use.
_CHECKS: Mapping[str, Callable[..., object]] = {
    "model": _existing_path,
    "train": _training_corpora,
    "dev": _absolute_paths,
    "method": _method,
    "budget": _budget,
    "layers": _layers,
    "vocabulary": _vocabulary,
    "normaliser": _normaliser,
    "keep": _kept,
    "augment": _augmentations,
}
