"""Commands that are forked with everything imported answer and end like those of a new interpreter."""

import json
import os
import signal
import subprocess
import sys
from functools import partial

import pytest

from batch_platform_tests.command_line import COMMAND, run_command, start_command
from batch_platform_tests.warm import WarmCommand

STARTS_OTHERS = """\
import json, multiprocessing, os, subprocess, sys


def work(queue):
    queue.put({"parent": os.getppid(), "forked": "sklearn" in sys.modules, "pipe": os.read(0, 100).decode()})
    sys.exit(3)


if __name__ == "__main__":
    spawning = multiprocessing.get_context("spawn")
    queue = spawning.Queue()
    process = spawning.Process(target=work, args=[queue])
    process.start()
    seen = queue.get()
    process.join()
    version = subprocess.run([sys.executable, "-m", "dagster", "--version"], stdout=-1, stderr=-1, text=True)
    refused = subprocess.run([sys.executable, "-m", "dagster", "nonsense"], stdout=-1, stderr=-1, text=True)
    outcome = [process.exitcode, version.returncode, version.stdout, refused.returncode, refused.stderr]
    print(json.dumps([seen | {"parent": seen["parent"] == os.getpid()}, outcome]))
"""


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


def test_what_a_forked_process_starts_is_forked_too_and_ends_like_a_child_in_a_new_interpreter(tmp_path):
    (tmp_path / "starts_others.py").write_text(STARTS_OTHERS)
    outcomes = []
    for start, forked in ((WarmCommand, True), (partial(subprocess.Popen, text=True), False)):
        command = [sys.executable, "-m", "starts_others"]
        with start(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            seen, outcome = json.loads(process.communicate("given")[0])
        assert seen == {"parent": True, "forked": forked, "pipe": "given"}
        assert process.returncode == 0
        outcomes.append(outcome)
    assert outcomes[0] == outcomes[1]
    assert (outcomes[0][0], outcomes[0][1]) == (3, 0)
