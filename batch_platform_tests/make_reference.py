"""Write the guide's references of all YAML keys anew, from the declaration: `python -m batch_platform_tests.make_reference`."""

import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import batch_platform
from batch_platform import api, build_definitions
from batch_platform.declaration.model import Learner
from batch_platform.declaration.notation import Block
from batch_platform.declaration.spec import PipelineSpec

FOLDER = Path(batch_platform.__file__).parent / "guide"
BEGIN = "<!-- Everything below is made by `python -m batch_platform_tests.make_reference`. -->\n"
WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", NoneType: ""}


def pages() -> dict[Path, str]:
    """The pages that end with tables of keys, a section for each block, as they should be."""
    sections = {path: _section(path, block, description) for path, block, description in _blocks(PipelineSpec)}
    texts, (second, third) = [*sections.values()], ([*sections].index(first) for first in ("model", "monitoring"))
    parts = {"declaring": texts[:second], "keys": texts[second:third], "more_keys": texts[third:]}
    parts["from_python"] = [_call(name, public) for name, public in _calls().items()]
    return {FOLDER / f"{name}.md": _page(FOLDER / f"{name}.md", made) for name, made in parts.items()}


def _calls() -> dict[str, Any]:
    """The public functions, and the class of a pipeline with what it does, by the name to call."""
    methods = {
        f"Pipeline.{name}": method
        for name, method in vars(api.Pipeline).items()
        if inspect.isfunction(method) and not name.startswith("_")
    }
    functions = (api.load_pipeline, api.read_predictions, api.compare_models, build_definitions)
    return {"Pipeline": api.Pipeline, **methods, **{function.__name__: function for function in functions}}


def _call(name: str, public: Any) -> str:
    """A section from a docstring: its sections as paragraphs and lists, its example as code."""
    summary, *sections = re.split(r"\n\n(?=(?:Args|Returns|Raises|Example):\n)", inspect.getdoc(public) or "")
    parameters = inspect.signature(public).parameters
    shown = ", ".join(it for it in parameters if it != "self" and not it.startswith("_"))
    text = f"## `{name}({shown})`\n\n{summary}\n"
    for section in sections:
        title, _, body = section.partition(":\n")
        body = textwrap.dedent(body)
        if title == "Example":
            text += f"\n```python\n{body}\n```\n"
        elif title == "Returns":
            text += f"\n**Returns** {' '.join(body.split())}\n"
        else:
            items = re.sub(r"^(\w+): ", r"- `\1`: ", re.sub(r"\n +", " ", body), flags=re.MULTILINE)
            text += f"\n**{title}**\n\n{items}\n"
    return text


def _page(path: Path, sections: list[str]) -> str:
    return path.read_text(encoding="utf-8").partition(BEGIN)[0] + BEGIN + "\n" + "\n".join(sections)


def _blocks(block: type[Block], path: str = "", description: str = "") -> Iterator[tuple[str, type[Block], str]]:
    """Every block below a block, each with its path in the YAML."""
    yield path, block, description
    for key, field in _fields(block):
        form = "" if _of_list(field) else ".<name>" if get_origin(field.annotation) is dict else ""
        for inner in _inner_blocks(field.annotation):
            yield from _blocks(inner, f"{path}.{key}{form}".lstrip("."), field.description or "")


def _fields(block: type[Block]) -> list[tuple[str, FieldInfo]]:
    return [(field.alias or name, field) for name, field in block.model_fields.items()]


def _of_list(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is list


def _inner_blocks(annotation: Any) -> list[type[Block]]:
    if isinstance(annotation, type) and issubclass(annotation, Block):
        return [annotation]
    return [block for argument in get_args(annotation) for block in _inner_blocks(argument)]


def _section(path: str, block: type[Block], description: str) -> str:
    """A table of the keys of a block; those that a challenger shares with the model are only named."""
    shared = [field.alias or name for name, field in Learner.model_fields.items()] if path == "challengers" else []
    title = f"### `{path}`\n\n{description}\n" if path else "### The pipeline\n"
    title += (
        f"\nBeside these keys, those of [`model`](#model): {', '.join(map('`{}`'.format, shared))}.\n" if shared else ""
    )
    own = [(key, field) for key, field in _fields(block) if key not in shared]
    rows = [f"| `{key}` | {_type(field)} | {_default(field)} | {_meaning(field)} |\n" for key, field in own]
    return f"{title}\n| key | value | default | meaning |\n| --- | --- | --- | --- |\n{''.join(rows)}"


def _meaning(field: FieldInfo) -> str:
    example = next(iter(field.examples or []), None)
    shown = "" if example is None else f" Example: `{json.dumps(example, ensure_ascii=False)}`."
    return f"{field.description}{shown}".replace("|", "\\|")


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "**required**"
    if default is None or default in ("", [], {}) or isinstance(default, Block):
        return ""
    return f"`{json.dumps(default)}`"


def _type(field: FieldInfo) -> str:
    return " or ".join(dict.fromkeys(filter(None, _types(field.annotation))))


def _types(annotation: Any) -> list[str]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _types(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [name for argument in get_args(annotation) for name in _types(argument)]
    if origin is Literal:
        return [f"`{value}`" for value in get_args(annotation)]
    if origin is list:
        return [f"list of {' or '.join(_types(get_args(annotation)[0]))}"]
    if origin is dict:
        return ["mapping"]
    return [WORDS.get(annotation, "block")]


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
