"""The package, its extras per field and per backend. Exact versions live in constraints-*.txt."""

from setuptools import find_namespace_packages, setup

CORE = [
    "jax>=0.10",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",  # without the floor a resolver silently takes 0.11
    "ml-collections>=1.1",
    "absl-py",
    "cloudpickle>=3",
    "array_record>=0.8.6",
    "etils[epath]",
    "fsspec",
    "numpy>=2.0",
    "rich>=13",
    "tensorboardX>=2.6.5",
]

SIGN = ["model-signing>=1.1", "pyopenssl"]  # model-signing imports pyopenssl without asking for it

EXTRAS = {
    # Backends.
    "tpu": ["jax[tpu]"],
    "gpu": ["jax[cuda13]"],
    # Workdirs in a bucket.
    "gcs": ["gcsfs>=2026.9"],
    # Fields. Each draws pictures into the workdir, so each brings matplotlib.
    "nlp": [
        "tokenizers>=0.22",
        "safetensors>=0.5",
        "datasets>=4.0",
        "sacrebleu>=2.5",
        "matplotlib>=3.9",
    ],
    "vision": [
        "pillow>=11",
        "scikit-learn>=1.5",  # its digits are real images that need no download
        "faster-coco-eval>=1.8",
        "datasets>=4.0",
        "tensorflow-datasets>=4.9.9",
        "matplotlib>=3.9",
    ],
    "speech": ["soundfile>=0.13", "soxr>=1.0", "matplotlib>=3.9"],
    "study": ["optuna>=4.5", "cmaes>=0.12", "matplotlib>=3.9"],
    "trust": ["dp-accounting>=0.6", "fairlearn>=0.13"],
    "sign": SIGN,
    # zstandard changes how jax compresses what it caches, so its tests need it.
    "test": [
        "pytest>=8",
        "pytest-xdist>=3.6",
        "hypothesis>=6",
        "ruff>=0.14",
        "zstandard>=0.23",
        "gcsfs>=2026.9",
        *SIGN,
        "pycocotools>=2.0.10",  # the second source of average precision
        "soundfile>=0.13",
    ],
}

setup(
    name="anneal",
    version="0.1.0",
    description="Train, tune, compress and audit large models in JAX, on TPU and GPU.",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_namespace_packages(include=["research*", "configs*", "experiments*"]),
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["anneal = research.__main__:main"]},
)
