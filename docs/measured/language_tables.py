"""Tables of pretrained language models."""

from __future__ import annotations

from statistics import mean

from measured.reading import half, interval, number, record, signed, table


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


INSTRUCTIONS_ROWS = {
    "base_zero_shot": "the model as it comes, without examples",
    "base_in_context": "the model as it comes reads the examples",
    "fine_tuned": "the model as it comes, fine-tuned on them as is best on validation tasks",
    "in_context, seed 0": "`in_context`, 200 meta-steps",
    "in_context, seed 1": "`in_context`, seed 1",
    "in_context, seed 2": "`in_context`, seed 2",
    "fomaml, seed 0": "`fomaml`, 200 meta-steps",
    "reptile, seed 0": "`reptile`, 200 meta-steps",
    "multi_task, seed 0": "`multi_task`, 200 meta-steps",
    "maml, seed 0": "`maml`, 200 meta-steps",
}


def instructions() -> str:
    found = record("instructions")["summary"]
    rows = []
    for name, about in INSTRUCTIONS_ROWS.items():
        if name in found:
            of = found[name]
            less = of.get("token_f1 less base_in_context")
            paired = signed(less) if less else ""
            rows.append([
                about, str(of["token_f1"]["tasks"]), interval(of["token_f1"]), number(of["exact_match"]),
                number(of["loss"]), paired,
            ])  # fmt: skip
    header = ["SmolLM2-135M-Instruct", "tasks", "token F1", "exact match", "loss"]
    return table([*header, "F1 less the second row's, paired, over tasks"], rows)
