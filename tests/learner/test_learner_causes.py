"""The last line of a failed run says what happened, where, and what to do; messages are as Ray and torch write them."""

import pytest
import small

from distmeta.drive.cluster import TrainingError, ray_cluster
from distmeta.drive.train import raise_failure, run_group
from distmeta.learner.causes import explain, text_of

RAY_MEMORY = """Training failed due to controller error:
1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, ID: f9c7) was 6.04GB \
used / 23.59GB limit (0.255934)
OOM kill reason: Memory usage 6496514048B exceeded threshold of 6483269120B (25.6% of 25325268992B limit)
Object store memory usage: [- objects spillable: 1
- bytes spillable: 4234

Eviction Stats:
(global lru) capacity: 6293152972]
Ray killed 1 worker(s) based on the killing policy
Considered workers: [
Selected to kill: (Task: job ID=01000000, lease ID=0500, task name=RayTrainWorker.__init__, required resources=\
{bundle_group_9f34: 0.001, CPU_group_1_9f34: 1}, pid=3137, actual memory used=0.07GB, worker ID=6d47)
(Actor(9ac8): job ID=01000000, lease ID=0200, task name=PlacementGroupCleaner.__init__, required resources={}, \
pid=2629, actual memory used=0.11GB, worker ID=7ab3)
]
Total non-selected idle workers: 1
To see more information about memory usage on this node, use `ray logs raylet.out -ip 10.0.0.7`
Top 10 memory users: PID\tMEM(GB)\tCOMMAND
3078\t3.34\tray::RayTrainWorker
3137\t0.07\tray::RayTrainWorker
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/en/latest/ray-observability/\
user-guides/debug-apps/debug-memory.html. To adjust the kill threshold, set the environment variable \
`RAY_memory_usage_threshold` when starting Ray."""
CONTROLLER_MEMORY = RAY_MEMORY.removeprefix("Training failed due to controller error:\n").replace(
    "RayTrainWorker.__init__", "TrainController.__init__"
)
CUDA = """Traceback (most recent call last):
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB of \
which 1.02 GiB is free. Process 12 has 78.08 GiB memory in use."""
DEATH = """The actor died unexpectedly before finishing this task.
\tclass_name: RayTrainWorker
\tactor_id: 1c4f
\tpid: 1669
\tnamespace: 8fd3
\tip: 10.0.0.2
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was killed \
by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed unexpectedly \
due to SIGSEGV or another unexpected error. If the process was killed by the kernel OOM killer (verifiable by checking \
for OOM in dmesg of the OOMing node), consider enabling resource isolation via --enable-resource-isolation to prevent \
node deaths by resource contention and significant loss of progress by uninformed kernel OOM killing."""
KILLED = f"Training failed due to controller error:\n{DEATH}"
RANK = "Training failed due to worker errors:\n[Rank 1 Error Snippet]:\nTraceback (most recent call last):\n"
NODE = "ray.exceptions.ActorDiedError: The actor is dead because its node has died. Node Id: 4f, ip: 10.0.0.9"
ENDS = {
    "Ray's memory monitor": (RAY_MEMORY, ["node 10.0.0.7: a rank (pid 3137)", "used 0.07GB", "6.04GB of 23.59GB",
                                          "3.34GB of them by ray::RayTrainWorker (pid 3078)", "inner.memory"]),
    "Ray's memory monitor, of its controller": (CONTROLLER_MEMORY, ["node 10.0.0.7: Ray's TrainController (pid 3137)",
                                                                    "by ray::RayTrainWorker (pid 3078)"]),
    "a GPU": (CUDA, ["out of memory", "2.50 GiB", "GPU 0, which has 79.10 GiB", "inner.task_batch"]),
    "the host": (f"{RANK}RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't "
                 "allocate memory: you tried to allocate 4000000000000000 bytes. Error code 12",
                 ["out of memory: rank 1 asked for 4e+06 GB", "inner.part_tokens"]),
    "numpy": (f"{RANK}numpy._core._exceptions._ArrayMemoryError: Unable to allocate 7.11 PiB for an array",
              ["out of memory: rank 1"]),
    "the disk": ("OSError: [Errno 28] No space left on device: '/data/runs/x/.tmp-3'", ["/data/runs/x/.tmp-3", "full"]),
    "the disk of a rank": (f"{RANK}OSError: [Errno 28] No space left on device\n", ["the disk that rank 1", "run.dir"]),
    "the disk, of torch": (f"{RANK}RuntimeError: [enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534",
                           ["the disk that rank 1 writes to is full"]),
    "the disk, of safetensors": (f"{RANK}safetensors_rust.SafetensorError: Error while serializing: I/O error: No "
                                 "space left on device (os error 28)", ["the disk that rank 1 writes to is full"]),
    "the disk, of numpy": (f"{RANK}OSError: 1000000 requested and 262128 written", ["is full"]),
    "a package": (f"{RANK}  File x\nModuleNotFoundError: No module named 'peft'\n", ["rank 1 lacks", "'peft'"]),
    "a package of a node": ("ModuleNotFoundError: No module named 'peft'\n(pid=3, ip=10.0.0.4)", ["10.0.0.4", "peft"]),
    "a model": (f"{RANK}safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata, file "
                "not fully covered", ["rank 1 cannot load model.pretrained", "incomplete metadata"]),
    "a model without weights": (f"{RANK}OSError: Error no file named model.safetensors, or pytorch_model.bin, found in "
                                "directory /models/lm.", ["rank 1 cannot load model.pretrained", "model.safetensors"]),
    "the head": ("ray.exceptions.RpcError: Failed to connect to GCS at 10.0.0.1:6379", ["head", "gone"]),
    "a head that was killed": ("rpc_client.h:204: Failed to connect to GCS within 60 seconds. GCS may have been "
                               "killed.",
                               ["head", "gone"]),
    "a kill": (KILLED, ["a rank (pid 1669, node 10.0.0.2) was killed (SIGKILL)", "memory"]),
    "a kill of a rank": (f"[Rank 0 Error Snippet]:\nRuntimeError: Connection closed by peer\n[Rank 1 Error Snippet]:\n"
                         f"A worker health check failed.\n{DEATH}", ["rank 1 (pid 1669, node 10.0.0.2) was killed"]),
    "a node": (NODE, ["node was lost (10.0.0.9)"]),
    "a segmentation fault": ("ray.exceptions.ActorDiedError: x. Worker exit detail: exit code 139.", ["SIGSEGV"]),
}  # fmt: skip


