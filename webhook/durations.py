"""Durations as people write them: `90s`, `30m`, `1h`, `1h30m`."""

import re
from datetime import timedelta

_DURATION = re.compile(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?")


def parse_duration(text: str) -> timedelta:
    """Return the duration in `90s`, `30m`, `1h`, `1h30m`. Raises ValueError if `text` is none of this kind."""
    found = _DURATION.fullmatch(text.strip())
    if not found or not any(found.groups()):
        raise ValueError(f"{text[:40]!r} is no duration such as 90s, 30m or 1h30m")
    hours, minutes, seconds = (int(number or 0) for number in found.groups())
    return timedelta(hours=hours, minutes=minutes, seconds=seconds)


def print_duration(duration: timedelta) -> str:
    """Return the duration as `1h30m`."""
    seconds = int(duration.total_seconds())
    parts = [(seconds // 3600, "h"), (seconds // 60 % 60, "m"), (seconds % 60, "s")]
    return "".join(f"{number}{unit}" for number, unit in parts if number) or "0s"
