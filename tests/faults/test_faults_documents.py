"""A run that reads documents, killed in the middle, ends as if nothing had happened, byte for byte."""

import subprocess

import pytest
import small
from test_faults_train import wait_for_lines

KEYS = [
    "task.chunks=3", "task.chunk_tokens=12", "outer.steps=12", "outer.meta_batch_size=4", "outer.warmup_steps=0",
    "eval.episodes=8", "eval.every=0", "eval.baselines=false", "run.checkpoint_every=4", "cluster.workers=2",
    "sampling.actors=1", "sampling.window=4",
]  # fmt: skip


@pytest.mark.long
def test_the_driver_is_killed_and_the_run_goes_on(tmp_path):
    def command(name, *more):
        return [*small.CLI, "train", "documents", *KEYS, "--run-dir", str(tmp_path / name), *more]

    subprocess.run(command("whole"), check=True, capture_output=True, cwd=tmp_path)
    process = subprocess.Popen(
        command("killed"), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for_lines(process, tmp_path / "killed" / "metrics.jsonl", 6)
    process.kill()
    process.communicate()
    subprocess.run(command("killed", "--resume"), check=True, capture_output=True, cwd=tmp_path)
    last = "checkpoints/step-000012/meta.safetensors"
    assert (tmp_path / "killed" / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()
    assert (tmp_path / "killed" / "evaluation.json").read_text() == (tmp_path / "whole" / "evaluation.json").read_text()
