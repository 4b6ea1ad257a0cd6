"""Options of a run from a file: one of the user's, or a recipe that comes with the package."""

from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from ssvd_cli.shipped import named_file, shipped
from ssvd_cli.terminal import console

_RECIPES = "recipes"


def read_options(config: Path) -> dict[str, Any]:
    """Read options by name from a YAML file, or from the recipe of that name.

    Raises:
        CommandError: There is no such recipe.
        UserError: The file does not hold any.
    """
    from ssvd.documents import read_yaml
    from ssvd.errors import UserError

    file = named_file(config, _RECIPES, "file or recipe")
    try:
        values = read_yaml(file)
    except ValueError as error:
        raise UserError(f"{file} is not YAML ({error}).") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise UserError(f"{file} does not hold options by name, such as 'epochs: 10'.")
    return values


def print_recipes() -> None:
    """Print the names of the recipes and the first line of each, which says what it is."""
    table = Table("recipe", "what it trains", box=box.SIMPLE, pad_edge=False)
    for name, file in shipped(_RECIPES).items():
        table.add_row(name, file.read_text(encoding="utf-8").splitlines()[0].removeprefix("# "))
    console.print(table)
