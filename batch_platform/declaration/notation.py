"""The notation of a declaration: strict blocks of keys, and values such as names, durations, shares, times and schedules.

Each check raises a ValueError that says what is allowed, or returns the value. Whoever reads the declaration adds which
key it was.
"""

import re
import unicodedata
from collections.abc import Callable, Collection, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Self
from zoneinfo import ZoneInfo, available_timezones

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue

from batch_platform.declaration.calendar import FIRST_YEAR, LAST_YEAR, Duration
from batch_platform.declaration.errors import did_you_mean, listed, nearest

RESERVED_NAMES = frozenset({"batch_platform", "main", "information_schema", "pg_catalog", "temp", "system"})
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")  # an import path
_DURATION = re.compile(r"([0-9]{1,5})\s*(second|minute|hour|day|week)s?")
_CALENDAR = re.compile(r"([1-9][0-9]{0,2})\s*(month|year)s?")
_TIME_OF_DAY = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")
MINUTES_A_DAY = 24 * 60
_PERCENT = re.compile(r"([0-9]+(\.[0-9]+)?)\s*%")
_CRON_FIELDS = 5
_SELECT = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/)*+(?:SELECT|WITH)\s", re.IGNORECASE | re.DOTALL)  # after comments
_TEMPLATE = re.compile(r"\{[{%#]")
COVERAGES = (0.01, 0.999)  # the least and the greatest share of true values that an interval is made to hold


def has_template(text: str) -> bool:
    """Return whether a text holds a Jinja template, or a part that Jinja would read as one."""
    return _TEMPLATE.search(text) is not None


def rendered(value: Any, render: Callable[[str, tuple[str | int, ...]], Any], *path: str | int) -> Any:  # noqa: ANN401 - a value of YAML
    """A declared value with its templates rendered by a function of text and path. Other texts stay as declared: rendered, "1" is a number."""
    if isinstance(value, dict):
        return {key: rendered(item, render, *path, key) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rendered(item, render, *path, at) for at, item in enumerate(value)]
    return render(value, path) if isinstance(value, str) and has_template(value) else value


class Block(BaseModel):
    """A part of the declaration: immutable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)
    FORMER: ClassVar[Mapping[str, str]] = {}  # keys of earlier versions, each with what to do instead

    @classmethod
    def allowed_keys(cls) -> list[str]:
        """The keys that the block allows."""
        return [field.alias or name for name, field in cls.model_fields.items()]

    @classmethod
    def __get_pydantic_json_schema__(
        cls,
        core_schema: Any,  # noqa: ANN401 - pydantic exports no type for it
        handler: GetJsonSchemaHandler,
    ) -> JsonSchemaValue:
        """Let a validator of the JSON schema name a wrong key of a block that may also be null, a number or a text.

        A failed `anyOf` says only that no alternative fits. So there it takes every mapping, and `then` checks the keys.
        """
        schema = handler(core_schema)
        for about in handler.resolve_ref_schema(schema).get("properties", {}).values():
            for option in about.get("anyOf", []):
                if handler.resolve_ref_schema(option).get("additionalProperties") is False:
                    about |= {
                        "anyOf": [*about["anyOf"], {"type": "object"}],
                        "if": {"type": "object"},
                        "then": {**option},
                    }
        return schema

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_unknown_keys(cls, data: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Refuse unknown keys, each with its nearest match, together with the wrong values of the other keys."""
        allowed = cls.allowed_keys()
        unknown = [str(key) for key in data if key not in allowed] if isinstance(data, dict) else []
        if not isinstance(data, dict) or not unknown:
            return handler(data)
        refused: list[Any] = [
            {"type": "value_error", "input": None, "ctx": {"error": _unknown(unknown, allowed, cls.FORMER)}}
        ]
        try:
            handler({key: value for key, value in data.items() if key in allowed})
        except ValidationError as error:
            refused += [
                wrong
                for wrong in error.errors(include_url=False)
                # Others may come of the misspelt key.
                if wrong["loc"][1:] or (wrong["loc"] and wrong["type"] != "missing")
            ]
        raise ValidationError.from_exception_data(cls.__name__, refused, hide_input=True)


