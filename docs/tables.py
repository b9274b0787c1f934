"""What each table of measured figures says, by its name in TABLES, from benchmarks/results/*.json."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"

Score = Mapping[str, Any]  # mean, low, high: a mean over episodes and its 95% interval


@functools.cache
def record(name: str) -> Any:
    """What benchmarks/results/NAME.json says."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def number(score: Score, digits: int = 3) -> str:
    """0.967"""
    return f"{score['mean']:.{digits}f}"


def interval(score: Score, digits: int = 3) -> str:
    """0.967 [0.961, 0.972]"""
    return f"{score['mean']:.{digits}f} [{score['low']:.{digits}f}, {score['high']:.{digits}f}]"


def half(score: Score) -> str:
    """0.967 ± 0.005"""
    return f"{score['mean']:.3f} ± {(score['high'] - score['low']) / 2:.3f}"


def three(value: float) -> str:
    """Three digits: 1.24, 55.3, 366."""
    return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f}"


def listed(values: Iterable[float], digits: int = 3) -> str:
    """0.961, 0.962, 0.960"""
    return ", ".join(f"{value:.{digits}f}" for value in values)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    lines.insert(1, "|---" * len(header) + "|")
    return "\n".join(lines).replace("|  |", "| |").replace("|  |", "| |") + "\n"


def default() -> str:
    scores = {method: scored["accuracy"] for method, scored in record("default")["evaluation"].items()}
    curve = ", ".join(f"{value:.2f}" for value in scores["meta_trained"]["curve"])
    rows = [[about, interval(scores[method]), ""] for method, about in DEFAULT_ROWS.items()]
    rows[0][2] = curve
    return table(["method", "accuracy [95% interval]", "after 0, 1, 2, 3 inner steps"], rows)


def default_short() -> str:
    scores = record("default")["evaluation"]
    methods = {
        **DEFAULT_ROWS,
        "meta_trained": "meta-trained, 3 inner steps",
        "multi_task": "trained on the pooled tasks",
    }
    del methods["prototypes"]
    rows = [[about, interval(scores[method]["accuracy"])] for method, about in methods.items()]
    return table(["method, on 600 episodes of product domains never seen", "accuracy [95% interval]"], rows)


DEFAULT_ROWS = {
    "meta_trained": "meta-trained",
    "no_adaptation": "the same, no adaptation",
    "fine_tuned": "fine-tuned from the untrained weights, as is best on validation tasks",
    "multi_task": "trained on the pooled tasks (`multi_task`), 150 steps",
    "prototypes": "prototypes of the untrained features",
}

PEER_ROWS = [  # the row's name in the record, our variant, how the page calls it
    ("exact-all", "unroll", "exact, all parameters, unroll"),
    ("exact-all", "walk", "exact, all parameters, walk in 320-token parts"),
    ("exact-lora", "unroll", "exact, LoRA rank 8, unroll"),
    ("exact-lora", "walk", "exact, LoRA rank 8, walk in 320-token parts"),
    ("exact-lora-50", "walk", "the same, 50 steps, walk"),
    ("first-order-all", "auto", "first order, all parameters"),
    ("first-order-lora", "auto", "first order, LoRA"),
    ("top-quarter", "unroll", "exact, LoRA in the last of 4 layers, unroll"),
    ("top-quarter", "walk", "the same, walk"),
    ("head-only", "auto", "exact, the head alone"),
    ("frozen-base", "second pass", "LoRA in the last layer, a second pass over the same examples"),
    ("tiny-tasks", "unroll", "exact, LoRA, 8 tasks of 5 x 16 tokens, batched"),
    ("sinusoid", "batched", "sinusoid network, 25 tasks, batched"),
    ("sinusoid-compiled", "compiled", "the same, compiled"),
    ("text-clinc150", "auto", "exact, LoRA, CLINC150 as it comes"),
    ("text-zh", "unroll", "exact, LoRA, Chinese reviews as they come, unroll"),
    ("text-zh", "walk", "the same, walk"),
    ("text-arsc", "unroll", "exact, LoRA, English reviews as they come, unroll"),
    ("text-arsc", "walk", "the same, walk"),
]


