"""What this project's own work costs where a step costs nearly nothing: a linear layer on two ranks."""

from functools import partial

from benchmarks.compared import HERE, beside_fastest, ratio
from benchmarks.frame import Quantity, Row, Sample, in_turns, rows
from benchmarks.goals import Figure
from benchmarks.peers.linear import BATCH_SIZE
from benchmarks.peers.protocol import Asked
from benchmarks.peers.work import LEARNING_RATE
from benchmarks.started import RANKS, ours, peer

STEPS = 1250
WARM_UP = 200
HOLD_AT = 50  # with MLflow: until it took the first points
LOGGED_STEPS = 4000  # several of the carrier's rounds
LIGHTNING_LOGGED_STEPS = 500  # each of them takes long
QUANTITIES = [Quantity("median step", "ms", 1000), Quantity("mean step", "ms", 1000)]
WITHOUT_MLFLOW, LIGHTNING_WITHOUT_MLFLOW = "here, no MLflow", "Lightning, no MLflow"

# checkpoints are measured elsewhere, and no peer writes one here
CONFIG = f"""
name: run
model: {{target: benchmarks.peers.linear.model}}
data:
  train: {{target: benchmarks.peers.linear.dataset}}
  global_batch_size: {BATCH_SIZE * RANKS}
loss: {{target: torch.nn.CrossEntropyLoss}}
optimizer: {{target: torch.optim.SGD, lr: {LEARNING_RATE}}}
hooks: [{{target: benchmarks.started.Stamped}}]
train: {{steps: {STEPS}, eval_every_epochs: null}}
checkpoint: {{every_steps: 1000000}}
tracking: {{uri: null, log_every_steps: 1}}
launch: {{device: cpu, workers_per_node: {RANKS}, timeout_s: 30}}
"""


def measure(rounds: int, *, steps: int = STEPS) -> list[Row | Figure]:
    """Ours with the journal at every step and the bar drawn; nothing is logged by the peers."""
    asked = Asked("linear", steps)
    samples = in_turns(
        {
            HERE: lambda: ours(CONFIG, f"train.steps={steps}").steps(after=WARM_UP),
            **{name: partial(_of_peer, name, asked) for name in ("hand-written", "Accelerate", "Lightning")},
        },
        rounds,
    )
    what = f"step of a linear model, batch {BATCH_SIZE} a rank, journal at every step"
    figures = [
        beside_fastest(
            samples, f"{what}: {quantity.name.split()[0]}", quantity, over=["hand-written"], goal=1.03
        )
        for quantity in QUANTITIES
    ]
    return [*figures, *rows("linear model", samples, QUANTITIES, baseline="hand-written")]


def measure_mlflow(rounds: int) -> list[Row | Figure]:
    """Each with MLflow over itself without, at every step and into a file of SQLite."""
    without, logged = Asked("linear", LIGHTNING_LOGGED_STEPS), "sqlite:///mlflow.db"
    with_it = Asked("linear", LIGHTNING_LOGGED_STEPS, mlflow=logged)
    samples = in_turns(
        {
            HERE: partial(_ours_with_mlflow, logged),
            WITHOUT_MLFLOW: partial(_ours_with_mlflow, "null"),
            "Lightning": partial(_of_peer, "Lightning", with_it),
            LIGHTNING_WITHOUT_MLFLOW: partial(_of_peer, "Lightning", without),
        },
        rounds,
    )
    figures = [_over_itself(samples, quantity) for quantity in QUANTITIES]
    return [*figures, *rows("MLflow at every step", samples, QUANTITIES)]


def _of_peer(name: str, asked: Asked) -> Sample:
    return peer(name, asked).steps(after=WARM_UP)


def _ours_with_mlflow(uri: str) -> Sample:
    held = f"{{target: benchmarks.carried.HoldUntilCarried, step: {HOLD_AT}}}"
    hooks = ["{target: benchmarks.started.Stamped}", *([held] if uri != "null" else [])]
    overrides = [f"train.steps={LOGGED_STEPS}", f"tracking.uri={uri}", f"hooks=[{', '.join(hooks)}]"]
    return ours(CONFIG, *overrides).steps(after=WARM_UP)


def _over_itself(samples: dict[str, list[Sample]], quantity: Quantity) -> Figure:
    here = ratio(samples, quantity.name, to=WITHOUT_MLFLOW)
    lightning = ratio(samples, quantity.name, of="Lightning", to=LIGHTNING_WITHOUT_MLFLOW)
    what = f"step with MLflow at every step (SQLite) over the same without: {quantity.name.split()[0]}"
    return Figure(what, "times", here, {"Lightning": lightning}, None, here, goal=1.05)
