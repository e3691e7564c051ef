# A server of one export:
#   docker build -t hubretrain .
#   docker run --rm -p 8501:8501 -v "$PWD/runs/ham10000/export:/model:ro" hubretrain
# An export of ONNX modules is run by ONNX Runtime: build with --build-arg EXTRAS=serve,onnx.
FROM python:3.12-slim
ARG EXTRAS=serve
COPY . /src
RUN pip install --no-cache-dir "/src[$EXTRAS]" && rm -rf /src && useradd --create-home server
USER server
EXPOSE 8501
HEALTHCHECK CMD python -c "import urllib.request as r; r.urlopen('http://127.0.0.1:8501/healthz')"
CMD ["hubretrain", "serve", "/model", "--host", "0.0.0.0"]
