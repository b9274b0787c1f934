"""Sentences with figures of time and memory, as the records have it."""

from __future__ import annotations

from collections.abc import Iterator

from measured.cost_tables import peer, scaling_points
from measured.reading import Sentence, half, record


def inner_loop() -> Iterator[Sentence]:
    plain, layers = (record("depth")["cases"]["30x1x512"][way] for way in ("eager", "layers"))
    yield (
        "README.md",
        (
            f"{layers['peak_mb']:.0f} MB above the model where plain double backward takes {plain['peak_mb']:,.0f} MB, in "
            f"{layers['cpu_s'] / plain['cpu_s']:.1f} of its time"
        ),
    )
    short, long = (record("depth")["cases"][case]["layers"]["peak_mb"] for case in ("8x4x512", "8x1x2048"))
    yield "docs/exact-walk.md", f"takes {short:.0f} MB for 4 rows of 512 tokens and {long:.0f} MB for one of 2,048"
    cases = record("depth")["cases"]
    few, deep = (cases[case]["layers"]["peak_mb"] for case in ("8x1x512", "30x1x512"))
    yield "docs/exact-walk.md", f"takes {few:.0f} MB, so 22 layers more add {deep - few:.0f} MB"
    eager, layers = (cases["30x1x1024"][way] for way in ("eager", "layers"))
    yield (
        "docs/exact-walk.md",
        (
            f"On a row of 1,024 tokens it takes {layers['peak_mb']:.0f} MB where every layer's graph takes "
            f"{eager['peak_mb']:,.0f} MB, and {layers['cpu_s'] / eager['cpu_s']:.2f} of its CPU seconds"
        ),
    )
    rows = record("peers")["rows"]
    verdicts = [verdict for row in rows for verdict in row["verdicts"]]
    yield (
        "docs/results.md",
        f"{sum(v['holds'] for v in verdicts)} of the {len(verdicts)} limits that the script sets hold",
    )
    growth = next(row for row in rows if row["row"] == "exact-lora-50")["growth_mb_per_step"]["walk"]
    yield "docs/results.md", f"Over 50 steps the walk grows by {growth:.1f} MB a step"
    five, fifty = (peer(row, "walk")[1] for row in ("exact-lora", "exact-lora-50"))
    ours, best = fifty.removesuffix(")").split(" (")
    yield "README.md", f"| {ours} MB where the best peer takes {int(best):,} MB |"
    yield "README.md", f"| {peer('exact-all', 'unroll')[0].split()[0]} of the best peer's |"
    short, short_best = five.removesuffix(")").split(" (")
    yield (
        "docs/algorithms.md",
        (f"(LoRA, 5 steps: {short} MB where the best peer takes {short_best}; 50 steps: {ours} MB and {best})"),
    )
    seconds = {row["row"]: sorted(row["systems"]["auto"]["cpu_s"]) for row in rows if "auto" in row["systems"]}
    middle = {name: f"{values[len(values) // 2]:.2f} s" for name, values in seconds.items()}
    yield (
        "docs/algorithms.md",
        (
            f"all parameters of a 4-layer BERT {middle['exact-all']} exact and {middle['first-order-all']} at first order; LoRA "
            f"{middle['exact-lora']} and {middle['first-order-lora']}; the head alone (`anil`) {middle['head-only']} exact."
        ),
    )


