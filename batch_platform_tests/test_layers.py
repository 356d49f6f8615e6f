"""The house rules that can be read off the source."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from itertools import chain
from pathlib import Path
from typing import get_args

import pytest

from batch_platform.warehouse.deletion import DROPPED
from batch_platform.warehouse.descriptions import OF_PIPELINES
from batch_platform.warehouse.failures import FAILURES, FINGERPRINTS, REFUSED_ROWS, FailedStep
from batch_platform.warehouse.sql import connect
from batch_platform.warehouse.tables_in_files import TABLES_IN_FILES

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "batch_platform"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
ORDER = (
    "declaration",
    "warehouse",
    "kernels",
    "sources",
    "monitoring",
    "features",
    "models",
    "scoring",
    "spark",
    "delivery",
    "planning",
    "pipeline",
    "operations",
    "reports",
    "proposal",
    "components",
    "cli",
)
KNOW_DAGSTER = {"components", "cli", "defs", "definitions"}
LONGEST = 600
MOST_IMPORTED = 20
VAGUE = {"utils", "util", "helpers", "common", "base", "misc", "core"}


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    """The nodes of a file's syntax tree; parsed once, by the first test that asks."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def imports_of(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever it stands; not what only type checkers see."""
    typing_only = {
        id(inner)
        for node in nodes_of(path)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in nodes_of(path):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def room_of(module: str) -> str:
    """The second word of a module's name: the folder, or the module at the top, that it lives in."""
    return [*module.split("."), ""][1]


@cache
def imports() -> dict[str, set[str]]:
    """What each module imports of the package; read once, by the first test that asks."""
    return {name: imports_of(path) & MODULES.keys() for name, path in MODULES.items()}


ROOMS = {name: room_of(name) for name in MODULES if room_of(name)}


def test_rooms_import_in_one_direction_only():
    allowed = {room: {*ORDER[: at + 1]} for at, room in enumerate(ORDER)}
    allowed["features"].remove("monitoring")
    allowed |= {"api": set(ORDER), "definitions": set(ORDER[:-1]) | {"defs"}, "defs": set(ORDER[:-1])}
    wrong = [
        f"{module} imports {imported}"
        for module, room in ROOMS.items()
        for imported in imports()[module]
        if room_of(imported) and room_of(imported) not in allowed[room] | {room}
    ]
    assert not wrong


def test_every_room_says_what_it_is_for_and_where_to_start_reading():
    for folder in sorted({path.parent for name, path in MODULES.items() if room_of(name) in ORDER}):
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
        assert "Start with `" in text, f"{folder.name}/__init__.py does not say where to start reading"
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} == {*ORDER, "defs"}


def test_there_are_no_import_cycles():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join([*path, module])
        if module not in done:
            for imported in imports()[module] - {module, "batch_platform"}:
                if not module.startswith(f"{imported}."):  # a package is loaded before what lies in it
                    visit(imported, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_no_module_imports_a_test():
    tests = {path: imports_of(path) for path in sorted((ROOT / "batch_platform_tests").rglob("*.py"))}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, names in tests.items()
        for name in names
        if name.startswith("batch_platform_tests.") and re.search(r"\.test_\w+$", name)
    ]
    assert len(tests) > 300
    assert wrong == []


def test_domain_modules_do_not_know_dagster():
    domain = [name for name, room in ROOMS.items() if room not in KNOW_DAGSTER]
    assert not [
        f"{module} imports {name}"
        for module in domain
        for name in imports_of(MODULES[module])
        if re.match(r"dagster(\W|_|$)", name)
    ]


OF_THE_WAREHOUSE = {
    *(name for table in TABLES_IN_FILES for name in (table.view, table.files, table.rows)),
    *("rejected_rows", DROPPED, FAILURES, REFUSED_ROWS, FINGERPRINTS),
}
STEPS = set(get_args(get_args(FailedStep)[0]))  # one of them is called like a table


def test_the_warehouse_names_no_table_of_an_upper_room_except_to_describe_it():
    named = {
        f"{module} names {node.value}"
        for module in MODULES
        if room_of(module) == "warehouse" and not module.endswith(".descriptions")
        for node in nodes_of(MODULES[module])
        if isinstance(node, ast.Constant) and node.value in OF_PIPELINES.keys() - OF_THE_WAREHOUSE - STEPS
    }
    assert not named
    assert OF_PIPELINES.keys() >= OF_THE_WAREHOUSE