@pytest.mark.parametrize("what", ENDS)
def test_a_failure_is_one_line_that_names_its_cause(what):
    text, parts = ENDS[what]
    line = explain(text)
    assert "\n" not in line and "docs.ray.io" not in line
    assert [part for part in parts if part not in line] == [], line


def test_any_other_failure_is_its_tracebacks_last_line():
    assert explain("Traceback\n  File x\nKeyError: 'a'\n\nsome note") == "KeyError: 'a'"
    assert explain("") == "unknown"


def test_ranks_are_read_from_the_failure_and_not_from_its_shortened_text():
    failure = RuntimeError("[Rank 0,1 Error Snippet]:\n... (Output truncated. See individual worker logs ...")
    failure.worker_failures = {0: RuntimeError("Connection closed by peer"), 1: RuntimeError(DEATH)}
    assert explain(text_of(failure)).startswith("rank 1 (pid 1669, node 10.0.0.2) was killed")
    failure.worker_failures = {1: ModuleNotFoundError("No module named 'peft'")}
    assert explain(text_of(failure)).startswith("the node of rank 1 lacks the package 'peft'")
    assert text_of(RuntimeError("of the controller")) == "of the controller"


@pytest.mark.long
def test_a_disk_a_package_and_a_kill_through_ray(tmp_path):
    def fail(settings):
        import os
        import signal
        import time
        from pathlib import Path

        import ray.train

        if ray.train.get_context().get_world_rank() == 1:
            time.sleep(5)  # until its start is over
            if settings["what"] == "disk":
                Path("/dev/full").write_bytes(bytes(9))
            elif settings["what"] == "package":
                import a_package_that_is_not_there  # noqa: F401
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)

    ends = {
        "disk": "the disk that rank 1 writes to is full",
        "package": "the node of rank 1 lacks the package 'a_package_that",
        "kill": r"rank 1 \(pid \d+, node [\d.]+\) was killed \(SIGKILL\)",
    }
    config = small.config(cluster={"workers": 2, "max_failures": 0})
    with ray_cluster(config):
        for what, end in ends.items():
            (tmp_path / what).mkdir()
            failure = run_group(fail, config, tmp_path / what, {"what": what}, 2, 0.0, 0)
            with pytest.raises(TrainingError, match=f"the last cause: {end}") as caught:
                raise_failure(config, tmp_path / what, failure)
            assert "\n" not in str(caught.value)
