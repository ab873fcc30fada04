# The HTTP server of one model, without torch and MLflow:
#     classifier export model.onnx && docker build -t classifier . && docker run -p 127.0.0.1:8000:8000 classifier
FROM python:3.11-slim
WORKDIR /server
COPY requirements-serve.lock ./
RUN pip install --no-cache-dir --require-hashes -r requirements-serve.lock
# Only what serves; tests/serving/test_container.py runs it without the rest.
COPY classifier/__init__.py classifier/errors.py classifier/
COPY classifier/data/__init__.py classifier/data/completeness.py classifier/data/pixels.py classifier/data/preprocessing.py classifier/data/ranges.py classifier/data/
COPY classifier/serving/*.py classifier/serving/page.html classifier/serving/
COPY model.onnx ./
USER nobody
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health/ready', timeout=2)"]
ENTRYPOINT ["python", "-m", "classifier.serving", "model.onnx", "--host", "0.0.0.0"]
