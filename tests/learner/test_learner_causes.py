"""The last line of a failed run says what happened, where, and what to do; messages are as Ray and torch write them."""

import pytest

from distmeta.learner.causes import explain

RAY_MEMORY = """ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.
Memory on the node (IP: 10.0.0.7, ID: 3c21) where the task (actor ID: 51, name=RayTrainWorker, pid=411, memory \
used=11.20GB) was running was 15.30GB / 16.00GB (0.956), which exceeds the memory usage threshold of 0.95. Ray killed \
this worker (ID: 9d) because it was the most recently scheduled task; to see more information about memory usage on \
this node, use `ray logs raylet.out -ip 10.0.0.7`. Refer to the documentation on how to address the out of memory \
issue: https://docs.ray.io/en/latest/ray-core/scheduling/ray-oom-prevention.html. Set the environment variable \
RAY_memory_usage_threshold when starting Ray."""
CUDA = """Traceback (most recent call last):
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB of \
which 1.02 GiB is free. Process 12 has 78.08 GiB memory in use."""
KILLED = """Training failed due to worker errors:
[Rank 1 Error Snippet]:
ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. There are some potential root causes. (1) The process \
is killed by SIGKILL by OOM killer due to high memory usage. (2) ray stop --force is called."""
NODE = "ray.exceptions.ActorDiedError: The actor is dead because its node has died. Node Id: 4f, ip: 10.0.0.9"
ENDS = {
    "Ray's memory monitor": (RAY_MEMORY, ["node 10.0.0.7", "pid 411", "11.20GB", "15.30GB of 16.00GB", "inner.memory"]),
    "a GPU": (CUDA, ["out of memory", "2.50 GiB", "GPU 0, which has 79.10 GiB", "inner.task_batch"]),
    "the host": ("RuntimeError: [enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you "
                 "tried to allocate 9000 bytes. Error code 12", ["out of memory", "inner.part_tokens"]),
    "the disk": ("OSError: [Errno 28] No space left on device: '/data/runs/x/.tmp-3'", ["/data/runs/x/.tmp-3", "full"]),
    "a package": ("File x\nModuleNotFoundError: No module named 'peft'\n(pid=3, ip=10.0.0.4)", ["10.0.0.4", "'peft'"]),
    "a model": ("[Rank 2 Error Snippet]:\nsafetensors_rust.SafetensorError: Error while reading the header: too short",
                ["rank 2", "model.pretrained", "header"]),
    "the head": ("ray.exceptions.RpcError: Failed to connect to GCS at 10.0.0.1:6379", ["head", "gone"]),
    "a kill": (KILLED, ["rank 1 was killed (SIGKILL)", "memory"]),
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
