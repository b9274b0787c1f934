"""Which releases of Ray, DeepSpeed and transformers distmeta works with: a short set of tests in an environment of each
combination:  python benchmarks/versions.py "ray==2.58.1" "ray==2.59.0,deepspeed==0.19.0" ...

The tests are those of the packages that a combination names. An environment holds what it names, over the packages of
the Python that runs this, so that torch stays the build that is there; it goes once its tests have ended. A result
replaces that of the same versions in benchmarks/results/versions.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sysconfig
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

from records import RESULTS

ROOT = Path(__file__).parents[1]
OUT = RESULTS / "versions.json"
PACKAGES = ("ray", "deepspeed", "transformers", "torch")
TESTS = {  # where each is called
    "ray": ("test_versions.py", "drive/test_train.py", "drive/test_submit.py", "search/test_tune_run.py",
            "serve/test_serve_server.py"),
    "deepspeed": ("learner/test_learner_engine.py", "learner/test_learner_zero.py"),
    "transformers": ("models/test_models_attention.py", "models/test_models_build.py", "models/test_models_held.py",
                     "models/test_models_images.py", "models/test_models_language.py", "models/test_models_lstm.py",
                     "tasks/test_tasks_tokenizer.py", "export/test_export.py"),
}  # fmt: skip
COUNTS = re.compile(r"(\d+) (passed|failed|error)")


def environment(directory: Path, combination: str) -> Path:
    """The Python of a new environment in `directory` with the packages of `combination`, over those of this one."""
    venv.create(directory, with_pip=False, symlinks=True)
    python = directory / "bin" / "python"
    site = next(directory.glob("lib/python*/site-packages"))
    (site / "outer.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *combination.split(",")], check=True)
    script = python.with_name("ray")  # that of the outer environment would start the outer Ray
    script.write_text(f"#!{python}\nfrom ray.scripts.scripts import main\n\nmain()\n", encoding="utf-8")
    script.chmod(0o755)
    return python


def measure(combination: str) -> dict[str, Any]:
    """The versions of an environment with `combination`, and how its tests ended."""
    tests = [str(ROOT / "tests" / test) for name, files in TESTS.items() if name in combination for test in files]
    with tempfile.TemporaryDirectory() as directory:
        python = environment(Path(directory) / "venv", combination)
        asked = f"import importlib.metadata as m; print(*(m.version(n) for n in {PACKAGES}))"
        versions = subprocess.run([python, "-c", asked], check=True, capture_output=True, text=True).stdout.split()
        began = time.monotonic()
        ended = subprocess.run(
            [python, "-m", "pytest", "-n", "0", "-rfE", "--durations=0", "-p", "no:cacheprovider", *tests],
            cwd=ROOT, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{python.parent}:{os.environ['PATH']}"},
        )  # fmt: skip
    lines = ended.stdout.splitlines()
    failures = [line.replace(str(ROOT), "")[:300] for line in lines if line.startswith(("FAILED", "ERROR"))]
    counts = {kind: int(count) for count, kind in COUNTS.findall(lines[-1] if lines else "")}
    if not counts:
        failures.append((ended.stdout + ended.stderr)[-600:])
    return {
        **dict(zip(PACKAGES, versions)), "python": platform.python_version(),
        "tests": [name for name in TESTS if name in combination], "passed": counts.get("passed", 0),
        "failures": failures, "seconds": round(time.monotonic() - began),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("combinations", nargs="+", help="such as ray==2.58.1,transformers==5.0.0")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    for combination in arguments.combinations:
        row = measure(combination)
        print(json.dumps(row, indent=1), flush=True)
        rows = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else []
        rows = [r for r in rows if any(r[name] != row[name] for name in PACKAGES)] + [row]
        rows.sort(key=lambda r: [[int(n) for n in re.findall(r"\d+", r[name])] for name in PACKAGES], reverse=True)
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
