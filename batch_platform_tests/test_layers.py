"""The house rules that can be read off the source."""

import ast
import re
import subprocess
import sys
import tomllib
from itertools import chain, pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "batch_platform"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
EDGE = ("batch_platform.components", "batch_platform.cli", "batch_platform.definitions", "batch_platform.defs")
LONGEST = 350
VAGUE = {"utils", "util", "helpers", "common", "base", "misc", "core"}

# From the inside out: a module imports from its own row and from those above it.
ROWS = (
    ("redaction",),
    ("errors",),
    ("partitions", "notation", "yaml_file"),
    ("inputs", "learners", "home"),
    ("spec",),
    ("contract", "sources", "query", "lineage", "rows", "driving", "forest", "threads", "sample", "lock", "repeated"),
    ("features", "recorded", "models", "monitoring", "ledger", "rejections", "replacing"),
    (
        *("training", "scoring", "shadow", "staged", "stream", "outcomes"),
        *("checkpoint", "challenger_tables", "warehouse", "staging"),
    ),
    ("publish", "registry", "history", "promotion", "challenger_periods", "tables", "backtested"),
    ("plan",),
    ("gate", "staleness"),
    ("importing", "proposing"),
    ("learning", "challengers", "evaluation", "scoring_run"),
    ("pipeline", "status", "provenance", "replay", "backtesting", "cleaning"),
    ("components",),
    ("definitions", "defs"),
    ("cli",),
)
RANK = {name: number for number, row in enumerate(ROWS) for name in row}


def imports_of(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever it stands; not what only type checkers see."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def part_of(module: str) -> str:
    """The second word of a module's name: its place in the house."""
    return [*module.split("."), ""][1]


IMPORTS = {name: {found for found in imports_of(path) if found in MODULES} for name, path in MODULES.items()}
PLACED = [name for name in MODULES if part_of(name)]


@pytest.mark.parametrize("module", PLACED)
def test_every_module_has_a_place_and_imports_only_from_its_row_or_further_in(module: str):
    wrong = {found for found in IMPORTS[module] if part_of(found) and RANK[part_of(found)] > RANK[part_of(module)]}
    assert not wrong


def test_there_are_no_import_cycles():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join([*path, module])
        if module not in done:
            for found in IMPORTS[module] - {module, "batch_platform"}:
                if not module.startswith(f"{found}."):  # a package is loaded before what lies in it
                    visit(found, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith(EDGE)])
def test_domain_modules_do_not_know_dagster(module: str):
    assert not [found for found in imports_of(MODULES[module]) if re.match(r"dagster(\W|_|$)", found)]


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith(EDGE[:3])])
def test_only_the_edge_imports_the_components(module: str):
    assert not [found for found in IMPORTS[module] if found.startswith("batch_platform.components")]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_one_thing_with_a_name_that_says_which(module: str):
    assert not set(module.split(".")) & VAGUE
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= LONGEST


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("batch_platform", ("sklearn", "dagster", "numba", "polars", "duckdb")),
        ("batch_platform.cli", ("sklearn", "dagster", "numba", "polars", "duckdb")),
        ("batch_platform.pipeline", ("sklearn", "dagster", "skops", "numba", "sqlglot")),
        ("batch_platform.definitions", ("sklearn", "skops", "numba")),
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


def test_the_rows_of_the_house_are_in_order():
    assert all(set(inner).isdisjoint(outer) for inner, outer in pairwise(ROWS))


@pytest.mark.parametrize("module", MODULES)
def test_a_check_that_is_silenced_says_why(module: str):
    silenced = re.compile(r"# (noqa|type: ignore|pyright: ignore)(?!.* - \w)")
    lines = MODULES[module].read_text(encoding="utf-8").splitlines()
    assert not [line.strip() for line in lines if silenced.search(line)]


# Libraries that have a place of their own: which modules may import them, late or not.
PLACES = {
    "click": ("cli",),
    "rich": ("cli",),
    "skops": ("models",),
    "sklearn": ("forest", "models", "monitoring", "training"),
    **dict.fromkeys(("numba", "llvmlite"), ("forest",)),
    "threadpoolctl": ("models",),
    "dagster_duckdb": ("components",),
    "sqlglot": ("lineage",),
    **dict.fromkeys(
        ("onnxruntime", "lightgbm", "xgboost", "tensorflow", "keras", "mlflow", "pandas", "joblib"), ("models",)
    ),
    "pyspark": ("spark",),
}
NAMES = {  # of distributions that are imported by another name
    "scikit-learn": "sklearn",
    "pyyaml": "yaml",
    "tensorflow-cpu": "tensorflow",
    "xgboost-cpu": "xgboost",
}
PARTS = {"dagster_shared", "joblib"}  # of dagster and of scikit-learn, which bring them
RUN_BY_NAME = {"dagster_webserver", "tzdata"}


def libraries_of(module: str) -> set[str]:
    """The top-level names of what a module imports from elsewhere."""
    found = {name.split(".")[0] for name in imports_of(MODULES[module])}
    return found - set(sys.stdlib_module_names) - {"batch_platform"}


@pytest.mark.parametrize("module", PLACED)
def test_libraries_are_imported_where_they_belong(module: str):
    assert not {name for name in libraries_of(module) if part_of(module) not in PLACES.get(name, (part_of(module),))}


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
    assert set(tested[1].split(",")) == set(project["optional-dependencies"]) - {"test"}


def test_the_tour_names_every_module_and_goes_from_the_inside_out():
    tour = ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))) or ""
    stops = [re.findall(r"`(\w+)`", line.partition(": ")[0]) for line in tour.splitlines() if line.startswith("- ")]
    place = {name: number for number, stop in enumerate(stops) for name in stop}
    assert set(place) == {part_of(module) for module in PLACED}
    for module in PLACED:
        late = {part_of(found) for found in IMPORTS[module] if place.get(part_of(found), 0) > place[part_of(module)]}
        assert not late, f"{module} imports {late}, which the tour visits later"
