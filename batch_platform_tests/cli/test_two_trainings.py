"""Two `train` commands at once: the one that waits trains nothing twice."""

import pytest

from batch_platform_tests.harness.command_line import published, start_command

VERSIONS = "SELECT count(*) FROM batch_platform.model_versions"


@pytest.mark.full
def test_the_second_of_two_trainings_at_once_leaves_out_what_the_first_trained_unless_it_is_forced(fresh):
    for arguments, versions in (([], 1), (["--force"], 3)):
        commands = [start_command(fresh, "train", "small", *arguments) for _ in range(2)]
        outputs = [command.communicate()[0] for command in commands]
        assert [command.returncode for command in commands] == [0, 0], outputs
        assert published(fresh, VERSIONS) == [(versions,)]
        assert ("nothing is due" in "".join(outputs)) is not bool(arguments)
