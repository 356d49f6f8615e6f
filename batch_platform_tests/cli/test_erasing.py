"""`erase`: the rows of a subject leave everything, and the command says from where."""

from batch_platform_tests.harness.command_line import published

ROWS = "SELECT count(*) FROM small.predictions WHERE id = {}"


def test_erase_says_what_it_would_erase_and_erases_it_once(cli, project):
    ((order,),) = published(project, "SELECT min(id) FROM small.predictions")
    refused = cli(project, "erase", "small", "order")
    assert (refused.code, "is not KEY=VALUE" in refused.error) == (2, True)
    announced = cli(project, "erase", "small", f"id={order}", "--dry-run")
    assert announced.out.startswith("small: to erase from 1 partition\n  1 row of features\n")
    assert "the sources are not changed: " in announced.out
    assert "earlier backups keep the rows" in announced.out
    assert published(project, ROWS.format(order)) == [(1,)]
    answer = cli(project, "erase", "small", f"id={order}", "--json").json
    assert answer["held"]["rows"]["predictions"] == 1
    assert published(project, ROWS.format(order)) == [(0,)]
    assert published(project, "SELECT run_id FROM batch_platform.erasures") == [(answer["run_id"],)]
    again = cli(project, "erase", "small", f"id={order}").out
    assert again.startswith(f"small: id={order} was erased at 20")
    assert cli(project, "erase", "small", "id=-1").out == "small: no row has id=-1; there is nothing to erase.\n"
    traced = cli(project, "trace", "small", f"id={order}")
    assert traced.error.startswith(f"small: what had id={order} was erased at 20")
    assert f"run_id '{answer['run_id']}'" in traced.error
    status = cli(project, "status", "small").out
    assert status.startswith("small: 29 scored, 31 warm-up\n")
    assert "  due now: nothing" in status
    assert "everything asked for is up to date" in cli(project, "run", "small").out
