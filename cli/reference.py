"""Writes `docs/commands.md` from the commands themselves: `python -m mocoembed.cli.reference > docs/commands.md`."""

import click

from mocoembed.cli.main import COMMANDS, cli

HEADER = """# Commands

Generated from the commands' help by `python -m mocoembed.cli.reference > docs/commands.md`; a test compares the two.
Results go to standard output, everything else to standard error. Exit status: 0 success (also if some images were
unreadable: they are counted and listed), 1 failure, 2 usage error, 130 and 143 after SIGINT and SIGTERM.
`mocoembed --debug COMMAND ...` shows the traceback of an error.
"""


def reference() -> str:
    """The whole page."""
    parts = [HEADER]
    parent = click.Context(cli, info_name="mocoembed", terminal_width=110, help_option_names=["-h", "--help"])
    for name in COMMANDS:
        command = cli.get_command(parent, name)
        context = click.Context(command, info_name=name, parent=parent, terminal_width=110)
        parts.append(f"## mocoembed {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    click.echo(reference(), nl=False)
