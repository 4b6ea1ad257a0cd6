"""Names of corpora that are more than a path: `hf:NAME?split=train`, `lhotse:RECIPE:/folder?option=value`."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from ssvd.errors import UserError

KINDS = ("hf", "lhotse")


@dataclass(frozen=True)
class Source:
    """A parsed name KIND:NAME?OPTION=VALUE&OPTION=VALUE; an option that is given several times has several values.

    In options, %26 stands for & and %25 for %.

    Attributes:
        text: The name as it was given.
        kind: "hf" or "lhotse".
        name: What stands between the kind and the options.
        options: The values of each option.
    """

    text: str
    kind: str
    name: str
    options: dict[str, list[str]]

    @classmethod
    def parse(cls, text: str) -> "Source | None":
        """Parse a name; return None for a path.

        Raises:
            UserError: The name is missing, or an option has no "=".
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

    def value(self, option: str) -> str | None:
        """Return the value of an option; None if it is not given or empty.

        Raises:
            UserError: The option is given twice.
        """
        values = self.options.get(option, [])
        if len(values) > 1:
            raise UserError(f"{self.text} gives {option} twice.")
        return values[0] or None if values else None

    def require_known(self, known: Collection[str]) -> None:
        """Raise UserError for an option that is not one of these."""
        if unknown := [option for option in self.options if option not in known]:
            raise UserError(f"{self.text} has the unknown option {unknown[0]!r}; there are {', '.join(known)}.")


def files_of(corpus: str | Path) -> Iterator[Path]:
    """Yield the files that a corpus is read from, without its audio: a file, or those directly in its folder."""
    source = Source.parse(str(corpus))
    if source is None:
        path = Path(corpus)
        yield from path.iterdir() if path.is_dir() else [path]
    else:
        yield from Path(source.name.partition(":")[2] if source.kind == "lhotse" else source.name).rglob("*")


def short_names(paths: Sequence[str | Path], kind: str = "corpora") -> list[str]:
    """Return a unique short name for each path or source, fit for a file name: `train` for data/train.jsonl.gz.

    Args:
        paths: Paths and sources.
        kind: What they are, for the error.

    Raises:
        UserError: Two are the same, or their names only differ further up.
    """
    candidates = [_names(path) for path in paths]
    stems = [candidate.short for candidate in candidates]
    names = [name.short if stems.count(name.short) == 1 else name.longer for name in candidates]
    if len(set(names)) < len(names):
        raise UserError(f"Two {kind} have the same name; give each only once, or rename one.")
    return names


class _Names(NamedTuple):
    short: str
    longer: str


def _names(path: str | Path) -> _Names:
    source = Source.parse(str(path))
    if source is None:
        resolved = Path(path).resolve()
        stem = resolved.name if resolved.is_dir() else resolved.name.split(".")[0]
        return _Names(stem, f"{resolved.parent.name}-{stem}")
    name = source.name.partition(":")[0] if source.kind == "lhotse" else source.name.rstrip("/").rpartition("/")[2]
    options = [value for values in source.options.values() for value in values]
    return _Names(name, re.sub(r"[^\w.+-]+", "-", "-".join([name, *options])))
