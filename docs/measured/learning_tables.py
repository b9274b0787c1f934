"""Tables of what was learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from measured.reading import half, interval, listed, number, record, signed, table, three


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
    "fine_tuned": "fine-tuned from the untrained weights (settings chosen on validation tasks)",
    "multi_task": "trained on the pooled tasks (`multi_task`), 150 steps",
    "prototypes": "prototypes of the untrained features",
}


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
    trained = record("trained_classics")["sinusoid"]
    ends = [{end: trained["loss"][end][k] for end in ("mean", "low", "high")} for k in (1, 10)]
    about = f"squared error, {trained['meta_steps']:,} meta-steps"
    rows.append([f"`distmeta train sinusoid`, {about}", *map(interval, ends)])
    drawn = record("images")["omniglot_small_published"]["maml"]
    about = f"5-way 1-shot, 64 filters, {drawn['meta_steps']:,} meta-steps"
    first = f"{drawn['accuracy']['curve'][1]:.3f}"
    rows.append([f"`distmeta train omniglot`, {about}", first, interval(drawn["accuracy"])])
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


MIXED = ("intents", "products", "sentiment", "instructions")


def algorithms_mixed() -> str:
    """Mean over seeds, the lowest and the highest of them, and the mean of each kind of task."""
    suite = record("algorithms_mixed")["algorithms"]
    found = {
        name: [run["test"]["accuracy"]["mean"] for run in of["runs"].values()]
        for name, of in suite.items()
        if of["runs"]
    }
    rows = []
    for name in sorted(found, key=lambda name: -mean(found[name])):
        runs = list(suite[name]["runs"].values())
        kinds = (f"{mean(run['by_source'][kind] for run in runs):.3f}" for kind in MIXED)
        rows.append([
            f"`{name}`", f"{mean(found[name]):.3f} ({min(found[name]):.3f} to {max(found[name]):.3f})", *kinds,
            str(runs[0]["meta_steps"]), ", ".join(str(run["adapt_steps"]) for run in runs),
        ])  # fmt: skip
    return table(["", "accuracy (seeds)", *MIXED, "meta-steps", "steps to adapt with"], rows)


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


PRETRAINED = {
    "sentiment": "nothing (random weights, two layers of 96)",
    "sentiment_pretrained": "masked characters",
    "sentiment_transfer_0": "masked characters, then good or bad; seed 0",
    "sentiment_transfer_1": "seed 1",
    "sentiment_transfer_2": "seed 2",
}


def sentiment_pretrained() -> str:
    rows = []
    for name, before in PRETRAINED.items():
        scores = record(f"real_text_{name}")["every_row"]
        rows.append(
            [before, *(f"{scores[m][key]['recall']:.3f}" for m in ("no_adaptation", "adapted") for key in PLACES)]
        )
    lexical = [f"{scores['lexical'][key]['recall']:.3f}" for key in PLACES]
    rows.append(["lexical", *lexical, *lexical])
    header = [*(f"no step: {place}" for place in PLACES.values()), *(f"3 steps: {place}" for place in PLACES.values())]
    return table(["trained before on", *header], rows)


def ensemble() -> str:
    models = record("ensemble")["models"]
    about = {
        "n-grams": "n-grams", "run 0": "meta-trained, seed 0", "run 1": "seed 1", "run 2": "seed 2",
        "runs": "mean of the three seeds' probabilities", "runs and n-grams": "mean of those and the n-grams'",
    }  # fmt: skip
    rows = (
        [words, interval(of["recall"]), "" if name == "n-grams" else signed(of["less the n-grams"])]
        for name, words in about.items()
        if (of := models[name])
    )
    return table(["", "macro recall, all rows", "less the n-grams, on the same rows"], rows)


FEWCLUE_ROWS = {
    "meta_trained": "meta-trained, steps chosen on the 32 others",
    "meta_trained, no steps": "meta-trained, no steps",
    "fine_tune": "the same pretrained model, fine-tuned on the 32",
    "n-grams of the 32": "n-grams of the 32",
    "n-grams of the other products": "n-grams of all labelled reviews of the six other products",
}


def fewclue() -> str:
    products = record("chinese")["products"]
    rows = []
    for name, about in FEWCLUE_ROWS.items():
        found = [of["balanced_accuracy"][name] for of in products.values()]
        spread = [f" ± {stdev(values):.3f}" if len(set(values)) > 1 else "" for values in found]
        cells = [f"{mean(values):.3f}{more}" for values, more in zip(found, spread, strict=True)]
        rows.append([about, *cells, f"{mean(mean(values) for values in found):.3f}"])
    rest = (f"{of['rows']:,}" for of in products.values())
    rows.append(["test reviews", *rest, ""])
    return table(["", "phones", "water heaters", "milk", "mean"], rows)


def arsc() -> str:
    rows = []
    runs = {
        "arsc": "learnt inner rates, no step", "arsc_constant_rate": "a fixed inner rate, 3 steps",
        "arsc_bias": "pooled training, then the head's bias alone, 2 steps",
    }  # fmt: skip
    for name, about in runs.items():
        of = record(name)["mean"]
        cells = [
            f"{of[when][metric]:.3f}" for when in ("no_adaptation", "adapted") for metric in ("balanced", "accuracy")
        ]
        rows.append([about, *cells])
    return table(["mean of 12 tasks", "before: balanced", "accuracy", "adapted: balanced", "accuracy"], rows)


def intents_of(kind: str, method: str) -> list[float]:
    """Accuracy of each of the five class splits."""
    return [run[kind][method]["mean"] for run in record("intents")["runs"].values()]


def intents() -> str:
    rows = []
    for kind, about in (("5x1", "5-way 1-shot"), ("5x5", "5-way 5-shot"), ("20x1", "20-way 1-shot")):
        for each, how in (("", about), (" refined", "the same, refined")):
            both = [intents_of(kind, method + each) for method in ("meta_trained", "frozen")]
            cells = [f"{mean(values):.3f} ({listed(values)})" for values in both]
            rows.append([how, *cells, f"{sum(a > b for a, b in zip(*both))} of {len(both[0])}"])
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


def images() -> str:
    rows = []
    for name, about in (
        ("built_in", "drawn by the program"), ("omniglot_small", "136 characters of Omniglot"),
        ("omniglot_small_published", "the same, the published network"),
    ):  # fmt: skip
        if found := record("images").get(name):
            cells = [f"{interval(found[a]['accuracy'])}" for a in ("maml", "prototypes")]
            apart = found["maml less prototypes"]
            steps = str(found["maml"]["meta_steps"])
            rows.append([about, steps, *cells, signed(apart)])
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
    "fine_tuned": "not meta-trained, fine-tuned (settings chosen on validation tasks)",
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
    told = record("instructions")["summary"]
    of_reviews = {
        method: mean(record(f"real_text_sentiment_transfer_{seed}")["every_row"][method]["all"]["recall"] for seed in range(3))
        for method in ("adapted", "no_adaptation", "lexical")
    }  # fmt: skip
    mixed = {name: mean(run["test"]["accuracy"]["mean"] for run in of["runs"].values())
             for name, of in record("algorithms_mixed")["algorithms"].items()}  # fmt: skip
    decoder = {name: of["runs"]["0"]["test"]["accuracy"]["mean"]
               for name, of in record("algorithms_mixed_decoder")["algorithms"].items()}  # fmt: skip

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
        ["the same, macro recall on all rows", "encoder that has read other products' reviews", "the same",
         f"without adapting {of_reviews['no_adaptation']:.3f}; n-grams {of_reviews['lexical']:.3f}",
         f"`maml` {of_reviews['adapted']:.3f}", "adapting does; n-grams are as good, both together better"],
        ["24 instruction tasks, token F1", "SmolLM2-135M", "5",
         f"the same steps {number(told['fomaml, not meta-trained']['token_f1'])}; "
         f"reads them {number(told['base_in_context']['token_f1'])}",
         f"`fomaml` {number(told['fomaml, mean of 2 seeds']['token_f1'])}", "a little"],
        ["two labels dealt anew in each task: intents, products, good or bad, instructions", "2 layers of MiniLM",
         "5 of each label", f"fine-tuned, never meta-trained {mixed['fine_tune']:.3f}", f"`maml` {mixed['maml']:.3f}",
         "no"],
        ["the same, under letters", "SmolLM2-135M", "5 of each label",
         f"the model as it comes {decoder['fine_tune']:.3f}", f"`in_context` {decoder['in_context']:.3f}",
         "yes; the encoder above has more"],
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
