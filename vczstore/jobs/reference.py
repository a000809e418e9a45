"""The JSON Schema of job files, and their reference page."""

import math
import re
from typing import Any

import yaml
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from vczstore.configuration.executor_file import ExecutorFile
from vczstore.configuration.types import IS_VARIABLE
from vczstore.configuration.yaml_file import MAX_BYTES, either_or
from vczstore.jobs.model import JobFile


def _kebab(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


class _Schema(GenerateJsonSchema):
    """Keeps the order of the models, and omits noise: titles of keys, and null, which files may not contain."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def sort(self, value: dict[str, Any], parent_key: str | None = None) -> dict[str, Any]:
        return value

    def nullable_schema(self, schema: core_schema.NullableSchema) -> dict[str, Any]:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> dict[str, Any]:
        result = super().default_schema(schema)
        if result.get("default", 0) is None:
            del result["default"]
        return result


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a job file; ``vczstore/job.schema.json`` is its dump."""
    job_schema = JobFile.model_json_schema(schema_generator=_Schema)
    comment = "an editor uses this for files that begin with: # yaml-language-server: $schema=job.schema.json"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$comment": comment, **job_schema}


_EXAMPLE = """\
store: s3://bucket/cohort          # or {url:, backend-storage:, storage-options:}
executor: threads                  # or {name:, options:}, or the path of an executor file
max-workers: 4
allowed-mem: 2GB
work-dir: work                     # checkpoints, from which an interrupted run resumes
steps:
  - append: inbox/*.vcz            # one, a list, or a glob
  - append: {source: late.vcz, on-duplicate: skip}
  - update: recalled.vcz           # or {source: recalled.vcz, insert: true}
  - remove: {samples-file: withdrawn.txt, missing-ok: true}
  - recompute: [AC, AN, AF]        # INFO fields, from the current genotypes
  - tag: release-${DATE:-draft}
"""
_EXECUTOR_EXAMPLE = """\
name: processes
options: {retries: 1}
allowed-mem: 4GB
"""
_REFERENCE = """\
# Job files

A job file is YAML: a store, the steps to apply to it, and an executor that runs them. This page is generated from the
models in `vczstore/jobs/model.py` and `steps.py`, as is the JSON schema for editors, `vczstore/job.schema.json`;
`tests/jobs/test_jobfile.py` shows how to regenerate both.

```yaml title="job.yaml"
{example}```

{tables}## Executor file

{executor_file}

```yaml title="cluster.yaml"
{executor_example}```

{executor_table}
## Paths

Paths are relative to the folder of the file in which they are written, or to the working directory if the job is read
from standard input. Text with `://` in it is a URL, and is not changed. Globs find local files, and stores by the last
part of `s3://`, `gs://` and `az://` URLs: `s3://bucket/inbox/*.vcz`.

## Variables

`${{NAME}}` in a value is replaced by the environment variable, `${{NAME:-default}}` by the default if the variable is
not set or empty. A variable that is not set and has no default is an error. The value of a variable is always text,
never YAML, and is not searched for variables again. `$${{` stands for `${{`. Within `[...]` and `{{...}}`, YAML
requires quotes around a value that has a variable in it.

## On the command line

`--set KEY=VALUE` overrides the file: `--set allowed-mem=4GB`, `--set store.backend-storage=icechunk`,
`--set steps.0.append=late.vcz` (steps are counted from 0). The value is read as YAML.

## What is refused

- **Credentials**, by the name of a key or variable (`secret`, `token`, `account-key`, ...) or the form of a value.
  Backends find them in environment variables or use the instance's role.
- Keys that do not exist, keys that are there twice, empty values.
- YAML anchors, aliases, tags and merge keys; several documents; files that are not UTF-8 or larger than {limit}.

Numbers and booleans are those of YAML 1.2: `NO` and `2026-11-01` are text, `1001` is a number. Where text is expected,
a number needs quotes.
"""


def reference() -> str:
    """Return the reference page of the format, in Markdown; ``examples/guide/reference-jobs.md`` is a copy of it."""
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
    for key, node in part["properties"].items():
        default = (
            "needed" if key in part.get("required", ()) else f"`{_flow(node['default'])}`" if "default" in node else ""
        )
        examples = "<br>".join(f"`{key}: {_flow(example)}`" for example in node["examples"])
        cells = (f"`{key}`", _type(node), default, node["description"], examples)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _type(node: dict[str, Any]) -> str:
    """Describe the type in a JSON schema, without the alternative of a variable."""
    match node:
        case {"title": title}:
            return str(title)
        case {"enum": names}:
            return either_or([f"`{name}`" for name in names])
        case {"anyOf": branches}:
            return "; ".join(_type(branch) for branch in branches if branch.get("pattern") != IS_VARIABLE)
        case {"type": "array"}:
            return "list of steps" if "$ref" in node["items"] else "list of these"
        case {"type": "boolean"}:
            return "`true` or `false`"
        case {"type": "integer" | "number" as kind}:
            noun = "whole number" if kind == "integer" else "number"
            limits = [f"{word} {node[key]:,}" for word, key in (("from", "minimum"), ("to", "maximum")) if key in node]
            return " ".join([noun, *limits])
        case {"type": "object"} | {"$ref": _}:
            return "mapping"
        case _:
            raise TypeError(f"the type of {node} has no description")


def _flow(value: Any) -> str:
    """Format a value as YAML in flow style, in one line."""
    line = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf)
    return line.removesuffix("...\n").strip()
