"""Change a pipeline that exists as another proposal would have it, and keep what its owner edited."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from difflib import SequenceMatcher, unified_diff
from pathlib import Path

import yaml

from batch_platform.cli.proposal.choices import Asked
from batch_platform.declaration.errors import WrongUseError
from batch_platform.declaration.inputs import PLACEHOLDERS, Encoding
from batch_platform.declaration.spec import PipelineSpec


@dataclass(frozen=True)
class Existing:
    """A pipeline as its files declare it."""

    folder: Path
    spec: PipelineSpec
    files: Mapping[str, str]  # text by name

    @property
    def table(self) -> tuple[str, str | None]:
        """The file, or the glob of files, that its first source reads, and the table in it."""
        source = next(iter(self.spec.sources.values()))
        if source.kind == "python":
            msg = f"{self.spec.name} reads a function, not a file."
            raise WrongUseError(msg, hint="name a file with --from.")
        location = source.location
        for placeholder in PLACEHOLDERS:
            location = location.replace(placeholder, "*")
        return str((self.folder / location).resolve()), source.table

    @property
    def encoding(self) -> Encoding | None:
        """The encoding of that file."""
        return next(iter(self.spec.sources.values())).encoding

    @property
    def start(self) -> datetime:
        """The start of its first partition, in local time."""
        return datetime.fromisoformat(self.spec.partitions.start)

    def as_declared(self, asked: Asked, columns: Collection[str]) -> Asked:
        """What a user would have named to get the pipeline as it is, of the columns of its table."""
        spec, label = self.spec, None if self.spec.labels is None else self.spec.labels.column
        key = tuple(spec.features.key)
        return replace(
            asked,
            key=key if {*key} <= {*columns} else (),
            time=spec.features.time if spec.features.time in columns else None,
            label=label if label in columns else None,
            cluster=label is None,
            timezone=spec.partitions.timezone,
        )


def existing(folder: Path) -> Existing | None:
    """The pipeline in a folder; None if there is none that this command could have written."""
    if not (folder / "defs.yaml").is_file():
        return None
    files = {
        file.name: file.read_text(encoding="utf-8") for file in folder.iterdir() if file.suffix in (".yaml", ".sql")
    }
    declared = yaml.safe_load(files["defs.yaml"])
    return Existing(folder, PipelineSpec.model_validate(declared["attributes"]), files)


def changed_by(declared: Asked, asked: Asked) -> Asked:
    """What is declared, with what the user names now instead; another label or time may need another key."""
    label = asked.label or (None if asked.cluster else declared.label)
    return replace(
        declared,
        key=asked.key or (() if asked.time else declared.key),
        time=asked.time or declared.time,
        label=label,
        cluster=asked.cluster or label is None,
    )


def revised(own: Mapping[str, str], before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """The files with what differs between two proposals; a file whose changed lines were edited becomes the second proposal."""
    return {name: _carried_over(own.get(name, ""), before.get(name, ""), text) for name, text in after.items()}


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
    return "".join(
        line
        for name, text in files.items()
        for line in unified_diff(_lines(own.get(name, "")), _lines(text), name, name)
    )


def _lines(text: str) -> Sequence[str]:
    return text.splitlines(keepends=True)
