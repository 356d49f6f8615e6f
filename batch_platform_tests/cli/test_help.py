"""The help of every command: one sentence first, every option explained, and examples that the command accepts."""

import shlex
from collections.abc import Iterator

import click
import pytest

from batch_platform.cli.app import app
from batch_platform_tests.harness.command_line import takes_all

LINE = "    batch-platform "
WIDTH = 100


def commands(parent: click.Group, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    """Every command by its name, those of a group after the group."""
    for name in parent.list_commands(context):
        command = parent.get_command(context, name)
        yield f"{context.info_name} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, click.Context(command, info_name=f"{context.info_name} {name}"))


COMMANDS = dict(commands(app, click.Context(app, info_name="batch-platform")))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_says_what_a_command_does_what_its_options_mean_and_how_it_is_called(name):
    command = COMMANDS[name]
    context = click.Context(command, info_name=name, max_content_width=WIDTH, terminal_width=WIDTH)
    shown = command.get_help(context)
    assert max(map(len, shown.splitlines())) <= WIDTH
    summary = command.help.split("\n\n")[0]
    assert summary.endswith((".", "|")), "a sentence"
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            has_default = option.default not in (None, False, (), "") and "UNSET" not in repr(option.default)
            assert not has_default or option.show_default or "efault" in option.help, option.name
    examples = [line.removeprefix(LINE) for line in shown.splitlines() if line.startswith(LINE)]
    assert len(examples) >= 2
    for example in examples:
        takes_all(app, shlex.split(example))
