"""Corpora that are named by more than a path: `hf:NAME?split=train`, `lhotse:RECIPE:/folder?option=value`."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from ssvd.errors import UserError

KINDS = ("hf", "lhotse")


@dataclass(frozen=True)
class Source:
    """What KIND:NAME?OPTION=VALUE&OPTION=VALUE says; an option that is given again has several values.

    In options, %26 stands for & and %25 for %.
    """

    text: str
    kind: str
    name: str
    options: dict[str, list[str]]

    @classmethod
    def parse(cls, text: str) -> "Source | None":
        """The source that a text names; None for a path.

        Raises:
            UserError: the name is missing or an option has no "=".
        """
        kind, colon, rest = text.partition(":")
        if not colon or kind not in KINDS:
            return None
        name, _, query = rest.partition("?")
        if not name:
            raise UserError(f"{text} names nothing after {kind}:.")
        options: dict[str, list[str]] = {}
        for part in filter(None, query.split("&")):
            option, equals, value = part.partition("=")
            if not equals:
                raise UserError(f"In {text}, {part!r} is not OPTION=VALUE.")
            options.setdefault(unquote(option), []).append(unquote(value))
        return cls(text, kind, name, options)

    def one(self, option: str) -> str | None:
        """The value of an option, None where it is not given or empty; raises UserError where it is given twice."""
        values = self.options.get(option, [])
        if len(values) > 1:
            raise UserError(f"{self.text} gives {option} twice.")
        return values[0] or None if values else None

    def require_known(self, known: Collection[str]) -> None:
        """Raises UserError for an option that is none of these."""
        if unknown := [option for option in self.options if option not in known]:
            raise UserError(f"{self.text} has the unknown option {unknown[0]!r}; there are {', '.join(known)}.")


def short_names(paths: Sequence[str | Path], kind: str = "corpora") -> list[str]:
    """A short name for each path or source, none twice, fit for a file: `train` for data/train.jsonl.gz.

    Raises:
        UserError: two are the same, or their names differ too far up; `kind` says what they are.
    """
    stems, longer = zip(*map(_names, paths), strict=True) if paths else ((), ())
    names = [stem if stems.count(stem) == 1 else long for stem, long in zip(stems, longer, strict=True)]
    if len(set(names)) < len(names):
        raise UserError(f"Two {kind} have the same name; give each only once, or rename one.")
    return names


def _names(path: str | Path) -> tuple[str, str]:
    """A short name and a longer one."""
    source = Source.parse(str(path))
    if source is None:
        resolved = Path(path).resolve()
        stem = resolved.name if resolved.is_dir() else resolved.name.split(".")[0]
        return stem, f"{resolved.parent.name}-{stem}"
    name = source.name.partition(":")[0] if source.kind == "lhotse" else source.name.rstrip("/").rpartition("/")[2]
    options = [value for values in source.options.values() for value in values]
    return name, re.sub(r"[^\w.+-]+", "-", "-".join([name, *options]))