def peer(row: str, system: str) -> tuple[str, str, str]:
    """(time over the best peer's, memory (the best peer's), multiple of the FLOP floor (the best peer's))."""
    result = next(one for one in record("peers")["rows"] if one["row"] == row)
    ours = {"unroll", "walk", "auto", "batched", "compiled", "second pass"}
    memory = {name: mb for name, mb in result["memory_mb"].items() if name == system or name not in ours}
    best = min(mb for name, mb in memory.items() if name != system)
    time, floor = "", ""
    if result["systems"]:
        ratio = result["systems"][system]["ratio"]
        time = f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
        floors = [result["systems"][name]["over_floor"] for name in (system, result["peer"])]
        floor = f"{floors[0]:.1f} ({floors[1]:.1f})"
    return time, f"{memory[system]:.0f} ({best:.0f})", floor


def peers() -> str:
    header = ["", "time / peer", "memory, MB (peer)", "times the FLOP floor (peer)"]
    return table(header, ([about, *peer(row, system)] for row, system, about in PEER_ROWS))


def exact_walk() -> str:
    labels = ["5 steps, unroll", "5 steps, walk in 320-token parts", "50 steps, walk"]
    rows = ([label, *peer(row, system)[:2]] for label, (row, system, _) in zip(labels, PEER_ROWS[2:5]))
    return table(["", "time / best peer", "memory, MB (peer)"], rows)


DEPTH_WAYS = {
    "eager": "every layer's graph kept, transformers' attention", "walk": "the same, attention in blocks",
    "layers": "`inner.memory=layers`", "first": "first order", "first_again": "first order, layers run again",
}  # fmt: skip


def depth() -> str:
    ways = record("depth")["cases"]["30x1x512"]
    plain = ways["eager"]
    rows = (
        [about, f"{ways[way]['peak_mb']:,.0f}", f"{ways[way]['peak_mb'] / plain['peak_mb']:.2f}",
         f"{ways[way]['cpu_s'] / plain['cpu_s']:.2f}"] for way, about in DEPTH_WAYS.items()
    )  # fmt: skip
    return table(["", "memory above the model, MB", "of the first row", "CPU seconds, of the first row"], rows)


PAPER_WAYS = {
    "blocks": "exact, walk",
    "layers": "exact, `inner.memory=layers`",
    "again": "first order, layers run again",
}


def paper() -> str:
    """What fits a card, and how long a task takes there."""
    rows = []
    for tokens, ways in record("paper")["tokens"].items():
        for way, about in PAPER_WAYS.items():
            gb, cards = ways[way]["gb"], ways[way]["cards"].values()
            cells = [f"{card['rows']}, {card['seconds']:.0f} s" if card["rows"] else "does not fit" for card in cards]
            rows.append([f"{int(tokens):,}", about, f"{gb['1']:.0f} / {gb['8']:.0f}", *cells])
    return table(["tokens a row", "order", "GB, 1 / 8 rows at once", *record("paper")["cards"]], rows)


def scaling_points(name: str) -> dict[tuple[str, int], Any]:
    return {(point["mode"], point["workers"]): point for point in record(name)["points"]}


def scaling() -> str:
    rows = []
    for mode in ("weak", "strong"):
        point = scaling_points("scaling")[mode, 2]
        shares = [f"{point['share'][part]:.1%}" for part in ("wait", "inner", "peers", "aggregate", "checkpoint")]
        speed = f"{number(point['tasks_per_s'], 1)} ± {(point['tasks_per_s']['high'] - point['tasks_per_s']['low']) / 2:.1f}"
        rows.append([mode, "2", speed, half(point["efficiency"]), *shares])
    header = ["", "ranks", "tasks/s", "efficiency", "wait", "inner", "idle for peers", "aggregate", "checkpoint"]
    return table(header, rows)


def time_to_quality() -> str:
    rows = []
    for name, runs in record("time_to_quality")["runs"].items():
        at = {target: reached(runs[0]["steps"], target) for target in (0.9, 0.95)}
        cells = [f"{at[target][key]:.0f}{unit}" for target in at for key, unit in (("wall_s", " s"), ("core_s", ""))]
        rows.append([name, f"{record('time_to_quality')['systems'][name]['mean']['step_s']:.1f} s", *cells])
    steps = [reached(runs[0]["steps"], target)["step"] for target in (0.9, 0.95)]
    header = [
        "",
        "meta-step",
        f"to 0.90 (step {steps[0]})",
        "core-seconds",
        f"to 0.95 (step {steps[1]})",
        "core-seconds",
    ]
    return table(header, rows)


