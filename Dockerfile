# The worker's image: the package and the application, and nothing of the devkit or the tests.

FROM python:3.13-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1
WORKDIR /build
COPY requirements-build.lock ./
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes --only-binary :all: -r requirements-build.lock
ENV PATH=/opt/build/bin:$PATH
COPY requirements-worker.lock ./
RUN uv venv --python /usr/local/bin/python /opt/tasq \
    && uv pip sync --python /opt/tasq/bin/python --require-hashes --no-build requirements-worker.lock
COPY .env.example README.md docker-compose.yml pyproject.toml worker.py ./
COPY activities activities
COPY deploy deploy
COPY src src
COPY starter starter
COPY workflows workflows
RUN uv build --wheel --python /opt/build/bin/python --no-build-isolation --out-dir dist \
    && uv pip install --python /opt/tasq/bin/python --no-deps dist/*.whl

FROM python:3.13-slim-bookworm
RUN useradd --system --uid 10001 --create-home tasq
COPY --from=build /opt/tasq /opt/tasq
WORKDIR /app
COPY activities activities
COPY workflows workflows
COPY worker.py ./
ENV PATH=/opt/tasq/bin:$PATH PYTHONUNBUFFERED=1 TASQ_METRICS_ADDRESS=0.0.0.0:9464
EXPOSE 9464
USER 10001
# The metrics answer as long as the process lives; that it does its work shows in Temporal's task queue.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['TASQ_METRICS_ADDRESS'].rpartition(':')[2] + '/metrics', timeout=3)"]
CMD ["python", "worker.py"]
