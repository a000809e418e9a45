// The nightly job as a Nextflow process. Paths are absolute, so the process can run in any work folder.
// Statuses 3 (busy) and 4 (conflict with another writer) are retried; all others end the workflow.

params.job = '/srv/cohort/nightly.yaml'
params.reports = '/srv/cohort/reports'

process VCZSTORE_RUN {
    cache false
    maxForks 1
    maxRetries 3
    errorStrategy { task.exitStatus in [3, 4] ? 'retry' : 'terminate' }

    input:
    val job
    val reports

    script:
    """
    RELEASE=\$(date +%F) vczstore run ${job} --report ${reports} --if-busy wait
    """
}

workflow {
    VCZSTORE_RUN(params.job, params.reports)
}
