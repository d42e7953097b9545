"""The login that MLflow's client would show a server: the URL's, its variables' or that in ~/.mlflow/credentials."""

import base64
import configparser
import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

_CREDENTIALS = Path("~/.mlflow/credentials")
_USERNAME, _PASSWORD, _TOKEN = (
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
)


def authorization(uri: str) -> str | None:
    """What the header of that name holds; None where there is no login."""
    parts = urlsplit(uri)
    if parts.username:
        return _basic(unquote(parts.username), unquote(parts.password or ""))
    file = _credentials()
    username, password = (os.environ.get(name) or file.get(name.lower()) for name in (_USERNAME, _PASSWORD))
    if username and password:
        return _basic(username, password)
    token = os.environ.get(_TOKEN)
    return f"Bearer {token}" if token else None


def _basic(username: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{username}:{password}'.encode()).decode()}"


def _credentials() -> dict[str, str]:
    found = configparser.ConfigParser(interpolation=None)
    try:
        found.read(_CREDENTIALS.expanduser())
    except (
        OSError,
        configparser.Error,
        UnicodeDecodeError,
        RuntimeError,
    ):  # no home, or no such file of ours
        return {}
    return dict(found["mlflow"]) if "mlflow" in found else {}
