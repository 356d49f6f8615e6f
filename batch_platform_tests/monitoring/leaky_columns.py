"""Columns that hold the label, and honest columns beside them, each made with a seed: what a detector of leaks is measured on.

A kind adds columns to a table of eight honest ones, which tell the label with an area under the ROC curve of about 0.8.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]


@dataclass
class World:
    """A table with a label; a kind adds the columns that are to be judged."""

    random: np.random.Generator
    rows: int
    truth: Values  # classes or numbers
    hidden: Values  # what decides the label, up to noise
    classes: bool = True
    columns: dict[str, Values] = field(default_factory=dict[str, Values])
    categorical: set[str] = field(default_factory=set[str])
    entities: list[Values] = field(default_factory=list[Values])

    def honest(self) -> None:
        """Add the columns that are known when a row is scored."""
        random, hidden = self.random, self.hidden
        for at, noise in enumerate((1.5, 2.0, 3.0)):
            self.columns[f"measure_{at}"] = hidden + random.normal(size=self.rows) * noise
        self.columns["gaps"] = np.where(
            random.random(self.rows) < 0.2, np.nan, hidden + random.normal(size=self.rows) * 3
        )
        self.columns["plan"] = np.digitize(hidden + random.normal(size=self.rows) * 2, [-1.5, 0.0, 1.5]).astype(float)
        self.categorical.add("plan")
        self.columns["amount"] = random.lognormal(3.0, 1.0, self.rows).round(2)
        self.columns["weekday"] = np.arange(self.rows) % 7.0
        self.columns["flag"] = (random.random(self.rows) < 0.4) * 1.0

    def some(self, share: float) -> Values:
        """Draw rows."""
        return self.random.random(self.rows) < share

    def normal(self) -> Values:
        """Draw numbers."""
        return self.random.normal(size=self.rows)

    def groups(self, size: int) -> Values:
        """Draw the group of each row, of about `size` rows."""
        return self.random.integers(0, max(self.rows // size, 2), self.rows)


def two_classes(random: np.random.Generator, rows: int, share: float = 0.3) -> World:
    """Make a label of two classes."""
    hidden = random.normal(size=rows)
    noisy = hidden + random.normal(size=rows)
    return World(random, rows, (noisy > np.quantile(noisy, 1 - share)) * 1, hidden)


def four_classes(random: np.random.Generator, rows: int) -> World:
    """Make a label of four classes, whose names are in no order."""
    hidden = random.normal(size=rows)
    ranks = np.digitize(hidden + random.normal(size=rows), [-1.2, 0.3, 1.5])
    return World(random, rows, np.array(["tulip", "aster", "rose", "lily"])[ranks], hidden)


def numbers(random: np.random.Generator, rows: int) -> World:
    """Make a label of skewed numbers."""
    hidden = random.normal(size=rows)
    return World(random, rows, np.exp(3 + 0.6 * hidden + 0.6 * random.normal(size=rows)), hidden, classes=False)


def mostly_zero(random: np.random.Generator, rows: int) -> World:
    """Make a label of numbers of which two thirds are zero."""
    world = numbers(random, rows)
    world.truth = np.where(world.hidden + random.normal(size=rows) > 0.6, world.truth, 0.0)
    return world


Kind = tuple[Callable[[np.random.Generator, int], World], Callable[[World], "Values | dict[str, Values]"]]


def _flipped(world: World, share: float) -> Values:
    names, codes = np.unique(world.truth, return_inverse=True)
    moved = (codes + world.random.integers(1, len(names), world.rows)) % len(names)
    return np.where(world.some(share), moved, codes) * 1.0


def _where(kept: Values, values: Values) -> Values:
    return np.where(kept, values, np.nan)


def _encoded(world: World, size: int) -> Values:
    groups = world.groups(size)
    sums = np.bincount(groups, weights=world.truth)
    return (sums / np.maximum(np.bincount(groups), 1))[groups]


def _texts(world: World, *, says: float) -> Values:
    """Phrases of which some are written only after the event."""
    said = (world.truth == 1) & world.some(says)
    world.categorical.add("suspect")
    return np.where(said, world.random.integers(0, 4, world.rows), world.random.integers(4, 12, world.rows)) * 1.0


def _ordered(world: World) -> Values:
    place = np.empty(world.rows)
    place[np.lexsort((world.normal(), world.truth))] = np.arange(world.rows)
    return place


def _parts(world: World, count: int) -> dict[str, Values]:
    shares = world.random.dirichlet(np.ones(count), world.rows)
    return {f"suspect_{at}": world.truth * shares[:, at] for at in range(count)}


def _sub_classes(world: World) -> Values:
    world.categorical.add("suspect")
    names = np.random.default_rng(5).permutation(12)
    return names[np.unique(world.truth, return_inverse=True)[1] * 3 + world.random.integers(0, 3, world.rows)] * 1.0


def rare(share: float) -> Callable[[np.random.Generator, int], World]:
    """Make a label of two classes of which one is rare."""
    return lambda random, rows: two_classes(random, rows, share)


LEAKS: dict[str, Kind] = {
    "a copy": (two_classes, lambda w: w.truth * 1.0),
    "a copy in other codes": (two_classes, lambda w: 7.0 - 3 * w.truth),
    "a copy with 1% flipped": (two_classes, lambda w: _flipped(w, 0.01)),
    "a copy with 3% flipped": (two_classes, lambda w: _flipped(w, 0.03)),
    "a copy with 5% flipped": (two_classes, lambda w: _flipped(w, 0.05)),
    "a copy with a little noise": (two_classes, lambda w: w.truth + w.normal() * 0.1),
    "a copy with some noise": (two_classes, lambda w: w.truth + w.normal() * 0.2),
    "the outcome, of which the label is a threshold": (two_classes, lambda w: np.exp(w.truth * 2.1 + w.random.random(w.rows) * 2)),
    "the outcome in ten steps": (two_classes, lambda w: np.floor(w.truth * 5 + w.random.random(w.rows) * 5)),
    "a flag of some of the positive rows": (two_classes, lambda w: ((w.truth == 1) & w.some(0.6)) * 1.0),
    "a value only after the event": (two_classes, lambda w: _where(w.truth == 1, w.normal())),
    "no value after the event": (two_classes, lambda w: _where(w.truth == 0, w.normal())),
    "a value for some of the positive rows": (two_classes, lambda w: _where((w.truth == 1) & w.some(0.7), w.normal())),
    "a value for most positive and few negative rows": (two_classes, lambda w: _where(np.where(w.truth == 1, w.some(0.9), w.some(0.01)), w.normal())),
    "an amount that is zero before the event": (two_classes, lambda w: w.truth * w.random.gamma(2.0, 50.0, w.rows)),
    "an amount after some of the events": (two_classes, lambda w: w.truth * w.some(0.8) * w.random.gamma(2.0, 50.0, w.rows)),
    "an identifier in the order of the label": (two_classes, _ordered),
    "the time until the event or the end of the study": (two_classes, lambda w: np.where(w.truth == 1, w.random.exponential(300, w.rows), 1500 + w.normal() * 500).clip(1)),
    "a change after the event": (two_classes, lambda w: w.random.random(w.rows) * 30 + np.where(w.truth == 1, 40 + w.random.random(w.rows) * 30, 0)),
    "a text that says it": (two_classes, lambda w: _texts(w, says=1.0)),
    "a text that sometimes says it": (two_classes, lambda w: _texts(w, says=0.5)),
    "the mean label of groups of 3 rows": (two_classes, lambda w: _encoded(w, 3)),
    "the mean label of groups of 10 rows": (two_classes, lambda w: _encoded(w, 10)),
    "a copy of a rare label": (rare(0.02), lambda w: w.truth * 1.0),
    "a value only after a rare event": (rare(0.02), lambda w: _where(w.truth == 1, w.normal())),
    "a copy of a rare label with few flipped": (rare(0.03), lambda w: _flipped(w, 0.004)),
    "a code of four classes": (four_classes, lambda w: _flipped(w, 0.0)),
    "a code of four classes with 3% flipped": (four_classes, lambda w: _flipped(w, 0.03)),
    "kinds of four classes": (four_classes, _sub_classes),
    "a mark of one class of four": (four_classes, lambda w: (w.truth == "rose") * 1.0),
    "the number with tax": (numbers, lambda w: w.truth * 1.19),
    "the number rounded": (numbers, lambda w: (w.truth / 5).round()),
    "the number with 1% noise": (numbers, lambda w: w.truth * (1 + 0.01 * w.normal())),
    "two parts of the number": (numbers, lambda w: _parts(w, 2)),
    "three parts of the number": (numbers, lambda w: _parts(w, 3)),
    "the logarithm of the number": (numbers, lambda w: np.log(w.truth)),
    "the number where it is not zero": (mostly_zero, lambda w: _where(w.truth > 0, w.truth * 0.9)),
}  # fmt: skip


def _states(random: np.random.Generator, rows: int, entities: int, change: float) -> World:
    """The state of entities that seldom changes; rows are in order of time."""
    of_row = np.arange(rows) % entities
    changes = random.random(rows) < change
    state = np.zeros(rows, dtype=np.int64)
    state[:entities] = random.random(entities) < 0.4
    for at in range(entities, rows):
        state[at] = state[at - entities] ^ int(changes[at] and (state[at - entities] or random.random() < 0.6))
    hidden = state * 1.2 + random.normal(size=rows)
    world = World(random, rows, state, hidden)
    world.entities.append(of_row)
    before = np.roll(state, entities).astype(float)
    before[:entities] = np.nan
    world.columns["suspect"] = before
    return world


def _petals(random: np.random.Generator, rows: int, means: list[list[float]]) -> World:
    """Flowers: the length and the width of petals tell the species, sepals less so."""
    species = random.integers(0, len(means), rows)
    size = random.normal(size=rows)
    hidden = species - species.mean() + random.normal(size=rows)
    world = World(random, rows, np.array(["setosa", "versicolor", "virginica"][: len(means)])[species], hidden)
    length, width, sepal = (np.array(means)[species, at] for at in range(3))
    world.columns["suspect"] = (length + 0.35 * size + 0.3 * random.normal(size=rows)).round(1)
    world.columns["petal_width"] = (width + 0.12 * size + 0.14 * random.normal(size=rows)).round(1)
    world.columns["sepal_length"] = (sepal + 0.35 * size + 0.3 * random.normal(size=rows)).round(1)
    return world


def _lagged(random: np.random.Generator, rows: int) -> World:
    """A number that moves slowly, and its value before."""
    steps = random.normal(size=rows)
    level = np.zeros(rows)
    for at in range(1, rows):
        level[at] = 0.985 * level[at - 1] + 0.17 * steps[at]
    world = World(random, rows, 20 + level * 5, level + random.normal(size=rows), classes=False)
    world.columns["suspect"] = np.concatenate([[np.nan], world.truth[:-1]])
    return world


def _hours(random: np.random.Generator, rows: int) -> World:
    """A label that follows the hour."""
    hour = np.arange(rows) % 24.0
    hidden = np.where((hour > 7) & (hour < 19), 1.6, -1.6)
    world = World(random, rows, (hidden + random.normal(size=rows) > 0) * 1, random.normal(size=rows))
    world.columns["suspect"] = hour
    return world


def _shops(random: np.random.Generator, rows: int) -> World:
    """A label that depends on which of many shops a row is of."""
    shop = random.integers(0, 150, rows)
    hidden = random.normal(size=rows)
    noisy = hidden + 1.5 * random.normal(size=150)[shop] + random.normal(size=rows)
    world = World(random, rows, (noisy > 0.8) * 1, hidden)
    world.columns["suspect"] = shop * 1.0
    world.categorical.add("suspect")
    return world


def _with_rule(world: World, share: float, label: int) -> Values:
    """Rows of which a rule decides the label."""
    ruled = world.some(share)
    world.truth = np.where(ruled, label, world.truth)
    return ruled * 1.0


def _past(world: World, size: int) -> Values:
    """The share of a group in earlier rows."""
    groups = world.groups(size)
    effect = world.random.normal(size=groups.max() + 1) * 0.8
    world.truth = (world.hidden + effect[groups] + world.normal() > 0.8) * 1
    rates = world.random.binomial(30, 1 / (1 + np.exp(1.2 - 1.2 * effect))) / 30
    return rates[groups]


def _closed(world: World) -> Values:
    closed = world.some(0.15)
    world.truth = np.where(closed, 0.0, world.truth)
    return np.where(closed, 0.0, 1.0)


def _newcomers(world: World) -> Values:
    new = np.where(world.truth == 1, world.some(0.5), world.some(0.1))
    return _where(~new, world.random.gamma(2.0, 30.0, world.rows))


def _only(builder: Callable[..., World], *args: Any) -> Kind:
    return (lambda random, rows: builder(random, rows, *args)), lambda w: w.columns.pop("suspect")


IRIS = [[1.5, 0.25, 5.0], [4.3, 1.3, 5.9], [5.5, 2.0, 6.6]]
INNOCENTS: dict[str, Kind] = {
    "the last state of one machine": _only(_states, 1, 0.05),
    "the last state of 40 machines": _only(_states, 40, 0.05),
    "a strong amount of a rare fraud": (rare(0.02), lambda w: np.exp(np.where(w.truth == 1, 6 + w.normal() * 0.5, 3 + w.normal() * 0.8))),
    "petals of two species": _only(_petals, IRIS[1:]),
    "petals of three species": _only(_petals, IRIS),
    "petals of a species apart": _only(_petals, IRIS[:2]),
    "a risk score of 0.9": (two_classes, lambda w: w.truth * 1.81 + w.normal()),
    "a risk score of 0.95": (two_classes, lambda w: w.truth * 2.33 + w.normal()),
    "the hour": _only(_hours),
    "a shop of many": _only(_shops),
    "a rule for some negative rows": (two_classes, lambda w: _with_rule(w, 0.25, 0)),
    "a rule for a few positive rows": (two_classes, lambda w: _with_rule(w, 0.03, 1)),
    "the last value of a slow number": _only(_lagged),
    "an area that tells the price": (numbers, lambda w: w.truth * np.exp(w.normal() * 0.15)),
    "a closed shop": (numbers, _closed),
    "no purchase yet": (two_classes, _newcomers),
    "the share of a group before": (two_classes, lambda w: _past(w, 20)),
}  # fmt: skip


def _texts_of(world: World, names: Values) -> Values:
    world.categorical.add("suspect")
    return names * 1.0


def _grades(random: np.random.Generator, rows: int) -> World:
    """Grades by points."""
    world = numbers(random, rows)
    world.columns["suspect"] = (100 / (1 + np.exp(-world.hidden - world.normal()))).round()
    world.truth = np.array(["fail", "pass", "honours"])[np.digitize(world.columns["suspect"], [40, 80])]
    world.classes = True
    return world


def _yesterday(random: np.random.Generator, rows: int) -> World:
    """The numbers of 30 shops, which move slowly, and their value before."""
    shops, level = 30, np.zeros(rows)
    level[:shops] = random.normal(size=shops) * 2
    for at in range(shops, rows):
        level[at] = 0.98 * level[at - shops] + 0.3 * random.normal()
    world = World(random, rows, 50 + 9 * level, level + 2 * random.normal(size=rows), classes=False)
    world.entities.append(np.arange(rows) % shops)
    world.columns["suspect"] = np.concatenate([np.full(shops, np.nan), world.truth[:-shops]])
    return world


def _wines(random: np.random.Generator, rows: int) -> World:
    """Three kinds, which each of many measures tells well."""
    kind = random.integers(0, 3, rows)
    world = World(random, rows, kind, kind - 1 + random.normal(size=rows))
    places = np.array([[0, 2, 4], [3, 0, 1], [0, 3, 1.5], [2, 0, 3]])
    for name, place in zip(("suspect", "acid", "colour", "ash"), places, strict=True):
        world.columns[name] = place[kind] + random.normal(size=rows)
    return world


def _frost(random: np.random.Generator, rows: int) -> World:
    """Frost, which a temperature measured hours before tells well."""
    heat = random.normal(size=rows) * 8 + 3
    world = World(random, rows, (heat + random.normal(size=rows) * 2.5 < 0) * 1, -heat / 8 + random.normal(size=rows))
    world.columns["suspect"] = heat
    return world


def _season(random: np.random.Generator, rows: int) -> World:
    """A number that follows the day of the year."""
    day = np.arange(rows) * 1461 // max(rows, 1) % 365.0
    season = np.sin(2 * np.pi * day / 365) * 10
    world = World(random, rows, 15 + season + random.normal(size=rows) * 2, random.normal(size=rows), classes=False)
    world.columns["suspect"] = day
    return world


def _young(world: World) -> Values:
    age = world.random.integers(1, 90, world.rows) * 1.0
    world.truth = np.where(age < 18, 0, world.truth)
    return age


def _bureaus(world: World) -> dict[str, Values]:
    shared = world.truth * 2.0 + world.normal() * 0.8
    return {"suspect": shared + world.normal() * 0.6, "other_bureau": shared + world.normal() * 0.6}


def _segments(world: World) -> Values:
    segment = np.where(world.truth == 1, world.some(0.75), world.some(0.08)) * 1
    return _texts_of(world, segment * 3 + world.random.integers(0, 3, world.rows))


def _new_customers(world: World) -> Values:
    new = world.some(0.15)
    world.truth = np.where(new, 0, world.truth)
    return _where(~new, world.random.gamma(2.0, 30.0, world.rows))


OTHER_LEAKS: dict[str, Kind] = {
    "a decision taken afterwards": (two_classes, lambda w: _texts_of(w, _flipped(w, 0.04))),
    "the year of the event, else 9999": (two_classes, lambda w: np.where(w.truth == 1, w.random.integers(2015, 2025, w.rows), 9999)),
    "letters after the event": (two_classes, lambda w: w.truth * w.random.poisson(3, w.rows)),
    "a text that is missing after the event": (two_classes, lambda w: _where(w.truth == 0, _texts_of(w, w.random.integers(0, 5, w.rows)))),
    "a probability fitted to the label": (two_classes, lambda w: 1 / (1 + np.exp(-6 * (w.truth - 0.5) - w.normal()))),
    "a time that the event sets back": (two_classes, lambda w: np.where(w.truth == 1, w.random.random(w.rows) * 2, w.random.exponential(60, w.rows))),
    "a status after some of the events": (two_classes, lambda w: _texts_of(w, np.where((w.truth == 1) & w.some(0.6), 2, w.random.integers(0, 2, w.rows)))),
    "a refund of rare returns": (rare(0.05), lambda w: w.truth * w.columns.get("amount", w.random.lognormal(3, 1, w.rows))),
    "identifiers from two ranges": (two_classes, lambda w: w.random.permutation(w.rows) + 1e6 * w.truth),
    "a copy that is missing in a third": (two_classes, lambda w: _where(w.some(0.66), w.truth * 1.0)),
    "a copy of a rare label with 2% flipped": (rare(0.05), lambda w: _flipped(w, 0.02)),
    "a flag of nearly half the positive rows": (rare(0.2), lambda w: (w.truth == 1) & w.some(0.45)),
    "the time of closing": (lambda random, rows: two_classes(random, rows, 0.5), lambda w: _where(w.truth == 1, 1e9 + w.random.random(w.rows) * 1e6)),
    "points behind grades": (_grades, lambda w: w.columns.pop("suspect")),
    "a text of four classes": (four_classes, lambda w: _texts_of(w, _flipped(w, 0.01))),
    "the number in steps": (numbers, lambda w: np.digitize(w.truth, np.quantile(w.truth, np.arange(0.1, 1, 0.1)))),
    "the number, where it is known": (numbers, lambda w: _where(w.some(0.7), w.truth)),
    "the total and the shipping": (numbers, lambda w: {"suspect": (parts := w.random.gamma(2, 5, w.rows)), "total": w.truth + parts}),
    "a root with 3% noise": (numbers, lambda w: -np.sqrt(w.truth) * (1 + 0.03 * w.normal())),
    "the sum without a small part": (numbers, lambda w: w.truth - w.random.gamma(1, 0.5, w.rows)),
}  # fmt: skip
OTHER_INNOCENTS: dict[str, Kind] = {
    "the heat before a frost": _only(_frost),
    "the last state of 15 machines": _only(_states, 15, 0.02),
    "the number of yesterday in 30 shops": _only(_yesterday),
    "the vibration before a rare failure": (rare(0.01), lambda w: w.truth * 5 + w.normal()),
    "an age below which nothing happens": (two_classes, _young),
    "one of many measures of wine": _only(_wines),
    "one of two credit bureaus": (two_classes, _bureaus),
    "the main quantity of a price": (numbers, lambda w: w.truth * np.exp(w.normal() * 0.1)),
    "a segment of customers": (two_classes, _segments),
    "the day of the year": _only(_season),
    "no value for new customers": (two_classes, _new_customers),
}  # fmt: skip


def made(kind: Kind, rows: int, seed: int) -> tuple[World, tuple[str, ...]]:
    """Make the table of a kind; returns it with the names of the columns to be judged."""
    world = kind[0](np.random.default_rng(seed), rows)
    beside = {**world.columns}
    added = kind[1](world)
    added = added if isinstance(added, dict) else {"suspect": added}
    world.columns = {name: values for name, values in beside.items() if name not in added}
    world.honest()
    world.columns |= added
    return world, tuple(added)
