"""The nightly job as a Prefect flow. Status 3 (busy) is not a failure; all others except 0 are retried."""

import os
import subprocess
from datetime import date

from prefect import flow, task

JOB = "/srv/cohort/nightly.yaml"
BUSY = 3


@task(retries=2, retry_delay_seconds=300)
def run(job: str) -> int:
    environment = {**os.environ, "RELEASE": date.today().isoformat()}
    command = ["vczstore", "run", job, "--report", "/srv/cohort/reports"]
    status = subprocess.run(command, env=environment, check=False).returncode
    if status not in (0, BUSY):
        raise RuntimeError(f"vczstore run has ended with status {status}")
    return status


@flow(name="vczstore-nightly", log_prints=True)
def nightly(job: str = JOB) -> None:
    run(job)


if __name__ == "__main__":
    nightly.serve(name="vczstore-nightly", cron="30 2 * * *")
