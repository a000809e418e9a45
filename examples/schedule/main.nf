// The nightly job as a Nextflow process. It works where the store is, so that its paths are those of the job file.
// Status 3, busy, and 4, a conflict with another writer, are tried again; all else ends the workflow.

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
    vczstore run ${job} --report ${reports} --if-busy wait
    """
}

workflow {
    VCZSTORE_RUN(params.job, params.reports)
}
