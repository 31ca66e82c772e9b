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
    keywords=["autograd", "automatic differentiation", "GPT-2", "transformer", "NumPy", "CuPy", "reference implementation"],
    classifiers=[                               # those of systems and Pythons are what .github/workflows/ci.yml holds to pass
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Education",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Mathematics",
        "Topic :: Software Development :: Libraries :: Python Modules",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["minigrad*", "gpt2*"]),
    # by kind, in every package and the folders below it, so that a file may move; py.typed setuptools takes by itself. What is in the wheel
    # is compared with the tree by tests/test_packaging.py
    package_data={"": ["**/*.cu", "**/*.h", "**/*.html", "**/*.json", "models/**/*"]},
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
        # the real CuPy and CUDA's compilers, which need no GPU; CONTRIBUTING.md says what is tested with them
        "gpu-test": ["cupy-cuda12x>=14", "nvidia-cuda-nvrtc-cu12==12.9.*", "nvidia-cuda-nvrtc>=13", "ml_dtypes"],
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
            "setuptools>=69",                   # builds sdist and wheel, to see what is in them
            "pyyaml",                           # reads the workflow and the forms
        ],
    },
)
