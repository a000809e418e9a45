"""The choice of a job's journal (see `vczstore.execution.checkpoint`)."""

from vczstore.execution.checkpoint import Journal
from vczstore.execution.engine import writes_much
from vczstore.jobs.compile import CompiledJob
from vczstore.jobs.describe import versions
from vczstore.stores.locations import local_path


def journal_of(compiled: CompiledJob) -> Journal:
    """Return the job's journal: in its local ``work-dir``, else in the cache, or a disabled one if not worthwhile."""
    job = compiled.job
    about = {"job": compiled.id, "base": compiled.base, "versions": versions(), "allowed_mem": job.allowed_mem}
    if job.work_dir is not None and local_path(job.work_dir) is not None:
        return Journal.of(job.store.url, job.branch, job.work_dir, about)
    if not (job.resume and compiled.store.atomic and writes_much(compiled.plans)):
        return Journal()
    return Journal.in_cache(job.store.url, job.branch, compiled.id, about)
