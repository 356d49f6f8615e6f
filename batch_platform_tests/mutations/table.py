"""The mutations: forty faults that a change could introduce, each with the tests that should see it first."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutation:
    """One fault: a piece of a file's source, and what takes its place."""

    name: str  # what would break
    file: str  # below `batch_platform`
    source: str  # occurs exactly once in the file
    replacement: str
    tests: tuple[str, ...]  # files or tests below `batch_platform_tests`, tried before the rest of a tier

    def applied(self, checkout: Path) -> str:
        """The text of the file with the fault; raises ValueError unless the source occurs exactly once."""
        text = (checkout / "batch_platform" / self.file).read_text(encoding="utf-8")
        if (count := text.count(self.source)) != 1:
            msg = (
                f"{self.name}: the source occurs {count} times in batch_platform/{self.file}, not once. "
                "Hint: bring it into step in batch_platform_tests/mutations/table.py."
            )
            raise ValueError(msg)
        return text.replace(self.source, self.replacement)


MUTATIONS = (
    # Windows and calendar
    Mutation(
        "a training window leaves out the partition whose labels mature at its boundary",
        "declaration/periods.py",
        "inside[: bisect_right(inside, serving_start, key=self.matures)]",
        "[partition for partition in inside if self.matures(partition) < serving_start]",
        ("pipeline/test_plan.py", "declaration/test_spec.py", "test_time.py"),
    ),
    Mutation(
        "every day has 24 hours",
        "declaration/calendar.py",
        "return _midnight(local + timedelta(days=1), self.zone)",
        "return start + timedelta(days=1)",
        ("declaration/test_calendar.py",),
    ),
    Mutation(
        "a partition is not yet due at the instant of its end",
        "declaration/calendar.py",
        "closed = bisect_right(windows, now, key=_start) - 1",
        "closed = bisect_left(windows, now, key=_start) - 1",
        ("declaration/test_calendar.py",),
    ),
    Mutation(
        "the rhythm of weekdays and hours follows UTC instead of local time",
        "monitoring/usual.py",
        "local = run.partition_start.astimezone(self._calendar.zone)",
        "local = run.partition_start",
        ("monitoring/test_usual.py", "pipeline/test_health.py", "monitoring/test_measures.py"),
    ),
    # Clocks: what is known when
    Mutation(
        "a row at the end of a partition belongs to it and to the next one",
        "features/row_checks.py",
        'frame.filter(~instants(times, self._zone).is_between(start, end, closed="left"))',
        'frame.filter(~instants(times, self._zone).is_between(start, end, closed="both"))',
        ("features/test_build.py::test_a_window_holds_its_start_and_not_its_end",),
    ),
    Mutation(
        "the delay of labels counts from the start of a partition",
        "declaration/periods.py",
        "self.spec.labels.maturity.after(partition.end, self.calendar.zone)",
        "self.spec.labels.maturity.after(partition.start, self.calendar.zone)",
        ("pipeline/test_plan.py", "declaration/test_spec.py", "test_time.py"),
    ),
    Mutation(
        "a late row leaves later partitions unchanged whose features look back on it",
        "features/fingerprints.py",
        "counted, total = (rows_before, content_before) if looks_back else (rows, content)",
        "counted, total = rows, content",
        ("features/test_fingerprints.py", "pipeline/test_late_rows.py"),
    ),
    Mutation(
        "labels that are not mature are measured if somebody asks for it",
        "planning/holds.py",
        "    if known > now:",
        "    if partition.end > now:",
        ("pipeline/test_plan.py", "test_laws.py::test_law_15_no_performance_is_stored_of_labels_that_are_not_mature"),
    ),
    # The gate
    Mutation(
        "a worthless version replaces a champion that was better than guessing",
        "models/gate.py",
        'worthless = bool(lost) or (guessing is not None and guessing.word == "worse")',
        'worthless = guessing is not None and guessing.word == "worse"',
        ("models/test_champion_comparison.py", "models/test_baseline.py", "models/test_gate.py"),
    ),
    Mutation(
        "a version is compared with the champion's fit that serves, which has seen the rows, and not with the judged one",
        "models/gate.py",
        "predictor, signature = champion.judged_fit",
        "predictor, signature = champion.predictor, champion.signature",
        ("models/test_champion_comparison.py", "models/test_refit.py", "models/test_gate.py"),
    ),
    Mutation(
        "a version passes while any part of its interval is within the tolerance",
        "models/gate.py",
        "beside.gain[0] < -gate.tolerance",
        "beside.gain[1] < -gate.tolerance",
        (
            "models/test_gate.py::test_what_is_worse_is_refused_unless_the_whole_interval_is_within_the_tolerance",
            "models/test_gate.py",
        ),
    ),
    # Counts
    Mutation(
        "a commit does not compare the inserted rows with those that were counted",
        "warehouse/database.py",
        "if counted or scored != sum(run.rows_scored for run in runs) or rejected != sum(run.rows_rejected for run in runs):",
        "if counted:",
        ("warehouse/test_database.py::test_staged_rows_that_differ_from_their_count_are_refused",),
    ),
    Mutation(
        "only the rejected rows of the last batch are counted",
        "scoring/batch.py",
        "rows_rejected=self.rows_rejected + further.rows_rejected,",
        "rows_rejected=further.rows_rejected,",
        ("scoring/test_batch.py",),
    ),
    # Committing and publishing
    Mutation(
        "an older, slower run replaces a newer commit",
        "warehouse/database.py",
        "    if standing.seq > scores.seen_seq:",
        "    if standing.seq < scores.seen_seq:",
        ("warehouse/test_database.py::test_an_older_slower_run_is_refused",),
    ),
    Mutation(
        "a published copy that another program wrote into stays published",
        "warehouse/published.py",
        "if current == wanted and wanted.is_file() and wanted not in foreign:",
        "if current == wanted and wanted.is_file():",
        ("warehouse/test_published.py::test_what_another_program_writes_into_a_copy_is_noticed_and_made_anew",),
    ),
    # What a loss of power leaves
    Mutation(
        "a file gets its name before its content is on the disk",
        "warehouse/files.py",
        "    sync(aside)\n    aside.replace(path)",
        "    aside.replace(path)",
        ("warehouse/test_durable_files.py", "warehouse/test_checkpoint.py", "warehouse/test_published.py"),
    ),
    Mutation(
        "the name of the rollback journal is not on the disk when the checkpoint begins",
        "warehouse/files.py",
        "        sync(to.parent)\n",
        "",
        ("warehouse/test_durable_files.py", "warehouse/test_checkpoint.py", "warehouse/test_published.py"),
    ),
    Mutation(
        "the blocks of a checkpoint are saved after they were overwritten",
        "warehouse/files.py",
        '            self._save(con)\n            con.execute("CHECKPOINT")',
        '            con.execute("CHECKPOINT")\n            self._save(con)',
        ("warehouse/test_durable_files.py", "warehouse/test_checkpoint.py", "warehouse/test_published.py"),
    ),
    # Quantiles and intervals
    Mutation(
        "the width of an interval is learned from the rows that grew its tree",
        "models/refinements/interval.py",
        "tree.leaves(matrix[1::2], predicted[1::2]), errors[1::2]",
        "tree.leaves(matrix[::2], predicted[::2]), errors[::2]",
        ("models/test_interval.py", "models/test_refinements_conformance.py", "pipeline/test_intervals.py"),
    ),
    Mutation(
        "a model is worse as soon as its interval reaches below zero",
        "monitoring/comparison.py",
        '"worse" if high < -ROUNDING',
        '"worse" if low < -ROUNDING',
        ("monitoring/test_comparison.py",),
    ),
    # Retention and removing files
    Mutation(
        "predictions expire although they were never measured",
        "planning/retention.py",
        "return spec.periods.matures(partition) > now or not is_measured",
        "return spec.periods.matures(partition) > now",
        ("pipeline/test_retention.py",),
    ),
    Mutation(
        "gc removes a version that was promoted once",
        "operations/cleanup.py",
        'if "approved" in actions or version.created_at >= before:',
        "if version.created_at >= before:",
        ("operations/test_cleanup.py",),
    ),
    # Budgets, contracts and drift
    Mutation(
        "a partition fails whose rejected rows are exactly as many as max_rejected allows",
        "declaration/inputs.py",
        "rejected / rows > self.share",
        "rejected / rows >= self.share",
        ("declaration/test_spec.py", "scoring/test_batch.py::test_the_budget_is_exact_to_the_row"),
    ),
    Mutation(
        "a value on its declared maximum is rejected",
        "models/contract.py",
        "(read > column.max)",
        "(read >= column.max)",
        ("models/test_contract.py",),
    ),
    Mutation(
        "chance counts as drift",
        "monitoring/divergence.py",
        "unusual = self.beyond_chance - USUAL_MARGIN * usual",
        "unusual = self.psi - USUAL_MARGIN * usual",
        ("monitoring/test_drift.py", "monitoring/test_measures.py", "scoring/test_drift_tables.py"),
    ),
    # Sources and deliveries
    Mutation(
        "a source file that is replaced by one of the same size is not read again",
        "sources/files.py",
        "facts += [str(path.relative_to(head)), str(state.size), state.mark]",
        "facts += [str(path.relative_to(head)), str(state.size)]",
        ("sources/test_sources.py", "sources/test_source_kinds.py", "pipeline/test_staleness.py"),
    ),
    Mutation(
        "a partition that is scored again is not delivered again",
        "planning/artifacts.py",
        '{"predictions": delivered.score_seq, "declaration": delivered.declared}',
        '{"predictions": run.seq, "declaration": delivered.declared}',
        ("pipeline/test_plan.py", "components/test_deliveries.py"),
    ),
    Mutation(
        "a delivery is added to the rows of an earlier one in a database",
        "delivery/sql.py",
        '                cursor.execute(f"DELETE {its_rows}", [target.partition_key])\n',
        "",
        ("delivery/test_sinks_conformance.py", "delivery/test_sql.py"),
    ),
    # Calibration, decisions and segments
    Mutation(
        "a calibration that is more reliable is refused because it ranks less finely",
        "models/refinements/calibration.py",
        'verdict.word == "worse" and not reliable',
        'verdict.word == "worse"',
        ("models/test_calibration.py",),
    ),
    Mutation(
        "of equal scores one row too many is selected by decide.top",
        "scoring/deciding.py",
        "LIMIT 1 OFFSET {selected - 1}",
        "LIMIT 1 OFFSET {selected}",
        ("scoring/test_highest.py",),
    ),
    Mutation(
        "a text of ten rows of a single key is named",
        "monitoring/segments.py",
        'pl.col("key").n_unique()',
        "pl.len()",
        ("monitoring/test_segments.py", "monitoring/test_measures.py", "operations/test_deletion.py"),
    ),
    # Kernels
    Mutation(
        "a value on its threshold goes right, by NumPy",
        "kernels/forest/compiled.py",
        "value <= nodes.threshold[node]",
        "value < nodes.threshold[node]",
        ("kernels/test_structure.py", "kernels/test_forest.py", "kernels/test_trees_file.py"),
    ),
    Mutation(
        "a missing value goes right as a large one does, compiled",
        "kernels/forest/kernels.py",
        "= missing if absent else rank",
        "= rank",
        ("kernels/test_structure.py", "kernels/test_forest.py"),
    ),
    # Secrets, erased subjects and the lock
    Mutation(
        "a secret that holds a shorter one is shown in part",
        "declaration/redaction.py",
        "key=lambda form: (-len(form), form)",
        "key=lambda form: (len(form), form)",
        ("declaration/test_redaction.py",),
    ),
    Mutation(
        "of subjects erased by different columns, only those of the last columns are left out",
        "warehouse/deletion.py",
        "kept &= ~np.asarray(gone, dtype=bool)",
        "kept = ~np.asarray(gone, dtype=bool)",
        ("warehouse/test_erasures.py", "operations/test_deletion.py"),
    ),
    Mutation(
        "two processes hold the warehouse at once",
        "warehouse/lock.py",
        "        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)\n    except",
        "        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)\n    except",
        ("warehouse/test_lock.py", "warehouse/test_database.py"),
    ),
    # Loading, schedules, the command and reports
    Mutation(
        "pipelines that share a name keep all others from loading",
        "components/broken.py",
        "if names.count(broken.name) > 1:",
        "if broken.name not in names:",
        ("components/test_broken.py::test_pipelines_that_share_a_name_are_set_apart_and_the_others_load",),
    ),
    Mutation(
        "a tick with a limit requests the newest partitions",
        "planning/steps.py",
        "sorted(due, key=lambda partition: partition.start)[:limit]",
        "sorted(due, key=lambda partition: partition.start, reverse=True)[:limit]",
        ("pipeline/test_plan.py",),
    ),
    Mutation(
        "status --fail-on ends with 0 where a pipeline cannot be loaded",
        "cli/status.py",
        "(broken or any(status.health.reaches(fail_on) for status in statuses))",
        "any(status.health.reaches(fail_on) for status in statuses)",
        ("cli/test_reporting.py::test_status_of_several_pipelines_is_short_and_ends_with_3_if_the_health_is_so_bad",),
    ),
    Mutation(
        "a report raises an alarm about a difference between segments that chance explains",
        "reports/performance.py",
        "if high < FOUR_FIFTHS or low > 1 / FOUR_FIFTHS:",
        "if low < FOUR_FIFTHS or high > 1 / FOUR_FIFTHS:",
        ("reports/test_report.py",),
    ),
)
