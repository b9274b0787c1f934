"""`distmeta adapt` and `distmeta predict`: a new task from a few labelled examples, and its predictions.

An adapted model is a directory like a checkpoint: safetensors, JSON and a manifest, nothing that can run code.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmeta.config import Config, dump_config
from distmeta.config.modules import check_trusted
from distmeta.errors import InputError
from distmeta.evaluation import documents
from distmeta.evaluation.adaptable import Adaptable, fit, name_any, newest, on_device, read_tokens, without_pooled
from distmeta.evaluation.scoring import split_meta
from distmeta.evaluation.soft_means import soft_k_means
from distmeta.evaluation.support import Support, of_words, read_support, tokenise
from distmeta.evaluation.texts import choose, write
from distmeta.models.backbone import set_attention
from distmeta.models.batch import TextBatch
from distmeta.models.build import build_model, check_format
from distmeta.models.compression import restore
from distmeta.models.language import LanguageModel
from distmeta.models.policy import PolicyModel
from distmeta.models.regression import RegressionModel
from distmeta.models.task_model import TaskModel
from distmeta.runs import checkpoint as checkpoints
from distmeta.tasks import counts, regression
from distmeta.tasks.episodes.collate import collate
from distmeta.tasks.records import Record
from distmeta.tasks.texts import fault
from distmeta.tasks.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH_ROWS = 256


@dataclass(frozen=True)
class AdaptedModel:
    """A model adapted to one task."""

    config: Config
    labels: list[str]
    model: TaskModel
    params: dict[str, Tensor]  # everything that differs from the base, head included
    tokenizer_file: Path
    state: dict[str, Any]
    inner_losses: list[float]  # support loss after 0..K inner steps; none of answers that are learnt in context alone
    warnings: tuple[str, ...] = ()  # of the support set and of what adaptation came to, a line each

    def __repr__(self) -> str:
        what = ", ".join(self.labels) or ("a text" if self.reads_documents else "answers in words")
        return f"AdaptedModel({what}{losses_in_words(self.inner_losses, '; ')})"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.tokenizer_file)

    @property
    def text_column(self) -> str:
        """The column that inputs to predict are in."""
        data = self.config.data
        return data.input if self.config.task.family in ("text_to_text", "regression", "policy") else data.text

    @property
    def reads_documents(self) -> bool:
        """Whether it has read a text, and not learnt a task from examples."""
        return self.config.task.family == "document"

    def unknown(self, texts: Sequence[str]) -> str:
        """One line where many words of the texts are not in the vocabulary; else empty."""
        if self.config.model.is_array:
            return ""
        lost = counts.Counts()
        lost.add(self.tokenizer.encode_batch_fast(list(texts)), counts.unknown_id(self.tokenizer))
        many = lost.unknown > counts.WORTH_SAYING * lost.tokens
        return counts.unknown_words(asdict(lost)) + ", and count as one word" if many else ""

    def predict(self, texts: Sequence[Any], refine: int = 0) -> list[dict[str, Any]]:
        """For each text {"label": ..., "confidence": p, "probabilities": {label: p}}, in order.

        Family text_to_text: {"text": the answer, "confidence": p}, p of the answer among the task's options, or where
        it has none the geometric mean of its tokens' probabilities. Family document: {"loss": nats per token,
        "perplexity": ..., "tokens": how many} of a text that follows what was read. Raises InputError for what is no
        text, or empty. Images (model.image) may be data URIs, bytes of a PNG or JPEG file, pathlib.Path or arrays.
        Family regression: {"target": [numbers]} of inputs that are numbers, lists of numbers, or JSON of these; family
        policy: {"action": [numbers]}, the mean action at an observation, or {"action": the likeliest one's number}.

        refine: rounds of soft k-means, in which class means (algorithm=prototypes) move to the texts; what a text is
        called then depends on the others.
        """
        if refine:
            return predictions(self._refined(texts, refine), self.labels)
        if self.config.model.dimensions is not None:
            return self._regress(texts, *self.config.model.dimensions)
        self.check(texts)
        if self.config.task.family == "text_to_text":
            assert isinstance(self.model, LanguageModel)
            return self._answer(self.model, texts)
        if self.reads_documents:
            assert isinstance(self.model, LanguageModel)
            place, pad_id = documents.place_of(self.state), int(self.state["pad_id"])
            each = [documents.tokens_of(self.tokenizer, text) for text in texts]
            return [documents.score(self.model, self.params, place, t, self.config, pad_id) for t in each]
        return predictions(self.scores(texts)[0], self.labels)

    def check(self, texts: Sequence[Any]) -> None:
        """Raises InputError for what is no text, or empty."""
        for number, text in enumerate(texts if self.config.model.image is None else ()):
            if reason := fault(text):
                raise InputError(f"text {number} {reason}")

    def scores(self, texts: Sequence[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The logits of the task's labels, [n, C]; and the highest score of each text, [n].

        It is the largest logit; of a prototype head the distance to the nearest class, squared, scaled and negated.
        """
        logits = np.zeros((len(texts), len(self.labels)), np.float32)
        highest = np.zeros(len(texts), np.float32)
        for place, batch in self._batches(texts):
            logits[place], highest[place] = (value.float().cpu().numpy() for value in self._scores(batch))
        return logits, highest

    @torch.no_grad()
    def _refined(self, texts: Sequence[Any], rounds: int) -> NDArray[np.float32]:
        """As the first of `scores`, by class means that have moved to the texts. Raises InputError."""
        check_refined(self)
        if not len(texts):
            return np.zeros((0, len(self.labels)), np.float32)
        self.check(texts)
        head, scale = self.params["head_weight"], self.params["head_log_scale"].exp()
        x = torch.empty(len(texts), head.shape[-1], device=head.device)
        for place, batch in self._batches(texts):
            x[place] = self.model.features(self.params, batch)[0]
        count = len(self.labels)
        number = {label: i for i, label in enumerate(self.labels)}
        labels = torch.tensor([number[example["label"]] for example in self.state["examples"]], device=x.device)
        counts = labels.bincount(minlength=count).to(x.dtype)
        sums = head.view(-1, head.shape[-1])[:count] / (2 * scale) * counts.unsqueeze(1)
        *_, scores = soft_k_means(x, sums, counts, float(scale), rounds)
        return scores.cpu().numpy()

    def _batches(self, texts: Sequence[Any]) -> Iterator[tuple[Any, TextBatch]]:
        """The texts in batches, and the places [n] in `texts` that the rows of each are of."""
        device = next(iter(self.params.values())).device
        for start in range(0, len(texts), BATCH_ROWS):
            part = texts[start : start + BATCH_ROWS]
            rows = tokenise(self.tokenizer, part, [0] * len(part), self.config)
            batches = collate([rows], 0, int(self.state["pad_id"]))
            for numbers, batch in zip(batches, self.model.batches(batches, device), strict=True):
                yield start + numbers["rows"][0], batch

    @torch.no_grad()
    def _scores(self, batch: TextBatch) -> tuple[Tensor, Tensor]:
        if not self.model.prototype_head:
            logits = self.model.logits(self.params, batch)[0, :, : len(self.labels)]
            return logits, logits.amax(-1)
        x = self.model.features(self.params, batch)
        logits = self.model.head_scores(self.params, x)[0, :, : len(self.labels)]
        # A prototype head leaves the length of the features out, which is the same for all classes.
        return logits, logits.amax(-1) - self.params["head_log_scale"].exp() * x[0].pow(2).sum(-1)

    def continue_text(self, text: str, most: int) -> str:
        """What comes after the text that was read and `text`, at most `most` tokens. Raises InputError."""
        if not self.reads_documents:
            raise InputError(
                "only a model that has read a document continues it; this one answers: leave --continue out"
            )
        assert isinstance(self.model, LanguageModel)
        ids, place = documents.tokens_of(self.tokenizer, text), documents.place_of(self.state)
        return documents.continued(self.model, self.params, place, ids, self.config, most, self.tokenizer)

    def _regress(self, inputs: Sequence[Any], size: int, outputs: int) -> list[dict[str, Any]]:
        read = [regression.vector(x, size, f"input {number}") for number, x in enumerate(inputs)]
        texts = [regression.line(x, [0.0] * outputs) for x in read]
        rows = tokenise(self.tokenizer, texts, [0] * len(texts), self.config)
        device = next(iter(self.params.values())).device
        with torch.no_grad():
            (batch,) = self.model.batches(collate([rows], 1, 0), device)
            assert isinstance(self.model, RegressionModel)
            numbers = self.model.answers(self.params, batch)[0].tolist()
        if not isinstance(self.model, PolicyModel):
            return [{"target": row} for row in numbers]
        return [{"action": row[0] if self.model.environment.discrete else row} for row in numbers]

    def _answer(self, model: LanguageModel, texts: Sequence[str]) -> list[dict[str, Any]]:
        tokenizer, config, task = self.tokenizer, self.config, self.state["answers"]
        records = [Record(text, ("",), tuple(task["options"]), task["instruction"]) for text in texts]
        out: list[tuple[str, float]] = []
        for start in range(0, len(records), BATCH_ROWS):
            part = records[start : start + BATCH_ROWS]
            if task["options"]:
                out += choose(model, self.params, part, tokenizer, config)
            else:
                out += write(model, self.params, part, tokenizer, config)
        return [{"text": text, "confidence": round(confidence, 6)} for text, confidence in out]

    def save(self, path: str | Path) -> Path:
        """Write the adapted model to a new directory. Raises InputError if something is there already."""
        from safetensors.torch import save_file

        path = Path(path)
        check_new(path)

        def fill(draft: Path) -> None:
            params = {name: value.cpu().contiguous() for name, value in self.params.items()}
            save_file(params, draft / "adapted.safetensors")
            about = {**self.state, "labels": self.labels, "inner_losses": self.inner_losses}
            (draft / "adapted.json").write_text(json.dumps(about, indent=1, ensure_ascii=False), encoding="utf-8")
            (draft / "config.yaml").write_text(dump_config(self.config), encoding="utf-8")
            checkpoints.copy_tokenizer(self.tokenizer_file, draft)
            base = self.tokenizer_file.parent / "base.safetensors"
            if base.is_file():  # of a compressed checkpoint, or of a model that was adapted from one
                shutil.copyfile(base, draft / base.name)

        checkpoints.write_directory(path, fill)
        return path


def check_refined(adapted: AdaptedModel) -> None:
    """Raises InputError unless the model does nothing but take class means of examples that it has kept."""
    steps = max(len(adapted.inner_losses) - 1, 0)
    if not adapted.model.prototype_head or steps or adapted.model.reads_sets:
        raise InputError(
            "refine moves class means, and this model has other parts that adapt or look at all texts together: leave "
            "it out, or adapt a run of algorithm=prototypes"
        )
    if "examples" not in adapted.state:
        raise InputError("this model was adapted by an earlier distmeta, which kept no examples; adapt it again")


def losses_in_words(losses: Sequence[float], before: str) -> str:
    """The support loss after 0..K inner steps; nothing of a support set that is read alone."""
    path = " -> ".join(f"{loss:.3f}" for loss in losses)
    return f"{before}support loss {path}" if losses else ""


def predictions(logits: NDArray[np.float32], labels: Sequence[str]) -> list[dict[str, Any]]:
    """What `AdaptedModel.predict` says of the logits [n, C] of a task's labels."""
    probabilities = torch.from_numpy(logits).softmax(-1).double().numpy()
    return [likeliest(p, labels) for p in probabilities]


def likeliest(probabilities: NDArray[np.float64], labels: Sequence[str]) -> dict[str, Any]:
    """A prediction as `AdaptedModel.predict` gives it, of the classes' probabilities [C]."""
    named = {label: round(float(x), 6) for label, x in zip(labels, probabilities, strict=True)}
    label = labels[int(probabilities.argmax())]
    return {"label": label, "confidence": named[label], "probabilities": named}


def check_new(path: Path) -> None:
    """Raises InputError unless `path` is free for a new directory."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path}: exists already; give a new directory for the adapted model")


def adapt(
    source: str | Path, support: Sequence[Mapping[str, Any]] | str | Path, *, steps: int | None = None,
    checkpoint: str | int = "best",
) -> AdaptedModel:  # fmt: skip
    """Adapt a checkpoint, or one of a run's, to the task of `support`.

    support: rows with the run's text and label (or input and target) columns, or a file of them in any format that
    training reads; with model.head=words also the words of classes alone, a list or a text file of one a line, which
    are read without a step. steps: inner steps; None: as the run evaluates. checkpoint: of a run, best (by eval.best;
    the newest where there is none), last, or a meta-step. Raises InputError.

    Family document: the support is a text, in order, that is read chunk by chunk; source may also be the directory of
    a model that has read something, which then reads on.
    """
    check_steps(steps)
    if (Path(source) / "adapted.json").is_file():
        if steps is not None or checkpoint != "best":
            raise InputError("steps and checkpoint are of a run: an adapted model reads on as it is; leave them out")
        return read_further(load_adapted(source), support)
    saved = checkpoints.load(source, which=checkpoint)
    if saved.config.task.family == "document":
        return read_first(saved, support, steps)
    where = "support" if not isinstance(support, str | Path) else str(support)
    words = of_words(support, saved.config)
    if words is not None:
        if steps:
            raise InputError(f"steps = {steps}: {where} has no images to adapt to; leave steps out, or give examples")
        support, steps = words, 0
    examples = read_support(support, saved.config, saved.state, load_tokenizer(saved.tokenizer_file), where)
    start = on_device(saved)
    examples = newest(examples, start)
    params, losses = fit(start, [examples], steps)[0]
    return adapted_model(start, examples, params, losses if words is None else [])


def read_first(
    saved: checkpoints.Checkpoint, support: Sequence[Mapping[str, Any]] | str | Path, steps: int | None
) -> AdaptedModel:
    """A model that has read a text. Raises InputError."""
    if steps is not None:
        raise InputError(f"steps = {steps}: a text is read in as many steps as it has chunks; leave steps out")
    start = on_device(saved)
    state = start.kept_state | documents.as_state(documents.START)
    blank = AdaptedModel(
        saved.config, [], start.model, {**start.values, **start.rates}, start.tokenizer_file, state, []
    )
    return read_further(blank, support)


def read_further(adapted: AdaptedModel, support: Sequence[Mapping[str, Any]] | str | Path) -> AdaptedModel:
    """The model after it has read `support` too, at the rates that it has kept. Raises InputError."""
    config, model = adapted.config, adapted.model
    if not adapted.reads_documents:
        raise InputError("an adapted model of a task with examples learns no more; give the run, and all examples")
    roles = split_meta(model, adapted.params)
    start = Adaptable(config, model, *roles, adapted.state, adapted.tokenizer_file)
    before = documents.place_of(adapted.state)
    tokens = documents.tokens_of(adapted.tokenizer, documents.text_of(support, config))
    params, place, losses = documents.read_on(start, tokens, before)
    state = adapted.state | documents.as_state(place)
    warnings = tuple(documents.remarks(place, before, config))
    return replace(
        adapted, params={**adapted.params, **params}, state=state, inner_losses=[*adapted.inner_losses, *losses],
        warnings=warnings,
    )  # fmt: skip


def check_steps(steps: int | None) -> None:
    """Raises InputError for fewer than no steps."""
    if steps is not None and steps < 0:
        raise InputError(f"steps = {steps}: 0 or more inner steps; leave it out for as many as the run evaluates with")


def adapted_model(
    start: Adaptable, support: Support, params: Mapping[str, Tensor], losses: list[float]
) -> AdaptedModel:
    """What `fit` has made of a support set, as a model of its own."""
    model, state = start.model, start.kept_state | support.about
    if isinstance(model, LanguageModel) and model.reads_support:
        state["context"] = read_tokens(start, support)
    warnings = tuple(remarks(support, losses, start.tokenizer))
    adapted = {**without_pooled(start.shared), **params}
    return AdaptedModel(start.config, support.labels, model, adapted, start.tokenizer_file, state, losses, warnings)


def remarks(support: Support, losses: Sequence[float], tokenizer: Tokenizer) -> Iterator[str]:
    """What is wrong with an adaptation, a line each: a loss at chance, ln C, at its end; words that are unknown."""
    chance = math.log(len(support.labels)) if len(support.labels) > 1 else math.inf
    if len(losses) > 1 and losses[-1] >= 0.98 * chance:
        yield (
            f"the support loss ends at {losses[-1]:.3f}, which is chance (ln {len(support.labels)} = {chance:.3f}): "
            "the task was not learnt; give more examples, more --steps, or change inner.lr in training"
        )
    tokens, number = support.rows.tokens, counts.unknown_id(tokenizer)
    lost = {"tokens": len(tokens), "unknown": 0 if number is None else int((tokens == number).sum())}
    if lost["unknown"] > counts.WORTH_SAYING * lost["tokens"]:
        yield f"{counts.unknown_words(lost)}, and count as one word"
    if left_out := support.about.get("left_out"):
        yield f"the first {left_out} examples were left out: the model has no room for more than the others in context"


def load_adapted(path: str | Path) -> AdaptedModel:
    """Read what `AdaptedModel.save` wrote. Raises InputError."""
    from safetensors.torch import load_file

    path = Path(path)
    if not (path / "adapted.json").is_file():
        raise InputError(f"{path}: not an adapted model (no adapted.json); make one with `distmeta adapt`")
    reason = checkpoints.damage(path)
    if reason is not None:
        raise InputError(f"{path}: damaged: {reason}")
    state = checkpoints.read_state(path / "adapted.json")
    config = checkpoints.read_config(path / "config.yaml")
    labels, losses = state.pop("labels"), state.pop("inner_losses")
    check_trusted(config, path)
    model = build_model(config, state["vocab_size"], state["pad_id"], state["classes"])
    check_format(path, state["format"], model)
    model.load_state_dict(restore(checkpoints.read_tensors(path, "base")), strict=False)
    set_attention(model.backbone, "first_order")
    name_any(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    params = {name: value.to(device) for name, value in load_file(path / "adapted.safetensors").items()}
    return AdaptedModel(config, labels, model.to(device), params, path / "tokenizer.json", state, losses)
