"""What must not leave the run folder: passwords, tokens and keys in configuration values and messages."""

import re

MARK = "***"

# a whole word of the key, so that `tokenizer`, `max_tokens` and `author` are none of these
_SECRET_KEY = re.compile(
    r"(?:^|[._-])(?:secrets?|passw(?:or)?d|passphrase|pwd|credentials?|auth|authorization"
    r"|(?:api|access|private|secret|account)[_-]?key(?:[_-]id)?)(?:$|[._-])",
    re.IGNORECASE,
)
_TOKEN_KEY = re.compile(r"(?:^|[._-])token$", re.IGNORECASE)
_IN_TEXT = (
    (re.compile(r"(://)[^\s/@]*:[^\s/]*@"), rf"\1{MARK}@"),
    (re.compile(r"(://)[^\s/@:]+@"), rf"\1{MARK}@"),
    (
        re.compile(
            r"([\w-]*(?:token|passw(?:or)?d|pwd|secret|credential|signature|\bsig|key)=)[^&\s;,\"']+",
            re.IGNORECASE,
        ),
        rf"\1{MARK}",
    ),
    (re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1 {MARK}"),
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), MARK),
    (re.compile(r"\b(?:gh[opsu]|hf|glpat|sk)[_-][A-Za-z0-9_-]{16,}"), MARK),
)


def redact(text: str) -> str:
    """`text` without what looks like a secret: user:password@ and key=... of URLs, known shapes of keys."""
    for pattern, replacement in _IN_TEXT:
        text = pattern.sub(replacement, text)
    return text


def redact_value(key: str, value: str) -> str:
    """`value` as it may be shown under its dotted `key`."""
    if value in ("", "null", "true", "false"):
        return value
    if _SECRET_KEY.search(key):
        return MARK
    # a tokenizer's pad_token is `<pad>` or a number
    if _TOKEN_KEY.search(key) and value[0] not in "<[" and not value.isdigit():
        return MARK
    return redact(value)