def _unknown(keys: Collection[str], allowed: Collection[str], former: Mapping[str, str]) -> ValueError:
    """The error for keys that are not allowed, each with its nearest match or, of a former key, what to do instead."""
    instead = [former[key] for key in sorted(keys) if key in former]
    guesses = dict.fromkeys(
        repr(guess) for key in sorted(keys) if key not in former and (guess := nearest(key, allowed))
    )
    msg = f"unknown key{'s' if len(keys) > 1 else ''} {listed(map(repr, keys))}; allowed are {listed(allowed)}"
    msg = "; ".join([msg, *instead])
    return ValueError(f"{msg}; did you mean {' and '.join(guesses)}?" if guesses else msg)


def with_guess(message: str, word: str, allowed: Collection[str]) -> str:
    """Add the allowed word nearest to a misspelt word to a message, if there is one."""
    return "; ".join(filter(None, [message, did_you_mean(word, allowed)]))


def check_name(value: str) -> str:
    """Refuse a name that cannot be a schema, a folder and an asset key at once."""
    if not _NAME.fullmatch(value) or value in RESERVED_NAMES:
        msg = f"{value!r} is not a valid name: use at most 63 lower-case letters, digits and _, and none of {listed(RESERVED_NAMES)}"
        raise ValueError(msg)
    return value


def check_asset(value: str) -> str:
    """Refuse the key of an asset with an empty part."""
    if not all(part.strip() == part != "" for part in value.split("/")):
        msg = f"{value!r} is not the key of an asset: write its parts with a slash between them, such as raw/orders"
        raise ValueError(msg)
    return value


def name_of(text: str) -> str | None:
    """Turn a text into a valid name, accents and umlauts left out; None if that is impossible."""
    plain = re.sub(r"[\u0300-\u036f]", "", unicodedata.normalize("NFKD", text.casefold()))
    name = re.sub(r"[^a-z0-9_]+", "_", plain).strip("_")
    try:
        check_name(name)
    except ValueError:
        return None
    return name


def check_timezone(value: str) -> str:
    """Refuse a value that is not the name of a time zone."""
    if not _is_timezone(value):
        msg = f"{value!r} is not an IANA time zone"
        raise ValueError(with_guess(msg, value, available_timezones()))
    return value


def _is_timezone(name: str) -> bool:
    """Look up whether a time zone has this name. Listing all names would read each of their files."""
    try:
        ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        return False
    return not name.startswith(("posix", "right/"))


def check_dotted(value: str) -> str:
    """Refuse a value that is not an import path."""
    if not DOTTED.fullmatch(value):
        msg = f"{value!r} is not an import path such as 'package.module.function'"
        raise ValueError(msg)
    return value


def is_select(sql: str) -> bool:
    """Return whether declared SQL is the statement itself; otherwise it names a file with one."""
    return _SELECT.match(sql) is not None


def check_sql(value: str) -> str:
    """Refuse a value that is neither a SELECT nor the name of a file in the pipeline's folder."""
    if is_select(value):
        return value
    path = PurePosixPath(value)
    if (
        not path.name
        or "\0" in value
        or "://" in value
        or path.is_absolute()
        or ".." in path.parts
        or value.startswith("~")
    ):
        msg = f"{value!r} is neither a SELECT nor the name of a file in this folder or below it"
        raise ValueError(msg)
    return value


def check_cron(value: str) -> str:
    """Refuse a value that has not the five fields of a cron expression; Dagster, which looks at the clock, checks what they hold."""
    if len(value.split()) != _CRON_FIELDS:
        msg = f"{value!r} is not a cron expression of five fields such as '0 5 * * *'"
        raise ValueError(msg)
    return value


def parse_window(text: str) -> Duration:
    """Read the length of a window, which may be in months or years of the calendar."""
    written = _CALENDAR.fullmatch(text.strip())
    return Duration(months=int(written[1]) * (12 if written[2] == "year" else 1)) if written else parse_duration(text)


