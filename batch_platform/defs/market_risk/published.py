"""The model of the volatility that was published (HAR: Corsi 2009, Journal of Financial Econometrics 7, 174-196)."""

from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import Pipeline, make_pipeline

LAST_DAY, LAST_WEEK, LAST_MONTH = 0, 1, 2  # positions among the features, which come without names


def har() -> Pipeline:
    """Linear regression on the volatility of the last day, week and month, and nothing else."""
    columns = ColumnTransformer([("volatility", "passthrough", [LAST_DAY, LAST_WEEK, LAST_MONTH])])
    return make_pipeline(columns, LinearRegression())
