"""Level II of UNIEGO (arXiv 2606.20559): how the student learns, by Selective Proxy Distillation or from the teachers.

spd     L = mean CE(s, y) + L_feat + L_logit      (see `spd`; the proxies' part comes from a `ProxyBank`)
naive   L = mean CE(s, y) + weight * mean over teachers of [mean over clips with a target of (1 - cos(W_r t, f_r))]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..models import TimeSformer
from ..pipeline.config import ProxiesConfig, SPDConfig, TrainConfig
from ..pipeline.progress import say
from ..pipeline.randomness import clip_stream
from . import ranks
from .batches import Batch
from .proxy_bank import ProxyBank, chosen
from .proxy_task import feature_loss
from .spd import selected_loss, slots
from .stopwatch import Stopwatch
from .supervised import Supervised, VideoTask
from .targets import Targets
from .teaching import Tally, agreement, teaching_record
from .view import take

PROJECTION = "student"
_TALLY = "teaching.counts"  # its name in a checkpoint; no parameter has it


class StudentTask(VideoTask):
    """Selective Proxy Distillation.

    The sums over clips are divided by the clips with a selection (`self.divisor` says of what): of the micro-batch; of
    the global batch, which is known where a step has one micro-batch per process; or, with `exact_normaliser`, counted
    by a pass without gradients over all micro-batches of the step. `proxies` are the names of those in the bank.
    """

    def __init__(
        self,
        config: TrainConfig,
        spd: SPDConfig,
        base: Supervised[TimeSformer],
        bank: ProxyBank,
        proxies: Sequence[str] = (),
        *,
        exact_normaliser: bool = False,
        title: str = "student",
    ) -> None:
        super().__init__(title, config, base)
        self._spd, self._bank = spd, bank
        self._names = proxies or [f"proxy {r}" for r in range(bank.present.shape[1])]
        self._agreement = agreement(bank.present, bank.correct)
        self._tally = Tally(base.model.head.out_features, len(self._names), base.device)
        self._portions = config.global_batch // config.micro_batch  # of a step, over all processes
        self.divisor = self._choose_divisor(exact_normaliser)
        self.needs_whole_step = self.divisor == "pre-pass" or (self.divisor == "step" and ranks.world() > 1)
        self._count: Tensor | None = None  # clips with a selection in the global batch, from the pre-pass
        self._stopwatch = Stopwatch(base.device)

    def _choose_divisor(self, exact: bool) -> str:
        if self._spd.normalise_over == "micro_batch":
            return "micro-batch"
        if self._portions <= ranks.world():
            return "step"
        return "pre-pass" if exact else "micro-batch"

    def describe(self) -> str:
        """Which clips divide the sums, in words."""
        divided = "the distillation terms are divided by the taught clips of"
        if self.divisor == "step":
            return f"{divided} the global batch"
        if self.divisor == "pre-pass":
            return f"{divided} the global batch, counted without gradients before each step (distill.exact_normaliser)"
        if self._spd.normalise_over == "micro_batch":
            return f"{divided} each micro-batch, as configured"
        return (
            f"{divided} each micro-batch: with accumulation those of the global batch are not known in time "
            "(distill.exact_normaliser: true counts them first)"
        )

    def open_step(self, batches: Sequence[Batch], epoch: int) -> None:
        """Count the clips with a selection in the global batch; nothing waits for the device."""
        taught = torch.zeros((), dtype=torch.int64, device=self.base.device)
        if self.divisor == "step":
            if not any(batch.rows for batch in batches):
                ranks.all_sum(taught)  # the others meet in `loss`, which is not called here
            return
        with self._stopwatch, torch.no_grad():
            for batch in batches:
                if batch.rows:
                    labels, logits = self.labels[batch.indices], self.forward(batch, epoch).logits
                    limit = take(self._bank.limit, batch, self._columns(batch, epoch))
                    taught += _taught(logits, labels, limit).any(1).sum()
            self._count = ranks.all_sum(taught)

    def loss(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Cross-entropy and the two distillation terms of one micro-batch."""
        out = self.forward(batch, epoch)
        labels = self.labels[batch.indices]
        picked = chosen(self._bank, batch, self._columns(batch, epoch))
        with torch.no_grad():
            valid = _taught(out.logits, labels, picked.limit)  # [b,S]
            clips = self._divide_by(valid, batch)
            self._tally.add(labels, picked.proxy, valid)
        feature, logit = selected_loss(
            out.logits,
            out.projected[PROJECTION],
            tokens=picked.tokens,
            log_probs=picked.log_probs,
            valid=valid,
            clips=clips,
            config=self._spd,
        )
        ce = F.cross_entropy(out.logits.float(), labels)
        return {
            "loss": ce + feature + logit,
            "ce": ce,
            "feature": feature,
            "logit": logit,
            "selected_share": valid.any(1).float().mean(),
        }

    def _columns(self, batch: Batch, epoch: int) -> Tensor | None:
        """Random proxies per clip as functions of (seed, epoch, clip), int64 [b, S]; None: nothing is drawn."""
        if self._spd.select != "random":
            return None
        proxies = len(self._names)
        count = slots(self._spd, proxies)
        ids = [self.base.clips[i].clip_id for i in batch.rows]
        drawn = [clip_stream(self.base.seed, epoch, i, "selection").integers(proxies, size=count) for i in ids]
        return torch.from_numpy(np.stack(drawn))

    def _divide_by(self, valid: Tensor, batch: Batch) -> Tensor:
        """What divides this micro-batch's sums, float32, 0-dim.

        The loop weighs a micro-batch by its share of the clips of a step; a count over the whole step makes up for it.
        """
        if self.divisor == "micro-batch":
            return valid.any(1).sum().clamp(min=1).float()
        count = ranks.all_sum(valid.any(1).sum()) if self._count is None else self._count
        share = len(batch.rows) / (len(batch.rows) + len(batch.failures))
        return count.clamp(min=1).float() * (share / self._portions)

    def after_step(self) -> None:
        """What the step's clips learned from counts from now on."""
        self._tally.keep()

    def checkpoint(self) -> dict[str, Tensor]:
        """The network's state, and who taught whom in this epoch."""
        return {**self.tensors(), _TALLY: self._tally.counts}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `checkpoint` gave."""
        super().restore({name: tensor for name, tensor in tensors.items() if name != _TALLY})
        self._tally.restore(tensors[_TALLY])

    def end_epoch(self) -> dict[str, Any]:
        """Who taught whom, for metrics.jsonl."""
        record: dict[str, Any] = {"teaching": teaching_record(self._tally.close(), self._names, self._agreement)}
        if self.divisor == "pre-pass":
            took, whole = self._stopwatch.close()
            record["pre_pass_share"] = round(took / whole, 3) if took else None
            if took:  # an epoch of which nothing was left to do after a stop has no time to tell
                say(f"{self.title}: counting before each step took {took:.1f} s of {whole:.1f} s, {took / whole:.0%}")
        return record


def _taught(logits: Tensor, labels: Tensor, limit: Tensor) -> Tensor:
    """Which slots teach, bool [b, S]: those whose limit the student's own cross-entropy exceeds."""
    entropy = F.cross_entropy(logits.detach().float(), labels, reduction="none")  # [b]
    return (limit < entropy.unsqueeze(1)) | (limit == -torch.inf)


class NaiveTask(VideoTask):
    """One student distilled from all teachers at once: a linear head on its token for each teacher's features."""

    def __init__(
        self,
        config: TrainConfig,
        proxies: ProxiesConfig,
        base: Supervised[TimeSformer],
        targets: Mapping[str, Targets],
        title: str = "student",
    ) -> None:
        """`proxies`: distance and weight are those that each proxy learns its teacher's features with."""
        super().__init__(title, config, base)
        self._proxies, self._targets = proxies, targets

    def loss(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Cross-entropy, and the mean of the teachers' feature distances, of one micro-batch."""
        out = self.forward(batch, epoch)
        ce = F.cross_entropy(out.logits.float(), self.labels[batch.indices])
        distances = [
            feature_loss(
                out.projected[key],
                take(targets.values, batch),
                take(targets.present, batch),
                self._proxies.feature_distance,
                self._proxies.feature_weight,
            )
            for key, targets in self._targets.items()
        ]
        feature = torch.stack(distances).mean()
        return {"loss": ce + feature, "ce": ce, "feature": feature}
