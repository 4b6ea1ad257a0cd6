"""JSON and YAML from files that anybody may have written or damaged: what they should be, or one reason why not."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from ssvd.errors import shortened

Value = TypeVar("Value")

_DEEPEST = 100  # levels of YAML
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: The text is not JSON, is nested too deeply, or holds half a character.
    """
    text = _decoded(text)
    try:
        value = json.loads(text)
        if _ESCAPED_HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half a character, a surrogate without the other") from None
    return value


def parse_yaml(text: str | bytes) -> Any:
    """Parse YAML, as plain data.

    Raises:
        ValueError: The text is not YAML, or a value in it is impossible, such as the date 2024-13-45.
    """
    text = _decoded(text)
    if _ESCAPED_HALF.search(text):
        raise ValueError("it holds half a character, an escaped surrogate")
    try:
        _check_depth(text)
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        place = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        raise ValueError(f"{place}{' '.join(filter(None, [error.context, error.problem]))}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _check_depth(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, _FAST_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError("it is nested too deeply")


# That of libyaml; it crashes on deep nesting.
_FAST_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_FAST_LOADER):
    """PyYAML's loader of plain data, which names the line of impossible values too."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception:  # whatever Python raises for a date, a number or a tag
            problem = f"{shortened(node.value)} is no {node.tag.rpartition(':')[2]}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: The file cannot be read.
        ValueError: As `parse_json`.
    """
    return parse_json(path.read_bytes())


def read_yaml(path: Path) -> Any:
    """Read a YAML file, as plain data.

    Raises:
        OSError: The file cannot be read.
        ValueError: As `parse_yaml`.
    """
    return parse_yaml(path.read_bytes())


def checked(kind: type[Value], value: Any) -> Value:
    """Return a value from a file as this type, a pydantic model or whatever pydantic can check.

    Raises:
        ValueError: A field is missing, unknown or wrong; the message names the first.
    """
    try:
        correct: Value = _adapter(kind).validate_python(value)  # type: ignore[arg-type]
    except ValidationError as error:
        raise ValueError(in_words(error.errors(include_url=False)[0])) from None
    return correct


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def in_words(details: ErrorDetails) -> str:
    """Return what pydantic found wrong, as "field.field: reason"."""
    place = ".".join(str(part) for part in details["loc"])
    if details["type"] == "model_type":
        reason = "must hold fields by name"
    else:
        reason = details["msg"].removeprefix("Value error, ").replace("Input should", "must")
        reason = reason[:1].lower() + reason[1:]
    if details["type"] not in ("missing", "extra_forbidden", "value_error"):
        reason += f", but is {shortened(details['input'])}"
    return f"{place}: {reason}" if place else reason


def _decoded(text: str | bytes) -> str:
    return text.decode("utf-8-sig") if isinstance(text, bytes) else text
