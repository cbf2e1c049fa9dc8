# An image that serves artifacts and optimizes .onnx files. It has no torch: checkpoints are made into graphs elsewhere.
#
#   docker build -t onnxopt .
#   docker run --rm --user "$(id -u)" -v "$PWD:/work" onnxopt optimize model.onnx -o build/model
#   docker run --rm -p 8000:8000 -v "$PWD/build:/work/build:ro" onnxopt serve build/model --host 0.0.0.0

ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY onnxopt ./onnxopt
COPY passes ./passes
COPY models ./models
RUN python -m venv /opt/onnxopt \
    && /opt/onnxopt/bin/pip install --no-cache-dir --no-compile --disable-pip-version-check -c constraints.txt '.[serve]' \
    && /opt/onnxopt/bin/pip uninstall --yes pip

FROM python:${PYTHON}-slim
COPY --from=build /opt/onnxopt /opt/onnxopt
# whoever runs it can write there; nothing else in the image is written to
ENV PATH=/opt/onnxopt/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ONNXOPT_CACHE=/tmp/onnxopt-cache
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin onnxopt
USER 10001
WORKDIR /work
EXPOSE 8000
# of `serve` on its usual port; other commands end before it is asked
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
ENTRYPOINT ["onnxopt"]
CMD ["--help"]