def reached(steps: Sequence[Mapping[str, Any]], target: float) -> Mapping[str, Any]:
    """The first step whose meta-validation is at the target."""
    return next(step for step in steps if step.get("accuracy") is not None and step["accuracy"] >= target)


CLASSICS = [  # record, method, metric, the numbers of steps, how the page calls it
    ("sinusoid", "exact", "mse", (1, 10), "sinusoid, squared error at 5 points, exact MAML"),
    ("sinusoid", "first_order", "mse", (1, 10), "the same, first order"),
    ("sinusoid", "pretrained", "mse", (1, 10), "pretrained on all tasks and fine-tuned"),
    ("omniglot_5way", "exact", "accuracy", (1, 3), "Omniglot, 5-way 1-shot accuracy, exact MAML"),
    ("omniglot_5way", "first_order", "accuracy", (1, 3), "the same, first order"),
    ("omniglot_20way", "exact", "accuracy", (1, 3), "Omniglot, 20-way 1-shot, 300 meta-steps, exact MAML"),
    ("omniglot_20way", "first_order", "accuracy", (1, 3), "the same, first order"),
]


def classic(name: str, method: str, metric: str, steps: int) -> str:
    return interval(record(f"classics_{name}")["methods"][method][f"{metric}_after_{steps}"])


def classics() -> str:
    rows = [
        [about, *(classic(name, method, metric, n) for n in steps)] for name, method, metric, steps, about in CLASSICS
    ]
    recipes = ("sinusoid", "loss", 10, "squared error"), ("omniglot", "accuracy", 3, "5-way 1-shot")
    for name, metric, last, about in recipes:
        trained = record("trained_classics")[name]
        ends = [{end: trained[metric][end][k] for end in ("mean", "low", "high")} for k in (1, last)]
        rows.append([f"`distmeta train {name}`, {about}, {trained['meta_steps']:,} meta-steps", *map(interval, ends)])
    return table(["", "after 1 step", "after 10 (sinusoid), 3 (Omniglot)"], rows)


def orders() -> str:
    names = [
        ("sinusoid", "mse", 1, "sinusoid, squared error after 1 step"),
        ("sinusoid", "mse", 10, "sinusoid, after 10 steps"),
        ("omniglot_5way", "accuracy", 1, "Omniglot 5-way 1-shot, accuracy after 1 step"),
        ("omniglot_5way", "accuracy", 3, "Omniglot, after 3 steps"),
    ]
    rows = (
        [about, *(classic(name, method, metric, steps) for method in ("exact", "first_order"))]
        for name, metric, steps, about in names
    )
    return table(["", "exact", "first order"], rows)


def ranking() -> list[tuple[str, float, Mapping[str, Any]]]:
    """(algorithm, mean accuracy over seeds, its runs), the best first."""
    scores = record("algorithms_builtin")["algorithms"]
    means = {
        name: mean(run["test"]["accuracy"]["mean"] for run in one["runs"].values()) for name, one in scores.items()
    }
    return [(name, means[name], scores[name]["runs"]) for name in sorted(means, key=lambda name: -means[name])]


def algorithms() -> str:
    rows = []
    for name, accuracy, runs in ranking():
        seeds = list(runs.values())
        rows.append([
            f"`{name}`", f"{accuracy:.3f}", ", ".join(half(run["test"]["accuracy"]) for run in seeds),
            f"{seeds[0]['inner_lr']:g}", ", ".join(str(run["adapt_steps"]) for run in seeds), str(seeds[0]["meta_steps"]),
            f"{mean(run['cpu_s'] for run in seeds):.0f}", f"{max(run['peak_mb'] for run in seeds):.0f}",
        ])  # fmt: skip
    header = ["", "accuracy", "seeds 0, 1, 2 (95% of 600 episodes)", "`inner.lr`", "steps to adapt with", "meta-steps"]
    return table([*header, "CPU s", "MB"], rows)


def algorithms_short() -> str:
    rows = ([f"`{name}`", f"{accuracy:.3f}", str(runs["0"]["meta_steps"])] for name, accuracy, runs in ranking())
    return table(["", "accuracy", "meta-steps"], rows)


