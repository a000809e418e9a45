# Runtime of Lithops for AWS Lambda. Not tested on AWS.
# The Python version must be the driver's, up to the minor version.
FROM python:3.12-slim

RUN apt-get update \
    && apt-get install -y --no-install-recommends unzip \
    && rm -rf /var/lib/apt/lists/*

COPY examples/executors/requirements.txt /tmp/requirements.txt
COPY dist/*.whl /tmp/wheels/
RUN pip install --no-cache-dir awslambdaric 'lithops[aws]' -r /tmp/requirements.txt /tmp/wheels/*.whl

# the function's entry point, which Lithops puts next to the Dockerfile during the build
WORKDIR /function
COPY lithops_lambda.zip .
RUN unzip lithops_lambda.zip && rm lithops_lambda.zip

ENTRYPOINT ["python", "-m", "awslambdaric"]
CMD ["entry_point.lambda_handler"]