def sharding() -> Iterator[Sentence]:
    cells = {name: cell["difference"] for name, cell in record("zero_table")["cells"].items() if "difference" in cell}
    alone = {name: value for name, value in cells.items() if not name.startswith("3 group")}
    worst = max(alone.values()), max(value for name, value in cells.items() if name not in alone)
    yield (
        "docs/results.md",
        (
            f"largest difference of a meta-parameter {worst[0]:.0e} over all {len(alone)} cells, which move by 1e-2; and "
            f"{worst[1]:.0e} where the whole group".replace("e-0", "e-")
        ),
    )
    yield "README.md", f"[{len(alone)} cells against one process]"
    memory = record("zero3_memory")
    base = memory["by_rank"]["distmeta"][0]
    gathered = f"{base['gathered_peak'] / 1e6:.1f} of {base['base_bytes'] / 1e6:.0f} MB"
    growth = {name: f"{value / 1e6:.0f} MB" for name, value in memory["growth"].items()}
    yield "docs/results.md", f"never more than one weight ({gathered}) is gathered at once"
    yield (
        "docs/results.md",
        (f"takes {growth['distmeta']} where plain linears under DeepSpeed's hooks take {growth['deepspeed']}"),
    )
    yield "docs/cluster.md", f"never gathers more than {gathered} at once"
    group = record("group_memory")
    step = {name: f"{value / 1e6:.0f}" for name, value in group["step_peak"].items()}
    rank = group["by_rank"]["group"][0]
    yield (
        "docs/results.md",
        (
            f"takes {step['group']} MB on a rank instead of {step['rank']} MB, with the same numbers "
            f"({group['parameters_apart']:.0e}".replace("e-0", "e-")
            + f"); {rank['gathered_peak'] / 1e6:.1f} of {rank['parameters'] * 4 / 1e6:.0f} MB are gathered at once. It is slow where "
            f"communication is: over gloo on two shared cores {rank['comm_s']:.0f} of {rank['seconds']:.0f} seconds."
        ),
    )
    yield "docs/algorithms.md", f"takes {step['group']} MB a rank instead of {step['rank']}"
    large = record("large_base")
    most = max(rank["private_mb"] for rank in large["ranks"])
    yield (
        "docs/cluster.md",
        (
            f"a decoder of {large['parameters'] / 1e9:.2f} B parameters in bfloat16 ({large['base_mb']:,.0f} MB) under LoRA takes {most:,} MB of a "
            "rank's own memory"
        ),
    )


def scaling() -> Iterator[Sentence]:
    points, alone = scaling_points("scaling"), record("two_alone")
    weak, strong = (points[mode, 2]["efficiency"] for mode in ("weak", "strong"))
    median = alone["median_ratio"]
    yield "README.md", f"| efficiency {weak['mean']:.2f}; two unrelated runs reach {median:.3f} |"
    yield (
        "docs/results.md",
        (f"go on these two cores at {median:.3f} [{min(alone['ratio']):.3f}, {max(alone['ratio']):.3f}] of one alone"),
    )
    yield "docs/results.md", f"two ranks reach {weak['mean'] / median:.2f} of it"
    yield (
        "docs/cluster.md",
        f"efficiency of {half(weak)} where the meta-batch grows with them, {half(strong)} where it stays",
    )
    hand = scaling_points("handover")["weak", 2]
    yield "docs/results.md", f"steps of {hand['step_s']:.2f} s on a slower day"
    yield "docs/results.md", f"spends {hand['share']['aggregate']:.1%} on hand-over and outer step"
    timed = {ranks: point for (_, ranks), point in scaling_points("scaling_timed").items()}
    efficiency = {ranks: f"{point['efficiency']['mean']:.2f}" for ranks, point in timed.items()}
    yield "docs/results.md", f"efficiency {efficiency[8]} at 8 ranks, {efficiency[16]} at 16, {efficiency[32]} at 32."
    share = {ranks: point["share"] for ranks, point in timed.items()}
    yield "docs/results.md", f"({share[16]['wait']:.0%} wait at 16) and checkpoints cost {share[16]['checkpoint']:.1%}"
    for part, words in (
        ("aggregate", "aggregate {} and {} of a step"),
        ("peers", "the slowest of many ranks ({} and {})"),
    ):
        yield "docs/results.md", words.format(f"{share[16][part]:.0%}", f"{share[32][part]:.0%}")
    long = {ranks: point for (_, ranks), point in scaling_points("scaling_timed_long").items()}
    last = long[32]["share"]
    yield (
        "docs/results.md",
        (
            f"the efficiency is {long[16]['efficiency']['mean']:.3f} at 16 ranks and {long[32]['efficiency']['mean']:.3f} at 32, where "
            f"a step of {long[32]['step_s']:.1f} s is {last['wait']:.1%} wait, {last['peers']:.1%} the slowest rank, "
            f"{last['aggregate']:.1%} aggregate and {last['checkpoint']:.1%} checkpoint."
        ),
    )
    most = scaling_points("scaling_timed_48")["weak", 48]
    yield (
        "docs/results.md",
        f"it is {most['efficiency']['mean']:.3f}, with {most['share']['wait']:.1%} wait and {most['share']['aggregate']:.1%} aggregate",
    )


