"""Resident memory of this process as the kernel counts it (Linux). Imports nothing, so that it adds nothing.

anonymous: what only this process holds and the system cannot take back. mapped: touched pages of files, libraries
among them, which processes share and the system takes back when it needs them. MB are 2**20 bytes.
"""

from __future__ import annotations

from pathlib import Path


def resident_mb() -> dict[str, float]:
    """Now, and the peak so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kb = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmHWM", "VmRSS", "Rss"))}
    names = {"resident": "VmRSS", "peak": "VmHWM", "anonymous": "RssAnon", "mapped": "RssFile"}
    return {name: kb[key] / 1024 for name, key in names.items()}


def shared_mb(suffix: str) -> dict[str, float]:
    """Of this process's resident memory: what no other process has; and its pages of files with a name so ending.

    proportional: each page counted by the number of processes that have it.
    """
    text = Path("/proc/self/smaps_rollup").read_text()
    kb = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines()[1:]}
    files = {"Rss": 0, "Pss": 0}
    ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        word = line.split()[0]
        if not word.endswith(":"):  # the head of the next mapping, with the file's name
            ours = line.endswith(suffix)
        elif ours and word[:-1] in files:
            files[word[:-1]] += int(line.split()[1])
    return {
        "resident": kb["Rss"] / 1024, "proportional": kb["Pss"] / 1024,
        "private": (kb["Private_Clean"] + kb["Private_Dirty"]) / 1024,
        "files": files["Rss"] / 1024, "files_proportional": files["Pss"] / 1024,
    }  # fmt: skip


def file_of(address: int) -> str | None:
    """The file (such as the object store's shared memory) that is mapped at an address of this process, if any."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= address < last:
            return " ".join(line.split()[5:]) or None
    return None
