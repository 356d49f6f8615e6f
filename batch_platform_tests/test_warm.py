"""Commands that are forked with everything imported answer and end like those of a new interpreter."""

import os
import signal

import pytest

from batch_platform_tests.command_line import COMMAND, run_command, start_command


@pytest.mark.parametrize("arguments", [("--version",), ("status", "small"), ("status", "nothing"), ("nonsense",)])
def test_a_forked_command_answers_as_a_new_interpreter_does(project, arguments):
    assert run_command(project, *arguments) == run_command(project, *arguments, command=COMMAND)


def test_a_forked_command_is_a_process_that_signals_reach_and_leads_its_session(project):
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        process = start_command(project, "run", "small", "--force", start_new_session=True)
        assert process.stdout.readline() == "small: to do\n"
        assert process.poll() is None
        assert os.getsid(process.pid) == process.pid
        os.kill(process.pid, number)
        process.communicate()
        assert process.returncode == process.poll() == code
