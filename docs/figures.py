"""The figures in the sentences of the pages, as the records of benchmarks/results say them: used by make_results.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import mean
from typing import Any

Sentence = tuple[str, str]  # the page, and what has to stand in it, line breaks aside


def sentences(made: Mapping[str, Any]) -> Iterator[Sentence]:
    """Every sentence with a measured figure that has a record. made: the names of tables.py."""
    tools = Tools(made)
    for section in (
        default, inner_loop, sharding, scaling, time_to_quality, classics, algorithms, sampling, faults, answers, real_text,
        intents, letters, documents, serving, search, features,
    ):  # fmt: skip
        yield from section(tools)


class Tools:
    """What tables.py has for reading a record and writing a number."""

    def __init__(self, made: Mapping[str, Any]) -> None:
        self.record, self.interval, self.number = made["record"], made["interval"], made["number"]
        self.listed, self.three, self.points = made["listed"], made["three"], made["scaling_points"]
        self.peer, self.intents_of, self.half = made["peer"], made["intents_of"], made["half"]


def default(t: Tools) -> Iterator[Sentence]:
    scores = {method: scored["accuracy"] for method, scored in t.record("default")["evaluation"].items()}
    trained, plain = t.interval(scores["meta_trained"]), t.number(scores["no_adaptation"])
    yield "README.md", f"| {trained}, without adaptation {plain} |"
    yield (
        "docs/algorithms.md",
        (
            f"`distmeta train` gives {trained} on domains never seen, the same model without adaptation {plain}, training on the "
            f"pooled tasks {t.interval(scores['multi_task'])}, prototypes of the untrained features {t.number(scores['prototypes'])}."
        ),
    )
    mean, low, high = (f"{scores['meta_trained'][key]:.3f}" for key in ("mean", "low", "high"))
    yield "docs/reading-a-report.md", f'"mean": {mean}, "low": {low}, "high": {high}, "episodes": 600,'
    yield "docs/results.md", f"the checkpoint of meta-step {int(t.record('default')['kept'].split('-')[1])}, the best"
    yield "docs/results.md", f"`comm_s` is {t.record('default')['comm_share']:.0%} of a step"
    long = t.record("default_2000")
    yield (
        "docs/results.md",
        (
            f"rises to {long['best']['value']:.3f} at meta-step {long['best']['step']} and ends at "
            f"{long['validations'][-1]['accuracy']:.3f}. The checkpoint of step {long['best']['step']} is kept and scored: "
            f"{t.interval(long['meta_test']['accuracy'])} on the meta-test tasks."
        ),
    )


def inner_loop(t: Tools) -> Iterator[Sentence]:
    plain, layers = (t.record("depth")["cases"]["30x1x512"][way] for way in ("eager", "layers"))
    yield (
        "README.md",
        (
            f"{layers['peak_mb']:.0f} MB above the model where plain double backward takes {plain['peak_mb']:,.0f} MB, in "
            f"{layers['cpu_s'] / plain['cpu_s']:.1f} of its time"
        ),
    )
    short, long = (t.record("depth")["cases"][case]["layers"]["peak_mb"] for case in ("8x4x512", "8x1x2048"))
    yield "docs/exact-walk.md", f"takes {short:.0f} MB for 4 rows of 512 tokens and {long:.0f} MB for one of 2,048"
    cases = t.record("depth")["cases"]
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
    rows = t.record("peers")["rows"]
    verdicts = [verdict for row in rows for verdict in row["verdicts"]]
    yield (
        "docs/results.md",
        f"{sum(v['holds'] for v in verdicts)} of the {len(verdicts)} limits that the script sets hold",
    )
    growth = next(row for row in rows if row["row"] == "exact-lora-50")["growth_mb_per_step"]["walk"]
    yield "docs/results.md", f"Over 50 steps the walk grows by {growth:.1f} MB a step"
    five, fifty = (t.peer(row, "walk")[1] for row in ("exact-lora", "exact-lora-50"))
    ours, best = fifty.removesuffix(")").split(" (")
    yield "README.md", f"| {ours} MB where the best peer takes {int(best):,} MB |"
    yield "README.md", f"| {t.peer('exact-all', 'unroll')[0].split()[0]} of the best peer's |"
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


def sharding(t: Tools) -> Iterator[Sentence]:
    cells = {name: cell["difference"] for name, cell in t.record("zero_table")["cells"].items() if "difference" in cell}
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
    memory = t.record("zero3_memory")
    base = memory["by_rank"]["distmeta"][0]
    gathered = f"{base['gathered_peak'] / 1e6:.1f} of {base['base_bytes'] / 1e6:.0f} MB"
    growth = {name: f"{value / 1e6:.0f} MB" for name, value in memory["growth"].items()}
    yield "docs/results.md", f"never more than one weight ({gathered}) is gathered at once"
    yield (
        "docs/results.md",
        (f"takes {growth['distmeta']} where plain linears under DeepSpeed's hooks take {growth['deepspeed']}"),
    )
    yield "docs/cluster.md", f"never gathers more than {gathered} at once"
    group = t.record("group_memory")
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
    large = t.record("large_base")
    most = max(rank["private_mb"] for rank in large["ranks"])
    yield (
        "docs/cluster.md",
        (
            f"a decoder of {large['parameters'] / 1e9:.2f} B parameters in bfloat16 ({large['base_mb']:,.0f} MB) under LoRA takes {most:,} MB of a "
            "rank's own memory"
        ),
    )


def scaling(t: Tools) -> Iterator[Sentence]:
    points, alone = t.points("scaling"), t.record("two_alone")
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
        f"efficiency of {t.half(weak)} where the meta-batch grows with them, {t.half(strong)} where it stays",
    )
    hand = t.points("handover")["weak", 2]
    yield "docs/results.md", f"steps of {hand['step_s']:.2f} s on a slower day"
    yield "docs/results.md", f"spends {hand['share']['aggregate']:.1%} on hand-over and outer step"
    timed = {ranks: point for (_, ranks), point in t.points("scaling_timed").items()}
    efficiency = {ranks: f"{point['efficiency']['mean']:.2f}" for ranks, point in timed.items()}
    yield "docs/results.md", f"efficiency {efficiency[8]} at 8 ranks, {efficiency[16]} at 16, {efficiency[32]} at 32."
    share = {ranks: point["share"] for ranks, point in timed.items()}
    yield "docs/results.md", f"({share[16]['wait']:.0%} wait at 16) and checkpoints cost {share[16]['checkpoint']:.1%}"
    for part, words in (
        ("aggregate", "aggregate {} and {} of a step"),
        ("peers", "the slowest of many ranks ({} and {})"),
    ):
        yield "docs/results.md", words.format(f"{share[16][part]:.0%}", f"{share[32][part]:.0%}")
    long = {ranks: point for (_, ranks), point in t.points("scaling_timed_long").items()}
    last = long[32]["share"]
    yield (
        "docs/results.md",
        (
            f"the efficiency is {long[16]['efficiency']['mean']:.3f} at 16 ranks and {long[32]['efficiency']['mean']:.3f} at 32, where "
            f"a step of {long[32]['step_s']:.1f} s is {last['wait']:.1%} wait, {last['peers']:.1%} the slowest rank, "
            f"{last['aggregate']:.1%} aggregate and {last['checkpoint']:.1%} checkpoint."
        ),
    )


def time_to_quality(t: Tools) -> Iterator[Sentence]:
    runs = t.record("time_to_quality")["runs"]
    ends = [f"{run[0]['steps'][-1]['wall_s']:.0f}" for run in runs.values()]
    yield "docs/results.md", f"at step 40 the four stand at {', '.join(ends[:-1])} and {ends[-1]} seconds."
    errors = {point["workers"]: point["error"] for point in t.record("projection")["compared"]["points"]}
    yield "docs/results.md", f"predicts the efficiency at 16 to {errors[16]:.1%} and at 32 to {errors[32]:.0%}."
    points = t.record("projection")["scenarios"]["LoRA on an 8B decoder"]["points"]
    weak, strong = ({p["workers"]: p for p in points if p["mode"] == mode} for mode in ("weak", "strong"))
    speed = {ranks: t.three(point["tasks_per_s"]) for ranks, point in weak.items()}
    price = [weak[ranks]["price_per_1000_tasks"] for ranks in (8, 1024)]
    yield (
        "docs/results.md",
        (
            f"{speed[8]} tasks/s on 8 GPUs, {speed[64]} on 64, {speed[256]} on 256, {speed[1024]} on 1,024, an efficiency of "
            f"{weak[1024]['efficiency']:.2f} over 8 GPUs, for {price[0]:.2f} to {price[1]:.2f} a thousand tasks."
        ),
    )
    yield "docs/results.md", f"that does not grow, {strong[256]['efficiency']:.2f} at 256 GPUs"


def classics(t: Tools) -> Iterator[Sentence]:
    def after(scores: Mapping[str, Any], steps: int) -> str:
        return t.interval({key: values[steps] for key, values in scores.items()})

    captions = {method: t.number(scored["accuracy"]) for method, scored in t.record("captions")["evaluation"].items()}
    yield "docs/images.md", f"the words alone tell {captions['no_adaptation']} of the images right"
    yield (
        "docs/images.md",
        f"raise that to {captions['meta_trained']}, after {t.record('captions')['meta_steps']} meta-steps",
    )
    yield "docs/images.md", f"Class means of the untrained image tower get {captions['prototypes']}."
    trained = t.record("trained_classics")
    loss, accuracy = trained["sinusoid"]["loss"], trained["omniglot"]["accuracy"]
    yield "docs/beyond-text.md", f"error of {after(loss, 1)} after one step and {after(loss, 10)} after ten"
    yield "docs/images.md", f"accuracy is {after(accuracy, 3)} after three inner steps, {after(accuracy, 1)} after one"
    policies = trained["navigation"]
    yield (
        "docs/beyond-text.md",
        (
            f"a return of {policies['return']['mean'][0]:.2f} before and {t.interval({k: v[1] for k, v in policies['return'].items()}, 2)} after "
            f"one step, at {policies['meta_steps']} meta-steps."
        ),
    )
    yield "docs/beyond-text.md", f"is at {t.interval(policies['pretrained'], 2)};"
    yield "docs/beyond-text.md", f"better by {t.interval(policies['less_pretrained'], 2)}"
    record = t.record("classics_navigation")
    returns = {name: t.interval(one["return_after_1"], 2) for name, one in record["methods"].items()}
    yield (
        "docs/results.md",
        (
            f"Return after the step: exact MAML {returns['exact']}, first order {returns['first_order']}, a policy pretrained on all goals "
            f"and fine-tuned with the best of seven rates {returns['pretrained']}; of the same goals exact is better than pretrained by "
            f"{t.interval(record['exact_less_pretrained_after_1'], 2)}. Before the step all are at "
            f"{record['methods']['exact']['return_after_0']['mean']:.1f}, and who knows the goal gets "
            f"{record['knows_the_goal']['mean']:.2f}."
        ),
    )


def algorithms(t: Tools) -> Iterator[Sentence]:
    runs = t.record("maml_pp")["runs"]
    by = {name: [runs[f"{name}-{seed}"]["test"]["mean"] for seed in range(3)] for name in ("maml", "maml_pp")}
    both = {name: f"{mean(values):.3f} ({t.listed(values)})" for name, values in by.items()}
    yield "docs/results.md", f"200 steps give {both['maml_pp']}, MAML's 300 {both['maml']}"
    yield (
        "docs/algorithms.md",
        f"({mean(by['maml_pp']):.3f} in 200 meta-steps where MAML's 300 give {mean(by['maml']):.3f}",
    )
    intents = t.record("algorithms_intents")["algorithms"]
    tuned = intents["fine_tune"]["runs"]["0"]["test"]["accuracy"]
    start = f"{mean(t.intents_of('5x1', 'frozen')):.3f}"  # class means of the encoder as it was published
    yield "docs/results.md", f"CLINC150 is at {start} before anything is learnt"
    yield "docs/algorithms.md", f"prototypes of the frozen encoder are at {start} already"
    yield "docs/results.md", f"`fine_tune`, with the best rate, has {t.number(tuned)}, which all beat"


def sampling(t: Tools) -> Iterator[Sentence]:
    record = t.record("sampling")["plain"]
    alone, store = record["one_process"], record["object_store"]["without_copy"]
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
    store = t.record("task_store")
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


def faults(t: Tools) -> Iterator[Sentence]:
    record = t.record("chaos")
    inside, outside = (
        [run for run in record["runs"] if run["faults_from"] == place] for place in ("inside", "outside")
    )
    traces = "none" if not record["with_traces"] else str(record["with_traces"])
    yield "docs/results.md", f"{record['faults']} faults in {len(record['runs'])} runs, {traces} with a trace."
    yield "docs/results.md", f"{sum(run['fired'] for run in inside)} from inside, in a run of 40 meta-steps"
    yield (
        "docs/results.md",
        f"{sum(run['fired'] for run in outside)} from outside, in {len(outside)} runs of 200 meta-steps",
    )
    yield "README.md", f"| [{record['faults']} faults](docs/results.md#faults) | no trace"
    runs = t.record("sampler_kills")["runs"]
    speeds = [f"{runs[name]['tasks_per_s']:.1f}" for name in ("killed", "in peace", "in peace again")]
    yield (
        "docs/results.md",
        (
            f"{speeds[0]} tasks/s ({runs['killed']['kills']} kills), and {speeds[1]} and {speeds[2]} before and after it in peace, "
            f"waiting {runs['killed']['wait_share']:.1%} and {runs['in peace']['wait_share']:.1%} of the time"
        ),
    )


def answers(t: Tools) -> Iterator[Sentence]:
    gpt2, t5 = (t.record("text_to_text")["runs"][name]["meta_test"] for name in ("gpt2", "t5"))
    trained, tuned = (gpt2[method]["exact_match"] for method in ("meta_trained", "fine_tuned"))
    yield "README.md", f"| exact match {t.interval(trained)}, fine-tuned {t.number(tuned)} |"
    f1 = {method: scored["token_f1"] for method, scored in t5.items()}
    perplexity = {method: t.three(scored["perplexity"]["mean"]) for method, scored in t5.items()}
    yield (
        "docs/results.md",
        (
            f"exact match {t.interval(t5['meta_trained']['exact_match'])}, token F1 {t.interval(f1['meta_trained'])}, perplexity "
            f"{t5['meta_trained']['perplexity']['mean']:.1f}; before adaptation {t.number(f1['no_adaptation'])} and "
            f"{perplexity['no_adaptation']}."
        ),
    )
    yield (
        "docs/results.md",
        f"better than pooled training ({perplexity['multi_task']}) and fine-tuning ({perplexity['fine_tuned']})",
    )
    yield "docs/results.md", f"(pooled {t.number(f1['multi_task'])}, fine-tuned {t.number(f1['fine_tuned'])})"
    real = {name: scored["token_f1"] for name, scored in t.record("real_text_instructions")["meta_test"].items()}
    yield (
        "docs/results.md",
        (
            f"token F1 {t.interval(real['meta_trained'])} against {t.interval(real['fine_tuned'])} of the same decoder fine-tuned"
        ),
    )


def real_text(t: Tools) -> Iterator[Sentence]:
    rows = t.record("real_text_sentiment")["every_row"]
    ours, lexical = (f"{rows[method]['all']['recall']:.3f}" for method in ("adapted", "lexical"))
    yield "README.md", f"| macro recall {ours} on all rows; a lexical model of the same domains has {lexical} |"
    whole = t.record("real_text_sentiment_whole")
    length = f"{whole['every_row']['length']['all']['recall']:.3f}"
    yield "docs/results.md", f"told the length and nothing else has a macro recall of {length}"
    yield (
        "docs/results.md",
        (
            f"in which the water heaters count as much as the phones, is {t.interval(whole['meta_test']['meta_trained']['recall'])}."
        ),
    )
    plain = t.record("real_text_sentiment_train_whole")["every_row"]["no_adaptation"]
    over = mean(scores["recall"] for place, scores in plain.items() if place != "all")
    yield "docs/results.md", f"without adaptation {over:.3f} is the mean over the two domains"
    both, short = (t.record(f"real_text_{name}")["meta_test"] for name in ("sentiment", "sentiment_60"))
    curve, after = both["meta_trained"]["accuracy"]["curve"], both["meta_trained"]["accuracy"]
    yield "docs/results.md", f"{curve[0]:.3f} -> {after['mean']:.3f} by episodes"
    sixty, plain = (short[method]["accuracy"] for method in ("meta_trained", "no_adaptation"))
    yield (
        "docs/algorithms.md",
        (
            f"60 meta-steps give {t.interval(sixty)} and the same model without adaptation {t.interval(plain)}; 120 give "
            f"{t.interval(after)} and {curve[0]:.3f} without"
        ),
    )


def intents(t: Tools) -> Iterator[Sentence]:
    ours, frozen = (t.intents_of("5x1", method) for method in ("meta_trained", "frozen"))
    better = f"{sum(a > b for a, b in zip(ours, frozen))} of {len(ours)}"
    yield "README.md", f"| {mean(ours):.3f}, the frozen encoder {mean(frozen):.3f}, better in {better} |"
    recipe = t.record("real_text_intents")["meta_test"]["meta_trained"]["accuracy"]
    yield "docs/results.md", f"comes to {t.interval(recipe)} on 100 episodes of split 01."
    yield "docs/algorithms.md", f"meta-training reaches {t.interval(recipe)} on 100 episodes"
    yield (
        "docs/algorithms.md",
        f"has {mean(ours):.3f} where the frozen encoder has {mean(frozen):.3f}, over five class splits",
    )


def documents(t: Tools) -> Iterator[Sentence]:
    ledgers = t.record("documents_builtin")["evaluation"]
    yield (
        "README.md",
        (
            f"| a loss of {t.interval(ledgers['meta_trained']['loss'])} a token, without steps "
            f"{t.number(ledgers['meta_trained_no_steps']['loss'])} |"
        ),
    )
    runs = t.record("documents")
    apart = {
        name: f"{of['mean']:+.3f} [{of['low']:+.3f}, {of['high']:+.3f}]" for name, of in runs["differences"].items()
    }
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
    large = t.record("documents_pretrained")
    less = next(run["less_naive"] for run in large["runs"] if run["algorithm"] == "maml")
    yield "docs/documents.md", f"less `naive` is {less['mean']:+.3f} [{less['low']:+.3f}, {less['high']:+.3f}]"
    orders = large["differences"]["maml less fomaml_as_many_steps"]
    yield (
        "docs/documents.md",
        f"first order is {orders['mean']:+.4f} [{orders['low']:+.4f}, {orders['high']:+.4f}]",
    )
    share = t.record("influence")["cpu_of_a_meta_gradient"]
    yield "docs/explain.md", f"it costs {share:.2f} of one exact meta-gradient"
    whole = t.record("llm_train")
    accuracy = {name: t.interval(of["accuracy"]) for name, of in whole["evaluation"].items()}
    yield (
        "docs/llm.md",
        (
            f"trained for {whole['seconds']['to_the_end_of_training']} s and had its first scores after "
            f"{whole['seconds']['with_100_test_episodes']} s: {accuracy['meta_trained']} on 100 episodes"
        ),
    )
    yield "docs/llm.md", f"the model as it comes has {accuracy['base_in_context']}."
    twenty = t.record("letters_20way")["one_shot"]
    yield (
        "docs/llm.md",
        (
            f"At 20 ways and one shot it has {t.interval(twenty['meta_trained']['accuracy'])}, the model as it comes "
            f"{t.number(twenty['base_in_context']['accuracy'])}"
        ),
    )


def letters(t: Tools) -> Iterator[Sentence]:
    record = t.record("letters")
    one, five = (mean(run["by_shots"][n]["mean"] for run in record["runs"].values()) for n in (0, 4))
    base = [t.number(record["base"][n]) for n in (0, 4)]
    yield "README.md", f"| {one:.3f} and {five:.3f} (means of three seeds); as it comes {base[0]} and {base[1]} |"


def serving(t: Tools) -> Iterator[Sentence]:
    record = t.record("serving")
    load, together = record["load"], record["adapting_to_all_tasks"]
    speed = f"{load['predict']['predictions_per_s']:.0f} predictions"
    yield "README.md", f"| {speed} and {load['adapt']['tasks_per_s']:.1f} new tasks a second |"
    yield "docs/serving.md", f"{together['tasks_per_s']:.0f} tasks"
    latency = [f"{load['predict'][key] / 1000:.1f} s" for key in ("p50_ms", "p90_ms", "p99_ms")]
    yield (
        "docs/serving.md",
        (
            f"then {load['predict']['requests_per_s']:.0f} requests ({speed}) and {load['adapt']['tasks_per_s']:.1f} new tasks a "
            f"second, no errors, {record['mean_batch']['predict']:.0f} requests a batch, latency {latency[0]} at the median, "
            f"{latency[1]} at p90, {latency[2]} at p99."
        ),
    )


def search(t: Tools) -> Iterator[Sentence]:
    record = t.record("search")
    factor, share = f"{record['factor']:.2f}", f"{record['share_of_meta_steps']:.2f}"
    asha, grid = (record[name] for name in ("asha", "grid"))
    yield (
        "docs/search.md",
        f"`inner.lr` {record['found_inner_lr']:.3f} (meta-validation accuracy {asha['best']['value']:.3f})",
    )
    yield (
        "docs/search.md",
        f"{record['grid_best_inner_lr']:.3f} ({grid['best']['value']:.3f}): a factor of {factor} apart.",
    )
    yield (
        "docs/search.md",
        f"ASHA spent {asha['meta_steps']:,} meta-steps, {share} of the grid's {grid['meta_steps']:,}",
    )
    for name, metric in (("intents", "accuracy"), ("sentiment", "recall")):
        scores = [t.record(f"search_{name}")["meta_test"][by][metric] for by in ("tuned", "defaults")]
        yield "docs/search.md", f"{t.interval(scores[0])} and {t.interval(scores[1])}"
    early = t.record("search_sentiment_early")["meta_test"]["tuned"]["recall"]
    yield "docs/search.md", f"meta-test {t.interval(early)}"


def features(t: Tools) -> Iterator[Sentence]:
    runs = t.record("subgroups")["runs"]
    with_it, without = (
        t.listed(run["accuracy:dialect"]["mean"] for run in runs if run["way"] == way)
        for way in ("worst_subgroup", "plain")
    )
    yield "docs/features.md", f"accuracy is {with_it} with it and {without} without"
    gains = t.record("augmentation")["compared"]
    change = {name: f"{g['gain']:+.3f} [{g['low']:.3f}, {g['high']:.3f}]" for name, g in gains.items()}
    yield (
        "docs/features.md",
        (
            f"change of accuracy from {gains['none']['accuracy']:.3f} with a 95% interval over seeds): swaps {change['word_swap']}, "
            f"mixing {change['mix']}, dropout {change['token_dropout']} are no more than chance; permuted labels "
            f"{change['permute_labels']} and resplits {change['resplit']} were worse with every seed."
        ),
    )
    runs = t.record("privacy")["runs"]
    score = {noise: t.number(run["accuracy"]) for noise, run in runs.items()}
    epsilon = {noise: run.get("privacy_epsilon", 0.0) for noise, run in runs.items()}
    yield (
        "docs/features.md",
        (
            f"accuracy {score['none']} without noise, {score['0.1']} with noise 0.1 (epsilon {epsilon['0.1']:,.0f}, no guarantee), "
            f"{score['1']} with 1 ({epsilon['1']:.0f}), {score['4']} with 4 ({epsilon['4']:.1f})."
        ),
    )
