"""Click options made from a config's fields: name, type, default and help are written once, in `config.py`."""

import ast
import dataclasses
import functools
import inspect
import sys
import typing

import click

from mocoembed.checks import option_name
from mocoembed.config.pretrain import DEFAULT_WORKSPACE

WORKSPACE_VARIABLE = "MOCOEMBED_WORKSPACE"


@functools.cache
def _classes_of(module: str) -> dict[str, ast.ClassDef]:
    """A module is parsed as a whole and once: finding a class in it, as `inspect` does, takes three times as long."""
    return {node.name: node for node in ast.parse(inspect.getsource(sys.modules[module])).body
            if isinstance(node, ast.ClassDef)}


@functools.cache
def field_help(config_class) -> dict[str, str]:
    """The docstring under every field of a config: {field: text}."""
    node = _classes_of(config_class.__module__)[config_class.__name__]
    return {ast.unparse(field.target): ast.literal_eval(text.value) for field, text in zip(node.body, node.body[1:])
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)}


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


class NumberOrWord(click.ParamType):
    """A number, or one of the words that the config allows."""

    name = "number or word"

    def convert(self, value, parameter, context):
        try:
            return float(value)
        except ValueError:
            return value


def _click_type(annotation) -> tuple[typing.Any, bool]:
    """The click type of a field's annotation, and whether it is a flag."""
    if typing.get_origin(annotation) is tuple:
        numbers = typing.get_args(annotation)
        return NumberList(numbers[0], None if numbers[-1] is Ellipsis else len(numbers)), False
    kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
    if {float, str} <= set(kinds):
        return NumberOrWord(), False
    kind = kinds[0] if kinds else annotation
    return kind, kind is bool


def _shown_default(field: dataclasses.Field, in_recipes: bool) -> str | bool:
    """What help says about a field's default; `False` for nothing."""
    value = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    if value in (None, "", dataclasses.MISSING):
        return False
    return f"{value}, or the recipe's" if in_recipes else str(value)


def options_of(config_class, *, leave_out=(), presets=(), repeated: dict[str, str] | None = None):
    """A decorator that adds one option for every field of `config_class` except those in `leave_out`.

    `repeated` has the tuples whose option is given once for each value, {field: what stands for a value in the help};
    tuples of texts that it lacks are globs.

    With `presets` (dicts of fields), an option that is not given is `None`, for a preset to fill in.
    """
    annotations = typing.get_type_hints(config_class)
    help_texts = field_help(config_class)

    def decorate(command):
        for field in reversed(dataclasses.fields(config_class)):
            if field.name in leave_out:
                continue
            name = option_name(field.name)
            kind, is_flag = _click_type(annotations[field.name])
            more: dict[str, typing.Any] = {"help": help_texts[field.name]}
            if field.default == DEFAULT_WORKSPACE:
                more.update(envvar=WORKSPACE_VARIABLE, show_envvar=True)
            in_presets = any(field.name in preset for preset in presets)
            default = None if presets or field.default is dataclasses.MISSING else field.default
            metavar = (repeated or {}).get(field.name)
            if metavar or annotations[field.name] == tuple[str, ...]:
                each = typing.get_args(annotations[field.name])[0]
                option = click.option(name, field.name, type=each, metavar=metavar or "GLOB", multiple=True, **more)
            elif is_flag:
                names = f"{name}/--no-{name[2:]}" if field.default is not False or in_presets else name
                option = click.option(names, field.name, is_flag=True, default=default, **more)
            else:
                shown = _shown_default(field, in_presets) if presets else default not in (None, ())
                option = click.option(name, field.name, type=kind, default=default, show_default=shown, **more)
            command = option(command)
        return command

    return decorate


def json_option(command):
    """`--json`: print the result as JSON."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(command)


def given(values: dict) -> dict:
    """The options that were given: those that are not `None`."""
    return {name: value for name, value in values.items() if value is not None}
