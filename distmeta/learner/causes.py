"""What a failure of a rank means, from the text that is left of it: one line for a person, and what to do."""

from __future__ import annotations

import re
import signal

MEMORY = "lower inner.task_batch or inner.part_tokens, or set inner.memory=walk"
_SIZE = r"([\d.]+\s?[KMGT]i?B)"


def text_of(failure: Exception) -> str:
    """All that Ray tells of a group's end: its own text leaves out the middle of what a rank says."""
    ranks: dict[int, Exception] = getattr(failure, "worker_failures", {})
    whole = [f"[Rank {rank} Error Snippet]:\n{type(error).__name__}: {error}" for rank, error in ranks.items()]
    return "\n".join([*whole, str(failure)])


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
    start = re.search(r"OutOfMemoryError: .*(Task|worker|actor)|node running low on memory|Memory on the node", text)
    if start is None:
        return None
    node = re.search(r"Memory on the node \(IP: ([^,)]+)", text)
    used = re.search(rf"was {_SIZE}(?: used)? / {_SIZE}", text)
    killed = re.search(rf"(?:task name|, name)=(\w+)[^\n]*?pid=(\d+), (?:actual )?memory used={_SIZE}", text)
    largest = re.search(r"MEM\(GB\)\s+COMMAND\s+(\d+)\s+([\d.]+)\s+(\S+)", text)
    where = f"node {node[1]}: " if node else ""
    who = ""
    if killed:
        rank = _rank(text, start.start()) or "a rank "
        what = {"RayTrainWorker": rank, "Sampler": "a sampler "}.get(killed[1], f"Ray's {killed[1]} ")
        who = f"{what}(pid {killed[2]}), which used {killed[3]}, was killed; "
    total = f"{used[1]} of {used[2]} were in use" if used else "its memory is full"
    if largest and not (killed and killed[2] == largest[1]):
        total += f", {largest[2]}GB of them by {largest[3]} (pid {largest[1]})"
    return f"out of memory: {where}{who}{total}; {MEMORY}"


def _device_memory(text: str) -> str | None:
    match = re.search(r"(?:OutOfMemoryError: )?CUDA out of memory\.[^\n]*", text)
    if match is None:
        host = re.search(r"DefaultCPUAllocator[^\n]*|^[\w.]*MemoryError\b[^\n]*", text, re.MULTILINE)
        if host is None:
            return None
        size = re.search(r"allocate (\d+) bytes", host[0])
        asked = f"for {int(size[1]) / 1e9:.3g} GB, " if size else "for "
        return f"out of memory: {_rank(text, host.start()) or 'a rank '}asked {asked}more than its node has; {MEMORY}"
    tried = re.search(rf"Tried to allocate {_SIZE}", match[0])
    total = re.search(rf"(GPU \d+) has a total capacity of {_SIZE}", match[0])
    asked = f"asked for {tried[1]} more" if tried else "asked for more"
    device = f" on {total[1]}, which has {total[2]}" if total else " than its GPU has"
    return f"out of memory: {_rank(text, match.start()) or 'a rank '}{asked}{device}; {MEMORY}"


def _disk(text: str) -> str | None:
    match = re.search(
        r"\[Errno 28\][^\n]*|No space left on device[^\n]*|Disk quota exceeded[^\n]*|"
        r"OSError: \d+ requested and \d+ written|PytorchStreamWriter failed writing[^\n]*|"
        r"inline_container[^\n]*unexpected pos[^\n]*", text
    )  # fmt: skip
    if match is None:
        return None
    path = re.search(r"(?:device|exceeded): '([^']+)'", match[0])
    who = _rank(text, match.start())
    where = f" ({path[1]})" if path else ""
    return (
        f"the disk {f'that {who}writes to ' if who else ''}is full{where}: "
        "free some, or set cluster.storage or run.dir elsewhere"
    )


def _package(text: str) -> str | None:
    match = re.search(r"(?:ModuleNotFoundError|ImportError): No module named '([^']+)'", text)
    if match is None:
        return None
    node = re.search(r"\bip=([\d.]+)", text)
    where = f"node {node[1]} " if node else _rank(text, match.start())
    where = f"the node of {where}" if where.startswith("rank") else where or "a node "
    return f"{where}lacks the package {match[1]!r}: install it there, in the versions that the driver has"


def _model(text: str) -> str | None:
    match = re.search(
        r"SafetensorError: [^\n]*|"
        r"OSError: [^\n]*(?:from_pretrained|no file named|config\.json|model identifier)[^\n]*", text
    )  # fmt: skip
    if match is None:
        return None
    who = _rank(text, match.start()) or "a rank "
    return f"{who}cannot load model.pretrained: {match[0]}; every node needs the same files there"


def _head(text: str) -> str | None:
    if not re.search(r"RpcError|GCS[^\n]*(?:unavailable|failed to connect)|Failed to connect to GCS", text):
        return None
    return "the head of the Ray cluster is gone: start it again"


def _killed(text: str) -> str | None:
    """A process that ended without a word of its own."""
    text = re.sub(r"(?:Some common causes|There are some potential root causes)[^\n]*", "", text)
    died = re.search(
        r"ActorDiedError|ActorUnavailableError|RayActorError|WorkerCrashedError|worker died|"
        r"The actor died unexpectedly|The actor is dead|worker process has died", text
    )  # fmt: skip
    if died is None:
        return None
    node = re.search(r"\bip: ([\d.]+)|node_ip=([\d.]+)", text[died.start() :])
    process = re.search(r"\bpid: (\d+)", text[died.start() :])
    places = [f"pid {process[1]}"] if process else []
    places += [f"node {node[1] or node[2]}"] if node else []
    who = (_rank(text, died.start()) or "a rank ") + (f"({', '.join(places)}) " if places else "")
    if re.search(r"its node has died|node (?:has )?(?:died|was (?:terminated|preempted))", text):
        return f"a node was lost{f' ({node[1] or node[2]})' if node else ''}, with the ranks on it"
    by = re.search(r"exit code[: ]+-?(\d+)|SIG(?:KILL|SEGV|TERM|BUS|ABRT)|signal (\d+)", text)
    name = _signal(by) if by else None
    if name == "SIGKILL" or (by is None and "connection error code 2" in text):
        return (
            f"{who}was killed (SIGKILL) by a person, a scheduler, or the system when its memory was full, or "
            f"crashed in native code (its log tells); if its memory was full: {MEMORY}"
        )
    return f"{who}died{f' of {name}' if name else ' without a word'}; see its log"


def _signal(match: re.Match[str]) -> str:
    number = match[1] or match[2]
    if number is None:
        return match[0]
    code = int(number) - 128 if int(number) > 128 else int(number)
    return signal.Signals(code).name if code in set(signal.Signals) else f"exit code {number}"


def _rank(text: str, end: int) -> str:
    """ "rank 1 " where the text up to `at`, or else all of it, says which, or "ranks 0,1 "."""
    pattern = r"\b[Rr]ank[ =:](\d+(?:,\d+)*)|\[[Rr]ank\s?(\d+(?:,\d+)*)"
    matches = list(re.finditer(pattern, text[:end])) or list(re.finditer(pattern, text))[:1]
    if not matches:
        return ""
    ranks = matches[-1][1] or matches[-1][2]
    return f"ranks {ranks} " if "," in ranks else f"rank {ranks} "
