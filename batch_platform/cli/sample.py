"""A small table to try `new` with: customers of a shop, some of whom leave."""

import numpy as np
import polars as pl

CUSTOMERS = 1_500
OUTCOME_OPEN = 200  # newest customers, of whom nobody knows yet whether they leave


def customers() -> pl.DataFrame:
    """Invented customers, the same ones at every call."""
    random = np.random.default_rng(7)
    plans, ages = random.choice(["basic", "plus", "family"], CUSTOMERS), random.integers(18, 80, CUSTOMERS)
    visits, spent = random.poisson(4, CUSTOMERS), random.gamma(2, 30, CUSTOMERS).round(2)
    leaves = random.random(CUSTOMERS) < 1 / (1 + np.exp(0.5 * visits - 0.8 * (plans == "basic") - 1.2))
    known = pl.int_range(CUSTOMERS, eager=True) < CUSTOMERS - OUTCOME_OPEN
    return pl.DataFrame(
        {
            "customer": [f"C{number:05}" for number in range(CUSTOMERS)],
            "plan": plans,
            "age": ages,
            "visits": visits,
            "spent": spent,
            "churned": pl.Series(np.where(leaves, "yes", "no")),
        }
    ).with_columns(churned=pl.when(known).then("churned"))
