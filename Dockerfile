# driftgate as an image: docker build -t driftgate:0.1.0 .
#
# The first two stages stay behind. Everything from the package index is checked against the lock files' hashes, what
# builds the wheel included; nothing is fetched once the image runs. The last stage has no compiler and no pip of ours,
# but git, which GitPython calls.
ARG PYTHON=python:3.13-slim-trixie

FROM ${PYTHON} AS wheel
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
COPY requirements-dev.txt ./
RUN pip install --require-hashes -r requirements-dev.txt
COPY pyproject.toml README.md LICENSE ./
COPY webhook ./webhook
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheel .

FROM ${PYTHON} AS installed
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/driftgate
COPY requirements.txt ./
RUN pip --python /opt/driftgate/bin/python install --require-hashes --only-binary :all: -r requirements.txt
COPY --from=wheel /wheel /wheel
RUN pip --python /opt/driftgate/bin/python install --no-deps --no-index /wheel/*.whl

FROM ${PYTHON}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates git \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 65532 driftgate \
    && useradd --uid 65532 --gid 65532 --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin driftgate \
    && install --directory --owner=65532 --group=65532 /var/lib/driftgate
COPY --from=installed /opt/driftgate /opt/driftgate
ENV PATH=/opt/driftgate/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
EXPOSE 8443
ENTRYPOINT ["driftgate"]
CMD ["webhook"]
