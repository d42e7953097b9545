"""Stand-ins for SLURM's commands: scripts on PATH that print what SLURM 22.05 printed, and note what was asked."""

import shlex
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

INVALID = "slurm_load_jobs error: Invalid job id specified"
NO_ACCOUNTS = "Slurm accounting storage is disabled"
NO_CONTROLLER = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"


class FakeSlurm:
    """The commands there are; each answers by the first case whose words are all in its arguments."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.asked = folder / "asked"
        folder.mkdir()
        for name in ("bash", "sleep", "cat"):
            (folder / name).symlink_to(f"/bin/{name}")
        patch.setenv("PATH", str(folder))
        for name in ("squeue", "scontrol"):
            self.fails(name, INVALID)
        self.fails("sacct", NO_ACCOUNTS)
        self.says("scancel", "")

    def says(self, name: str, output: str | Mapping[str, str]) -> None:
        """It prints this; or, by a word among its arguments, one of these, and INVALID for all others."""
        cases = {"": output} if isinstance(output, str) else output
        parts = [
            f"if [[ {shlex.quote(word)} == '' || \" $* \" == *{shlex.quote(word)}* ]]; then\n"
            f"cat <<'END'\n{text.strip(chr(10))}\nEND\nexit 0\nfi\n"
            for word, text in cases.items()
        ]
        self._write(name, "".join(parts) + f"echo {shlex.quote(INVALID)} >&2\nexit 1\n")

    def fails(self, name: str, error: str) -> None:
        """It prints this as an error."""
        self._write(name, f"echo {shlex.quote(error)} >&2\nexit 1\n")

    def denies(self, name: str, answer: str) -> None:
        """It prints this on standard output, and fails."""
        self._write(name, f"echo {shlex.quote(answer)}\nexit 1\n")

    def hangs(self, name: str) -> None:
        """It never answers."""
        self._write(name, "exec sleep 60\n")

    def removed(self) -> None:
        """No SLURM at all."""
        for name in ("squeue", "scontrol", "sacct", "scancel"):
            (self.folder / name).unlink(missing_ok=True)

    def calls(self, name: str) -> list[str]:
        """What it was asked so far."""
        lines = self.asked.read_text().splitlines() if self.asked.exists() else []
        return [line.removeprefix(f"{name} ") for line in lines if line.startswith(f"{name} ")]

    def _write(self, name: str, body: str) -> None:
        new = self.folder / f".{name}"
        new.write_text(
            f'#!{self.folder}/bash\necho {name} "$*" SQUEUE_USERS=$SQUEUE_USERS $SLURM_TIME_FORMAT'
            f" >> {self.asked}\n{body}"
        )
        new.chmod(0o755)
        new.replace(self.folder / name)  # somebody may just be running the one before


def queue_line(job: str, state: str, **fields: str) -> str:
    """A line of squeue as the package asks for it, of a job called cnn that came just now."""
    known = {"nodes": "", "begin": "N/A", "end": "N/A", "reason": "None", "name": "cnn", **fields}
    known.setdefault("submitted", time.strftime("%Y-%m-%dT%H:%M:%S"))
    return "|".join(
        [
            *(job, state, known["nodes"], known["begin"], known["end"]),
            *(known["submitted"], known["reason"], known["name"]),
        ]
    )
