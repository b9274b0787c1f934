"""What a smaller model costs and saves: size on disk, time of a prediction, accuracy after adaptation.

    python benchmarks/compression.py [--steps 150] [--episodes 300] [--rounds 30] [--runs DIR]

Meta-trains the default recipe and the same with LoRA (or takes DIR/full and DIR/lora), compresses each checkpoint, and
scores every form on the same meta-test episodes: it is the compressed model that adapts (with LoRA, the adapter on the
compressed base). Size and time are those of the export, LoRA merged: safetensors files, and one forward pass by
transformers (int8 by torch's dynamic kernels) of 1 and of 32 texts of 24 tokens, one thread, interleaved rounds. Then
the time alone at BERT-base's size, random weights, where matrix products are what takes the time. Writes
benchmarks/results/compression.json.
"""

from __future__ import annotations

import argparse
import copy
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from records import RESULTS

from distmeta.bench.measure import interleave, seconds, setting, spread, write_json
from distmeta.evaluation.evaluate import evaluate
from distmeta.export.compress import compress
from distmeta.export.export import export
from distmeta.models import compression

FORMS: dict[str, dict[str, Any]] = {
    "as trained": {},
    "magnitude 50%": {"prune": ["magnitude:0.5"]},
    "magnitude 80%": {"prune": ["magnitude:0.8"]},
    "units 50%": {"prune": ["units:0.5"]},
    "int8": {"quantise": "int8"},
    "units 50%, int8": {"prune": ["units:0.5"], "quantise": "int8"},
}
TOKENS, BATCHES = 24, (1, 32)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--runs", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="distmeta-compression-") as place:
        runs = options.runs or trained(Path(place), options.steps)
        found = {kind: forms_of(runs / kind, Path(place) / kind, options) for kind in ("full", "lora")}
        found["bert-base, random weights"] = at_base_size(Path(place) / "base", options.rounds)
    write_json(RESULTS / "compression.json", {
        **setting({"run": 0}), "steps": options.steps, "episodes": options.episodes,
        "tokens": TOKENS, "rounds": options.rounds, "models": found,
    })  # fmt: skip
    for kind, forms in found.items():
        print(kind)
        for name, row in forms.items():
            accuracy = row.get("accuracy")
            score = f"{accuracy['mean']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]" if accuracy else "-"
            times = "  ".join(f"{1000 * row[f'batch_{n}_s']['median']:.2f} ms" for n in BATCHES)
            print(f"  {name:20} {row['bytes'] / 1e6:8.2f} MB  {times}  {score}")


def trained(place: Path, steps: int) -> Path:
    for kind, words in (("full", []), ("lora", ["inner.adapt=lora"])):
        words = [*words, f"outer.steps={steps}", "eval.baselines=false", "eval.episodes=2", f"run.dir={place / kind}"]
        subprocess.run([sys.executable, "-m", "distmeta.cli", "train", "default", *words], check=True)
    return place


def forms_of(run: Path, place: Path, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Bytes, accuracy and seconds of each form of a run's checkpoint."""
    rows: dict[str, dict[str, Any]] = {}
    models = {}
    for name, how in FORMS.items():
        small = compress(run, place / "checkpoints" / name, **how) if how else run
        score = evaluate(small, episodes=options.episodes, baselines=False).methods["meta_trained"]["accuracy"]
        out = export(run, place / "exports" / name, merge=run.name == "lora", **how)
        rows[name] = {"bytes": size(out), "accuracy": score}
        models[name] = loaded(out)
    return timed(models, rows, options.rounds)


def at_base_size(place: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """Bytes and seconds at 12 layers of 768, untrained; units are taken by the size of the feed-forward layers."""
    from transformers import AutoConfig, AutoModel

    rows: dict[str, dict[str, Any]] = {}
    models = {}
    for name, units in (("as it is", 3072), ("units 50%", 1536)):
        torch.manual_seed(0)
        whole = AutoModel.from_config(AutoConfig.for_model("bert", intermediate_size=units)).eval()
        for kind in ("", ", int8"):
            out = place / f"{name}{kind}"
            out.mkdir(parents=True)
            if kind:
                compression.save_int8(copy.deepcopy(whole), out)
            else:
                whole.save_pretrained(out)
            rows[name + kind], models[name + kind] = {"bytes": size(out)}, loaded(out)
    return timed(models, rows, rounds)


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def loaded(folder: Path) -> Any:
    from transformers import AutoModel

    if (folder / compression.INT8_FILE).is_file():
        return compression.load_int8(folder, kernels=True)
    return AutoModel.from_pretrained(folder).eval()


def timed(models: dict[str, Any], rows: dict[str, dict[str, Any]], rounds: int) -> dict[str, dict[str, Any]]:
    """The rows with the CPU seconds of a forward pass: median, least and most over interleaved rounds."""
    generator = torch.Generator().manual_seed(0)
    for count in BATCHES:
        ids = torch.randint(5, 200, (count, TOKENS), generator=generator)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

        def predict(_: int, model: Any, inputs: dict[str, Any] = inputs) -> None:
            with torch.inference_mode():
                model(**inputs)

        systems = {name: lambda number, model=model: predict(number, model) for name, model in models.items()}
        interleave(systems, 3)
        for name, timings in interleave(systems, rounds).items():
            rows[name][f"batch_{count}_s"] = vars(spread(seconds(timings)))
    return rows


if __name__ == "__main__":
    main()
