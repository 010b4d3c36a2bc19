# `faquant serve` on port 8000, of the model directory mounted at /model; how to run it: docs/serving.md
ARG PYTHON=3.13

FROM python:${PYTHON}-trixie AS build
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim-trixie
# Without a compiler, a dependency that has no wheel fails the build with a clear message.
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --only-binary=:all: /wheels/*.whl \
    && useradd --system --uid 10001 --no-create-home faquant
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# What follows the image's name are further flags of `faquant serve`.
ENTRYPOINT ["faquant", "serve", "/model", "--host", "0.0.0.0", "--port", "8000"]
