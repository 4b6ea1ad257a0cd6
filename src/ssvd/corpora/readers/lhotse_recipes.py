"""Corpora that Lhotse has a recipe for: its `prepare_*` functions, with their own options."""

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
from typing import Any, NamedTuple

from lhotse import CutSet, RecordingSet, SupervisionSet
from pydantic import ConfigDict, TypeAdapter, ValidationError

from ssvd.corpora.readers.tables import Line
from ssvd.corpora.sources import Source
from ssvd.errors import UserError

_PREFIX = "prepare_"


class RecipeOutput(NamedTuple):
    """The cuts of a recipe, as JSON, and its warnings, as sentences."""

    lines: list[Line]
    notes: tuple[str, ...]


class _Manifests(NamedTuple):
    recordings: RecordingSet
    supervisions: SupervisionSet


class _Part(NamedTuple):
    """A part that a recipe returns; its name is "" if there is only one."""

    name: str
    manifests: _Manifests


def read_recipe(source: Source) -> RecipeOutput:
    """Run `lhotse:RECIPE:FOLDER?option=value` and return its cuts, one for each supervision.

    FOLDER is the first argument of the recipe (usually `corpus_dir`). Options are its other arguments, with its own
    names and defaults; an option that is given twice becomes a list. `part=NAME` takes one of the parts that a recipe
    returns, such as `dev-clean`, or `nl/train` if parts have parts; without it, all parts are taken, and each utterance
    has a field `part`.

    Recipes may only read files: a recipe that accesses the network or runs a program is stopped.

    Returns:
        Lines as `manifests.read_manifest` takes them, and the warnings of the recipe.

    Raises:
        UserError: There is no such recipe, option or part, or the recipe fails or finds nothing.
    """
    recipe, _, folder = source.name.partition(":")
    prepare = _recipe(recipe)
    arguments = _arguments(source, recipe, folder, prepare)
    with _warnings() as warnings, _confined():
        try:
            result = prepare(**arguments)
        except Exception as error:  # recipes raise many kinds
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".: ")
            raise UserError(f"Lhotse's recipe {recipe} failed: {reason}.{_summary(' It warned:', warnings)}") from error
        parts = dict(_parts(result, ()))
        wanted = source.value("part")
        if wanted is not None and wanted not in parts:
            raise UserError(f"{source.text} has no part {wanted!r}; there is {', '.join(parts) or 'none'}.")
        lines = [
            Line(f"{source.kind}:{recipe}:{part or 'all'}:{number}", json.dumps(cut))
            for part, manifests in parts.items()
            if wanted in (None, part)
            for number, cut in enumerate(_cuts(part, manifests), start=1)
        ]
    if not lines:
        summary = _summary(" It warned:", warnings)
        raise UserError(f"Lhotse's recipe {recipe} found no utterances with a transcript.{summary}")
    return RecipeOutput(lines, tuple(filter(None, [_summary(f"Lhotse's recipe {recipe} warned:", warnings)])))


def _summary(head: str, warnings: list[str]) -> str:
    """Return the first warning and the number of the others, as a sentence; "" for none."""
    if not warnings:
        return ""
    more = f" (and {len(warnings) - 1} more)" if len(warnings) > 1 else ""
    return f"{head} {warnings[0].rstrip('.')}{more}."


def _recipe(name: str) -> Callable[..., Any]:
    import lhotse.recipes  # takes a second

    exported = {key.removeprefix(_PREFIX) for key in vars(lhotse.recipes) if key.startswith(_PREFIX)}
    modules = {module.name for module in pkgutil.iter_modules(lhotse.recipes.__path__)} - {"utils"}
    recipe: Callable[..., Any] | None = getattr(lhotse.recipes, _PREFIX + name, None)
    if recipe is None and name in modules:  # some are not exported
        recipe = getattr(importlib.import_module(f"lhotse.recipes.{name}"), _PREFIX + name, None)
    if recipe is not None:
        return recipe
    names = sorted(exported | modules)
    near = difflib.get_close_matches(name, names, n=4, cutoff=0.5) or names
    raise UserError(f"Lhotse has no recipe {name!r}; there is {', '.join(near)}.")


def _arguments(source: Source, recipe: str, folder: str, prepare: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(prepare).parameters
    given = {option: values for option, values in source.options.items() if option != "part"}
    if folder:
        first = next(iter(parameters))
        if first in given:
            raise UserError(f"{source.text} gives {first} twice.")
        given[first] = [folder]
    if unknown := [option for option in given if option not in parameters]:
        raise UserError(
            f"Lhotse's recipe {recipe} has no option {unknown[0]!r}; there are part, {', '.join(parameters)}."
        )
    required = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    missing = [name for name in required if name not in given]
    if missing:
        raise UserError(
            f"Lhotse's recipe {recipe} needs {', '.join(missing)}: write lhotse:{recipe}:FOLDER, and other options as "
            f"?{missing[-1]}=VALUE."
        )
    types = typing.get_type_hints(prepare)
    return {option: _typed(recipe, option, values, types.get(option, str)) for option, values in given.items()}


def _typed(recipe: str, option: str, values: list[str], kind: Any) -> Any:
    """Convert the values of an option to the type that the recipe states."""
    adapter = TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True))
    candidates = [values] if len(values) > 1 else [values[0], values]
    for candidate in candidates:
        try:
            return adapter.validate_python(candidate)
        except ValidationError:
            continue
    raise UserError(f"The option {option} of Lhotse's recipe {recipe} cannot be {', '.join(values)!r}.")


def _parts(result: Any, path: tuple[str, ...]) -> Iterator[_Part]:
    """Yield each part with recordings and supervisions that a recipe returns, at any depth."""
    if isinstance(result, dict) and isinstance(result.get("recordings"), RecordingSet):
        if isinstance(result.get("supervisions"), SupervisionSet):
            yield _Part("/".join(path), _Manifests(result["recordings"], result["supervisions"]))
    elif isinstance(result, dict):
        for name, part in result.items():
            yield from _parts(part, (*path, str(name)))
    elif isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], RecordingSet):
        yield _Part("/".join(path), _Manifests(*result))


def _cuts(part: str, manifests: _Manifests) -> Iterator[dict[str, Any]]:
    cuts = CutSet.from_manifests(recordings=manifests.recordings, supervisions=manifests.supervisions)
    for cut in cuts.trim_to_supervisions(keep_overlapping=False):
        segment = cut.supervisions[0]
        cut.id = segment.id
        if part:
            segment.custom = {**(segment.custom or {}), "part": part}
        yield cut.to_dict()


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what is logged as a warning inside the block."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    root = logging.getLogger()
    others, root.handlers = root.handlers, [handler]
    try:
        yield messages
    finally:
        root.handlers = others


class _ConfinedError(Exception):
    pass


_confined_now = False
_hook_added = False


@contextmanager
def _confined() -> Iterator[None]:
    """Keep this process, including its threads, from using the network or starting programs inside the block."""
    global _confined_now, _hook_added
    if not _hook_added:  # an audit hook can never be removed
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
        raise _ConfinedError("it would run a program; run `lhotse prepare` and give the cuts instead")
    if event in ("socket.getaddrinfo", "socket.connect") and not isinstance(arguments[-1], str | bytes):
        raise _ConfinedError(
            "it would access the network; download what it needs first, for example with `lhotse download`"
        )
