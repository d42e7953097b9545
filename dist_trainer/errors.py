"""The exceptions a user can meet, each with the exit code its command ends with.

DistTrainerError            1   anything else
├── ConfigError             2   the configuration: every problem found, one per line
├── RanksDisagree           2   before step 1: not every rank has the same configuration, code, data, model
├── UsageError              2   the command or the run folder it was given: changed configuration, live writer
├── DataError               1   a row that cannot be read, a data set that does not fit
├── NonFiniteError          1   the loss or a gradient became NaN or infinite
├── RanksDiverged           1   at a save: one rank's weights or optimizer state are not the others'
├── ExportError             1   a model cannot be exported so, or what was written is not the same model
├── StorageError            1   the checkpoint store is gone or breaks a promise the commit needs
│   ├── CorruptCheckpoint   1   one checkpoint's bytes are not those that were committed
│   └── NotSaved            1   nothing could be saved for longer than checkpoint.max_staleness_minutes
├── NoUsableCheckpoint      65  checkpoints exist and none of them is good
├── FencedOut               1   a newer attempt of the same run has taken over
├── NoProgress              93  three resumes without a new checkpoint: do not requeue
├── RankStuck               1   no rank got further for too long: who was waited for, and by whom
└── LeftEarly               1   code of the user's called sys.exit before the training was over
"""

from typing import ClassVar

FINISHED = 0
STOPPED = 75


class DistTrainerError(Exception):
    """Base of every error with a message meant for the user; `exit_code` is the command's."""

    exit_code: ClassVar[int] = 1


class ConfigError(DistTrainerError):
    """Everything wrong with a configuration, one problem per line: file:line, dotted key, found, accepted."""

    exit_code = 2


class RanksDisagree(DistTrainerError):
    """The ranks were given different things to train; a restart would be given the same ones."""

    exit_code = 2


class UsageError(DistTrainerError):
    """A command that cannot be carried out as given."""

    exit_code = 2


class DataError(DistTrainerError):
    """A data set or one of its rows cannot be used; the message names the row."""


class NonFiniteError(DistTrainerError):
    """The loss or a gradient is NaN or infinite; the message names the step."""


class RanksDiverged(DistTrainerError):
    """Ranks that began alike hold different states; a restart from the last good checkpoint may go better."""


class ExportError(DistTrainerError):
    """A model that cannot be exported as asked for, or whose file gives other outputs; nothing is left of it."""


class StorageError(DistTrainerError):
    """A store cannot be reached or does not keep a promise that the commit protocol needs."""


class CorruptCheckpoint(StorageError):
    """The bytes of a checkpoint differ from what its manifest says."""


class NotSaved(StorageError):
    """Training stops rather than go on unsaved; what was saved before is untouched. A restart would not help."""


class NoUsableCheckpoint(DistTrainerError):
    """Checkpoints are there and none is good: never start from scratch over them."""

    exit_code = 65


class FencedOut(DistTrainerError):
    """A newer attempt of this run holds the fence; this one may not commit any more."""


class NoProgress(DistTrainerError):
    """Resumed three times from the same checkpoint without getting to the next one."""

    exit_code = 93


class RankStuck(DistTrainerError):
    """Ranks made no progress; the message says what each of them was doing."""


class LeftEarly(DistTrainerError):
    """Code of the user's called sys.exit in the middle of the work: that is no end, whatever its code."""

    def __init__(self, leaving: SystemExit) -> None:
        super().__init__(f"sys.exit({leaving.code!r}) was called before the work was over")
        self.__cause__ = leaving  # where it was called