def algorithms_real() -> str:
    suites = [record(f"algorithms_{name}")["algorithms"] for name in ("intents", "sentiment")]
    order = sorted(suites[1], key=lambda name: -suites[1][name]["runs"]["0"]["test"]["accuracy"]["mean"])
    rows = []
    for name in order:
        cells = [f"`{name}`"]
        for run in (suite[name]["runs"]["0"] for suite in suites):
            cells += [half(run["test"]["accuracy"]), f"{run['inner_lr']:g}, {run['adapt_steps']}",
                      f"{run['meta_steps']}, {run['cpu_s']:.0f}", f"{run['peak_mb']:.0f}"]  # fmt: skip
        rows.append(cells)
    header = ["`inner.lr`, steps", "meta-steps, CPU s", "MB"]
    return table(["", "CLINC150: accuracy", *header, "reviews: accuracy", *header], rows)


def padding() -> str:
    rows = []
    for name, about in (("zh_online_shopping10", "Chinese reviews, characters"), ("arsc", "Amazon reviews, words")):
        shares = record("sampling")[name]["padding"]
        tasks = shares["tasks_in_a_group"]
        cells = [f"{shares[key]:.1%}" for key in ("one_batch_a_set", "by_length", "by_length_in_groups")]
        rows.append([about, *cells[:2], cells[2] + (f" ({tasks} tasks)" if tasks > 1 else "")])
    return table(["", "one batch", "by length", "tasks as one"], rows)


def compression() -> str:
    models = record("compression")["models"]
    names = {
        "as trained": ("as trained", "as it is"), "magnitude 50%": ("`magnitude:0.5` (zeros are stored)", ""),
        "magnitude 80%": ("`magnitude:0.8`", ""), "units 50%": ("`units:0.5`", "units 50%"),
        "int8": ("int8", "as it is, int8"), "units 50%, int8": ("`units:0.5`, int8", "units 50%, int8"),
    }  # fmt: skip
    rows = []
    for form, (about, base) in names.items():
        full, lora = models["full"][form], models["lora"][form]
        large = models["bert-base, random weights"].get(base)
        rows.append([
            about, f"{full['bytes'] / 1e6:.2f}", medians(full, 1), interval(full["accuracy"]), interval(lora["accuracy"]),
            *((f"{large['bytes'] / 1e6:.0f}", medians(large, 0)) if large else ("", "")),
        ])  # fmt: skip
    header = ["", "default: MB", "ms (1, 32)", "accuracy", "LoRA: accuracy", "BERT-base: MB", "ms (1, 32)"]
    return table(header, rows)


def medians(form: Mapping[str, Any], digits: int) -> str:
    """Milliseconds of a forward pass of 1 and of 32 texts."""
    return listed((form[f"batch_{n}_s"]["median"] * 1000 for n in (1, 32)), digits)


def answers() -> str:
    methods = {
        "meta_trained": "meta-trained, 4 inner steps", "no_adaptation": "the same, zero-shot",
        "in_context": "the same, reading its examples in context",
        "multi_task": "trained on the pooled tasks, then fine-tuned",
        "fine_tuned": "fine-tuned from the untrained weights, 16 steps",
    }  # fmt: skip
    scores = record("text_to_text")["runs"]["gpt2"]["meta_test"]
    rows = []
    for method, about in methods.items():
        exact, f1, bleu, perplexity = (scores[method][key] for key in ("exact_match", "token_f1", "bleu", "perplexity"))
        spread = f"{three(perplexity['mean'])} [{three(perplexity['low'])}, {three(perplexity['high'])}]"
        rows.append([about, interval(exact) if exact["high"] else number(exact), interval(f1), number(bleu), spread])
    return table(["", "exact match", "token F1", "BLEU", "perplexity"], rows)


FOUR = ("accuracy", "precision", "recall", "f1")
FOUR_NAMES = ["accuracy", "macro precision", "macro recall", "macro F1"]


