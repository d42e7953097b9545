"""One cell of a sweep on this machine, as a process of its own: python -m dist_trainer.sweeps.cell RUN.

It trains as `dist-trainer train` does, on the run's own config.yaml, and says what that says.
"""

import os
import signal
import sys
from pathlib import Path

from dist_trainer.adapters.interpreter import leave
from dist_trainer.adapters.parent_death import kill_me_with_my_parent
from dist_trainer.adapters.privacy import keep_private
from dist_trainer.config.redact import redact
from dist_trainer.errors import DistTrainerError


def main() -> int:
    """Train the run to its end; the command's exit code."""
    keep_private()
    folder, parent = Path(sys.argv[1]), int(sys.argv[2])
    # a sweep that is killed stops its cells, which save
    kill_me_with_my_parent(parent_pid=parent, number=signal.SIGTERM)
    from dist_trainer.config.load import load_config
    from dist_trainer.launchers.train import train
    from dist_trainer.run_folder import RunFolder

    try:
        run = RunFolder.open(folder)
        os.chdir(run.info().working_folder)
        return train(load_config([run.config_path]), runs=run.path.parent)
    except DistTrainerError as error:
        print(redact(str(error)), file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    leave(main())
