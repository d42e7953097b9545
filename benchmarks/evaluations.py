"""How long an exact evaluation of 50,000 images takes within a running process: loss and accuracy, two ranks."""

from functools import partial
from pathlib import Path

from benchmarks.compared import HERE, beside_fastest
from benchmarks.frame import Quantity, Row, Sample, in_turns, rows
from benchmarks.goals import Figure
from benchmarks.images import cifar10
from benchmarks.peers.images import EVAL_BATCH_SIZE, MEAN, STD
from benchmarks.peers.protocol import Asked
from benchmarks.started import RANKS, ours, peer

EVALUATIONS = 4  # the first warms up
FLOOR = "forward passes alone"
PEERS = ["Accelerate", "Lightning"]
QUANTITY = Quantity("evaluation", "s")

# one after each step, so that the end of a step is where an evaluation begins
CONFIG = f"""
name: run
model: {{target: dist_trainer.models.SimpleCNN}}
data:
  train: &images
    target: dist_trainer.data.Arrays
    split: train
    normalize: {{mean: {MEAN}, std: {STD}}}
  val: *images
  global_batch_size: 2
  eval_batch_size: {EVAL_BATCH_SIZE}
loss: {{target: torch.nn.CrossEntropyLoss}}
metrics: {{accuracy: {{target: dist_trainer.training.metrics.Accuracy}}}}
optimizer: {{target: torch.optim.SGD, lr: 0.01}}
hooks: [{{target: benchmarks.started.Stamped}}]
train: {{steps: {EVALUATIONS}, eval_every_steps: 1, channels_last: true}}
checkpoint: {{every_steps: 1000000}}
tracking: {{uri: null}}
launch: {{device: cpu, workers_per_node: {RANKS}, timeout_s: 60}}
"""


def measure(rounds: int) -> list[Row | Figure]:
    """The peers' images are normalized floats in memory already; ours are bytes, normalized batch by batch."""
    with cifar10() as path:
        samples = in_turns(
            {
                HERE: partial(_ours, path),
                **{name: partial(_of_peer, name, path) for name in PEERS},
                FLOOR: partial(_of_peer, "hand-written", path),
            },
            rounds,
        )
    what = "exact evaluation of 50,000 images, over the faster peer"
    figure = beside_fastest(samples, what, QUANTITY, over=PEERS, floor=FLOOR, goal=0.9)
    return [figure, *rows("exact evaluation", samples, [QUANTITY], baseline=HERE)]


def _ours(path: Path) -> Sample:
    return ours(CONFIG, f"data.train.path={path}", f"data.val.path={path}").evaluations()


def _of_peer(name: str, path: Path) -> Sample:
    return peer(name, Asked("evaluate", EVALUATIONS, images=path)).evaluations()
