"""Shared by all tests: one thread, token caches in a temporary directory, small stores, one undisturbed run, one
Ray cluster.

Two processes share the files of tests among them, in an order that is not always the same: what a file leaves behind
in its process must not matter to the next.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch; the processes that tests start inherit it
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.pop("RAY_ADDRESS", None)
os.environ["RAY_AUTH_MODE"] = "token"  # before ray, which listens on all of this machine's addresses

import contextlib
import dataclasses
import itertools
import json
import secrets
from pathlib import Path

import nodes
import pytest
import small

os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # of all processes of these tests

with contextlib.suppress(ImportError):
    import setuptools  # noqa: F401  # torch.compile needs it, and it must come before anything that takes distutils


def pytest_collection_modifyitems(items):
    """Files that start processes first: one that comes last leaves the other process without work.

    Of those, one that waits for the undisturbed run and one that does not in turn: the two processes begin at once.
    """
    waits = list(dict.fromkeys(item.path for item in items if "undisturbed" in item.fixturenames))
    starts = [item.path for item in items if item.get_closest_marker("slow") or "head" in item.fixturenames]
    starts = [path for path in dict.fromkeys(starts) if path not in waits]
    turns = [path for pair in itertools.zip_longest(waits, starts) for path in pair if path]
    items.sort(key=lambda item: turns.index(item.path) if item.path in turns else len(turns))


@pytest.fixture(scope="session")
def common(tmp_path_factory) -> Path:
    """A folder of all processes of these tests."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Token caches of tests, and of the processes that they start, never go to the user's."""
    os.environ["DISTMETA_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module", autouse=True)
def linear_of_torch():
    """DeepSpeed's ZeRO 3 puts a linear function of its own in torch's place, for the whole process."""
    import torch.nn.functional as F

    own = F.linear
    yield
    F.linear = own


@pytest.fixture(scope="session")
def words_csv(common) -> Path:
    """Ten tasks with the labels no and yes, whose words say which; no split column."""
    file, draft = common / "words.csv", small.write_domains(common / f"words-{os.getpid()}.csv")
    with contextlib.suppress(FileExistsError):  # one file for all processes, and no process waits for another
        os.link(draft, file)
    return file


@pytest.fixture(scope="session")
def one_group(tmp_path_factory):
    """A torch.distributed group of this process alone; DeepSpeed takes only one in the life of a process."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", world_size=1, rank=0)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def one_rank(one_group):
    """This process as the one learner rank."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")  # as Ray sets it for its workers
        yield


@pytest.fixture(scope="session")
def undisturbed(common, words_csv) -> small.Finished:
    """`distmeta train` in a process of its own, with two learner ranks and two samplers, left in peace.

    One for all processes; it starts a Ray cluster of its own, as users' runs do.
    """
    place = common / "undisturbed"
    with nodes.locked(common):
        if not (place / "finished.json").exists():
            place.mkdir()
            finished = small.train_command(place, words_csv)
            (place / "finished.json").write_text(json.dumps(dataclasses.asdict(finished), default=str))
    about = json.loads((place / "finished.json").read_text())
    return small.Finished(**{**about, "run": Path(about["run"]), "cwd": place})


@pytest.fixture(scope="session")
def head(common):
    """The one Ray cluster of these tests, of one node, where a test needs no other (nodes.shared)."""
    folder = common / "head"
    folder.mkdir(exist_ok=True)
    with nodes.shared(folder) as node:
        yield node


@pytest.fixture(scope="module")
def ray(head):
    """Ray, with this process connected to the one cluster."""
    import ray

    ray.init(address=head.gcs, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()
