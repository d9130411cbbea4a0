# The half of mocoembed that searches and serves, without torch: about 280 MB of packages.
#
#     docker build -t mocoembed-serve .
#     docker run --rm --read-only --tmpfs /tmp -p 127.0.0.1:8765:8765 -e MOCOEMBED_TOKEN \
#         -v "$PWD/mocoembed-workspace:/workspace:ro" -v "$PWD/photos:/photos:ro" mocoembed-serve --root /photos
#
# docs/serving.md says more.
FROM python:3.12-slim
RUN pip install --no-cache-dir numpy h5py pillow click safetensors tqdm faiss-cpu onnxruntime starlette uvicorn httptools orjson
COPY setup.py pyproject.toml README.md LICENSE /source/
COPY mocoembed /source/mocoembed
COPY cli /source/cli
RUN pip install --no-cache-dir --no-deps /source && rm -r /source
ENV MOCOEMBED_WORKSPACE=/workspace XDG_CACHE_HOME=/tmp
USER 65534:65534
EXPOSE 8765
HEALTHCHECK CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8765/api/ready', timeout=5)"]
ENTRYPOINT ["mocoembed", "serve", "--host", "0.0.0.0", "--no-browser"]
