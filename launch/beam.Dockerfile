# The image of the workers on which Apache Beam prepares data, see docs/data.md:
#
#   docker build --file=launch/beam.Dockerfile --build-arg=PYTHON=3.12 --tag=IMAGE .
#
# PYTHON is the Python version of the machine that starts the job; BEAM its version of apache-beam.
ARG PYTHON=3.12
ARG BEAM=2.77.0
FROM apache/beam_python${PYTHON}_sdk:${BEAM}
# What comes before FROM is forgotten.
ARG BEAM=2.77.0
# The package for URLs: gcsfs for gs://, s3fs for s3://.
ARG STORAGE=gcsfs
WORKDIR /videoar_jax
# Preparing needs a few packages of all, and no JAX.
COPY requirements.txt ./
RUN grep -E '^(array-record|av|fsspec|grain|jaxtyping|numpy|pillow|pyarrow|tqdm)[<>=]' requirements.txt \
    >prepare.txt \
  && pip install --no-cache-dir --requirement prepare.txt "apache-beam==$BEAM" "$STORAGE"
COPY pyproject.toml README.md LICENSE ./
COPY videoar_jax videoar_jax
RUN pip install --no-cache-dir --no-deps .
