"""Groups of rank processes for tests, all forked from one process, which imports what they need once.

ranks.py < {"script": FILE, "groups": [{"world": N, "words": [...]}, ...], "out": FOLDER, ...}
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path


def run(script, groups, out, together=False, seconds=300, **environment):
    """The last line that each rank of each group prints, by (group, rank). together: not one group after another.

    script: a module's file with main(world, rank, *words), all words strings. groups: of (world, words).
    """
    import small

    import distmeta

    paths = [str(Path(part.__file__).parents[up]) for part, up in ((small, 0), (distmeta, 1))]
    request = {
        "script": script, "out": str(out), "together": together, "seconds": seconds,
        "groups": [{"world": world, "words": [str(word) for word in words]} for world, words in groups],
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(request), capture_output=True, text=True, timeout=seconds + 60,
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        (group, rank): (Path(out) / f"{group}-{rank}.out").read_text().rstrip().rpartition("\n")[2]
        for group, (world, _) in enumerate(groups)
        for rank in range(world)
    }


def main():
    request = json.load(sys.stdin)
    import deepspeed  # noqa: F401
    import transformers.models.bert.modeling_bert  # noqa: F401

    spec = importlib.util.spec_from_file_location("script", request["script"])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    deadline = time.monotonic() + request["seconds"]
    numbered = list(enumerate(request["groups"]))
    for batch in [numbered] if request["together"] else [[one] for one in numbered]:
        waiting = {}
        for number, group in batch:
            for rank in range(group["world"]):
                pid = os.fork()
                if pid == 0:
                    be_rank(module, number, rank, group, Path(request["out"]))
                waiting[pid] = (number, rank)
        wait_for(waiting, Path(request["out"]), deadline)


def wait_for(waiting, out, deadline):
    """Until all have ended; the first that fails ends the others, and is told of."""
    while waiting:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            number, rank = waiting.pop(pid)
            if status:
                end(waiting, (out / f"{number}-{rank}.err").read_text())
        elif time.monotonic() > deadline:
            end(waiting, f"(group, rank) {sorted(waiting.values())} did not end")
        else:
            time.sleep(0.02)


def end(waiting, message):
    for pid in waiting:
        os.kill(pid, signal.SIGKILL)
    sys.exit(message)


def be_rank(module, number, rank, group, out):
    """In the forked process; does not return."""
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        file = os.open(out / f"{number}-{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream.fileno())
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(group["world"]), "LOCAL_RANK": str(rank)}
    try:
        module.main(group["world"], rank, *group["words"])
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
