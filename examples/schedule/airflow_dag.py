"""The nightly job as an Airflow DAG. Status 3 (busy) counts as skipped; all other failures are retried."""

from datetime import datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

with DAG(
    "vczstore_nightly",
    schedule="30 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
):
    BashOperator(
        task_id="run",
        bash_command="vczstore run /srv/cohort/nightly.yaml --report /srv/cohort/reports/{{ ds }}",
        env={"RELEASE": "{{ ds }}"},
        append_env=True,
        skip_on_exit_code=3,
        retries=2,
        retry_delay=timedelta(minutes=5),
    )
