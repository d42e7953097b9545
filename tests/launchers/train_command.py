"""`python train_command.py ENTRY CONFIG [key=value...] [--fresh] [--json] [--allow-change=KEY]`: train() alone."""

import sys


def main() -> int:
    from dist_trainer.config.load import load_config
    from dist_trainer.errors import DistTrainerError
    from dist_trainer.launchers.train import train

    entry, config, *rest = sys.argv[1:]
    options = [word for word in rest if word.startswith("--")]
    try:
        return train(
            load_config([config], [word for word in rest if word not in options]),
            workers=2,
            fresh="--fresh" in options,
            as_json="--json" in options,
            allow_change=[word.partition("=")[2] for word in options if word.startswith("--allow")],
            entry=f"tests.launchers.entries:{entry}",
        )
    except DistTrainerError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
