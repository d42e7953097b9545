"""The same trainings as peers do them: programs for torchrun, each of which writes when its steps ended.

None of them imports more of this project than the net that all train.
"""

from importlib.util import find_spec

MODULES = {"hand-written": "hand", "Accelerate": "with_accelerate", "Lightning": "with_lightning"}
_PACKAGES = ("accelerate", "lightning")


def missing() -> str | None:
    """What to do where peers are not installed; None where they are."""
    absent = [name for name in _PACKAGES if find_spec(name) is None]
    if not absent:
        return None
    verb = "are" if len(absent) > 1 else "is"
    return (
        f"{' and '.join(absent)} {verb} not installed, as peers to measure against: pip install -e '.[bench]'"
    )
