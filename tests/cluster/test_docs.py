"""The commands of docs/ that need a SLURM, in the order in which a reader gives them."""

import shutil
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.test_docs import EVERYWHERE, ON_SLURM, PAGES, ROOT, Place, blocks, check_output

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]
FOR_SLURM = [page for page in PAGES if any(block.said.get("run") == ON_SLURM for block in blocks(page))]


@pytest.mark.parametrize("page", FOR_SLURM, ids=lambda page: page.name)
def test_every_command_for_slurm_does_what_the_page_shows(page: Path, cluster: Cluster) -> None:
    for name in ("configs", "slurm"):
        shutil.copytree(ROOT / name, cluster.folder / name)
    place = Place(cluster.folder, "")
    for block in blocks(page):
        if block.said.get("run") == ON_SLURM:
            for command, shown in block.commands:
                printed = place.run(command)
                check_output(command, [s.replace(EVERYWHERE, str(place.folder)) for s in shown], printed)
