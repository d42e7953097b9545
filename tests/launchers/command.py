"""`python command.py RUN ENTRY WORKERS [key=value of launch...]`: launch() as a command of its own."""

import json
import os
import sys
from pathlib import Path


def main() -> int:
    from dist_trainer.adapters.files import write_json
    from dist_trainer.config.schema import Config
    from dist_trainer.launchers import forkserver
    from dist_trainer.run_folder import RunFolder

    folder, entry, workers, *settings = sys.argv[1:]
    run = RunFolder.open(folder)
    section = {key: json.loads(value) for key, value in (setting.split("=") for setting in settings)}
    config = Config.model_validate(
        {
            "name": "test",
            "model": {"target": "torch.nn.Identity"},
            "loss": {"target": "torch.nn.MSELoss"},
            "data": {"train": {"target": "builtins.list"}},
            "optimizer": {"target": "torch.optim.SGD"},
            "launch": {"env": {"PYTHONPATH": str(Path(__file__).parents[2])}, **section},
        }
    )
    forkserver.start(forkserver.thread_variables(int(workers)))
    from dist_trainer.launchers.agent import Nodes, launch

    nodes = Nodes()
    if place := os.environ.get("NODE"):
        rank, endpoint = place.split()
        nodes = Nodes(2, int(rank), endpoint, "127.0.0.1", lambda port: write_json(run.path / "port", port))
    outcome = launch(
        run,
        config,
        workers=int(workers),
        nodes=nodes,
        entry=f"tests.launchers.entries:{entry}",
        report=lambda text: print(text, flush=True),
    )
    print(json.dumps({"state": outcome.state, "exit_code": outcome.exit_code, "message": outcome.message}))
    return outcome.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
