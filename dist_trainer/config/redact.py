"""What is a secret and is written nowhere: passwords, tokens and keys in configuration values and in messages.

A configuration gives one by a reference (see references.py); what our own texts may hold of one, since they quote
an error or a URL, is blotted out before it is written: by its shape, and by its value where it stands in a
variable of the environment whose name says that it is one.
"""

import os
import re
from collections.abc import Iterator
from urllib.parse import quote, unquote

from dist_trainer.config.references import REFERENCE

MARK = "***"

# a whole word of the key, so that `tokenizer`, `max_tokens` and `author` are none of these
_SECRET_KEY = re.compile(
    r"(?:^|[._-])(?:secrets?|passw(?:or)?d|passphrase|pwd|credentials?|auth|authorization"
    r"|(?:api|access|private|secret|account)[_-]?key(?:[_-]id)?)(?:$|[._-])",
    re.IGNORECASE,
)
_TOKEN_KEY = re.compile(r"(?:^|[._-])token$", re.IGNORECASE)
_SECRET_VARIABLE = re.compile(
    r"token(?!iz)|secret|passw|passphrase|pwd|credential|(?:^|_)(?:auth|pass|pat|sas)(?:_|$)|_?key(?:_id)?$"
    r"|api_?key|_key_|connection_string|webhook|^sshpass$",
    re.IGNORECASE,
)
_LAUNCH_VARIABLE = "launch.env."
_FOLDERS = ("PWD", "OLDPWD")
_USER_OF_URL = re.compile(r"://([^\s/@]*)@")
_SHORTEST = 8  # a shorter value stands in too much that is none
_IN_TEXT = (  # each linear in the text's length: an error's message may be a megabyte
    (re.compile(r"(://)[^\s/@]{0,256}:[^\s/]{0,4096}@"), rf"\1{MARK}@"),
    (re.compile(r"(://)[^\s/@:]+@"), rf"\1{MARK}@"),
    (
        re.compile(
            r"((?:(?:token|passw(?:or)?d|pwd|secret|credential|signature|\bsig|[_-]key|apikey)|(?<=[?&])key)=)"
            r"[^&\s;,\"']+",
            re.IGNORECASE,
        ),
        rf"\1{MARK}",
    ),
    (re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1 {MARK}"),
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), MARK),
    (re.compile(r"\b(?:gh[opsu]|hf|glpat|sk)[_-][A-Za-z0-9_-]{16,}"), MARK),
)
# what is no name of a user, no word of a sentence and no key of a table
_CERTAIN = (
    re.compile(r"://[^\s/@:]*:[^\s/@]+@"),
    re.compile(
        r"[?&][\w-]{0,64}(?:token|passw(?:or)?d|secret|signature|sig|api_?key)=[^&\s]+", re.IGNORECASE
    ),
    re.compile(r"\bbearer\s+[\w.~+/=-]{16,}", re.IGNORECASE),
    re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    re.compile(r"\b(?:gh[opsu]|hf|glpat|sk)[_-][A-Za-z0-9_-]{16,}"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
)


def redact(text: str) -> str:
    """`text` without what is or looks like a secret: values of secret variables, user:password@ and key=... of
    URLs, known shapes of keys."""
    for value in sorted(_values(), key=len, reverse=True):
        text = text.replace(value, MARK)
    for pattern, replacement in _IN_TEXT:
        text = pattern.sub(replacement, text)
    return text


def _values() -> set[str]:
    """The secrets of this process's environment, also as they stand in a URL and in a repr."""
    found = {value for name, text in os.environ.items() for value in _secrets_of(name, text)}
    forms = {form for value in found for form in (value, quote(value, safe=""), repr(value)[1:-1])}
    return {form for form in forms if len(form) >= _SHORTEST}


def _secrets_of(name: str, text: str) -> Iterator[str]:
    """Of a variable: all of it where its name says so, and each long line; else the password of a URL."""
    if _SECRET_VARIABLE.search(name) and name not in _FOLDERS and not _is_path(text):
        yield from (text, *(line.strip() for line in text.splitlines()))
    for match in _USER_OF_URL.finditer(text):
        user, _, password = match[1].partition(":")
        yield from (password or user, unquote(password or user))


def _is_path(text: str) -> bool:
    """Where a secret is, and not what it is."""
    return text.startswith("/") and os.path.exists(text)  # noqa: PTH110 - a long one is no error


def is_secret(key: str, value: str) -> bool:
    """Whether a configuration's value is one, and would be written: by what its dotted key says (the path of a file
    is none), or by a shape that nothing else has. References are left out of account."""
    rest = REFERENCE.sub("\n", value)
    is_path = rest.startswith(("/", "~/", "./", "../"))
    return (not is_path and _says_secret(key, rest)) or any(shape.search(rest) for shape in _CERTAIN)


def redact_value(key: str, value: str) -> str:
    """`value` as it may be shown under its dotted `key`."""
    rest = REFERENCE.sub("\n", value)
    if _says_secret(key, rest):
        return MARK
    return value if rest != value and not any(shape.search(rest) for shape in _CERTAIN) else redact(value)


def _says_secret(key: str, value: str) -> bool:
    value = value.strip()
    if value in ("", "null", "true", "false"):
        return False
    # a tokenizer's pad_token is `<pad>` or a number
    is_token = _TOKEN_KEY.search(key) and value[0] not in "<[" and not value.isdigit()
    return bool(_SECRET_KEY.search(key) or is_token or _is_secret_variable(key, value))


def _is_secret_variable(key: str, value: str) -> bool:
    """Whether `key` sets a variable for the workers whose name says that it is a secret; MAX_TOKENS=512 is none,
    and neither is a switch."""
    name = key.removeprefix(_LAUNCH_VARIABLE)
    if name in (key, *_FOLDERS) or value in ("0", "1"):
        return False
    said = {match[0].lower() for match in _SECRET_VARIABLE.finditer(name)}
    return bool(said - {"token"} if value.isdigit() else said)
