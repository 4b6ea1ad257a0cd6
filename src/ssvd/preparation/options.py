"""Checks of the options of a preparation."""

from collections.abc import Mapping
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ssvd.errors import UserError, shortened
from ssvd_options.preparation import PreparationOptions

Options = TypeVar("Options", bound=PreparationOptions)


def checked_options(model: type[Options], values: Mapping[str, object]) -> Options:
    """Return the options with these values; the others keep their defaults.

    Raises:
        UserError: Options are unknown or wrong; the message lists all of them.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(f"{'; '.join(_mistake(details) for details in error.errors())}.") from None


def _mistake(details: ErrorDetails) -> str:
    context = details.get("ctx", {})
    if details["type"] == "value_error":
        return str(context["error"])
    name = ".".join(map(str, details["loc"]))
    if details["type"] == "extra_forbidden":
        return f"there is no option {name!r}"
    if details["type"] == "literal_error":
        wanted = str(context["expected"]).replace("'", "")
        return f"{name} must be {wanted}, but is {shortened(details['input'])}"
    return f"{name}: {details['msg'].lower()}, but it is {shortened(details['input'])}"
