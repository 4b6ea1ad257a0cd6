"""Corpora that Lhotse has a recipe for: its `prepare_*` functions, given their own options."""

import difflib
import importlib
import inspect
import json
import logging
import pkgutil
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lhotse import CutSet, RecordingSet, SupervisionSet
from pydantic import ConfigDict, TypeAdapter, ValidationError

from ssvd.corpora.sources import Source
from ssvd.errors import UserError

_PREFIX = "prepare_"


def read_recipe(source: Source) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """Run `lhotse:RECIPE:FOLDER?option=value` and give its cuts, one for each supervision.

    FOLDER is the recipe's first argument (mostly `corpus_dir`); options are its others, under its own names, with its
    defaults; one that is given twice becomes a list. `part=NAME` takes one part of those that a recipe returns, such as
    `dev-clean`, or `nl/train` where parts have parts; without it all are taken, and each utterance has a field `part`.

    A recipe reads files. One that asks the network for something or runs a program is stopped.

    Returns:
        (where, JSON of a cut) for each utterance, as `manifests.read_manifest` takes them; and notes: what the recipe
        warned of.

    Raises:
        UserError: there is no such recipe, option or part, the recipe fails, or it finds nothing.
    """
    recipe, _, folder = source.name.partition(":")
    prepare = _recipe(recipe)
    arguments = _arguments(source, recipe, folder, prepare)
    with _warnings() as warnings, _confined():
        try:
            result = prepare(**arguments)
        except Exception as error:  # recipes assert, index and parse as they please
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".: ")
            raise UserError(f"Lhotse's recipe {recipe} failed: {reason}.{_told(' It warned:', warnings)}") from error
        parts = dict(_parts(result, ()))
        wanted = source.one("part")
        if wanted is not None and wanted not in parts:
            raise UserError(f"{source.text} has no part {wanted!r}; there is {', '.join(parts) or 'none'}.")
        lines = [
            (f"{source.kind}:{recipe}:{part or 'all'}:{number}", json.dumps(cut))
            for part, manifests in parts.items()
            if wanted in (None, part)
            for number, cut in enumerate(_cuts(part, *manifests), start=1)
        ]
    if not lines:
        told = _told(" It warned:", warnings)
        raise UserError(f"Lhotse's recipe {recipe} found no utterances with a transcript.{told}")
    return lines, tuple(filter(None, [_told(f"Lhotse's recipe {recipe} warned:", warnings)]))


def _told(head: str, warnings: list[str]) -> str:
    """The first warning and the number of the others, as a sentence; "" for none."""
    if not warnings:
        return ""
    more = f" (and {len(warnings) - 1} more)" if len(warnings) > 1 else ""
    return f"{head} {warnings[0].rstrip('.')}{more}."


def _recipe(name: str) -> Callable[..., Any]:
    import lhotse.recipes  # a second's work

    exported = {key.removeprefix(_PREFIX) for key in vars(lhotse.recipes) if key.startswith(_PREFIX)}
    modules = {module.name for module in pkgutil.iter_modules(lhotse.recipes.__path__)} - {"utils"}
    if name in exported:
        return getattr(lhotse.recipes, _PREFIX + name)
    if name in modules:  # some are not exported
        module = importlib.import_module(f"lhotse.recipes.{name}")
        if found := getattr(module, _PREFIX + name, None):
            return found
    names = sorted(exported | modules)
    near = difflib.get_close_matches(name, names, n=4, cutoff=0.5) or names
    raise UserError(f"Lhotse has no recipe {name!r}; there is {', '.join(near)}.")


def _arguments(source: Source, name: str, folder: str, prepare: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(prepare).parameters
    given = {option: values for option, values in source.options.items() if option != "part"}
    if folder:
        first = next(iter(parameters))
        if first in given:
            raise UserError(f"{source.text} gives {first} twice.")
        given[first] = [folder]
    if unknown := [option for option in given if option not in parameters]:
        raise UserError(
            f"Lhotse's recipe {name} has no option {unknown[0]!r}; there are part, {', '.join(parameters)}."
        )
    missing = [key for key, one in parameters.items() if one.default is one.empty and key not in given]
    if missing:
        raise UserError(
            f"Lhotse's recipe {name} needs {', '.join(missing)}: write lhotse:{name}:FOLDER, and other options as "
            f"?{missing[-1]}=VALUE."
        )
    types = typing.get_type_hints(prepare)
    return {option: _typed(name, option, values, types.get(option, str)) for option, values in given.items()}


def _typed(recipe: str, option: str, values: list[str], kind: Any) -> Any:
    """The text of an option as the type that the recipe states."""
    adapter = TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True))
    candidates = [values] if len(values) > 1 else [values[0], values]
    for candidate in candidates:
        try:
            return adapter.validate_python(candidate)
        except ValidationError:
            continue
    raise UserError(f"The option {option} of Lhotse's recipe {recipe} cannot be {', '.join(values)!r}.")


def _parts(result: Any, path: tuple[str, ...]) -> Iterator[tuple[str, tuple[RecordingSet, SupervisionSet]]]:
    """(name, manifests) of each part with recordings and supervisions that a recipe returns, however nested."""
    if isinstance(result, dict) and isinstance(result.get("recordings"), RecordingSet):
        if isinstance(result.get("supervisions"), SupervisionSet):
            yield "/".join(path), (result["recordings"], result["supervisions"])
    elif isinstance(result, dict):
        for name, part in result.items():
            yield from _parts(part, (*path, str(name)))
    elif isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], RecordingSet):
        yield "/".join(path), result


def _cuts(part: str, recordings: RecordingSet, supervisions: SupervisionSet) -> Iterator[dict[str, Any]]:
    cuts = CutSet.from_manifests(recordings=recordings, supervisions=supervisions)
    for cut in cuts.trim_to_supervisions(keep_overlapping=False):
        segment = cut.supervisions[0]
        cut.id = segment.id
        if part:
            segment.custom = {**(segment.custom or {}), "part": part}
        yield cut.to_dict()


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What is logged as a warning meanwhile."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    root = logging.getLogger()
    others, root.handlers = root.handlers, [handler]
    try:
        yield found
    finally:
        root.handlers = others


class _ConfinedError(Exception):
    pass


_confined_now = False
_hook_added = False


@contextmanager
def _confined() -> Iterator[None]:
    """Meanwhile this process, its threads too, neither reaches the network nor starts a program."""
    global _confined_now, _hook_added
    if not _hook_added:  # it can never be removed
        sys.addaudithook(_refuse)
        _hook_added = True
    _confined_now = True
    try:
        yield
    finally:
        _confined_now = False


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if not _confined_now:
        return
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
        raise _ConfinedError("it would run a program; run `lhotse prepare` yourself and give the cuts")
    if event in ("socket.getaddrinfo", "socket.connect") and not isinstance(arguments[-1], str | bytes):
        raise _ConfinedError("it would ask the network; fetch what it needs with `lhotse download` or otherwise")