def sampling() -> Iterator[Sentence]:
    found = record("sampling")["plain"]
    alone, store = found["one_process"], found["object_store"]["without_copy"]
    yield (
        "docs/results.md",
        (
            f"{round(alone['episodes_per_s'], -2):,.0f} episodes a second made, {round(alone['collated_per_s'], -2):,.0f} made and "
            f"collated ({round(alone['mb_per_s'], -1):.0f} MB/s of {alone['kb_per_episode']:.0f} kB episodes)."
        ),
    )
    yield (
        "docs/results.md",
        (
            f"an episode costs its sampler {round(store['sampler_cpu_us_per_episode'] / 5) * 5} us and its learner "
            f"{round(store['learner_cpu_us_per_episode'] / 5) * 5} us before collation"
        ),
    )
    store = record("task_store")
    build, sampler = store["build"], store["sampler"]
    yield (
        "docs/results.md",
        (
            f"Built in {build['cpu_s']:.0f} CPU seconds of one core (reading {build['ended_at_s']['reading']:.0f} s, the rest is "
            f"tokenising) with {build['anonymous_mb'] - build['anonymous_before_mb']:.0f} MB of memory beside the imports'; opened in "
            f"{sampler['open_s']:.1f} s; a sampler that has drawn {sampler['episodes']:,} episodes holds "
            f"{max(actor['private'] for actor in store['actors']):.0f} MB of its own"
        ),
    )


def faults() -> Iterator[Sentence]:
    found = record("chaos")
    inside, outside = ([run for run in found["runs"] if run["faults_from"] == place] for place in ("inside", "outside"))
    traces = "none" if not found["with_traces"] else str(found["with_traces"])
    yield "docs/results.md", f"{found['faults']} faults in {len(found['runs'])} runs, {traces} with a trace."
    yield "docs/results.md", f"{sum(run['fired'] for run in inside)} from inside, in a run of 40 meta-steps"
    yield (
        "docs/results.md",
        f"{sum(run['fired'] for run in outside)} from outside, in {len(outside)} runs of 200 meta-steps",
    )
    yield "README.md", f"| [{found['faults']} faults](docs/results.md#faults) | no trace"
    runs = record("sampler_kills")["runs"]
    speeds = [f"{runs[name]['tasks_per_s']:.1f}" for name in ("killed", "in peace", "in peace again")]
    yield (
        "docs/results.md",
        (
            f"{speeds[0]} tasks/s ({runs['killed']['kills']} kills), and {speeds[1]} and {speeds[2]} before and after it in peace, "
            f"waiting {runs['killed']['wait_share']:.1%} and {runs['in peace']['wait_share']:.1%} of the time"
        ),
    )


def serving() -> Iterator[Sentence]:
    found = record("serving")
    load, together = found["load"], found["adapting_to_all_tasks"]
    speed = f"{load['predict']['predictions_per_s']:.0f} predictions"
    yield "README.md", f"| {speed} and {load['adapt']['tasks_per_s']:.1f} new tasks a second |"
    yield "docs/serving.md", f"{together['tasks_per_s']:.0f} tasks"
    latency = [f"{load['predict'][key] / 1000:.1f} s" for key in ("p50_ms", "p90_ms", "p99_ms")]
    yield (
        "docs/serving.md",
        (
            f"then {load['predict']['requests_per_s']:.0f} requests ({speed}) and {load['adapt']['tasks_per_s']:.1f} new tasks a "
            f"second, no errors, {found['mean_batch']['predict']:.0f} requests a batch, latency {latency[0]} at the median, "
            f"{latency[1]} at p90, {latency[2]} at p99."
        ),
    )


def long_episodes() -> Iterator[Sentence]:
    found = record("long_episodes")
    driver, sampler, rank = (found["most"][kind] for kind in ("driver", "sampler", "rank"))
    yield "docs/results.md", f"an episode of 45 texts of 2,048 tokens is {found['episode_mb']:.2f} MB"
    yield "docs/results.md", f"wait {found['phases']['wait']:.1%} of the time for them"
    yield (
        "docs/results.md",
        f"holds {found['store_mb_most']:.0f} MB at most, a sampler has {sampler['private_mb']:.0f} MB",
    )
    yield "docs/results.md", f"takes {sampler['cpu_s']:.1f} CPU seconds, the driver {driver['private_mb']:.0f} MB"
    yield "docs/results.md", f"{rank['private_mb']:.0f} MB each at their peak"


SECTIONS = (inner_loop, sharding, scaling, long_episodes, sampling, faults, serving)
