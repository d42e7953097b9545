"""The elements of an array job, asked for and named together, however many they are."""

from collections import defaultdict
from collections.abc import Iterable

from dist_trainer.slurm.scheduler import (
    JobRecord,
    SchedulerUnavailable,
    records_by_sacct,
    records_by_scontrol,
    records_by_squeue,
)
from dist_trainer.spans import spans


def array_of(job: str) -> str:
    """The array that the element belongs to: 120 of 120_3; "" of a job that is none."""
    array, element, _ = job.partition("_")
    return array if element else ""


def find_elements(array: str) -> tuple[dict[str, JobRecord], str]:
    """What is known of an array's elements, and the words of who did not answer, "" if all did."""
    found, silent = dict[str, JobRecord](), ""
    for source in (records_by_sacct, records_by_scontrol, records_by_squeue):  # the last one is believed
        try:
            found |= {record.job: record for record in source(array)}
        except SchedulerUnavailable as error:
            silent = str(error)
    return found, silent


def together(jobs: Iterable[str]) -> list[str]:
    """The jobs as scancel takes them, one word for each array: 120_[0-3,7]. In it nothing is started between."""
    elements: dict[str, list[int]] = defaultdict(list)
    words = []
    for job in jobs:
        if array := array_of(job):
            elements[array].append(int(job.removeprefix(f"{array}_")))
        else:
            words.append(job)
    return [*words, *(f"{array}_[{number_ranges(found)}]" for array, found in elements.items())]


def number_ranges(numbers: Iterable[int]) -> str:
    """Numbers as SLURM writes them: 0-3,7."""
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans(numbers))
