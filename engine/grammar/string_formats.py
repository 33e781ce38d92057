"""What a string of each JSON Schema format looks like; every text of a pattern has the format.

Not every text of the format has the pattern: e-mail addresses are without quoted parts, for one.
"""

from __future__ import annotations

_DAYS_31 = r"(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
_DAYS_30 = r"(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
_YEAR = r"(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_LEAP_YEAR = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = rf"(?:{_YEAR}-(?:{_DAYS_31}|{_DAYS_30}|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
_TIME = (
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?"
    r"(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_MINUTES = r"[0-9]{1,4}M(?:[0-9]{1,4}S)?"
_CLOCK = rf"T(?:[0-9]{{1,4}}H(?:{_MINUTES})?|{_MINUTES}|[0-9]{{1,4}}S)"
_MONTHS = r"[0-9]{1,4}M(?:[0-9]{1,4}D)?"
_CALENDAR = rf"(?:[0-9]{{1,4}}Y(?:{_MONTHS})?|{_MONTHS}|[0-9]{{1,4}}D)"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,20}[A-Za-z0-9])?"
_HOSTNAME = rf"{_LABEL}(?:\.{_LABEL}){{0,3}}"
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_GROUP = r"[0-9A-Fa-f]{1,4}"
_IPV6_SHORT = "|".join(
    rf"(?:{_GROUP}:){{{before}}}(?::{_GROUP}){{1,{7 - before}}}" for before in range(1, 7)
)
_PATH_CHAR = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
_URI_TAIL = rf"(?:{_PATH_CHAR}|[/?])*"
_URI_BODY = rf"(?://{_HOSTNAME}(?::[0-9]{{1,4}})?(?:/{_URI_TAIL})?|{_PATH_CHAR}{_URI_TAIL})"

FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": rf"P(?:{_CALENDAR}(?:{_CLOCK})?|{_CLOCK}|[0-9]{{1,4}}W)",
    "email": rf"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@{_HOSTNAME}",
    "hostname": _HOSTNAME,
    "ipv4": rf"(?:{_BYTE}\.){{3}}{_BYTE}",
    "ipv6": rf"(?:{_GROUP}:){{7}}{_GROUP}|::(?:{_GROUP}(?::{_GROUP}){{0,6}})?|{_IPV6_SHORT}",
    "uuid": r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}",
    "uri": rf"[A-Za-z][A-Za-z0-9+.-]*:{_URI_BODY}(?:#{_URI_TAIL})?",
}
