"""The automation conditions of a pipeline that follows what arrives, where `automation: on_arrival` is declared.

Each asset of a partition follows what it is made of, whichever partition that is of. What nothing announces stays to the schedules:
labels that mature, rows that come late, and what failed.
"""

import dagster as dg

from batch_platform.components.wiring import Wiring


def condition_of(wiring: Wiring, asset: str) -> dg.AutomationCondition | None:
    """The condition of one of a pipeline's assets; None where nothing is declared."""
    if wiring.spec.automation is None:
        return None
    follows = dg.AutomationCondition.any_deps_updated()  # a dropped partition is missing, and shall not come back
    free = ~dg.AutomationCondition.any_deps_in_progress() & ~dg.AutomationCondition.in_progress()
    condition = follows.since_last_handled() & free
    if asset == "features":
        # The only sources of which it is known which partition has arrived.
        if not any(source.by_partition for source in wiring.spec.sources.values()):
            condition &= dg.AutomationCondition.in_latest_time_window()
        return condition.with_label("a source has arrived")
    if asset == "report":
        return condition.with_label("something was scored or evaluated")
    made = dg.AssetSelection.assets(*wiring.keys(("features", "model", "predictions")))
    condition &= ~dg.AutomationCondition.any_deps_missing().allow(made)  # sources are announced or not
    if asset == "model":  # a model that is there is trained again by schedule, when that is due
        condition &= dg.AutomationCondition.missing()
    return condition.with_label(f"what {asset} is made of has arrived")
