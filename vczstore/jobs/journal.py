"""The journal of a job, which records what its tasks have written, so that an interrupted run can be resumed."""

from vczstore.execution.checkpoint import Journal
from vczstore.execution.engine import writes_much
from vczstore.jobs.compile import CompiledJob
from vczstore.jobs.describe import versions
from vczstore.stores.locations import local_path


def journal_of(compiled: CompiledJob) -> Journal:
    """The job's journal: in its local work directory, or else in the cache; disabled where resuming is not worth it."""
    job = compiled.job
    about = {"job": compiled.id, "base": compiled.base, "versions": versions(), "allowed_mem": job.allowed_mem}
    if job.work_dir is not None and local_path(job.work_dir) is not None:
        return Journal.of(job.store.url, job.branch, job.work_dir, about)
    if not (job.resume and compiled.store.atomic and writes_much(compiled.plans)):
        return Journal(None, {})
    return Journal.in_cache(job.store.url, job.branch, compiled.id, about)
