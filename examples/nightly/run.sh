#!/bin/sh
# The whole example: create the data, show the plan, run the job twice, add a batch, and run the job again.
#   uv run sh examples/nightly/run.sh
set -eu
cd "$(dirname "$0")"

python make_data.py data
vczstore plan nightly.yaml
vczstore run nightly.yaml --report data/report
vczstore run nightly.yaml # nothing to do: all steps are applied already

python - <<'EOF'
from pathlib import Path
from vczstore.cli.demo import make_vcz

make_vcz(Path("data/inbox/batch-3.vcz"), ["gus"])
EOF
RELEASE=2 vczstore run nightly.yaml --report data/report # appends only the new batch
vczstore log data/cohort.icechunk
echo "the report of the last run: $PWD/data/report/report.html"
