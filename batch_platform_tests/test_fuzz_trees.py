"""Random tree models of every kind, some of them in each run of the suite; many with `python -m batch_platform_tests.fuzz_trees`."""

import pytest

from batch_platform_tests.fuzz_trees import FAMILIES, fuzzed
from batch_platform_tests.harness.tiers import examples

SEED = 20_130_101
MODELS_OF_EACH = examples(12).max_examples


@pytest.mark.parametrize("family", range(len(FAMILIES)), ids=list(FAMILIES))
def test_random_models_give_the_bits_of_their_library(family: int):
    came_of = [fuzzed(SEED, family + round_ * len(FAMILIES)) for round_ in range(MODELS_OF_EACH)]
    assert sum(outcome.endswith("the same bits") for outcome in came_of) >= MODELS_OF_EACH // 2, came_of
