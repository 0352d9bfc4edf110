"""Options in groups: a parameter of a command may be a dataclass, and stands for its fields."""

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, get_args, get_type_hints

import typer


class Group:
    """Base of the dataclasses whose fields are options, annotated as typer has them.

    panel: what they stand under in the help.
    """

    panel: ClassVar[str]


def option(text: str, *names: str, **kwargs: Any) -> Any:
    """An option with its help."""
    return typer.Option(*names, help=text, **kwargs)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for every field of its groups, which is how typer sees it."""
    parameters = inspect.signature(command, eval_str=True).parameters
    groups: dict[str, Any] = {
        name: parameter.annotation
        for name, parameter in parameters.items()
        if inspect.isclass(parameter.annotation) and issubclass(parameter.annotation, Group)
    }

    @functools.wraps(command)
    def flat(**values: Any) -> None:
        for name, group in groups.items():
            fields = [field.name for field in dataclasses.fields(group)]
            values[name] = group(**{field: values.pop(field) for field in fields})
        command(**values)

    options: list[inspect.Parameter] = []
    for name, parameter in parameters.items():
        options += _options(groups[name]) if name in groups else [parameter]
    by_name = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in options]
    flat.__signature__ = inspect.Signature(by_name)  # type: ignore[attr-defined]
    return flat


def _options(group: Any) -> list[inspect.Parameter]:
    """A parameter for every field."""
    types = get_type_hints(group, include_extras=True)
    parameters = []
    for field in dataclasses.fields(group):
        kind, option = get_args(types[field.name])
        option = copy.copy(option)
        option.rich_help_panel = group.panel
        parameter = inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY)
        parameters.append(
            parameter.replace(annotation=Annotated[kind, option], default=_default(field))
        )
    return parameters


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
