# Runtime of Lithops for Google Cloud Run. Not tested on Google Cloud.
# The Python version must be the driver's, up to the minor version.
FROM python:3.12-slim

RUN apt-get update \
    && apt-get install -y --no-install-recommends unzip \
    && rm -rf /var/lib/apt/lists/*

COPY examples/executors/requirements.txt /tmp/requirements.txt
COPY dist/*.whl /tmp/wheels/
RUN pip install --no-cache-dir flask gevent gunicorn 'lithops[gcp]' -r /tmp/requirements.txt /tmp/wheels/*.whl

ENV PORT=8080 PYTHONUNBUFFERED=TRUE CONCURRENCY=1 TIMEOUT=660

# the server that runs functions, which Lithops puts into the working directory during the build
WORKDIR /lithops
COPY lithops_cloudrun.zip .
RUN unzip lithops_cloudrun.zip && rm lithops_cloudrun.zip

CMD ["sh", "-c", "exec gunicorn --bind :$PORT --workers $CONCURRENCY --timeout $TIMEOUT lithopsproxy:proxy"]