def sentiment() -> str:
    rows = []
    for name, method, about in (
        ("sentiment", "meta_trained", "meta-test domains, meta-trained, 3 steps"),
        ("sentiment", "", "the same, no adaptation"),
        ("sentiment_60", "meta_trained", "60 meta-steps instead, 3 steps"),
        ("sentiment_60", "no_adaptation", "60 meta-steps instead, no adaptation"),
        ("sentiment_60", "multi_task", "trained on the pooled domains (60 steps), fine-tuned"),
        ("sentiment_60", "fine_tuned", "fine-tuned from scratch"),
    ):
        scores = record(f"real_text_{name}")["meta_test"]
        if method:
            rows.append(
                [about, interval(scores[method]["accuracy"]), *(number(scores[method][key]) for key in FOUR[1:])]
            )
        else:  # before the first inner step
            rows.append([about, *(f"{scores['meta_trained'][key]['curve'][0]:.3f}" for key in FOUR)])
    return table(["", *FOUR_NAMES], rows)


PLACES = {"all": "all rows", "phone.sentiment3": "phones", "water_heater.sentiment3": "water heaters"}
METHODS = {"adapted": "meta-trained, 3 steps", "no_adaptation": "no adaptation", "lexical": "lexical"}


def sentiment_rows() -> str:
    scores = record("real_text_sentiment")["every_row"]
    rows = (
        [f"{about}, {place}", *(f"{scores[method][key][metric]:.3f}" for metric in FOUR)]
        for method, about in METHODS.items()
        for key, place in PLACES.items()
    )
    return table(["", *FOUR_NAMES], rows)


def sentiment_train_whole() -> str:
    scores = record("real_text_sentiment_train_whole")["every_row"]
    methods = {**METHODS, "lexical": "lexical, of the same reviews"}
    rows = ([about, *(f"{scores[method][key]['recall']:.3f}" for key in PLACES)] for method, about in methods.items())
    return table(["", *PLACES.values()], rows)


def sentiment_whole() -> str:
    scores = record("real_text_sentiment_whole")["every_row"]
    methods = {**METHODS, "length": "length alone"}
    rows = ([about, *(f"{scores[method]['all'][key]:.3f}" for key in FOUR)] for method, about in methods.items())
    return table(["", *FOUR_NAMES], rows)


def intents_of(kind: str, method: str) -> list[float]:
    """Accuracy of each of the five class splits."""
    return [run[kind][method]["mean"] for run in record("intents")["runs"].values()]


def intents() -> str:
    rows = []
    for kind, about in (("5x1", "5-way 1-shot"), ("5x5", "5-way 5-shot"), ("20x1", "20-way 1-shot")):
        both = [intents_of(kind, method) for method in ("meta_trained", "frozen")]
        cells = [f"{mean(values):.3f} ({listed(values)})" for values in both]
        rows.append([about, *cells, f"{sum(a > b for a, b in zip(*both))} of {len(both[0])}"])
    return table(["", "meta-trained", "frozen encoder", "better in"], rows)


def documents_runs(name: str = "documents") -> str:
    found = record(name)
    rows = [[f"`{name}`", "", "", f"{of['loss']:.3f}", ""] for name, of in found["base"].items()]
    for name in dict.fromkeys(run["algorithm"] for run in found["runs"]):
        runs = [run for run in found["runs"] if run["algorithm"] == name]
        reading, still = (mean(run[key]["loss"] for run in runs) for key in ("reading", "no_steps"))
        words = name.replace("_", " ") if name == "fomaml_as_many_steps" else f"`{name}`"
        rows.append([words, str(runs[0]["steps"]), str(len(runs)), f"{reading:.3f}", f"{still:.3f}"])
    return table(["initial model, or algorithm", "meta-steps", "seeds", "loss as it reads", "without steps"], rows)


def documents_pretrained() -> str:
    return documents_runs("documents_pretrained")


def documents_memory() -> str:
    rows = [
        [str(row["steps"]), str(row["snapshots"]), str(row["held"]), f"{row['planned_mb']:.0f} MB",
         f"{row['peak_mb']:.0f} MB", f"{row['cpu_s']:.0f}"]
        for row in record("documents_memory")["cases"]
    ]  # fmt: skip
    return table(["inner steps", "`inner.snapshots`", "held", "these take", "peak above the model", "CPU s"], rows)


def influence() -> str:
    rows = [
        [f"{row['rates']:g} of the learnt", f"{row['mean_spearman']:.3f}", f"{row['least']:.3f}", str(row["pairs"])]
        for row in record("influence")["rows"]
    ]
    return table(["inner rates", "mean correlation", "the least of an episode", "pairs"], rows)


