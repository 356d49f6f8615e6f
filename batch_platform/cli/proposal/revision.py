"""Change a pipeline that exists as another proposal would have it, and keep what its owner edited."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from difflib import SequenceMatcher, unified_diff
from pathlib import Path

import yaml

from batch_platform.cli.proposal.choices import Asked
from batch_platform.cli.proposal.origin import Origin, locate
from batch_platform.declaration.errors import WrongUseError
from batch_platform.declaration.inputs import PLACEHOLDERS, Encoding
from batch_platform.declaration.spec import PipelineSpec


@dataclass(frozen=True)
class Existing:
    """A pipeline as its files declare it."""

    folder: Path
    spec: PipelineSpec
    files: Mapping[str, str]  # text by name

    def origin(self, encoding: Encoding | None) -> Origin:
        """The file, or the glob of files, that its first source reads, and the table in it."""
        source = next(iter(self.spec.sources.values()))
        if source.kind == "python":
            msg = f"{self.spec.name} reads a function, not a file."
            raise WrongUseError(msg, hint="name a file with --from.")
        location = source.location
        for placeholder in PLACEHOLDERS:
            location = location.replace(placeholder, "*")
        return locate(str((self.folder / location).resolve()), source.table, encoding or source.encoding)

    def answers(self, asked: Asked, columns: Collection[str]) -> tuple[Asked, Asked]:
        """The choices by which a user would have got the pipeline as it is, and the same with those that the user names now instead.

        Another time may need another key.
        """
        spec, label = self.spec, None if self.spec.labels is None else self.spec.labels.column
        declared = replace(
            asked,
            key=tuple(spec.features.key) if {*spec.features.key} <= {*columns} else (),
            time=spec.features.time if spec.features.time in columns else None,
            label=label if label in columns else None,
            cluster=label is None,
            timezone=spec.partitions.timezone,
        )
        predicted = asked.label or (None if asked.cluster else declared.label)
        changed = replace(
            declared,
            key=asked.key or (() if asked.time else declared.key),
            time=asked.time or declared.time,
            label=predicted,
            cluster=asked.cluster or predicted is None,
        )
        return declared, changed


def existing(folder: Path) -> Existing | None:
    """The pipeline in a folder; None if there is none that this command could have written."""
    if not (folder / "defs.yaml").is_file():
        return None
    files = {
        file.name: file.read_text(encoding="utf-8") for file in folder.iterdir() if file.suffix in (".yaml", ".sql")
    }
    declared = yaml.safe_load(files["defs.yaml"])
    return Existing(folder, PipelineSpec.model_validate(declared["attributes"]), files)


def revised(own: Mapping[str, str], before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """The files with what differs between two proposals.

    A file whose changed lines were edited, and one that only the second proposal has, become those of the second proposal.
    """
    return {
        name: _carried_over(own[name], before[name], text) if name in own and name in before else text
        for name, text in after.items()
    }


def _carried_over(own: str, before: str, after: str) -> str:
    mine, old, new = (text.splitlines(keepends=True) for text in (own, before, after))
    place = {
        block.a + step: block.b + step
        for block in SequenceMatcher(None, old, mine, autojunk=False).get_matching_blocks()
        for step in range(block.size)
    } | {-1: -1, len(old): len(mine)}
    for tag, start, end, new_start, new_end in reversed(SequenceMatcher(None, old, new, autojunk=False).get_opcodes()):
        if tag == "equal":
            continue
        places = [place.get(at) for at in range(start, end)]
        first = places[0] if places else (place[start] if start in place else place.get(start - 1, -2) + 1)
        if first is None or first < 0 or places != [first + step for step in range(end - start)]:
            return after
        mine[first : first + end - start] = new[new_start:new_end]
    return "".join(mine)


def difference(own: Mapping[str, str], files: Mapping[str, str]) -> str:
    """A unified diff from the files of a pipeline to others, without the files that stay."""
    lines: list[str] = []
    for name, text in files.items():
        before, after = own.get(name, "").splitlines(keepends=True), text.splitlines(keepends=True)
        lines += unified_diff(before, after, name, name)
    return "".join(lines)
