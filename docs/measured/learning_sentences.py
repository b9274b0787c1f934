"""Sentences with figures of what was learnt, as the records have it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import mean, stdev
from typing import Any

from measured.learning_tables import intents_of
from measured.reading import Sentence, interval, listed, number, record, signed, three


def default() -> Iterator[Sentence]:
    scores = {method: scored["accuracy"] for method, scored in record("default")["evaluation"].items()}
    trained, plain = interval(scores["meta_trained"]), number(scores["no_adaptation"])
    yield "README.md", f"| {trained}, without adaptation {plain} |"
    yield (
        "docs/algorithms.md",
        (
            f"`distmeta train` gives {trained} on domains never seen, the same model without adaptation {plain}, training on the "
            f"pooled tasks {interval(scores['multi_task'])}, prototypes of the untrained features {number(scores['prototypes'])}."
        ),
    )
    by_seed = [accuracy["mean"] for accuracy in record("default")["other_seeds"].values()]
    yield "docs/results.md", f"come to {listed(by_seed)}."
    every = [scores["meta_trained"]["mean"], *by_seed]
    yield "README.md", f"Five seeds lie between {min(every):.3f} and {max(every):.3f}"
    mean, low, high = (f"{scores['meta_trained'][key]:.3f}" for key in ("mean", "low", "high"))
    yield "docs/reading-a-report.md", f'"mean": {mean}, "low": {low}, "high": {high}, "episodes": 600,'
    yield "docs/results.md", f"the checkpoint of meta-step {int(record('default')['kept'].split('-')[1])}, the best"
    yield "docs/results.md", f"`comm_s` is {record('default')['comm_share']:.0%} of a step"
    long = record("default_2000")
    yield (
        "docs/results.md",
        (
            f"rises to {long['best']['value']:.3f} at meta-step {long['best']['step']} and ends at "
            f"{long['validations'][-1]['accuracy']:.3f}. The checkpoint of step {long['best']['step']} is kept and scored: "
            f"{interval(long['meta_test']['accuracy'])} on the meta-test tasks."
        ),
    )


def time_to_quality() -> Iterator[Sentence]:
    runs = record("time_to_quality")["runs"]
    ends = [f"{run[0]['steps'][-1]['wall_s']:.0f}" for run in runs.values()]
    yield "docs/results.md", f"at step 40 the four stand at {', '.join(ends[:-1])} and {ends[-1]} seconds."
    errors = {point["workers"]: point["error"] for point in record("projection")["compared"]["points"]}
    yield "docs/results.md", f"predicts the efficiency at 16 to {errors[16]:.1%} and at 32 to {errors[32]:.0%}."
    points = record("projection")["scenarios"]["LoRA on an 8B decoder"]["points"]
    weak, strong = ({p["workers"]: p for p in points if p["mode"] == mode} for mode in ("weak", "strong"))
    speed = {ranks: three(point["tasks_per_s"]) for ranks, point in weak.items()}
    price = [weak[ranks]["price_per_1000_tasks"] for ranks in (8, 1024)]
    yield (
        "docs/results.md",
        (
            f"{speed[8]} tasks/s on 8 GPUs, {speed[64]} on 64, {speed[256]} on 256, {speed[1024]} on 1,024, an efficiency of "
            f"{weak[1024]['efficiency']:.2f} over 8 GPUs, for {price[0]:.2f} to {price[1]:.2f} a thousand tasks."
        ),
    )
    yield "docs/results.md", f"that does not grow, {strong[256]['efficiency']:.2f} at 256 GPUs"


def classics() -> Iterator[Sentence]:
    def after(scores: Mapping[str, Any], steps: int) -> str:
        return interval({key: values[steps] for key, values in scores.items()})

    captions = {method: number(scored["accuracy"]) for method, scored in record("captions")["evaluation"].items()}
    yield "docs/images.md", f"the words alone tell {captions['no_adaptation']} of the images right"
    yield (
        "docs/images.md",
        f"raise that to {captions['meta_trained']}, after {record('captions')['meta_steps']} meta-steps",
    )
    yield "docs/images.md", f"Class means of the untrained image tower get {captions['prototypes']}."
    trained = record("trained_classics")
    loss = trained["sinusoid"]["loss"]
    yield "docs/beyond-text.md", f"error of {after(loss, 1)} after one step and {after(loss, 10)} after ten"
    policies = trained["navigation"]
    yield (
        "docs/beyond-text.md",
        (
            f"a return of {policies['return']['mean'][0]:.2f} before and {interval({k: v[1] for k, v in policies['return'].items()}, 2)} after "
            f"one step, at {policies['meta_steps']} meta-steps."
        ),
    )
    yield "docs/beyond-text.md", f"is at {interval(policies['pretrained'], 2)};"
    yield "docs/beyond-text.md", f"better by {interval(policies['less_pretrained'], 2)}"
    found = record("classics_navigation")
    returns = {name: interval(one["return_after_1"], 2) for name, one in found["methods"].items()}
    yield (
        "docs/results.md",
        (
            f"Return after the step: exact MAML {returns['exact']}, first order {returns['first_order']}, a policy pretrained on all goals "
            f"and fine-tuned with the best of seven rates {returns['pretrained']}; of the same goals exact is better than pretrained by "
            f"{interval(found['exact_less_pretrained_after_1'], 2)}. Before the step all are at "
            f"{found['methods']['exact']['return_after_0']['mean']:.1f}, and who knows the goal gets "
            f"{found['knows_the_goal']['mean']:.2f}."
        ),
    )


def algorithms() -> Iterator[Sentence]:
    runs = record("maml_pp")["runs"]
    by = {name: [runs[f"{name}-{seed}"]["test"]["mean"] for seed in range(3)] for name in ("maml", "maml_pp")}
    both = {name: f"{mean(values):.3f} ({listed(values)})" for name, values in by.items()}
    yield "docs/results.md", f"200 steps give {both['maml_pp']}, MAML's 300 {both['maml']}"
    yield (
        "docs/algorithms.md",
        f"({mean(by['maml_pp']):.3f} in 200 meta-steps where MAML's 300 give {mean(by['maml']):.3f}",
    )
    intents = record("algorithms_intents")["algorithms"]
    tuned = intents["fine_tune"]["runs"]["0"]["test"]["accuracy"]
    start = f"{mean(intents_of('5x1', 'frozen')):.3f}"  # class means of the encoder as it was published
    yield "docs/results.md", f"CLINC150 is at {start} before anything is learnt"
    yield "docs/algorithms.md", f"prototypes of the frozen encoder are at {start} already"
    yield "docs/results.md", f"`fine_tune`, with the best rate, has {number(tuned)}, which all beat"


def answers() -> Iterator[Sentence]:
    gpt2, t5 = (record("text_to_text")["runs"][name]["meta_test"] for name in ("gpt2", "t5"))
    trained, tuned = (gpt2[method]["exact_match"] for method in ("meta_trained", "fine_tuned"))
    yield "README.md", f"| exact match {interval(trained)}, fine-tuned {number(tuned)} |"
    f1 = {method: scored["token_f1"] for method, scored in t5.items()}
    perplexity = {method: three(scored["perplexity"]["mean"]) for method, scored in t5.items()}
    yield (
        "docs/results.md",
        (
            f"exact match {interval(t5['meta_trained']['exact_match'])}, token F1 {interval(f1['meta_trained'])}, perplexity "
            f"{t5['meta_trained']['perplexity']['mean']:.1f}; before adaptation {number(f1['no_adaptation'])} and "
            f"{perplexity['no_adaptation']}."
        ),
    )
    yield (
        "docs/results.md",
        f"better than pooled training ({perplexity['multi_task']}) and fine-tuning ({perplexity['fine_tuned']})",
    )
    yield "docs/results.md", f"(pooled {number(f1['multi_task'])}, fine-tuned {number(f1['fine_tuned'])})"
    real = {name: scored["token_f1"] for name, scored in record("real_text_instructions")["meta_test"].items()}
    yield (
        "docs/results.md",
        (
            f"token F1 {interval(real['meta_trained'])} against {interval(real['fine_tuned'])} of the same decoder fine-tuned"
        ),
    )


def recall(run: str, method: str = "adapted") -> float:
    """Macro recall on all rows of the Chinese reviews."""
    return float(record(f"real_text_{run}")["every_row"][method]["all"]["recall"])


def pretrained_reviews() -> Iterator[Sentence]:
    found, place = record("chinese"), "docs/sentiment.md"
    seeds = [f"sentiment_transfer_{seed}" for seed in range(3)]
    adapted, before = (mean(recall(run, method) for run in seeds) for method in ("adapted", "no_adaptation"))
    masked, lexical = recall("sentiment_pretrained"), recall("sentiment", "lexical")
    minutes = [round(found["seconds"][name] / 60) for name in ("pretraining", "meta_trained")]
    cosine, short = (recall(f"sentiment_pretrained_{name}") for name in ("cosine", "1500"))
    products = found["products"].values()
    ours, tuned = (mean(mean(of["balanced_accuracy"][n]) for of in products) for n in ("meta_trained", "fine_tune"))
    yield place, f"better than from the pretrained ones by {ours - tuned:.3f} on average"
    both, tuned = (record(name)["models"] for name in ("ensemble", "ensemble_tuned"))
    grams = {name: of["recall"]["mean"] for name, of in both.items()}
    yield (
        "README.md",
        f"| macro recall {grams['runs and n-grams']:.3f} on all rows together with n-grams, which alone have "
        f"{grams['n-grams']:.3f}; the mean of three seeds {grams['runs']:.3f} |",
    )
    yield (
        place,
        f"{number(tuned['runs']['recall'])} and {number(tuned['runs and n-grams']['recall'])} with the settings",
    )
    yield place, f"5,000 steps of masked characters, {minutes[0]} minutes"
    yield place, f"beside other work, perplexity {found['perplexity']['after']:.1f}."
    yield place, f"400 meta-steps in {minutes[1]} minutes."
    yield (
        place,
        (
            f"on all rows from {recall('sentiment'):.3f} to {masked:.3f}, and good or bad before the three classes to "
            f"{adapted:.3f}, a mean of three seeds: about what n-grams have, {lexical:.3f}"
        ),
    )
    yield place, f"every seed ({before:.3f} without, on average)"
    yield place, f"distances by cosine ({cosine:.3f}), and pretraining of 1,500 steps, perplexity 200 ({short:.3f})"


def amazon_reviews() -> Iterator[Sentence]:
    found = record("arsc_bias")
    less, after = found["adapted less before"], found["mean"]["adapted"]
    yield "docs/sentiment.md", f"accuracy {after['accuracy']:.3f}, balanced {after['balanced']:.3f} |"
    yield "docs/sentiment.md", f"accuracy by {interval(less['accuracy'])} over the tasks"
    yield "docs/sentiment.md", f"balanced accuracy stays ({signed(less['balanced'])})"


def real_text() -> Iterator[Sentence]:
    whole = record("real_text_sentiment_whole")
    length = f"{whole['every_row']['length']['all']['recall']:.3f}"
    yield "docs/sentiment.md", f"told the length and nothing else has a macro recall of {length}"
    yield (
        "docs/sentiment.md",
        (
            f"in which the water heaters count as much as the phones, is {interval(whole['meta_test']['meta_trained']['recall'])}."
        ),
    )
    plain = record("real_text_sentiment_train_whole")["every_row"]["no_adaptation"]
    over = mean(scores["recall"] for place, scores in plain.items() if place != "all")
    yield "docs/sentiment.md", f"without adaptation {over:.3f} is the mean over the two domains"
    both, short = (record(f"real_text_{name}")["meta_test"] for name in ("sentiment", "sentiment_60"))
    curve, after = both["meta_trained"]["accuracy"]["curve"], both["meta_trained"]["accuracy"]
    yield "docs/sentiment.md", f"{curve[0]:.3f} -> {after['mean']:.3f} by episodes"
    sixty, plain = (short[method]["accuracy"] for method in ("meta_trained", "no_adaptation"))
    yield (
        "docs/algorithms.md",
        (
            f"60 meta-steps give {interval(sixty)} and the same model without adaptation {interval(plain)}; 120 give "
            f"{interval(after)} and {curve[0]:.3f} without"
        ),
    )


def intents() -> Iterator[Sentence]:
    ours, frozen = (intents_of("5x1", method) for method in ("meta_trained", "frozen"))
    better = f"{sum(a > b for a, b in zip(ours, frozen))} of {len(ours)}"
    together, of_twenty = (mean(intents_of(kind, "meta_trained refined")) for kind in ("5x1", "20x1"))
    yield (
        "README.md",
        f"| {mean(ours):.3f}, the frozen encoder {mean(frozen):.3f}, better in {better}; texts classified together {together:.3f} |",
    )
    yield "docs/intents.md", f"Classified together they have {together:.3f}, and {of_twenty:.3f} of 20"
    letters = [mean(intents_of(kind, "lexical")) for kind in ("5x1", "5x5", "20x1")]
    yield "docs/intents.md", f"have {letters[0]:.3f}, {letters[1]:.3f} and {letters[2]:.3f}"
    recipe = record("real_text_intents")["meta_test"]["meta_trained"]["accuracy"]
    yield "docs/intents.md", f"comes to {interval(recipe)} on 100 episodes of split 01."
    yield "docs/algorithms.md", f"meta-training reaches {interval(recipe)} on 100 episodes"
    yield (
        "docs/algorithms.md",
        f"has {mean(ours):.3f} where the frozen encoder has {mean(frozen):.3f}, over five class splits",
    )


def documents() -> Iterator[Sentence]:
    ledgers = record("documents_builtin")["evaluation"]
    yield (
        "README.md",
        (
            f"| a loss of {interval(ledgers['meta_trained']['loss'])} a token, without steps "
            f"{number(ledgers['meta_trained_no_steps']['loss'])} |"
        ),
    )
    runs = record("documents")
    apart = {name: signed(of) for name, of in runs["differences"].items()}
    seen = runs["differences"]["maml less fomaml_as_many_steps"]["least_visible"]
    seconds: dict[str, float] = {}  # the least of the seeds, which ran beside other work
    for run in runs["runs"]:
        seconds[run["algorithm"]] = min(run["meta_step_s"], seconds.get(run["algorithm"], float("inf")))
    yield (
        "docs/documents.md",
        (f"their losses differ by {apart['maml less fomaml_as_many_steps']}, where {seen:.3f} could have been seen."),
    )
    yield "docs/documents.md", f"and exact has {apart['maml less fomaml']} a token"
    yield "docs/documents.md", f"by {apart['fomaml less multi_task']}."
    yield "docs/documents.md", f"{seconds['maml'] / seconds['multi_task']:.1f} times as long as an ordinary step"
    large = record("documents_pretrained")
    less = next(run["less_naive"] for run in large["runs"] if run["algorithm"] == "maml")
    yield "docs/documents.md", f"less `naive` is {signed(less)}"
    orders = large["differences"]["maml less fomaml_as_many_steps"]
    yield (
        "docs/documents.md",
        f"first order is {orders['mean']:+.4f} [{orders['low']:+.4f}, {orders['high']:+.4f}]",
    )
    share = record("influence")["cpu_of_a_meta_gradient"]
    yield "docs/explain.md", f"it costs {share:.2f} of one exact meta-gradient"
    whole = record("llm_train")
    accuracy = {name: interval(of["accuracy"]) for name, of in whole["evaluation"].items()}
    yield (
        "docs/llm.md",
        (
            f"trained for {whole['seconds']['to_the_end_of_training']} s and had its first scores after "
            f"{whole['seconds']['with_100_test_episodes']} s: {accuracy['meta_trained']} on 100 episodes"
        ),
    )
    yield "docs/llm.md", f"the model as it comes has {accuracy['base_in_context']}."
    ours, none = (
        record("letters_methods")["methods"][n]["shots"]["1"]["by_episode"] for n in ("reptile", "no meta-training")
    )
    less = [one - other for one, other in zip(ours, none, strict=True)]
    width = 2.069 * stdev(less) / len(less) ** 0.5  # Student's t of 24 episodes
    apart = {"mean": mean(less), "low": mean(less) - width, "high": mean(less) + width}
    yield "docs/llm.md", f"the same episodes ({signed(apart)} at one shot)"
    five = record("letters_20way")["five_shots"]
    ours, plain = (interval(five[name]["accuracy"]) for name in ("meta_trained", "base_in_context"))
    context = "at 20 ways and five shots, a context of a hundred examples, the model as it comes"
    yield "docs/llm.md", f"{ours} {context} {plain}"
    twenty = record("letters_20way")["one_shot"]
    yield (
        "docs/llm.md",
        (
            f"At 20 ways and one shot it has {interval(twenty['meta_trained']['accuracy'])}, the model as it comes "
            f"{number(twenty['base_in_context']['accuracy'])}"
        ),
    )


def letters() -> Iterator[Sentence]:
    found = record("letters")
    one, five = (mean(run["by_shots"][n]["mean"] for run in found["runs"].values()) for n in (0, 4))
    base = [number(found["base"][n]) for n in (0, 4)]
    yield "README.md", f"| {one:.3f} and {five:.3f} (means of three seeds); as it comes {base[0]} and {base[1]} |"


def afterwards() -> Iterator[Sentence]:
    found = record("afterwards")
    other = found["elsewhere"]["instructions of inputs"]
    for shots in ("1", "5"):
        yield (
            "docs/llm.md",
            f"{interval(other[shots]['meta_trained'])} where the model as it comes has {number(other[shots]['base'])}",
        )
    known = found["known"]
    apart = known["meta_trained less base"]
    yield (
        "docs/llm.md",
        f"{number(known['meta_trained'])} after meta-training and {number(known['base'])} before: " + signed(apart),
    )


def mixed() -> Iterator[Sentence]:
    runs = {name: of["runs"]["0"] for name, of in record("algorithms_mixed_decoder")["algorithms"].items()}
    before, after = (interval(runs[name]["test"]["accuracy"]) for name in ("fine_tune", "in_context"))
    yield "docs/algorithms.md", f"as it comes it answers {before} right on 80"
    yield "docs/algorithms.md", f"{runs['in_context']['cpu_s'] / 60:.0f} minutes of one core) {after}."
    rise = {
        kind: (runs["fine_tune"]["by_source"][kind], value) for kind, value in runs["in_context"]["by_source"].items()
    }
    encoder = mean(
        run["test"]["accuracy"]["mean"]
        for run in record("algorithms_mixed")["algorithms"]["fine_tune"]["runs"].values()
    )
    yield "docs/algorithms.md", f"more than the small encoder's {encoder:.3f}"
    told = ", ".join(f"{kind} from {rise[kind][0]:.3f} to {rise[kind][1]:.3f}" for kind in ("instructions", "products"))
    yield "docs/algorithms.md", f"Intents rise from {rise['intents'][0]:.3f} to {rise['intents'][1]:.3f}, {told};"


def search() -> Iterator[Sentence]:
    found = record("search")
    factor, share = f"{found['factor']:.2f}", f"{found['share_of_meta_steps']:.2f}"
    asha, grid = (found[name] for name in ("asha", "grid"))
    yield (
        "docs/search.md",
        f"`inner.lr` {found['found_inner_lr']:.3f} (meta-validation accuracy {asha['best']['value']:.3f})",
    )
    yield (
        "docs/search.md",
        f"{found['grid_best_inner_lr']:.3f} ({grid['best']['value']:.3f}): a factor of {factor} apart.",
    )
    yield (
        "docs/search.md",
        f"ASHA spent {asha['meta_steps']:,} meta-steps, {share} of the grid's {grid['meta_steps']:,}",
    )
    for name, metric in (("intents_inner", "accuracy"), ("sentiment", "recall")):
        scores = [record(f"search_{name}")["meta_test"][by][metric] for by in ("tuned", "defaults")]
        yield "docs/search.md", f"{interval(scores[0])} and {interval(scores[1])}"
    for name in ("intents", "letters", "sentiment_pretrained"):
        spent = record(f"search_{name}")["search"]
        yield "docs/search.md", f"{spent['meta_steps']:,} meta-steps in {spent['wall_s'] / 60:.0f} minutes"
    for name in ("intents", "letters"):
        tuned, plain = (interval(record(f"search_{name}")["meta_test"][by]["accuracy"]) for by in ("tuned", "defaults"))
        yield "docs/search.md", f"{tuned} where the recipe's defaults after as many meta-steps have {plain}"
    intents, letters = record("search_intents"), record("search_letters")
    more = {
        key: signed(intents["tuned less defaults"][key]) for key in ("recall", "accuracy")
    }  # over episodes, classes
    less = intents["tuned less defaults"]["loss"]
    yield "docs/search.md", f"of the same episodes {more['recall']}, over classes {more['accuracy']}"
    yield "docs/search.md", f"lower by {-less['mean']:.3f} [{-less['high']:.3f}, {-less['low']:.3f}]"
    yield "docs/search.md", f"({letters['search']['best']['params']['outer.lr']:.4f}, without warm-up)"
    yield "docs/search.md", f"over classes {signed(letters['tuned less defaults']['accuracy'])}. The defaults warm up"
    long = record("search_intents_200")
    scores = [long["meta_test"][by]["accuracy"] for by in ("tuned", "defaults")]
    held_out = long["tuned less defaults, on meta-validation"]
    yield "docs/search.md", f"{interval(scores[0])} and {interval(scores[1])}"
    yield "docs/search.md", f"of the same episodes {signed(long['tuned less defaults']['recall'])}, and on"
    yield (
        "docs/search.md",
        f"are no worse ({signed(held_out['recall'])} for the search's; its loss is higher by {interval(held_out['loss'])})",
    )
    seconds = long["training_s"]
    yield "docs/search.md", f"took {seconds['tuned']:.0f} s, those of the defaults {seconds['defaults']:.0f} s"
    reviews = record("search_sentiment_pretrained")
    best = reviews["search"]["best"]["params"]
    tuned, plain = (reviews["meta_test"][by]["recall"] for by in ("tuned", "defaults"))
    seconds = reviews["training_s"]
    searched_on = reviews["tuned less defaults, on meta-validation"]["recall"]
    yield "docs/search.md", f"({best['inner.lr']:.3f}, {best['inner.steps']} steps)"
    yield (
        "docs/search.md",
        f"takes {seconds['tuned']:.0f} s where the defaults, which adapt the encoder too, take {seconds['defaults']:.0f} s",
    )
    yield "docs/search.md", f"macro recall {interval(tuned)} and {interval(plain)}"
    yield "docs/search.md", f"it is better by {interval(searched_on)}"
    early = record("search_sentiment_early")["meta_test"]["tuned"]["recall"]
    yield "docs/search.md", f"meta-test {interval(early)}"


def instructions() -> Iterator[Sentence]:
    found = record("instructions")
    ours = found["summary"]["in_context, seed 0"]
    by_task: dict[str, dict[str, list[float]]] = {}
    for fold in found["folds"].values():
        for name in ("in_context, seed 0", "base_in_context"):
            for task, value in zip(fold[name]["task"], fold[name]["token_f1"], strict=True):
                by_task.setdefault(task, {}).setdefault(name, []).append(value)
    drawn = sum(len(fold["base_in_context"]["task"]) for fold in found["folds"].values())
    loss = ours["loss less base_in_context"]
    yield "docs/instructions.md", f"Of the 24 tasks {len(by_task)} were drawn, in {drawn} episodes;"
    yield "docs/instructions.md", f"token F1 {signed(ours['token_f1 less base_in_context'])} over tasks"
    yield "docs/instructions.md", f"falls by {-loss['mean']:.3f} [{-loss['high']:.3f}, {-loss['low']:.3f}]"
    of = found["summary"]["fomaml, mean of 2 seeds"]
    f1, less = (of[f"{metric} less fomaml, not meta-trained"] for metric in ("token_f1", "loss"))
    yield (
        "docs/instructions.md",
        f"lower by {-less['mean']:.3f} [{-less['high']:.3f}, {-less['low']:.3f}] from `fomaml`'s",
    )
    yield "docs/instructions.md", f"token F1 is higher by {f1['mean']:.3f} [{f1['low']:.3f}, {f1['high']:.3f}]"
    read = of["token_f1 less base_in_context"]
    yield (
        "docs/instructions.md",
        f"against reading the examples by {read['mean']:.3f} [{read['low']:.3f}, {read['high']:.3f}]",
    )
    natural = record("natural_instructions")["summary"]["in_context, seed 0"]
    f1, less = (natural[f"{metric} less base_in_context"] for metric in ("token_f1", "loss"))
    yield (
        "docs/instructions.md",
        f"by {f1['mean']:.3f} [{f1['low']:+.3f}, {f1['high']:+.3f}] over tasks, and a lower loss",
    )
    yield "docs/instructions.md", f"by {-less['mean']:.3f} [{-less['high']:.3f}, {-less['low']:.3f}]: both"
    for task in ("first_word_letter", "active_to_passive"):
        before, after = (mean(by_task[task][name]) for name in ("base_in_context", "in_context, seed 0"))
        yield "docs/instructions.md", f"`{task}` {before:.2f} to {after:.2f}"


def features() -> Iterator[Sentence]:
    runs = record("subgroups")["runs"]
    with_it, without = (
        listed(run["accuracy:dialect"]["mean"] for run in runs if run["way"] == way)
        for way in ("worst_subgroup", "plain")
    )
    yield "docs/features.md", f"accuracy is {with_it} with it and {without} without"
    gains = record("augmentation")["compared"]
    change = {name: f"{g['gain']:+.3f} [{g['low']:.3f}, {g['high']:.3f}]" for name, g in gains.items()}
    yield (
        "docs/features.md",
        (
            f"change of accuracy from {gains['none']['accuracy']:.3f} with a 95% interval over seeds): swaps {change['word_swap']}, "
            f"mixing {change['mix']}, dropout {change['token_dropout']} are no more than chance; permuted labels "
            f"{change['permute_labels']} and resplits {change['resplit']} were worse with every seed."
        ),
    )
    runs = record("privacy")["runs"]
    score = {noise: number(run["accuracy"]) for noise, run in runs.items()}
    epsilon = {noise: run.get("privacy_epsilon", 0.0) for noise, run in runs.items()}
    yield (
        "docs/features.md",
        (
            f"accuracy {score['none']} without noise, {score['0.1']} with noise 0.1 (epsilon {epsilon['0.1']:,.0f}, no guarantee), "
            f"{score['1']} with 1 ({epsilon['1']:.0f}), {score['4']} with 4 ({epsilon['4']:.1f})."
        ),
    )


SECTIONS = (
    afterwards,
    default,
    time_to_quality,
    classics,
    algorithms,
    answers,
    pretrained_reviews,
    amazon_reviews,
    real_text,
    intents,
    documents,
    letters,
    search,
    instructions,
    features,
)