DATA_SUITES = {
    "reviews": "built-in reviews, small encoder, by example",
    "tasks": "the same, 30% of the domains, by task",
    "intents": "CLINC150, frozen encoder, by example",
}


def data_weights() -> str:
    rows = []
    for name, of in record("data_weights").items():
        suite, _, seed = name.partition(", seed ")
        if suite not in DATA_SUITES:
            continue
        ways = of["ways"]
        scores = [half(ways[way]) for way in ("clean", "noisy", "trusted", "weights", "filtered")]
        rows.append([DATA_SUITES[suite], seed or "0", str(of["steps"]), f"{ways['weights']['area']:.3f}", *scores])
    rows.sort(key=lambda row: (list(DATA_SUITES.values()).index(row[0]), row[1]))
    header = ["", "seed", "meta-steps", "area", "right labels", "wrong labels", "trusted queries", "learnt weights"]
    return table([*header, "filtered"], rows)


def rejection() -> str:
    rows = []
    for kind, of in record("rejection")["kinds"].items():
        ways, shots = kind.split("x")
        score = {name: f"{value['mean']:.3f} ± {value['half_width']:.3f}" for name, value in of.items()}
        at = [score.get(f"rejected_{who}_at_0.1", "") for who in ("out_of_scope", "other_intents", "task")]
        rows.append([
            f"{ways}, {shots}", score["area_out_of_scope"], score["area_other_intents"], *at, score["accuracy"],
            score.get("accuracy_of_accepted_at_0.1", ""),
        ])  # fmt: skip
    header = [
        "ways, shots",
        "area, out of scope",
        "area, other intents",
        "out of scope",
        "other intents",
        "the task's own",
    ]
    return table([*header, "accuracy of all", "of what is kept"], rows)


def documents_builtin() -> str:
    scores = record("documents_builtin")["evaluation"]
    rows = [
        [f"`{name}`", interval(of["loss"]), number(of["perplexity"], 1), listed(of["loss_by_chunk"]["curve"], 2)]
        for name, of in scores.items()
    ]
    return table(
        ["method, on 96 ledgers never seen", "loss [95% interval]", "perplexity", "loss of chunks 1 to 8"], rows
    )


def letters() -> str:
    runs = record("letters")["runs"]
    names = {"0": "meta-trained, 160 steps of 2 episodes, seed 0", "1": "seed 1", "2": "seed 2"}
    every = [("SmolLM2-135M-Instruct as it comes", record("letters")["base"])]
    every += [(names[seed], run["by_shots"]) for seed, run in runs.items()]
    rows = ([about, half(by[0]), *(number(one) for one in by[1:-1]), half(by[-1])] for about, by in every)
    return table(["examples of each class", "1", "2", "3", "4", "5"], rows)


def letters_methods() -> str:
    found = record("letters_methods")
    rows = []
    for name, of in found["methods"].items():
        one, five = (interval(of["shots"][shots]["accuracy"]) for shots in ("1", "5"))
        rows.append([name, str(of.get("meta_steps", "")), one, five])
    means = (f"{mean(found['class means'][shots]):.3f}" for shots in ("1", "5"))
    rows.append(["class means of a frozen sentence encoder", "", *means])
    return table(["SmolLM2-135M-Instruct, LoRA", "meta-steps", "1 shot", "5 shots"], rows)


def images() -> str:
    rows = []
    for name, about in (("built_in", "drawn by the program"), ("omniglot_small", "136 characters of Omniglot")):
        if found := record("images").get(name):
            cells = [f"{interval(found[a]['accuracy'])}" for a in ("maml", "prototypes")]
            apart = found["maml less prototypes"]
            steps = str(found["maml"]["meta_steps"])
            rows.append([about, steps, *cells, f"{apart['mean']:+.3f} [{apart['low']:+.3f}, {apart['high']:+.3f}]"])
    return table(["5 ways, 1 shot", "meta-steps", "`maml`", "`prototypes`", "paired, over classes"], rows)


def captions() -> str:
    scores = record("captions")["evaluation"]
    rows = [
        [about, interval(scores[method]["accuracy"])] for method, about in CAPTIONS_ROWS.items() if method in scores
    ]
    return table(["unseen combinations of words, 5 ways, 600 episodes", "accuracy [95% interval]"], rows)


