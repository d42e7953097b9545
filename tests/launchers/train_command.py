"""`python train_command.py ENTRY CONFIG [key=value...] [--fresh] [--json] [--allow-change=KEY]`: train() alone.

With --signals-afterwards it is sent each signal that asks for an end, once train() is over.
"""

import os
import signal
import sys


def main() -> int:
    from dist_trainer.config.load import load_config
    from dist_trainer.errors import DistTrainerError
    from dist_trainer.launchers.train import train

    entry, config, *rest = sys.argv[1:]
    options = [word for word in rest if word.startswith("--")]
    try:
        code = train(
            load_config([config], [word for word in rest if word not in options]),
            workers=2,
            fresh="--fresh" in options,
            as_json="--json" in options,
            allow_change=[word.partition("=")[2] for word in options if word.startswith("--allow")],
            entry=f"tests.launchers.entries:{entry}",
        )
    except DistTrainerError as error:
        print(error, file=sys.stderr)
        code = error.exit_code
    if "--signals-afterwards" in options:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
            os.kill(os.getpid(), number)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
