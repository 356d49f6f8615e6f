"""A component of the user's own that extends `BatchInference`, and template variables of the user's own, loaded from YAML."""

import dagster as dg
import yaml

from batch_platform_tests.harness.dagster_project import PACKAGE, pipeline_folder
from batch_platform_tests.harness.small_pipeline import small_declaration

COMPONENT = '''\
import dagster as dg

from batch_platform.components import BatchInference


class OfTheHouse(BatchInference):
    """A pipeline by the rules of the house."""

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        definitions = super().build_defs(context)
        return definitions.map_asset_specs(func=lambda spec: spec.merge_attributes(tags={"house": self.name}))
'''
VARIABLES = """\
import dagster as dg


@dg.template_var
def file_of_orders() -> str:
    return "events.parquet"
"""


def test_a_subclass_and_template_variables_are_loaded_from_yaml(fresh, cli, monkeypatch):
    folder = pipeline_folder(fresh)
    (fresh / PACKAGE / "house.py").write_text(COMPONENT)
    (folder / "variables.py").write_text(VARIABLES)
    declared = {
        "type": f"{PACKAGE}.house.OfTheHouse",
        "template_vars_module": ".variables",
        "attributes": small_declaration(sources={"events": {"parquet": "{{ file_of_orders }}"}}),
    }
    (folder / "defs.yaml").write_text(yaml.safe_dump(declared))
    monkeypatch.syspath_prepend(str(fresh))
    specs = dg.load_from_defs_folder(path_within_project=fresh).resolve_all_asset_specs()
    assert {spec.tags.get("house") for spec in specs if spec.key.path[0] == "small"} == {"small"}
    answer = cli(fresh, "check")
    assert answer.code == 0
    assert answer.out.startswith("small: ok\n")
