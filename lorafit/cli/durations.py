"""How long, as a person writes it on the command line."""

import re

from lorafit.errors import UserError

_UNITS_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_FORM = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?"
                   r"(?:(\d+(?:\.\d+)?)s)?", re.ASCII)


def duration_s(text: str, option: str) -> float:
    """Seconds of `3h`, `45m`, `2h30m`, `90s` or `1d`. UserError for anything else,
    with the name of the option."""
    match = _FORM.fullmatch(text.strip().lower())
    seconds = 0.0 if match is None else sum(
        float(amount) * unit_s for amount, unit_s in zip(match.groups(), _UNITS_S.values(),
                                                         strict=True) if amount)
    if seconds <= 0:
        raise UserError(f"{text!r} is no length of time", option,
                        "write it with its unit, for example 90s, 45m, 3h or 2h30m")
    return seconds
