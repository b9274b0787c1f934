"""Shared by all tests: one thread, token caches in a temporary directory, small stores, one undisturbed run.

Two processes share the files of tests among them, in an order that is not always the same: what a file leaves behind
in its process must not matter to the next.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch; the processes that tests start inherit it
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.pop("RAY_ADDRESS", None)

import contextlib
from pathlib import Path

import pytest
import small

with contextlib.suppress(ImportError):
    import setuptools  # noqa: F401  # torch.compile needs it, and it must come before anything that takes distutils


def pytest_collection_modifyitems(items):
    """Files that start whole clusters first: one that comes last leaves the other process without work."""
    whole = {"undisturbed", "cluster"}
    first = {item.path for item in items if item.get_closest_marker("slow") or whole & set(item.fixturenames)}
    items.sort(key=lambda item: item.path not in first)


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
def words_csv(tmp_path_factory) -> Path:
    """Ten tasks with the labels no and yes, whose words say which; no split column."""
    return small.write_domains(tmp_path_factory.mktemp("data") / "words.csv")


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
def undisturbed(tmp_path_factory, words_csv) -> small.Finished:
    """`distmeta train` in a process of its own, with two learner ranks and two samplers, left in peace."""
    place = tmp_path_factory.mktemp("undisturbed")
    return small.train_command(place, words_csv)
