"""benchmarks/gpu.py: every piece runs in its smallest form, on what a GPU machine has."""

import json
import sys
from pathlib import Path

from test_imports import imported

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
sys.path.append(str(SCRIPT.parent))

import gpu  # noqa: E402


def test_every_piece_runs_in_its_smallest_form(monkeypatch):
    case = gpu.Case("tiny", "float32", 1, 40, "layers")
    monkeypatch.setattr(gpu, "cases", lambda small: [case, gpu.Case("tiny", "bfloat16", 2, 24, "fused")])
    found = json.loads(json.dumps(gpu.run(small=True, minutes=5, rounds=1, say=lambda line: None)))
    assert max(found["errors"]["float32"].values()) < 1e-5 and max(found["errors"]["float64"].values()) < 1e-6
    assert min(found["errors"]["bfloat16"].values()) > 1e-4 and max(found["errors"]["bfloat16"].values()) < 0.05
    assert all(row["tokens_per_s"] > 0 and row["flops"] > 1e6 and row["of_matrix_rate"] > 0 for row in found["cases"])
    monkeypatch.setattr(gpu, "errors", lambda device: {})
    late = gpu.run(small=True, minutes=0, rounds=1, say=lambda line: None)
    assert all(row["skipped"] == "the minutes were over" for row in late["cases"])


def test_it_needs_torch_and_transformers_alone():
    seen, waiting, others = set(), [SCRIPT], set()
    while waiting:
        path = waiting.pop()
        for _, name in imported(path):
            parts = name.split(".")
            places = [ROOT.joinpath(*parts[:n]).with_suffix(".py") for n in range(2, len(parts) + 1)]
            if parts[0] != "distmeta":
                others.add(parts[0])
            for place in (p for p in places if p.is_file() and p not in seen):
                seen.add(place)
                waiting.append(place)
    assert len(seen) > 6 and not others & {"pydantic", "yaml", "ray", "deepspeed", "pyarrow", "typer"}
