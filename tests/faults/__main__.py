"""Run the campaign and print the table of counts: `python -m tests.faults --help`."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import click

INSIDE = "HUBRETRAIN_FAULTS_INSIDE"
SETTINGS = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_CPU_ALLOCATOR_USE_BFC": "1",
    "HUBRETRAIN_OFFLINE": "1",
    "COLUMNS": "200",
    INSIDE: "1",
}


@click.command()
@click.option("--seed", default=0, help="Seed of all that is random.")
@click.option("--kills", default=20, help="Number of disturbed commands of each kind of kill ...")
@click.option("--others", default=10, help="... and of each other kind.")
@click.option("--damage", "n_damaged", default=100, help="Number of damaged files.")
@click.option("--short", "is_short", is_flag=True, help="Without what needs TensorFlow.")
@click.option(
    "--folder", type=click.Path(path_type=Path), default=None, help="Folder to keep the chain in."
)
def main(
    seed: int,
    kills: int,
    others: int,
    n_damaged: int,
    is_short: bool,
    folder: Path | None,
) -> None:
    """Disturb the chain and count what comes of it; exit with 1 if anything is a defect."""
    if INSIDE not in os.environ:  # with a file system of its own, whose size can be changed
        os.environ.update(SETTINGS)
        own = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-Urm"]
        command = [sys.executable, "-m", "tests.faults", *sys.argv[1:]]
        os.execvp(own[0], [*own, *command])
    from tests.faults.campaign import campaign_of

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as aside:
        folder = (folder or Path(aside)).resolve()
        with campaign_of(folder, seed, is_short) as campaign:
            campaign.go(kills, others, n_damaged)
    print(campaign.table())
    print(f"{time.monotonic() - started:.0f} s; seed {seed}; {len(campaign.defects)} defects")
    sys.exit(bool(campaign.defects))


if __name__ == "__main__":
    main()
