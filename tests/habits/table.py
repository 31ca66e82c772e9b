"""The whole table: which rows there are, and who the peer of each is."""
from __future__ import annotations

from collections.abc import Iterator

from . import gpt2_lines, gpt2_peer, judge, numpy_lines, torch_autograd, torch_functions, torch_modules, torch_tensors
from .row import Row

TORCH, NUMPY, TRANSFORMERS = judge.Peer(), judge.NumPy(), gpt2_peer.Transformers()
PARTS: dict[str, tuple[judge.Peer, list[tuple[str, str, str]]]] = {
    "PyTorch: tensors": (TORCH, torch_tensors.ROWS),
    "PyTorch: functions": (TORCH, torch_functions.ROWS),
    "PyTorch: 16 bits and other widths": (TORCH, torch_functions.HALF),
    "PyTorch: edges": (TORCH, torch_functions.EDGES),
    "PyTorch: gradients": (TORCH, torch_autograd.ROWS),
    "PyTorch: torch.func": (TORCH, torch_autograd.TRANSFORMS),
    "PyTorch: modules": (TORCH, torch_modules.ROWS),
    "PyTorch: optimisers": (TORCH, torch_modules.OPTIMIZERS),
    "NumPy: functions": (NUMPY, numpy_lines.FUNCTIONS),
    "NumPy: arrays": (NUMPY, numpy_lines.METHODS),
    "transformers and nanoGPT": (TRANSFORMERS, gpt2_lines.ROWS),
}


def rows() -> Iterator[tuple[str, judge.Peer, Row]]:
    """Every row, with its part and its peer."""
    for part, (peer, lines) in PARTS.items():
        for line in lines:
            yield part, peer, Row(*line)


def markdown() -> Iterator[str]:
    """The table in Markdown, with three columns."""
    for part, (peer, lines) in PARTS.items():
        yield f"## {part}\n"
        yield f"| typed | {peer.name} | ours |"
        yield "|---|---|---|"
        for row in map(Row._make, lines):
            theirs = peer.line(row)
            theirs = f"{code(theirs.removesuffix(' # raises'))} refuses" if row.raises else code(theirs)
            ours = row.ours if row.ours == "same" else f"error: {code(row.ours.removeprefix('error: '))}"
            yield f"| {code(row.typed)} | {theirs} | {ours} |"
        yield ""


def code(line: str) -> str:
    """A line as code in a cell of a table."""
    return f"`{line}`".replace("|", "\\|").replace("\n", "`<br>`").replace("`    ", "`\u00a0\u00a0\u00a0\u00a0")
