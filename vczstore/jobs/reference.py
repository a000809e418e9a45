"""The JSON Schema of job files, and their reference page."""

import math
import re
from typing import Any

import yaml
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from vczstore.configuration.executor_file import ExecutorFile
from vczstore.configuration.types import (
    IS_VARIABLE,
)
from vczstore.configuration.yaml_file import MAX_BYTES, either_or
from vczstore.jobs.model import JobFile


def _kebab(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


class _Schema(GenerateJsonSchema):
    """In the order of the models, and without noise: a title for each key, and null, which no file may hold."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def sort(self, value: dict[str, Any], parent_key: str | None = None) -> dict[str, Any]:
        return value

    def nullable_schema(self, schema: core_schema.NullableSchema) -> dict[str, Any]:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> dict[str, Any]:
        made = super().default_schema(schema)
        if made.get("default", 0) is None:
            del made["default"]
        return made


def schema() -> dict[str, Any]:
    """Give the JSON Schema of a job file, of draft 2020-12; ``vczstore/job.schema.json`` is its dump."""
    made = JobFile.model_json_schema(schema_generator=_Schema)
    comment = "an editor uses this for files that begin with: # yaml-language-server: $schema=job.schema.json"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$comment": comment, **made}


_EXAMPLE = """\
store: s3://bucket/cohort          # or {url:, backend-storage:, storage-options:}
executor: threads                  # or {name:, options:}, or the path of an executor file
max-workers: 4
allowed-mem: 2GB
work-dir: work                     # what a run that is stopped has finished is kept here
steps:
  - append: inbox/*.vcz            # one, a list, or a glob
  - append: {source: late.vcz, on-duplicate: skip}
  - update: recalled.vcz           # or {source: recalled.vcz, insert: true}
  - remove: {samples-file: withdrawn.txt, missing-ok: true}
  - recompute: [AC, AN, AF]        # INFO fields, from the genotypes that are there
  - tag: release-${DATE:-draft}
"""
_EXECUTOR_EXAMPLE = """\
name: processes
options: {retries: 1}
allowed-mem: 4GB
"""
_REFERENCE = """\
# Job files

A job file is YAML: a store, the steps that are applied to it, and what runs them. This page is made from the models in
`vczstore/jobs/model.py` and `steps.py`, as is the JSON schema for editors, `vczstore/job.schema.json`;
`tests/jobs/test_jobfile.py` says how both are written again.

```yaml title="job.yaml"
{example}```

{tables}## Executor file

{executor_file}

```yaml title="cluster.yaml"
{executor_example}```

{executor_table}
## Paths

Paths are relative to the folder of the file in which they are written, or to the working directory if the job is read
from standard input. A text with `://` in it is a URL and stays as it is. Globs find
local files, and stores by the last part of `s3://`, `gs://` and `az://` URLs: `s3://bucket/inbox/*.vcz`.

## Variables

`${{NAME}}` in a value is replaced by the environment variable, `${{NAME:-default}}` by the default if the variable is
not set or empty. A variable that is not set and has no default is an error. What a variable holds is always text and
never YAML, and is not searched for variables again. `$${{` stands for `${{`. Within `[...]` and `{{...}}`, YAML wants
quotes around a value that has a variable in it.

## On the command line

`--set KEY=VALUE` goes before what the file says: `--set allowed-mem=4GB`, `--set store.backend-storage=icechunk`,
`--set steps.0.append=late.vcz` (steps are counted from 0). The value is read as YAML.

## What is refused

- **Credentials**, by the name of a key or variable (`secret`, `token`, `account-key`, ...) or by the look of a value.
  Backends find them in environment variables or take the instance's role.
- Keys that do not exist, keys that are there twice, empty values.
- YAML anchors, aliases, tags and merge keys; several documents; files that are not UTF-8 or larger than {limit}.

Numbers and booleans are those of YAML 1.2: `NO` and `2026-11-01` are text, `1001` is a number. Where text is expected,
a number needs quotes.
"""


def reference() -> str:
    """Give the reference page of the format in Markdown; ``examples/guide/reference-jobs.md`` is what it returns."""
    job = schema()
    file = ExecutorFile.model_json_schema(schema_generator=_Schema)
    parts = {
        "Keys": job,
        "`store`": job["$defs"]["StoreSpec"],
        "`executor`": job["$defs"]["ExecutorSpec"],
        "`steps`": job["$defs"]["Step"],
        **{
            f"`{_kebab(name)}`": part
            for name, part in job["$defs"].items()
            if name not in ("StoreSpec", "ExecutorSpec", "Step") and part.get("type") == "object"
        },
    }
    tables = [f"## {title}\n\n{part['description']}\n\n{_table(part)}\n" for title, part in parts.items()]
    return _REFERENCE.format(
        example=_EXAMPLE,
        tables="".join(tables),
        executor_file=file["description"],
        executor_example=_EXECUTOR_EXAMPLE,
        executor_table=_table(file),
        limit=f"{MAX_BYTES // 2**20} MiB",
    )


def _table(part: dict[str, Any]) -> str:
    rows = ["| key | type | default | meaning | example |", "|---|---|---|---|---|"]
    for key, one in part["properties"].items():
        default = (
            "needed" if key in part.get("required", ()) else f"`{_flow(one['default'])}`" if "default" in one else ""
        )
        examples = "<br>".join(f"`{key}: {_flow(example)}`" for example in one["examples"])
        cells = (f"`{key}`", _type(one), default, one["description"], examples)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _type(one: dict[str, Any]) -> str:
    """What a JSON schema allows, in words; that a variable may stand for it goes without saying."""
    match one:
        case {"title": title}:
            return str(title)
        case {"enum": names}:
            return either_or([f"`{name}`" for name in names])
        case {"anyOf": branches}:
            return "; ".join(_type(branch) for branch in branches if branch.get("pattern") != IS_VARIABLE)
        case {"type": "array"}:
            return "list of steps" if "$ref" in one["items"] else "list of these"
        case {"type": "boolean"}:
            return "`true` or `false`"
    return "mapping"


def _flow(value: Any) -> str:
    """YAML in one line."""
    line = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf)
    return line.removesuffix("...\n").strip()