CAPTIONS_ROWS = {
    "no_adaptation": "meta-trained, by the descriptions alone",
    "meta_trained": "the same checkpoint, after 2 inner steps on 5 images of each class",
    "fine_tuned": "not meta-trained, fine-tuned as is best on validation tasks",
    "prototypes": "not meta-trained, class means",
}


def pays() -> str:
    """Where meta-training paid and where not: the best without it beside it, by record."""
    built_in = {name: scores["accuracy"] for name, scores in record("default")["evaluation"].items()}
    zh = record("real_text_sentiment_60")["meta_test"]
    letters_of = record("letters")
    ledgers = record("documents_builtin")["evaluation"]
    texts = record("documents")
    drawn = record("images")["built_in"]
    sinusoid = record("classics_sinusoid")["methods"]

    def texts_of(name: str) -> float:
        return mean(run["reading"]["loss"] for run in texts["runs"] if run["algorithm"] == name)

    def named(shots: int) -> str:
        return f"{mean(run['by_shots'][shots]['mean'] for run in letters_of['runs'].values()):.3f}"

    rows = [
        ["reviews whose words change meaning by domain (built in)", "encoder from random weights", "5 of each label",
         f"pooled training {number(built_in['multi_task'])}", f"`maml` {number(built_in['meta_trained'])}", "yes"],
        ["intents under letters that mean nothing (CLINC150)", "SmolLM2-135M", "1 of each of 5",
         f"the model as it comes {number(letters_of['base'][0])}", f"`in_context` {named(0)}", "yes"],
        ["the same", "the same", "5 of each of 5", f"the model as it comes {number(letters_of['base'][4])}",
         f"`in_context` {named(4)}", "yes"],
        ["intents (CLINC150, five splits)", "MiniLM", "1 of each of 5",
         f"frozen class means {mean(intents_of('5x1', 'frozen')):.3f}",
         f"`prototypes` {mean(intents_of('5x1', 'meta_trained')):.3f}", "a little"],
        ["the same", "the same", "1 of each of 20", f"frozen class means {mean(intents_of('20x1', 'frozen')):.3f}",
         f"`prototypes` {mean(intents_of('20x1', 'meta_trained')):.3f}", "yes"],
        ["sentiment, labels mean the same everywhere (Chinese reviews)", "encoder from random weights",
         "5 of each label", f"`maml` without adapting {number(zh['no_adaptation']['accuracy'])}",
         f"`maml` {number(zh['meta_trained']['accuracy'])}", "adapting does not"],
        ["texts that define their own words (built-in ledgers), loss", "decoder from random weights", "8 chunks",
         f"steps from pooled weights {number(ledgers['naive']['loss'])}",
         f"`maml` {number(ledgers['meta_trained']['loss'])}", "yes"],
        ["books and articles, loss", "decoder of 2 million", "8 chunks",
         f"ordinary training, then steps {texts_of('multi_task'):.3f}", f"`fomaml` {texts_of('fomaml'):.3f}",
         "hardly"],
        ["characters drawn by the program", "four convolutions", "1 of each of 5",
         f"`prototypes` {number(drawn['prototypes']['accuracy'])}", f"`maml` {number(drawn['maml']['accuracy'])}",
         "class means more"],
        ["sinusoids, squared error after 1 step", "two layers of 40", "5 points",
         f"first order {number(sinusoid['first_order']['mse_after_1'])}",
         f"`maml` {number(sinusoid['exact']['mse_after_1'])}", "exact order too"],
    ]  # fmt: skip
    return table(["tasks", "model", "examples", "without, or the simpler way", "meta-trained", "pays"], rows)


TABLES: dict[str, Callable[[], str]] = {
    made.__name__: made
    for made in (
        default, default_short, peers, exact_walk, depth, paper, scaling, time_to_quality, classics, orders, algorithms,
        algorithms_short, algorithms_real, padding, compression, answers, sentiment, sentiment_rows,
        sentiment_train_whole, sentiment_whole, images, captions, intents, letters, letters_methods, documents_builtin,
        documents_runs, documents_pretrained, documents_memory, influence, data_weights, rejection, pays,
    )
}  # fmt: skip
