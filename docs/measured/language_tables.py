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
    "fine_tuned": "the model as it comes, fine-tuned on them (settings chosen on validation tasks)",
    "fomaml, not meta-trained": "the model as it comes, after the four steps that `fomaml` takes",
}


def instructions() -> str:
    return instruction_rows("instructions", "SmolLM2-135M-Instruct")


def natural_instructions() -> str:
    return instruction_rows("natural_instructions", "SmolLM2-135M-Instruct, CosmosQA and QASC")


def instruction_rows(name: str, model: str) -> str:
    found = record(name)
    rows = []
    names = {**INSTRUCTIONS_ROWS, **{
        row: "`{}`, {steps} meta-steps,{}".format(*row.split(","), steps=of["meta_steps"])
        for row, of in found["methods"].items()
    }}  # fmt: skip
    names |= {
        row: f"`{row.split(',')[0]}`, mean of both" for row in found["summary"] if row.endswith("mean of 2 seeds")
    }
    for row, about in names.items():
        if row not in found["summary"]:
            continue
        of = found["summary"][row]
        less = (of.get(f"token_f1 less {other}") for other in ("base_in_context", "fine_tuned"))
        rows.append([
            about, interval(of["token_f1"]), number(of["exact_match"]), number(of["loss"]),
            *(signed(one) if one else "" for one in less),
        ])  # fmt: skip
    header = [model, "token F1", "exact match", "loss", "F1 less the second row's", "F1 less the third row's"]
    return table(header, rows)
