"""What the package is called, holds and needs. Settings of tools are in pyproject.toml."""
import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.findall(r'^__version__ = "(.+)"$', (HERE / "minigrad" / "__init__.py").read_text("utf-8"), re.M)

setup(
    name="minigrad-gpt2",
    version=VERSION[0],
    description="A small autograd engine and GPT-2 on it: a reference to read, run and check against",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    author="the minigrad + gpt2 authors",
    license="MIT",
    license_files=["LICENSE"],
    packages=find_packages(include=["minigrad*", "gpt2*"]),
    package_data={
        "minigrad": ["py.typed"],
        "minigrad.backend": ["*.cu"],
        "minigrad.testing": ["*.h"],
        "gpt2": ["py.typed", "models/**/*", "inspect/*.html"],
    },
    entry_points={"console_scripts": ["minigrad-gpt2 = gpt2.__main__:main"]},
    python_requires=">=3.10",
    install_requires=[                          # the least of each is what python -m tests.smoke installs and tries
        "numpy>=2.0",
        "tiktoken>=0.7",
        "matplotlib>=3.9",
        "safetensors>=0.4.3",
        "huggingface_hub>=0.23",
        "tqdm>=4.66",
        "tomli>=2.0; python_version < '3.11'",
    ],
    extras_require={
        "cuda12": ["cupy-cuda12x[ctk]>=14", "ml_dtypes"],            # ctk: with CUDA's libraries; the driver must be there
        "cuda13": ["cupy-cuda13x[ctk]>=14", "ml_dtypes"],
        "mpi": ["mpi4py", "mpich"],                                  # an MPI from a wheel; one that is there already goes as well
        "bench": ["torch==2.13.0", "transformers", "ctranslate2", "tokenizers", "jax", "mygrad", "autograd"],  # peers
        "docs": ["sphinx>=8", "myst-parser>=4", "furo", "sphinx-mathjax-offline", "hypothesis"],     # mathjax: formulas without a network
        "test": [
            "pytest>=8",
            "pytest-xdist",
            "hypothesis",
            "array-api-strict",                 # the array API standard, and nothing else
            "torch==2.13.0",                    # the build the equivalence tests were judged against
            "transformers>=5",
            "tokenizers",
            "threadpoolctl",
            "scipy",                            # statistics to check ours against
            "ml_dtypes",                        # bfloat16
            "mpi4py",                           # two processes
            "mpich",
            "accelerate",                       # transformers' Trainer
            "ruff",
            "mypy",
        ],
    },
)
