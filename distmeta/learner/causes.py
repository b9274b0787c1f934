"""What a failure of a rank means, from the text that is left of it: one line for a person, and what to do."""

from __future__ import annotations

import re
import signal

MEMORY = "lower inner.task_batch or inner.part_tokens, or set inner.memory=walk"
_SIZE = r"([\d.]+\s?[KMGT]i?B)"


def explain(text: str) -> str:
    """The cause in `text`, a traceback or a message of Ray's: what happened, where, and the mend where one is known."""
    for cause in (_ray_memory, _device_memory, _disk, _package, _model, _head, _killed):
        line = cause(text)
        if line is not None:
            return line
    return last_line(text)


def last_line(text: str) -> str:
    """The last line of a traceback that names an error, else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Diverged|Timeout|Interrupt)\b", line)]
    return (errors or lines or ["unknown"])[-1]


def _ray_memory(text: str) -> str | None:
    """Ray's memory monitor, which kills a worker before the system does."""
    if not re.search(r"OutOfMemoryError: .*(Task|worker|actor)|running low on memory|Memory on the node", text):
        return None
    node = re.search(r"Memory on the node \(IP: ([^,)]+)", text)
    used = re.search(rf"was {_SIZE} / {_SIZE}", text)
    worker = re.search(r"(?:actor ID|worker ID)[^.]*?pid=(\d+)[^.]*?memory used=([\d.]+\s?[KMGT]i?B)", text)
    where = f"node {node[1]}: " if node else ""
    who = f"a rank (pid {worker[1]}) used {worker[2]}; " if worker else ""
    total = f"{used[1]} of {used[2]} were in use" if used else "its memory is full"
    return f"out of memory: {where}{who}{total}; {MEMORY}"


def _device_memory(text: str) -> str | None:
    match = re.search(r"(?:OutOfMemoryError: )?CUDA out of memory\.[^\n]*", text)
    if match is None and "DefaultCPUAllocator" not in text and not re.search(r"^MemoryError\b", text, re.MULTILINE):
        return None
    if match is None:
        return f"out of memory: {_rank(text)}asked for more than its node has; {MEMORY}"
    tried = re.search(rf"Tried to allocate {_SIZE}", match[0])
    total = re.search(rf"(GPU \d+) has a total capacity of {_SIZE}", match[0])
    asked = f"asked for {tried[1]} more" if tried else "asked for more"
    device = f" on {total[1]}, which has {total[2]}" if total else " than its GPU has"
    return f"out of memory: {_rank(text) or 'a rank '}{asked}{device}; {MEMORY}"


def _disk(text: str) -> str | None:
    match = re.search(r"\[Errno 28\][^\n]*|No space left on device[^\n]*|Disk quota exceeded[^\n]*", text)
    if match is None:
        return None
    path = re.search(r"(?:device|exceeded): '([^']+)'", match[0])
    return f"the disk is full{f' ({path[1]})' if path else ''}: free some, or set cluster.storage or run.dir elsewhere"


def _package(text: str) -> str | None:
    match = re.search(r"(?:ModuleNotFoundError|ImportError): No module named '([^']+)'", text)
    if match is None:
        return None
    node = re.search(r"\bip=([\d.]+)", text)
    where = f"node {node[1]}" if node else "a node"
    return f"{where} lacks the package {match[1]!r}: install it there, in the versions that the driver has"


def _model(text: str) -> str | None:
    match = re.search(r"SafetensorError: [^\n]*|OSError: [^\n]*(?:from_pretrained|config\.json|model identifier)[^\n]*",
                      text)  # fmt: skip
    if match is None:
        return None
    return f"{_rank(text) or 'a rank '}cannot load model.pretrained: {match[0]}; every node needs the same files there"


def _head(text: str) -> str | None:
    if not re.search(r"RpcError|GCS[^\n]*(?:unavailable|failed to connect)|Failed to connect to GCS", text):
        return None
    return "the head of the Ray cluster is gone: start it again"


def _killed(text: str) -> str | None:
    """A process that ended without a word of its own."""
    if not re.search(r"ActorDiedError|ActorUnavailableError|RayActorError|WorkerCrashedError|worker died", text):
        return None
    if re.search(r"its node has died|node (?:has )?(?:died|was (?:terminated|preempted))", text):
        node = re.search(r"ip: ([\d.]+)|node_ip=([\d.]+)", text)
        return f"a node was lost{f' ({node[1] or node[2]})' if node else ''}, with the ranks on it"
    by = re.search(r"exit code[: ]+-?(\d+)|SIG(?:KILL|SEGV|TERM|BUS|ABRT)|signal (\d+)", text)
    name = _signal(by) if by else None
    if name == "SIGKILL" or "SIGKILL" in text or (by is None and "connection error code 2" in text):
        return (
            f"{_rank(text) or 'a rank '}was killed (SIGKILL) by a person, a scheduler, or the system when its memory "
            f"was full; if that: {MEMORY}"
        )
    return f"{_rank(text) or 'a rank '}died{f' of {name}' if name else ' without a word'}; see its log"


def _signal(match: re.Match[str]) -> str:
    number = match[1] or match[2]
    if number is None:
        return match[0]
    code = int(number) - 128 if int(number) > 128 else int(number)
    return signal.Signals(code).name if code in set(signal.Signals) else f"exit code {number}"


def _rank(text: str) -> str:
    """ "rank 1 " where the text says which."""
    match = re.search(r"\b[Rr]ank[ =:](\d+)|\[(?:rank|Rank)\s?(\d+)\]", text)
    return f"rank {match[1] or match[2]} " if match else ""
