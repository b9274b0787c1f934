"""Methods side by side: curves, baselines, divided over ranks."""

import json
import sys

import numpy as np
import pytest
import small
import torch
from evaluated import Setting, assert_near

from distmeta.evaluation.fine_tuning import candidates, effort_of
from distmeta.evaluation.pooled import train_pooled
from distmeta.evaluation.scoring import (
    WORST_LOSS,
)
from distmeta.learner.worker import learn
from distmeta.runs import checkpoint
from distmeta.tasks.episodes.episode import sample_episode

CPU = torch.device("cpu")


def test_evaluation_has_the_design_s_shape(words_csv, tmp_path):
    setting = Setting(words_csv, inner={"steps": 3}, outer={"steps": 2})
    found = setting.methods()
    assert list(found.methods) == ["meta_trained", "no_adaptation", "fine_tuned", "multi_task", "prototypes"]
    for name, scores in found.methods.items():
        assert set(scores) == {"accuracy", "precision", "recall", "f1", "loss", "ece"}
        steps = {"meta_trained": 3}.get(name, 0)  # of the curve
        for score in scores.values():
            assert set(score) == {"mean", "low", "high", "episodes", "curve"}
            assert score["low"] <= score["mean"] <= score["high"] and score["episodes"] == 8
            assert len(score["curve"]) == steps + 1 and score["curve"][-1] == pytest.approx(score["mean"])
    assert found.methods["no_adaptation"]["accuracy"]["mean"] == found.methods["meta_trained"]["accuracy"]["curve"][0]
    assert set(found.details["meta_trained"]["per_class"]) == {"yes", "no"}
    assert np.sum(found.details["meta_trained"]["confusion"]["rows_are_labels"]) == 8 * 2 * 4
    assert found.details["meta_trained"]["diverged"] == 0
    assert list(found.details["differences"]) == list(found.methods)[1:]
    for name, less in found.details["differences"].items():
        ours, theirs = (found.methods[method]["accuracy"]["mean"] for method in ("meta_trained", name))
        assert less["accuracy"]["mean"] == pytest.approx(ours - theirs) and less["accuracy"]["tasks"] == 2
    examples = found.details["meta_trained"]["examples"]
    lines = words_csv.read_text().splitlines()
    assert examples and all(f"{one['text']},{one['label']},{one['task']}" in lines for one in examples)
    found.save(tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == found.methods
    assert list(setting.methods(eval={"baselines": False}).methods) == ["meta_trained"]


@pytest.mark.parametrize("learnt", ["none", "per_step"])
def test_a_curve_s_point_k_is_evaluating_with_k_steps(learnt, words_csv):
    setting = Setting(words_csv, inner={"steps": 3, "learn_lr": learnt})
    whole = setting.methods(eval={"baselines": False}).methods["meta_trained"]
    for k in (0, 1, 2):
        found = setting.methods(eval={"baselines": False, "steps": k}).methods["meta_trained"]
        for name, score in found.items():
            assert score["mean"] == pytest.approx(whole[name]["curve"][k], abs=1e-7)
    longer = setting.methods(eval={"baselines": False, "steps": 5}).methods["meta_trained"]
    assert longer["loss"]["curve"][:4] == pytest.approx(whole["loss"]["curve"], abs=1e-6)


def test_divided_over_ranks_is_one_process(words_csv):
    setting = Setting(words_csv, outer={"steps": 2})
    whole = setting.methods(eval={"episodes": 5})
    world = 2
    # Each rank runs once to tell its parts, then once more with everybody's: what a collective would do.
    told = {rank: [] for rank in range(world)}
    for rank in range(world):
        setting.methods(eval={"episodes": 5}, rank=rank, world=world,
                        gather=lambda mine, rank=rank: told[rank].append(mine) or mine)  # fmt: skip
    assert [len(parts[0]) for parts in told.values()] == [2, 3]
    assert len({len(parts) for parts in told.values()}) == 1
    for rank in range(world):
        calls = iter(range(len(told[0])))
        found = setting.methods(
            eval={"episodes": 5}, rank=rank, world=world,
            gather=lambda mine, calls=calls: (lambda i: [s for r in range(world) for s in told[r][i]])(next(calls)),
        )  # fmt: skip
        for method in ("meta_trained", "no_adaptation", "prototypes"):
            for name, score in whole.methods[method].items():
                assert_near(found.methods[method][name], score, 1e-5)


def test_an_episode_that_diverges_counts_as_wrong_and_ends_nothing(words_csv):
    """By a rate that sends every loop out of the finite numbers, meta-trained and baselines alike."""
    setting = Setting(words_csv, inner={"lr": 1e20, "steps": 3}, outer={"steps": 2})
    said = []
    found = setting.methods(said.append)
    ours = found.methods["meta_trained"]
    assert ours["accuracy"]["mean"] == 0 and ours["accuracy"]["curve"][0] > 0
    assert ours["loss"]["mean"] == pytest.approx(WORST_LOSS)
    assert found.details["meta_trained"]["diverged"] == 8
    assert found.methods["prototypes"]["accuracy"]["mean"] > 0
    assert any("diverged in 8 of 8 episodes" in line for line in said)
    json.loads(json.dumps(found.methods, allow_nan=False))


@pytest.mark.parametrize("split", ["test", "validation"])
def test_the_rate_of_a_baseline_is_chosen_on_other_tasks_than_it_is_scored_on(split, words_csv, monkeypatch):
    setting, drawn = Setting(words_csv, outer={"steps": 2}), []
    sample = sample_episode
    module = sys.modules["distmeta.evaluation.baselines"]
    monkeypatch.setattr(module, "sample_episode", lambda *a: drawn.append(a[3]) or sample(*a))
    found = setting.methods(split=split)
    other = {"test": "validation", "validation": "train"}[split]
    assert found.details["fine_tuned"]["chosen_on"] == found.details["multi_task"]["chosen_on"] == other
    assert drawn[:8] == [split] * 8 and set(drawn[8:]) == {other}


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_pooled_baseline_is_a_run_of_multi_task(schedule, words_csv, one_rank, tmp_path):
    """Without clipping, which a run has and the baseline has not."""
    outer = {"steps": 6, "schedule": schedule, "warmup_steps": 2, "weight_decay": 0.1, "eps": 1e-2}
    setting = Setting(
        words_csv, algorithm="multi_task", outer=outer, run={"checkpoint_every": 6}, eval={"baselines": False},
        deepspeed={"zero_optimization": {"stage": 1}, "gradient_clipping": 0.0},
    )  # fmt: skip
    learn(setting.config, tmp_path, setting.store.path, [], 0, 1, CPU)
    run = checkpoint.load(tmp_path).meta
    fast, shared = train_pooled(setting.model, setting.store, setting.config, CPU)
    for name, value in {**fast, **shared}.items():
        assert float((run[name] - value).abs().max()) < 1e-5, name
    assert max(float((run[name] - value).abs().max()) for name, value in setting.meta.items()) > 1e-2


def curve_at(setting, fast, optimizer, lr, steps, episodes):
    """Mean loss and accuracy of one loop, by a run of its own."""
    from distmeta.evaluation.scoring import Scoring, score_episodes, summarise
    from distmeta.inner import InnerLoop

    loop = InnerLoop(steps=steps, lr=lr, optimizer=optimizer)
    scoring = Scoring(setting.model, fast, setting.model.shared, loop, setting.config, setting.store.pad_id, CPU)
    found = summarise(score_episodes(scoring, episodes, curve=False))
    return found["accuracy"]["mean"], -found["loss"]["mean"]


def test_fine_tuning_takes_the_best_optimizer_rate_and_steps_of_other_tasks(words_csv):
    """At a rate of the recipe's that does nothing. Each number of steps is what a run of so many would have reached."""
    setting = Setting(words_csv, inner={"lr": 1e-4, "steps": 3}, outer={"steps": 80})
    told = setting.methods().details["fine_tuned"]
    assert told["optimizer"] == "adam" and told["lr"] > 1e-3 and told["chosen_on"] == "validation"
    tried = {(one["optimizer"], round(one["lr"], 6)): one for one in told["tried"]}
    assert len(tried) == 5 and len({one["episodes"] for one in tried.values()}) == 2
    chosen = tried["adam", round(told["lr"], 6)]
    assert (chosen["steps"], chosen["episodes"]) == (told["steps"], told["episodes"])
    validation = [
        sample_episode(setting.store, setting.config.task, 0, "validation", i) for i in range(chosen["episodes"])
    ]
    some = {1, 5, told["steps"], 12}
    at = {n: curve_at(setting, setting.model.fast, "adam", told["lr"], n, validation) for n in some}
    assert max(at, key=at.__getitem__) == told["steps"] and told["most_steps"] == 12
    assert at[told["steps"]] == pytest.approx((chosen["accuracy"], -chosen["loss"]), abs=1e-5)
    finalists = [one for one in told["tried"] if one["episodes"] == chosen["episodes"]]
    assert max((one["accuracy"], -one["loss"]) for one in finalists) == (chosen["accuracy"], -chosen["loss"])


@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "in_context"])
@pytest.mark.parametrize("episodes", [8, 60, 600])
@pytest.mark.parametrize("meta_steps", [20, 300, 4000])
def test_fine_tuning_costs_no_more_than_the_training(algorithm, episodes, meta_steps, words_csv):
    """In examples whose gradient is taken: of two baselines, each with its choice among five and two more rounds."""
    kind, inner = ("gpt2", {"steps": 0}) if algorithm == "in_context" else ("bert", {"steps": 4})
    given = {"algorithm": algorithm, "inner": inner, "outer": {"steps": meta_steps}, "eval": {"episodes": episodes}}
    config = small.config(words_csv, kind, **given)
    effort, inner = effort_of(config, config.inner.steps), config.inner.steps
    training = meta_steps * 4 * {"maml": 3 * inner * 3 + 4, "fomaml": inner * 3 + 4, "in_context": 3 + 4}[algorithm]
    chosen, scored = 9 * effort.episodes * effort.steps * 3, episodes * effort.steps * 3
    assert 2 * chosen <= training / 3 or effort.episodes == 2
    assert 2 * scored <= training * 2 / 3 or effort.steps == max(inner, 3)
    assert max(inner, 3) <= effort.steps <= 4 * max(inner, 3) and 2 <= effort.episodes <= 8
    if (episodes, meta_steps) == (8, 4000):
        assert (effort.steps, effort.episodes) == (4 * max(inner, 3), 8)


@pytest.mark.parametrize(
    ("inner", "adam"),
    [
        ({"adapt": "lora"}, [1e-3, 5e-3]),  # also where the outer loop trains the base, which fine-tuning does not
        ({"adapt": "all"}, [1e-4, 5e-4]),
        ({"adapt": "lora", "optimizer": "adam", "lr": 1e-3}, [3e-4, 1e-3, 3e-3, 5e-3]),
    ],
)
def test_adam_is_tried_at_rates_that_suit_what_is_fine_tuned(inner, adam):
    config = small.config(model={"pretrained": "gpt2"}, inner={"lr": 0.1, **inner}, outer={"base": "train"})
    loops = candidates(config, 7)
    assert [loop.lr for loop in loops if loop.optimizer == "adam"] == pytest.approx(adam)
    others = [loop.lr for loop in loops if loop.optimizer == "sgd"]
    assert others == pytest.approx([] if inner.get("optimizer") else [0.03, 0.1, 0.3])
    assert all(loop.steps == 7 for loop in loops)
