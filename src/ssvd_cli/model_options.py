"""Command-line options made from the fields of a pydantic model, so that each option is stated once."""

from collections.abc import Callable, Collection, Mapping
from inspect import Parameter, signature
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

CommandFunction = TypeVar("CommandFunction", bound=Callable[..., None])


def with_options_of(
    model: type[BaseModel], *, arguments: Collection[str] = (), metavars: Mapping[str, str] | None = None
) -> Callable[[CommandFunction], CommandFunction]:
    """Give a command an option for each field of a model, before the options that it states itself.

    The command takes the values as keywords, and learns from its context, its first parameter, which of them were
    given. Bounds and choices are left to the model, so that all mistakes are reported in one message.

    Args:
        model: The model.
        arguments: Names of fields that are arguments instead, which may be left out.
        metavars: What stands for the value in the help, by field.
    """

    def decorate(command: CommandFunction) -> CommandFunction:
        context, *own, _ = signature(command).parameters.values()  # the last are the keywords
        generated = [
            _parameter(name, field, is_argument=name in arguments, metavar=(metavars or {}).get(name))
            for name, field in model.model_fields.items()
        ]
        parameters = [part.replace(kind=Parameter.KEYWORD_ONLY) for part in (context, *generated, *own)]
        # Typer reads both.
        command.__signature__ = signature(command).replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def given_options(context: typer.Context, model: type[BaseModel]) -> dict[str, Any]:
    """Return the values of those fields of a model that were given on the command line."""
    return {
        name: context.params[name]
        for name in model.model_fields
        if getattr(context.get_parameter_source(name), "name", None) != "DEFAULT"
    }


def _parameter(name: str, field: FieldInfo, *, is_argument: bool, metavar: str | None) -> Parameter:
    annotation: Any = field.annotation
    if is_argument:
        argument = typer.Argument(metavar=metavar, help=field.description)
        return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation | None, argument])
    default, help = field.default, field.description or ""
    if get_origin(annotation) is Literal:
        metavar, annotation = "|".join(get_args(annotation)), str
    elif get_origin(annotation) is list:
        if choices := get_args(get_args(annotation)[0]):
            metavar, annotation = "|".join(choices), list[str]
        default, help = ([] if field.is_required() else default), f"{help.removesuffix('.')}; repeatable."
    elif len({*get_args(annotation)} - {NoneType}) > 1:  # of a number and words, which the model tells apart
        annotation = str | None
    option = typer.Option(metavar=metavar, help=help, show_default=default is not False)
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, option])
