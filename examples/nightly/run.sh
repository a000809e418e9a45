#!/bin/sh
# The whole example: make the data, look at the plan, run the job, run it again, let a batch arrive, run it once more.
#   uv run sh examples/nightly/run.sh
set -eu
cd "$(dirname "$0")"

python make_data.py data
vczstore plan nightly.yaml
vczstore run nightly.yaml --report data/report
vczstore run nightly.yaml # nothing to do: it is applied already

python - <<'EOF'
from pathlib import Path
from vczstore.cli.demo import make_vcz

make_vcz(Path("data/inbox/batch-3.vcz"), ["gus"])
EOF
RELEASE=2 vczstore run nightly.yaml --report data/report # the new batch alone
vczstore log data/cohort.icechunk
echo "the report of the last run: $PWD/data/report/report.html"
