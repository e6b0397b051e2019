"""What looks like a password, a token or a key: one list for all that is written or printed."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

PATTERNS = {
    "a token of the hub": re.compile(r"\bhf_[A-Za-z0-9]{30,}"),
    "an API key": re.compile(r"\bsk-(?:proj-|ant-)?[A-Za-z0-9_-]{24,}"),
    "a key of AWS": re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    "a token of GitHub": re.compile(r"\b(?:ghp|gho|ghs|github_pat)_[A-Za-z0-9_]{30,}"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}
IN_ADDRESS = re.compile(r"(?<=://)[^/\s:@'\"]*:[^/\s@'\"]+(?=@)|(?<=://)[^/\s:@'\"]{20,}(?=@)")
"""Name and password, or a token, before the host of an address."""
IN_QUERY = re.compile(r"(?<=[?&])((?:access_)?token|api_?key|signature|sig|X-Amz-Signature"
                      r"|password)=[^&\s'\"]+", re.IGNORECASE)

HIDDEN = "(hidden)"
_SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY)",
                          re.IGNORECASE)
_SHORTEST = 16  # of a value in the environment; shorter ones occur in any text
_NO_SECRET = re.compile(r"[/~.][^\s]*|\d+|true|false", re.IGNORECASE)  # the place of one, a switch


def secret_in(text: str) -> str | None:
    """What a text seems to give away, in words; None for nothing."""
    if IN_ADDRESS.search(text) or IN_QUERY.search(text):
        return "a password or token in an address"
    if any(value in text for value in _of_environment()):
        return "a secret of the environment"
    return next((what for what, pattern in PATTERNS.items() if pattern.search(text)), None)


def redacted(text: str) -> str:
    """The text with `(hidden)` in place of every secret."""
    for value in _of_environment():
        text = text.replace(value, HIDDEN)
    text = IN_QUERY.sub(lambda found: f"{found[1]}={HIDDEN}", IN_ADDRESS.sub(HIDDEN, text))
    for pattern in PATTERNS.values():
        text = pattern.sub(HIDDEN, text)
    return text


def without_secrets(value: Any) -> Any:
    """`redacted` of every text in nested lists and mappings, for what is written as JSON."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {key: without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return value


def _of_environment() -> Iterator[str]:
    """Values of variables such as HF_TOKEN and WANDB_API_KEY."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _SECRET_NAME.search(name) \
                and not _NO_SECRET.fullmatch(value):
            yield value
