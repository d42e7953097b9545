"""NVIDIA's driver on this machine, and whether torch's build of CUDA can use it."""

import re
from pathlib import Path

from dist_trainer.doctor.findings import Finding, count

_VERSION = Path("/proc/driver/nvidia/version")
# the oldest driver of each major version of CUDA, by NVIDIA's table of minor version compatibility
_OLDEST_DRIVER = {"11": 450, "12": 525, "13": 580}


def driver_version(path: Path = _VERSION) -> str | None:
    """550.54.15; None where there is no driver."""
    try:
        text = path.read_text()
    except OSError:
        return None
    found = re.search(r"\b(\d{3,}\.\d+(\.\d+)?)\b", text)
    return found[1] if found else None


def judge_cuda(gpus: int, *, is_wanted: bool, build: str, cuda: str | None, driver: str | None) -> Finding:
    """What torch, of a version and built for a CUDA or for none, makes of the GPUs of this machine."""
    driver_shown = f", driver {driver}" if driver else ""
    if gpus:
        return Finding("CUDA", "fine", f"{count(gpus, 'GPU')}{driver_shown}, torch is built for CUDA {cuda}")
    if not is_wanted:
        return Finding("CUDA", "skipped", "no GPU")
    without = "launch.device=cpu does without"
    if cuda is None:
        words = f"torch {build} is built for the CPU alone{driver_shown}"
        return Finding("CUDA", "broken", words, f"install torch's build for CUDA; {without}")
    words, oldest = (
        f"torch, built for CUDA {cuda}, sees no GPU{driver_shown}",
        _OLDEST_DRIVER.get(cuda.split(".")[0]),
    )
    if driver and oldest and int(driver.split(".")[0]) < oldest:
        advice = f"that CUDA needs driver {oldest} or newer: install one, or a torch for an older CUDA"
    else:
        advice = (
            "nvidia-smi says whether the driver works; a container needs --gpus all, a job "
            "slurm.options.gpus-per-node; CUDA_VISIBLE_DEVICES may hide them"
        )
    return Finding("CUDA", "broken", words, f"{advice}; {without}")