def test_a_module_imports_at_most_twenty_modules_of_the_package():
    counts = {
        module: len({name for name in names - {module} if not any(other.startswith(f"{name}.") for other in names)})
        for module, names in imports().items()  # with each module, `imports` names the packages that it lies in
    }
    wrong = [f"{module} imports {count}" for module, count in sorted(counts.items()) if count > MOST_IMPORTED]
    assert not wrong, "; ".join(wrong)


INTERNALS = {"batch_platform.components.dagster_internals", "batch_platform.components.dagster_records"}
PRIVATE = re.compile(
    r"\bdagster\w*(\.\w+)*\._\w+|\bdagster\w*\.\w+(\.\w+)* import|dagster_shared|dagster_internal_init|step_context|SLF001"
)
MOST_PRIVATE = 24  # names that these modules import of Dagster's private side; each narrows the range of versions
INTERPRETER = {"batch_platform.cli.app"}  # ends the interpreter through a private name of Python's own


def test_only_two_modules_use_private_names_of_dagster():
    knowing = [name for name, room in ROOMS.items() if room in KNOW_DAGSTER and name not in INTERNALS | INTERPRETER]
    wrong = [
        f"{module}: {line.strip()}"
        for module in knowing
        for line in MODULES[module].read_text(encoding="utf-8").splitlines()
        if PRIVATE.search(line)
    ]
    assert not wrong, (
        "move it into components/dagster_internals.py, with the public alternative if there is one, and pin it"
    )
    texts = [MODULES[name].read_text(encoding="utf-8") for name in INTERNALS]
    assert all(len(PRIVATE.findall(text)) > 3 for text in texts)


def test_the_private_names_of_dagster_that_are_imported_do_not_become_more():
    imported = {
        f"{node.module}.{name.name}"
        for module in INTERNALS
        for node in nodes_of(MODULES[module])
        if isinstance(node, ast.ImportFrom) and re.match(r"dagster\w*\.", node.module or "")
        for name in node.names
    }
    assert len(imported) <= MOST_PRIVATE, "use what Dagster exports: " + ", ".join(sorted(imported))


def test_a_module_is_one_thing_with_a_name_that_says_which():
    assert not [name for name in MODULES if set(name.split(".")) & VAGUE]
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert not {name: length for name, length in lengths.items() if length > LONGEST}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("batch_platform", ("sklearn", "dagster", "numba", "polars", "duckdb")),
        ("batch_platform.cli", ("sklearn", "dagster", "numba", "polars", "duckdb")),
        pytest.param(
            "batch_platform.pipeline.pipeline",
            ("sklearn", "dagster", "skops", "numba", "sqlglot"),
            marks=pytest.mark.full,
        ),
        ("batch_platform.definitions", ("sklearn", "skops", "numba", "altair", "vl_convert")),
        pytest.param("batch_platform.cli.reading", ("altair", "vl_convert"), marks=pytest.mark.full),
    ],
)
def test_importing_stays_light(module: str, heavy: tuple[str, ...]):
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if name]


def test_the_top_level_holds_what_the_design_names():
    allowed = re.compile(r"pyproject\.toml|README\.md|workspace\.yaml|batch_platform|batch_platform_tests|LICENSE|\..*")
    assert not {name.split("/")[0] for name in tracked() if not allowed.fullmatch(name.split("/")[0])}


def test_no_tracked_text_names_a_registry_or_a_folder_of_one_machine():
    banned = re.compile(
        "|".join(["py" + r"pi\.org", "registry\\." + "npmjs", "/ro" + "ot/", "/wo" + "rk/", "/tm" + "p/w/"])
    )
    texts = [name for name in tracked() if name.endswith((".py", ".md", ".toml", ".yaml", ".sql", "run", ".gitignore"))]
    assert len(texts) > len(MODULES)
    assert not [name for name in texts if banned.search((ROOT / name).read_text(encoding="utf-8"))]


def test_a_check_that_is_silenced_says_why():
    silenced = re.compile(r"# (noqa|type: ignore|pyright: ignore)(?!.* - \w)")
    lines = [line for path in MODULES.values() for line in path.read_text(encoding="utf-8").splitlines()]
    assert not [line.strip() for line in lines if silenced.search(line)]


