"""What a person or a program sees of an export."""

from typing import TYPE_CHECKING, Any

from dist_trainer.export.exporting import Exported
from dist_trainer.export.place import CARD
from dist_trainer.export.request import WEIGHTS_ALONE

if TYPE_CHECKING:
    from dist_trainer.tracking.mlflow_registry import Registered

_DEPRECATED = """\
torch calls TorchScript deprecated, in favour of torch-export; a C++ program that loads it with torch::jit::load
gets it all the same."""
_PRECISION = "Training computed in {0} by autocast; the file computes in the precision of its weights."


def words(exported: Exported) -> str:
    """The files, and how they were compared."""
    card = exported.card
    size = sum(record["size"] for record in card["files"].values())
    by = f" by --method {card['method']}" if card["method"] else ""
    where = (
        "the run's model built anew"
        if card["exported_as"] in WEIGHTS_ALONE
        else "a process without dist_trainer"
    )
    checked = card["checked"]
    sizes = " and ".join(map(str, checked["batch_sizes"]))
    lines = [
        f"{card['run']}: step {card['step']} as {card['exported_as']}{by}, {size:,} bytes",
        *(f"  {path}" for path in exported.paths),
        f"  {exported.folder / CARD}",
        f"loaded again in {where}: batches of {sizes} give the same outputs,",
        f"to {checked['largest_difference']:.1e} of their largest value ({checked['tolerance']:g} is allowed)",
    ]
    if exported.removed:
        lines.insert(-2, f"  (of the earlier export there: {', '.join(exported.removed)} is gone)")
    if card["exported_as"] == "torchscript":
        lines.append(_DEPRECATED)
    if card["trained_with"] != "fp32":
        lines.append(_PRECISION.format(card["trained_with"]))
    return "\n".join(lines)


def as_document(exported: Exported, registered: "Registered | None" = None) -> dict[str, Any]:
    """The folder, what went from it, all of export.json, and where it is in MLflow."""
    more = {"registered": registered.as_document} if registered else {}
    return {"folder": str(exported.folder), "removed": list(exported.removed), **exported.card, **more}
