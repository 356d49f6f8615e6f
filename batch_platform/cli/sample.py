"""A small table to try `new` with: customers of a shop, some of whom leave."""

import numpy as np
import polars as pl

CUSTOMERS = 1_500
OUTCOME_OPEN = 200  # newest customers, of whom nobody knows yet whether they leave
_MOST = 2 * CUSTOMERS


def customers(count: int = CUSTOMERS) -> pl.DataFrame:
    """Invented customers, the same ones at every call; a larger table begins with the rows of a smaller one."""
    random = np.random.default_rng(7)
    plans, ages = random.choice(["basic", "plus", "family"], _MOST), random.integers(18, 80, _MOST)
    visits, spent = random.poisson(4, _MOST), random.gamma(2, 30, _MOST).round(2)
    leaves = random.random(_MOST) < 1 / (1 + np.exp(0.5 * visits - 0.8 * (plans == "basic") - 1.2))
    known = pl.int_range(count, eager=True) < CUSTOMERS - OUTCOME_OPEN
    return pl.DataFrame(
        {
            "customer": [f"C{number:05}" for number in range(count)],
            "plan": plans[:count],
            "age": ages[:count],
            "visits": visits[:count],
            "spent": spent[:count],
            "churned": pl.Series(np.where(leaves[:count], "yes", "no")),
        }
    ).with_columns(churned=pl.when(known).then("churned"))
