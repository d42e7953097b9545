"""Before the first step: the ranks compare configuration, code, versions, data and model, and stop where they differ.

Before DDP is made, for its constructor overwrites every rank's weights with rank 0's: a node with other code or
another seed would never be seen again.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from dist_trainer.adapters.distributed import Group
from dist_trainer.config.changes import leaves, shown
from dist_trainer.config.redact import redact_value
from dist_trainer.config.schema import Settings
from dist_trainer.config.yaml_rules import read_yaml
from dist_trainer.errors import RanksDisagree
from dist_trainer.run_folder import RunFolder
from dist_trainer.training import digests, own_code
from dist_trainer.training.comparison import Difference, Fact, differences, first_difference, named
from dist_trainer.training.group_options import configured
from dist_trainer.training.sample_rows import Loader, sample

_NAMED = 6  # differences of a section
CONFIGURATION, CODE, VERSIONS, DATA, MODEL = "configuration", "code", "versions", "data", "model"
_REMEDIES = {
    CONFIGURATION: "give every rank the same settings, and a folder of runs that all nodes share",
    CODE: "give every node the same code",
    VERSIONS: "install the same versions on every node",
    DATA: "give every rank the same whole data, of which it is dealt its share, and the same files on every node",
    MODEL: "build model and optimizer alike on every rank: from one seed (torch.manual_seed before the model is "
    "made), or from one file",
}


def check_same_start(
    group: Group,
    settings: Settings,
    run: RunFolder,
    *,
    model: nn.Module,
    optimizers: Mapping[str, Optimizer],
    datasets: Mapping[str, Any],
    loaders: Mapping[str, Loader],
    others: Iterable[object] = (),
) -> None:
    """Raise RanksDisagree, with one message on every rank, where not all would train the same. Collective.

    `others` are the objects besides whose code matters. With one rank there is nothing to compare.
    """
    if group.world_size == 1:
        return
    makers = [*model.modules(), *optimizers.values(), *datasets.values(), *others]
    lengths = {split: len(dataset) for split, dataset in datasets.items()}
    tensors = _tensors(model)
    found = differences(
        group,
        {
            CONFIGURATION: _configuration(settings, run),
            CODE: _plain(own_code.source_files(makers)),
            VERSIONS: _plain(own_code.versions(makers) | _threads(group, settings)),
            DATA: _plain({f"data.{split}, length": str(length) for split, length in lengths.items()})
            | _digested(sample(loaders, lengths, settings.seed)),
            MODEL: _plain(_kinds(model, optimizers)) | _digested(digests.of_tensors(tensors)),
        },
    )
    found = [each for each in found if not _may_be_absent(each)]
    if found:
        raise RanksDisagree(_message(found, _elements(group, found, tensors)))


def _may_be_absent(difference: Difference) -> bool:
    """A module that only one rank has loaded, and a row that a rank could not read, are nothing to compare."""
    is_row = difference.section == DATA and ", row " in difference.key
    return difference.is_absent_somewhere and (difference.section == CODE or is_row)


def _plain(values: Mapping[str, str]) -> dict[str, Fact]:
    return {key: Fact(value, value) for key, value in values.items()}


def _digested(values: Mapping[str, str]) -> dict[str, Fact]:
    """For values that end in a digest: a tensor's type and shape come before it."""
    return {key: Fact(value, value.rpartition(" ")[0]) for key, value in values.items()}


def _configuration(settings: Settings, run: RunFolder) -> dict[str, Fact]:
    """Every setting, and what else the run's config.yaml holds as this node reads it."""
    tree, _ = read_yaml(run.config_path.read_text(), str(run.config_path))
    written = dict(leaves(tree.plain())) if tree is not None else {}
    facts = {"the run folder": Fact(run.info().run_id, f"{run.path} (id {run.info().run_id})")}
    for key, value in (written | dict(leaves(settings.model_dump()))).items():
        text = shown(value)
        facts[key] = Fact(text, redact_value(key, text))
    return facts


def _threads(group: Group, settings: Settings) -> dict[str, str]:
    """On the CPU the norm of a gradient is rounded by how many threads add it up, and clipping scales by it."""
    if group.device.type != "cpu" or settings.train.clip_grad_norm is None:
        return {}
    return {
        "torch's number of threads (OMP_NUM_THREADS), on which clipping depends": str(torch.get_num_threads())
    }


def _kinds(model: nn.Module, optimizers: Mapping[str, Optimizer]) -> dict[str, str]:
    found = {"class": type(model).__qualname__}
    for phase, optimizer in optimizers.items():
        found[f"optimizer {phase}"] = type(optimizer).__qualname__
        for number, group in enumerate(configured(optimizer)):
            values = {
                key: value for key, value in leaves(group) if isinstance(value, int | float | str | list)
            }
            found |= {
                f"optimizer {phase}, group {number}, {key}": repr(value) for key, value in values.items()
            }
    return found


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers. The statistics of a norm differ once it was trained: only their shapes count."""
    found: dict[str, Tensor] = dict(model.named_parameters())
    statistics = {
        id(buffer)
        for module in model.modules()
        if isinstance(module, _NormBase)
        for buffer in module.buffers(recurse=False)
    }
    for name, buffer in model.named_buffers():
        found[name] = buffer.to("meta") if id(buffer) in statistics else buffer
    return found


def _elements(group: Group, found: list[Difference], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Of the first tensor that differs in its values alone, the first element that does. Collective."""
    for difference in found:
        shapes = {fact.shown if fact else None for fact in difference.facts}
        if difference.key in tensors and len(shapes) == 1:
            return {difference.key: first_difference(group, difference.key, tensors[difference.key])}
    return {}


def _message(found: list[Difference], elements: Mapping[str, str]) -> str:
    odd = sorted({rank for each in found for rank in each.odd_ranks})
    who = f"{named(odd)} would not train what the others do" if odd else "the ranks would not train the same"
    lines = [f"{who}, so nothing was trained:"]
    for section, remedy in _REMEDIES.items():
        own = [each for each in found if each.section == section]
        lines += [f"  {section}: {_line(each, elements)}" for each in own[:_NAMED]]
        if len(own) > _NAMED:
            lines.append(f"  {section}: and {len(own) - _NAMED} more")
        if own:
            lines.append(f"    -> {remedy}")
    return "\n".join(lines)


def _line(difference: Difference, elements: Mapping[str, str]) -> str:
    if element := elements.get(difference.key):
        return element
    texts = {fact.shown if fact else None for fact in difference.facts}
    if len(texts) > 1:
        return str(difference)
    odd = difference.odd_ranks
    return f"{difference.key}: " + (f"{named(odd)} has another value than the others" if odd else "differs")
