"""Selection of utterances by their fields: `age<=15`, `accent!=en-us`."""

import math
import operator
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from lhotse import CutSet

from ssvd.corpora.cut import Cut
from ssvd.corpora.utterances import number_or_text
from ssvd.errors import UserError

_CONDITION = re.compile(r"\s*([^<>=!]+?)\s*(<=|>=|==|!=|=|<|>)\s*([^<>=!\s].*?)\s*")
_ORDER: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_STANDARD = ("speaker", "language", "gender", "text")


def field_value(cut: Cut, name: str) -> Any:
    """Return the value of a field of a cut with one supervision; None if it has no such field.

    Fields are id, duration (in seconds), text, speaker, language, gender, and the custom fields of the supervision or,
    failing that, of the cut.

    Raises:
        UserError: The value is neither text nor a number.
    """
    if name in ("id", "duration"):
        return getattr(cut, name)
    supervision = cut.supervisions[0]
    if name in _STANDARD:
        return getattr(supervision, name)
    for custom in (supervision.custom, cut.custom):
        if custom and name in custom:
            return _comparable(cut, name, custom[name])
    return None


def _comparable(cut: Cut, name: str, value: Any) -> Any:
    """Return the value of a custom field; None for a number that is not finite, which stands for a missing one."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise UserError(f"Utterance {cut.id}: the field {name!r} is a number beyond all bounds; correct or remove it.")
    if value is not None and not isinstance(value, str | int | float):
        kind = type(value).__name__
        raise UserError(
            f"Utterance {cut.id}: the field {name!r} is a {kind}; a field that is used must be text or a number."
        )
    return value


def field_names(cuts: CutSet) -> list[str]:
    """Return the names of the fields that at least one of the cuts has."""
    names = {"id", "duration"}
    for cut in cuts:
        supervision = cut.supervisions[0]
        names.update(name for name in _STANDARD if getattr(supervision, name) is not None)
        names.update(supervision.custom or (), cut.custom or ())
    return sorted(names)


def common_language(cuts: CutSet) -> str | None:
    """Return the language that all utterances state; None if they differ, or some of them state none."""
    languages: set[str | None] = {field_value(cut, "language") for cut in cuts}
    return languages.pop() if len(languages) == 1 else None


def select(cuts: CutSet, conditions: Sequence[str]) -> CutSet:
    """Return the cuts that meet all conditions, in their order.

    A condition is a field, one of = == != < <= > >=, and a value: `age<=15`, `gender=f`, `duration<8`. Equality
    compares numbers as numbers and everything else as text; order needs numbers. A cut without the field, or with text
    where order needs a number, does not match, whatever the operator.

    Raises:
        UserError: A condition cannot be read, names a field that no cut has, or orders what is not a number; or no cut
            meets all conditions.
    """
    everything = cuts
    for condition in conditions:
        match = _CONDITION.fullmatch(condition)
        if match is None:
            raise UserError(
                f"The condition {condition!r} must be a field, one of = != < <= > >=, and a value: age<=15."
            )
        name, symbol, wanted = match.groups()
        values = _values(everything, name)
        if not values:
            known = ", ".join(field_names(everything))
            raise UserError(f"The condition {condition!r} names an unknown field; there are {known}.")
        if symbol in _ORDER and (_number(wanted) is None or all(_number(value) is None for value in values)):
            raise UserError(
                f"The condition {condition!r} needs a number and a field of numbers; {_summary(name, values)}."
            )
        chosen = CutSet.from_cuts(cut for cut in cuts if _holds(field_value(cut, name), symbol, wanted))
        if len(chosen) == 0:
            reason = _summary(name, _values(cuts, name))
            raise UserError(f"No utterance is left after the condition {condition!r}; {reason}.")
        cuts = chosen
    return cuts


def _holds(value: Any, symbol: str, wanted: str) -> bool:
    if value is None:
        return False
    number, limit = _number(value), _number(wanted)
    if symbol in _ORDER:
        return number is not None and limit is not None and _ORDER[symbol](number, limit)
    equal = str(value) == wanted or (limit is not None and not isinstance(value, str) and number == limit)
    return equal != (symbol == "!=")


def _number(value: Any) -> float | None:
    value = number_or_text(value) if isinstance(value, str) else value
    return value if isinstance(value, int | float) else None


def _values(cuts: CutSet, name: str) -> list[Any]:
    return [value for cut in cuts if (value := field_value(cut, name)) is not None]


def _summary(name: str, values: list[Any]) -> str:
    if not values:
        return f"none that is left has {name}"
    if all(_number(value) is not None for value in values):
        return f"{name} goes from {min(values, key=float)} to {max(values, key=float)}"
    texts = sorted({str(value) for value in values})
    return f"{name} is {', '.join(texts[:8])}{' ...' if len(texts) > 8 else ''}"
