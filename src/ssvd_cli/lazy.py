"""Groups of commands that import a command when it is called, and not before."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup


class Entry(NamedTuple):
    """A command that is not imported yet.

    Attributes:
        target: Its module and the name in it, a function or a `typer.Typer`, as "module:name".
        help: One line for the list of commands.
    """

    target: str
    help: str


class LazyGroup(TyperGroup):
    """A group that lists its commands from a table, and imports one when it is called or its own help is asked for."""

    table: ClassVar[Mapping[str, Entry]] = {}

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {name: TyperCommand(name, help=entry.help) for name, entry in self.table.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the command that is named first, and return it with its arguments, as Click's own method does."""
        name = args[0] if args else ""
        if name in self.table:
            self.commands[name] = load(name, self.table[name].target)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands with their whole lines, which Click's own method cuts off."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self.table.items()])


class Command(TyperCommand):
    """A command whose help shows arguments just as their metavars are written, such as "[MODEL] CORPUS..."."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the pieces of the usage line."""
        return ["[OPTIONS]", *(name for name, _ in self._arguments())]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the help of the arguments and of the options."""
        options = [parameter for parameter in self.get_params(ctx) if parameter.param_type_name == "option"]
        if arguments := self._arguments():
            with formatter.section("Arguments"):
                formatter.write_dl(arguments)
        with formatter.section("Options"):
            formatter.write_dl([record for option in options if (record := option.get_help_record(ctx))])

    def _arguments(self) -> list[tuple[str, str]]:
        arguments: list[Any] = [parameter for parameter in self.params if parameter.param_type_name == "argument"]
        return [(argument.metavar or argument.name.upper(), argument.help or "") for argument in arguments]


def load(name: str, target: str) -> Any:
    """Import a command.

    Args:
        name: What it is called by.
        target: Its module and the name in it, as "module:name".
    """
    module, _, attribute = target.partition(":")
    loaded = getattr(import_module(module), attribute)
    if not isinstance(loaded, typer.Typer):
        function, loaded = loaded, typer.Typer(add_completion=False, rich_markup_mode=None)
        loaded.command(name, cls=Command)(function)
    command = typer.main.get_command(loaded)
    command.name = name
    return command
