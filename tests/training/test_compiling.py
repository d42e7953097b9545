"""What torch's compiler tells while it compiles: the assumption on torch._dynamo.callback."""

from pathlib import Path

from dist_trainer.tracking.heartbeat import Heartbeat, read_heartbeat
from dist_trainer.training.compiling import compiling_beats


def test_a_rank_that_compiles_says_so_and_each_new_shape_again(tmp_path: Path) -> None:
    import torch._dynamo

    torch._dynamo.reset()
    phases: list[str] = []
    path = tmp_path / "heartbeat" / "rank-0"
    heartbeat = Heartbeat(path, rank=0, attempt=1)

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        beat = read_heartbeat(path)
        assert beat is not None
        phases.append(f"{beat.phase} {beat.step}")
        return graph.forward

    compiled = torch.compile(lambda x: x * 2, backend=backend, dynamic=False)
    with compiling_beats(heartbeat):
        for step, length in enumerate((4, 4, 3)):
            heartbeat.beat(step, "train")
            compiled(torch.ones(length))
            after = read_heartbeat(path)
            assert after is not None and (after.step, after.phase) == (step, "train")
    compiled(torch.ones(2))
    heartbeat.close()
    torch._dynamo.reset()
    assert phases == ["compile 0", "compile 2", "train 2"]
