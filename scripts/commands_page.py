"""A hook of MkDocs that writes the page on commands from the command line itself, so that the two cannot differ."""

from collections.abc import Iterator
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from ssvd_cli.main import app

PAGE = "reference/commands.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page to those of the site."""
    files.append(File.generated(config, PAGE, content=page()))
    return files


def page() -> str:
    """Return the page: each command with its usage, arguments and options."""
    text = "# Commands\n\nThis page shows what each command prints with `--help`.\n"
    for context in _commands(typer.main.get_command(app), "ssvd", None):
        text += f"\n{'#' * (context.command_path.count(' ') + 2)} `{context.command_path}`\n\n{_section(context)}"
    return text


def _commands(command: Any, name: str, parent: Any) -> Iterator[Any]:
    """Yield the context of a command, and of every command below it."""
    context = command.context_class(command, info_name=name, parent=parent, terminal_width=80, max_content_width=80)
    yield context
    for below in command.list_commands(context) if hasattr(command, "list_commands") else []:
        # A group may import a command only when it is called.
        _, child, _ = command.resolve_command(context, [below])
        yield from _commands(child, below, context)


def _section(context: Any) -> str:
    return f"```text\n{context.get_help().rstrip()}\n```\n"
