"""What networks say about single clips, out of what stages left on disk: nothing is computed with a network here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...cache import FeatureStore
from ...errors import UniegoError
from ...models.teachers import teacher_view
from ...pipeline.clips import Clip, Split
from ...pipeline.config import DistillConfig
from ...pipeline.rundir import Run, TaskFolder
from ..evaluation.embeddings import kept_embeddings
from ..proxy_bank import ProxyBank, candidates
from ..targets import load_bank, open_index, row_keys

TOP = 3


@dataclass(frozen=True)
class Answer:
    """The classes that a network finds most likely, by number and probability, and its cross-entropy for the label."""

    top: tuple[tuple[int, float], ...]
    entropy: float

    @classmethod
    def of(cls, logits: Tensor, label: int) -> Answer:
        """From raw scores float32 [C], summed over looks or not."""
        log_probs = F.log_softmax(logits.float(), dim=-1)
        order = log_probs.argsort(descending=True, stable=True)[:TOP].tolist()
        return cls(tuple((c, float(log_probs[c].exp())) for c in order), -float(log_probs[label]))


@dataclass(frozen=True)
class ProxyAnswer:
    """A proxy's answer. `part`: its part in teaching the clip, a key of `PARTS`; empty where the bank tells nothing."""

    answer: Answer
    part: str


PARTS = {
    "teaches": "taught the student to the end: it is surer than the finished student",
    "taught": "taught the student until that was surer itself",
    "chosen": "was chosen to teach; how sure the student is of this clip was not kept",
    "out": "was not among the most confident right ones",
    "wrong": "did not teach: it is wrong about this clip",
}


def network_answers(run: Run, model: str, split: Split, clips: Sequence[Clip]) -> dict[str, Answer]:
    """Answers of an evaluated network by clip id; of the evaluation's views and crops, else of any that were kept."""
    folder = run.evaluation_folder(model).path / "embeddings"
    wanted = f"{split}-{run.config.evaluate.views}x{run.config.evaluate.crops}"
    places = sorted(folder.glob(f"{split}-*/record.json"), key=lambda path: (path.parent.name != wanted, path))
    for place in places:
        kept = kept_embeddings(TaskFolder(place.parent, place.parent.name), run.table().split(split), clips)
        if kept is not None and kept.logits is not None:
            return {c.clip_id: Answer.of(row, c.label) for c, row in zip(kept.clips, kept.logits, strict=True)}
    return {}


def outdated(run: Run, model: str = "student") -> str:
    """Says so where a model was trained anew after it was evaluated, else empty."""
    trained = run.ego_only_folder if model == "ego-only" else run.variant_folder(model)
    measured = (run.evaluation_folder(model).record or {}).get("fingerprint", {}).get("weights")
    if measured is None or not trained.done or trained.results.get("weights", measured) == measured:
        return ""
    return f"The numbers are of an earlier {model}: `{run.command('evaluate')}` measures the present one."


def proxies_on_test(run: Run, clips: Sequence[Clip]) -> dict[str, dict[str, ProxyAnswer]]:
    """Answers by clip id and proxy of those proxies that were evaluated; on test clips nobody teaches."""
    found: dict[str, dict[str, ProxyAnswer]] = {clip.clip_id: {} for clip in clips}
    for key in run.config.teachers:
        for clip_id, answer in network_answers(run, f"proxy:{key}", "test", clips).items():
            found[clip_id][key] = ProxyAnswer(answer, "")
    return found


def proxies_on_train(
    run: Run, clips: Sequence[Clip], student: Mapping[str, Answer]
) -> dict[str, dict[str, ProxyAnswer]]:
    """Answers of the proxies that the student learned from, out of their cached outputs, and who was chosen to teach.

    `student`: its own answers to these clips, as far as they are known. Raises `UniegoError` where there is no student
    or the outputs are gone.
    """
    keys: list[str] = run.student_folder.results["proxies"]
    gone = [key for key in keys if key not in run.config.teachers]
    if gone:
        raise UniegoError(f"the student learned from {', '.join(gone)} too, which run.yaml does not name any more")
    index = open_index(run)
    stores = [FeatureStore.open(run.cache_root / run.proxy_folder(k).results["outputs"], index) for k in keys]
    if not stores:
        raise UniegoError("the student had no proxies")
    outputs = load_bank(stores, index.rows(row_keys(run, clips)))
    spd = _distill(run).spd([teacher_view(key, run.config.teachers[key]) for key in keys])
    bank = candidates(outputs, torch.tensor([clip.label for clip in clips]), spd)
    found: dict[str, dict[str, ProxyAnswer]] = {}
    for row, clip in enumerate(clips):
        entropy = student[clip.clip_id].entropy if clip.clip_id in student else None
        found[clip.clip_id] = {
            key: ProxyAnswer(Answer.of(outputs.logits[row, r], clip.label), _part(bank, row, r, entropy))
            for r, key in enumerate(keys)
            if outputs.present[row, r]
        }
    return found


def _distill(run: Run) -> DistillConfig:
    """The settings that the student was trained under."""
    record = run.student_folder.record
    settings = {} if record is None else record["fingerprint"].get("settings", {})
    try:
        return DistillConfig.model_validate({**dict(run.config.distill), **settings})
    except ValueError as error:
        raise UniegoError(f"the student was trained under settings that are not known here: {error}") from error


def _part(bank: ProxyBank, row: int, proxy: int, student: float | None) -> str:
    """A key of `PARTS`. A candidate teaches a student whose cross-entropy is greater than its limit."""
    slots = (bank.proxy[row] == proxy).nonzero().flatten().tolist()
    limits = [float(bank.limit[row, slot]) for slot in slots]
    if any(limit < float("inf") for limit in limits):
        if student is None:
            return "chosen"
        return "teaches" if min(limits) < student else "taught"
    return "out" if bool(bank.correct[row, proxy]) else "wrong"