# Libraries that have a place of their own: the room, folder or modules that may import them, late or not.
PLACES = {
    "click": "cli",
    "rich": "cli",
    "skops": "models",
    "sklearn": "kernels|models|monitoring|defs",  # a demo builds its own estimator
    "scipy": "models|monitoring",
    "numba": r"kernels\.forest",
    "llvmlite": r"kernels\.forest",
    "threadpoolctl": r"kernels\.native_threads",
    "dagster_duckdb": "components",
    "dagster_webserver": r"components\.dagster_internals",
    "starlette": r"cli\.guard|components\.dagster_internals",
    "graphql": r"cli\.guard",
    "fsspec": r"sources\.objects",
    "deltalake": r"sources\.delta|delivery\.files",
    "adbc_driver_manager": r"sources\.adbc",
    "pyiceberg": r"sources\.iceberg|delivery\.files",
    "sqlglot": r"features\.lineage",
    "onnxruntime": r"models\.flavours\.onnx",
    "lightgbm": r"models\.flavours\.lightgbm",
    "xgboost": r"models\.flavours\.xgboost",
    "tensorflow": r"models\.flavours\.keras",
    "keras": r"models\.flavours\.keras",
    "mlflow": r"models\.flavours\.mlflow",
    "pandas": r"models\.flavours\.mlflow",
    "crepes": r"models\.refinements\.interval",
    "apprise": r"components\.receivers",
    "pyspark": "spark",
    "py4j": "spark",
    "jinja2": r"reports\.(report|card)|pipeline\.declared",
    "alembic": r"cli\.running",
    "altair": r"reports\.charts",
    "vl_convert": r"reports\.charts",
    "joblib": r"models\.flavours\.sklearn",
}
NAMES = {  # of distributions that are imported by another name
    "scikit-learn": "sklearn",
    "pyyaml": "yaml",
    "tensorflow-cpu": "tensorflow",
    "vl-convert-python": "vl_convert",
    "xgboost-cpu": "xgboost",
}
# Parts of what brings them: dagster, scikit-learn, pyspark, the webserver.
PARTS = {"alembic", "dagster_shared", "joblib", "py4j", "starlette", "graphql", "aiohttp"}
OF_SERVICES = {"azure", "gcs"}  # extras for stores of which no server can be run here
# The last three by fsspec.
RUN_BY_NAME = {"adbc_driver_postgresql", "adbc_driver_sqlite", "dagster_postgres", "tzdata", "s3fs", "gcsfs", "adlfs"}


def libraries_of(module: str) -> set[str]:
    """The top-level names of what a module imports from elsewhere."""
    packages = {name.split(".")[0] for name in imports_of(MODULES[module])}
    return packages - set(sys.stdlib_module_names) - {"batch_platform"}


def test_libraries_are_imported_where_they_belong():
    wrong = [
        f"{module} imports {library}"
        for module in ROOMS
        for library in libraries_of(module)
        if not re.match(rf"batch_platform\.({PLACES.get(library, '')})", module)
    ]
    assert not wrong


def test_libraries_are_declared_and_the_declared_ones_are_used():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [lines for extra, lines in project["optional-dependencies"].items() if extra != "test"]
    lines = [*project["dependencies"], *chain(*extras)]
    names = [re.split(r"[<>=\[]", line)[0] for line in lines]
    declared = {NAMES.get(name, name.replace("-", "_")) for name in names}
    used = {name for module in MODULES for name in libraries_of(module)} - PARTS
    assert used == declared - RUN_BY_NAME
    assert all(re.search(r">=.+,<", line) or line.startswith("tzdata") for line in lines)
    tested = re.search(r"\[(.+)\]", project["optional-dependencies"]["test"][0])
    assert set(tested[1].split(",")) == set(project["optional-dependencies"]) - {"test", *OF_SERVICES}


def test_every_connection_to_duckdb_is_made_without_its_progress_bar():
    made = {
        module
        for module, path in MODULES.items()
        for node in nodes_of(path)
        if isinstance(node, ast.Attribute) and node.attr == "connect" and ast.unparse(node) == "duckdb.connect"
    }
    assert made == {"batch_platform.warehouse.sql"}
    with connect() as con:
        for each in (con, con.cursor()):
            assert each.execute("SELECT current_setting('enable_progress_bar')").fetchall() == [(False,)]