def parse_duration(text: str) -> Duration:
    """Read '1 day', '60 days', '6 hours', '90 minutes' or '30 seconds'."""
    written = _DURATION.fullmatch(text.strip())
    if not written:
        why = ", since months and years differ in length" if re.search("month|year", text) else ""
        msg = f"{text!r} is not a duration; write for example '1 day', '60 days', '6 hours' or '2 weeks'{why}"
        raise ValueError(msg)
    number, unit = int(written[1]), written[2]
    if unit == "week":
        return Duration(days=7 * number)
    return Duration(**{f"{unit}s": number})


def _written(value: object) -> object:
    """Undo how YAML reads an unquoted 2013-01-01, which is a date."""
    return value.isoformat() if isinstance(value, date) else value


def _local_time(value: str) -> str:
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        msg = f"{value!r} is not a date or a time such as '2013-01-01' or '2013-01-01T06:00'"
        raise ValueError(msg) from None
    if not FIRST_YEAR <= at.year <= LAST_YEAR:
        msg = f"{value!r} is not in the years {FIRST_YEAR} to {LAST_YEAR}; partitions without `end` go on for ever"
        raise ValueError(msg)
    if at.tzinfo is not None:
        msg = f"{value!r} has an offset; give the local time in `timezone`"
        raise ValueError(msg)
    return value


def _written_time(value: object) -> object:
    """Undo how YAML reads an unquoted 17:30, which is a number to the base of 60."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MINUTES_A_DAY:
        return value
    return f"{value // 60:02}:{value % 60:02}"


def parse_deadline(text: str) -> time | Duration:
    """Read '07:00', a time of day, or '2 hours', a length of time."""
    written = _TIME_OF_DAY.fullmatch(text.strip())
    if written:
        return time(int(written[1]), int(written[2]))
    try:
        return parse_duration(text)
    except ValueError:
        msg = f"{text!r} is neither a time of day such as '07:00' nor a duration such as '2 hours'"
        raise ValueError(msg) from None


def _lateness(value: str) -> str:
    if value not in ("always", "never"):
        try:
            parse_duration(value)
        except ValueError:
            msg = f"{value!r} is neither a duration such as '7 days' nor 'always' or 'never'"
            raise ValueError(msg) from None
    return value


def as_share(value: object) -> object:
    """Read '1%' as 0.01. Decimal reads '0.7%' as exactly 0.007, which dividing a float would not."""
    percent = _PERCENT.fullmatch(value.strip()) if isinstance(value, str) else None
    return float(Decimal(percent[1]) / 100) if percent else value


def _coverage(value: object) -> float:
    """Read a share of true values that an interval can hold."""
    share, (least, most) = as_share(value), COVERAGES
    if isinstance(share, int | float) and least <= share <= most:
        return float(share)
    msg = f"{value!r} is not a share of the true values that an interval can hold: write {least:.0%} to {most:.1%}"
    if isinstance(share, int | float) and not isinstance(share, bool):
        nearest = share / 100 if 1 < share <= 100 * most else min(max(least, share), most)
        msg = f"{msg}; did you mean {100 * nearest:g}%?"
    raise ValueError(msg)


LocalTime = Annotated[str, BeforeValidator(_written), AfterValidator(_local_time)]
DurationText = Annotated[str, AfterValidator(lambda text: parse_duration(text) and text)]
WindowText = Annotated[str, AfterValidator(lambda text: parse_window(text) and text)]
DeadlineText = Annotated[
    str, BeforeValidator(_written_time), AfterValidator(lambda text: parse_deadline(text) and text)
]
Lateness = Annotated[str, AfterValidator(_lateness)]
Cron = Annotated[str, AfterValidator(check_cron)]
Name = Annotated[str, AfterValidator(check_name)]
AssetPath = Annotated[str, AfterValidator(check_asset)]
Timezone = Annotated[str, AfterValidator(check_timezone)]
ImportPath = Annotated[str, AfterValidator(check_dotted)]
Sql = Annotated[str, AfterValidator(check_sql)]
_SHARE_SCHEMA = WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "pattern": _PERCENT.pattern}]})
Share = Annotated[float, BeforeValidator(as_share), _SHARE_SCHEMA]
Coverage = Annotated[float, BeforeValidator(_coverage), _SHARE_SCHEMA]
