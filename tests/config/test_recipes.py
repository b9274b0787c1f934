"""Every recipe runs; the default one, whole, as a newcomer runs it, does what it is there to show."""

import json

import pytest
import small
import torch

import distmeta
from distmeta.config import RECIPES, load_config, recipe_names
from distmeta.config.algorithms import ALGORITHMS
from distmeta.drive.cluster import ray_cluster
from distmeta.drive.train import prepare_store
from distmeta.learner.worker import learn
from distmeta.models.build import build_model

# What each recipe needs of its user, and what makes it short.
DATA = {
    "intents": "classes",
    "llm": "classes",
    "sentiment": "domains",
    "instructions": "questions",
}  # all others: the built-in reviews
SHORT = [
    "outer.steps=2", "outer.warmup_steps=0", "outer.meta_batch_size=2", "eval.episodes=4", "eval.validation_episodes=2",
    "eval.baselines=false", "cluster.workers=1", "sampling.actors=1", "model.max_tokens=16", "model.answer_tokens=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def classes_csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "classes.csv"
    rows = [f"please do thing{c} number {i % 7} now,class{c}" for c in range(18) for i in range(12)]
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return path


def shortened(name, words_csv, classes_csv):
    """The recipe's configuration with what its user gives, and little of everything."""
    kind = DATA.get(name, "built-in")
    data = {"classes": [f"data.path={classes_csv}"], "domains": [f"data.path={words_csv}"]}.get(kind, [])
    fits = {
        "classes": ["data.fractions=[0.34,0.33,0.33]"],
        "domains": ["task.shots=2", "task.queries=3"],
        # The recipe asks for a pretrained decoder; a new one runs as well.
        "questions": ["model.architecture=gpt2", "model.config={n_embd: 16, n_layer: 1, n_head: 2}"],
    }
    if name == "documents":
        return load_config(name, [*(s for s in SHORT if "tokens" not in s), "task.chunk_tokens=8", "task.chunks=3"])
    if name in ("omniglot", "captions"):  # of small images, quicker to draw
        return load_config(name, [*(s for s in SHORT if "tokens" not in s), "model.image=[1,12,12]", "task.queries=2"])
    decoder = [f"model.pretrained={small.decoder(classes_csv.parent / 'decoder')}"] if name == "llm" else []
    room = ["model.max_tokens=30"] if name == "llm" else []  # a prompt is written around the text
    return load_config(name, [*data, *fits.get(kind, []), *SHORT, *decoder, *room])


@pytest.mark.long
def test_a_recipe_runs_under_ray(words_csv, tmp_path):
    config = shortened("sentiment", words_csv, None)
    config = config.model_copy(update={"run": config.run.model_copy(update={"dir": str(tmp_path / "run")})})
    with ray_cluster(small.config(sampling={"actors": 1}, cluster={"workers": 1})):
        run = distmeta.train(config)
    assert [record["step"] for record in run.metrics] == [1, 2]
    assert run.evaluation["meta_trained"]["accuracy"]["episodes"] == 4


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("name", [name for name in recipe_names() if name not in ALGORITHMS])
def test_every_recipe_runs(name, words_csv, classes_csv, tmp_path):
    """In this process, which is quicker."""
    config = shortened(name, words_csv, classes_csv)
    learn(config, tmp_path, prepare_store(config), [], 0, 1, torch.device("cpu"))
    assert [r["step"] for r in small.records(tmp_path)] == [1, 2]
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["meta_trained"]["loss"]["episodes"] == 4


@pytest.mark.long
@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_has_a_recipe_that_runs(name, tmp_path):
    """On its recipe's own data; test_algorithms_runs.py trains each on less, in the set that is always run."""
    config = load_config(name, [word for word in SHORT if name != "fine_tune" or not word.startswith("outer.steps")])
    assert config.algorithm == name
    learn(config, tmp_path, prepare_store(config), [], 0, 1, torch.device("cpu"))
    assert [r["step"] for r in small.records(tmp_path)] == list(range(1, config.outer.steps + 1))


@pytest.mark.parametrize("name", [name for name in recipe_names() if name not in ("instructions", "llm")])
def test_the_model_of_a_recipe_holds_what_the_recipe_reads(name):
    """At the recipe's own sizes, which the runs above cut: a context head's support set fits into its positions."""
    config = load_config(name)
    model = build_model(config, vocab_size=100, pad_id=0, classes=config.ways or 3)
    assert model.fast or config.inner.steps == 0


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_says_what_it_is_for(name):
    first = (RECIPES / f"{name}.yaml").read_text().split("\n", 1)[0]
    assert first.startswith("# ") and len(first) < 120
    assert load_config(name).run.name == name


@pytest.mark.usefixtures("one_rank")
def test_the_default_run_learns_to_adapt(tmp_path):
    """What `distmeta train` does, cut short and in this process: its inner steps raise the scores far."""
    words = ["outer.steps=50", "eval.episodes=60", "eval.baselines=false"]
    config = load_config("default", words)
    assert config.cluster.workers == 2 and config.sampling.actors >= 2
    learn(config, tmp_path, prepare_store(config), [], 0, 1, torch.device("cpu"))
    ours = json.loads((tmp_path / "evaluation.json").read_text())["meta_trained"]["accuracy"]
    assert ours["episodes"] == 60 and ours["low"] > 1 / 3 + 0.2 and ours["curve"][-1] > ours["curve"][0] + 0.2


@pytest.mark.long
def test_the_default_run_shows_that_meta_training_helps(tmp_path):
    """An interval above that of every baseline."""
    methods = default_run(tmp_path, "outer.steps=60", "eval.episodes=200")
    ours = methods["meta_trained"]["accuracy"]
    for name in ("no_adaptation", "fine_tuned", "multi_task", "prototypes"):
        assert ours["low"] > methods[name]["accuracy"]["high"], name


def default_run(place, *words):
    """The evaluation of the recipe `default`."""
    done = small.cli("train", *words, "--json", cwd=place, timeout=560)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)["evaluation"]
