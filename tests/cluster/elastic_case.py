"""A run with a range of ranks, whose cluster loses a node and gets another: raylets of this machine.

    elastic_case.py CONFIG RUN

The run's sampler is held while the cluster changes, so that it changes in the middle of the run.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import small
import yaml

import distmeta
from distmeta.drive import elastic


def until(condition, what, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def samplers():
    """Processes of sampler actors that belong to this one."""
    found = []
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/cmdline") as title, open(f"/proc/{entry}/environ") as environment:
                if "ray::Sampler" in title.read() and f"DISTMETA_TEST={os.getpid()}\0" in environment.read():
                    found.append(int(entry))
        except OSError:
            continue
    return found


def hold(pids, number):
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def main(config, run):
    import ray
    from ray.cluster_utils import Cluster

    os.environ["DISTMETA_TEST"] = str(os.getpid())
    elastic.SETTLE_S, elastic.WATCH_S = 1.0, 0.5
    content = small.merge(yaml.safe_load(config.read_text()), {
        "cluster": {"workers": "1-2", "cpus_per_worker": 1.5}, "sampling": {"actors": 1, "window": 4},
        "run": {"dir": str(run)},
    })  # fmt: skip
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    outcome = []

    def train():
        try:
            outcome.append(distmeta.train(content))
        except BaseException as error:
            outcome.append(error)

    def reached(count):
        return lambda: outcome or ((run / "metrics.jsonl").exists() and len(small.records(run)) >= count)

    try:
        nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        thread = threading.Thread(target=train)
        thread.start()
        until(reached(6), "two ranks do not learn")
        hold(samplers(), signal.SIGSTOP)
        cluster.remove_node(nodes[1], allow_graceful=False)
        hold(samplers(), signal.SIGCONT)
        until(lambda: outcome or "with 1 rank" in (run / "log.txt").read_text(), "the group does not shrink")
        until(reached(7), "one rank does not learn")
        hold(samplers(), signal.SIGSTOP)
        cluster.add_node(num_cpus=2)
        until(lambda: outcome or (run / elastic.GROW).exists(), "the new node is not noticed")
        hold(samplers(), signal.SIGCONT)
        thread.join(200)
        if not outcome or not isinstance(outcome[0], distmeta.Run):
            raise SystemExit(f"the run did not end: {outcome}")
    finally:
        hold(samplers(), signal.SIGCONT)
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
