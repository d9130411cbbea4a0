"""Click options made from a config's fields: name, type, default and help are written once, in `config.py`."""

import ast
import dataclasses
import functools
import inspect
import typing

import click

from mocoembed import config as configs
from mocoembed.config import option_name

WORKSPACE_VARIABLE = "MOCOEMBED_WORKSPACE"


@functools.cache
def field_help() -> dict[str, dict[str, str]]:
    """The docstring under every field of every config: {class: {field: text}}."""
    texts: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(configs)).body:
        if isinstance(node, ast.ClassDef):
            texts[node.name] = {field.target.id: text.value.value for field, text in zip(node.body, node.body[1:])
                                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)}
    return texts


class NumberList(click.ParamType):
    """Numbers separated by commas: `10,20,100`."""

    def __init__(self, number: type, length: int | None):
        self.number, self.length = number, length
        self.name = "numbers" if length is None else f"{length} numbers"

    def convert(self, value, parameter, context):
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self.number(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if not numbers or (self.length is not None and len(numbers) != self.length):
            count = "one or more" if self.length is None else self.length
            self.fail(f"{value!r} is not {count} number{'s' * (count != 1)} separated by commas", parameter, context)
        return numbers


def _click_type(annotation) -> tuple[typing.Any, bool]:
    """The click type of a field's annotation, and whether it is a flag."""
    if typing.get_origin(annotation) is tuple:
        numbers = typing.get_args(annotation)
        return NumberList(numbers[0], None if numbers[-1] is Ellipsis else len(numbers)), False
    kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
    kind = kinds[0] if kinds else annotation
    return kind, kind is bool


def options_of(config_class, *, leave_out=(), preset: bool = False):
    """A decorator that adds one option for every field of `config_class` except those in `leave_out`.

    With `preset`, no option has a default of its own: one that is not given is `None`, for a recipe to fill in.
    """
    annotations = typing.get_type_hints(config_class)
    help_texts = field_help()[config_class.__name__]

    def decorate(command):
        for field in reversed(dataclasses.fields(config_class)):
            if field.name in leave_out:
                continue
            name = option_name(field.name)
            kind, is_flag = _click_type(annotations[field.name])
            more: dict[str, typing.Any] = {"help": help_texts[field.name]}
            if field.name == "workspace":
                more.update(envvar=WORKSPACE_VARIABLE, show_envvar=True)
            if is_flag:
                negative = f"{name}/--no-{name[2:]}" if field.default or preset else name
                option = click.option(negative, field.name, is_flag=True, default=None if preset else field.default,
                                      **more)
            else:
                names = ("-k", field.name) if field.name == "k" else (name, field.name)
                default = None if preset else field.default
                shown = default not in (None, (), dataclasses.MISSING)
                option = click.option(*names, type=kind, default=default, show_default=shown, **more)
            command = option(command)
        return command

    return decorate


def json_option(command):
    """`--json`: print the result as JSON."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(command)


def given(values: dict) -> dict:
    """The options that were given: those that are not `None`."""
    return {name: value for name, value in values.items() if value is not None}
