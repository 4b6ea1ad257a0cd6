"""YAML files that come with the package and are named without their folder: grids of benchmarks, recipes of runs."""

from importlib.util import find_spec
from pathlib import Path

from ssvd_cli.errors import CommandError


def shipped(folder: str) -> dict[str, Path]:
    """Return the YAML files in a folder of the package, by name, without importing the package."""
    spec = find_spec("ssvd")
    assert spec is not None and spec.submodule_search_locations
    files = sorted((Path(spec.submodule_search_locations[0]) / folder).glob("*.yaml"))
    return {file.stem: file for file in files}


def named_file(name: str | Path, folder: str, kind: str) -> Path:
    """Return a file of the user's or, where there is none and the name is a bare one, a file of the package.

    Args:
        name: Path of a file, or name of one in the package.
        folder: The folder of the package.
        kind: What the files are, for the message.

    Raises:
        CommandError: The package has no file of that name.
    """
    file = Path(name)
    if file.exists() or file.suffix or len(file.parts) > 1:
        return file  # a missing one is reported by its reader
    return shipped_file(str(name), folder, kind)


def shipped_file(name: str, folder: str, kind: str) -> Path:
    """Return a file of the package.

    Raises:
        CommandError: There is none of that name.
    """
    files = shipped(folder)
    if name not in files:
        raise CommandError(f"There is no {kind} {name!r}; the package has {', '.join(files)}.")
    return files[name]
