"""What a configuration names on this machine, by absolute paths: Ray Train changes the directory of its workers."""

from __future__ import annotations

import functools
import glob
import os
import tempfile
from pathlib import Path
from typing import Any

from distmeta.config.sections import Config
from distmeta.errors import InputError, cut

HUB_S = 5.0  # to wait for an answer of the hub's


def absolute(config: Config) -> Config:
    """`config` with every local file and directory that it names, and that exists, as an absolute path.

    Hub ids, URIs and what does not exist stay as they are. Raises InputError for a model.pretrained that can only be a
    path, and does not exist.
    """
    data, pretrained = config.data, config.model.pretrained
    if pretrained is not None and is_path(pretrained) and not os.path.exists(os.path.expanduser(pretrained)):
        raise InputError(
            f"model.pretrained = {pretrained}: no such directory; give the directory of a Hugging Face model, such as "
            "RUN/model of `distmeta pretrain`, or a hub id (NAME or OWNER/NAME)"
        )
    sources = data.sources and {
        name: one.model_copy(update={"path": _all(one.path), "splits": _of_splits(one.splits)})
        for name, one in data.sources.items()
    }
    changes: dict[str, dict[str, Any]] = {
        "model": {"pretrained": _all(pretrained)},
        "pretrain": {"path": _all(config.pretrain.path)},
        "data": {"path": _all(data.path), "sources": sources, "splits": _of_splits(data.splits)},
        "cluster": {"storage": _made(config.cluster.storage)},
    }
    changes["data"]["cache"] = _made(data.cache)
    return config.model_copy(update={s: getattr(config, s).model_copy(update=keys) for s, keys in changes.items()})


def is_path(name: str) -> bool:
    """Whether no hub id is written so."""
    return name.startswith(("/", ".", "~")) or name.endswith("/") or name.count("/") > 1


@functools.cache
def check_hub(name: str) -> None:
    """Raises InputError, in seconds, for a hub id that is not in the hub's cache and cannot be had from the hub.

    transformers would ask again for a minute, and then for the next file.
    """
    if is_path(name) or os.path.isdir(name):
        return
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    try:
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=HUB_S)
    except errors.EntryNotFoundError:
        return  # a model without config.json: transformers says so
    except errors.GatedRepoError:
        reason = f"accept its terms at https://huggingface.co/{name}, and set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        reason = "the hub has no model of that name; a private one needs HF_TOKEN"
    except Exception as error:  # the network's errors are of whichever client huggingface_hub has
        why = cut(str(error), 120) or type(error).__name__
        reason = f"the hub cannot be reached ({why}), and its cache has no such model; give a local directory"
    else:
        return
    raise InputError(f"model.pretrained = {name}: {reason}") from None


def _all(path: Any) -> Any:
    if isinstance(path, list):
        return [_all(one) for one in path]
    if path is None or "://" in path:
        return path
    expanded = os.path.expanduser(path)
    return os.path.abspath(expanded) if glob.has_magic(expanded) or os.path.exists(expanded) else path


def _of_splits(splits: Any) -> Any:
    """JSON_FILE or JSON_FILE#KEY."""
    if not isinstance(splits, str):
        return splits
    file, mark, key = splits.partition("#")
    return f"{_all(file)}{mark}{key}"


def _made(directory: str | None) -> str | None:
    """A directory that is made where there is none."""
    if directory is None or "://" in directory:
        return directory
    return os.path.abspath(os.path.expanduser(directory))


def age_s(path: Path) -> float:
    """Seconds since `path` was written, by its file system's clock: machines that share it may have clocks that differ.
    Raises OSError."""
    with tempfile.TemporaryFile(dir=path.parent) as now:
        return os.fstat(now.fileno()).st_mtime - path.stat().st_mtime
