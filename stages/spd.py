"""Selective Proxy Distillation (UNIEGO, arXiv 2606.20559): each clip learns from the proxies that are right and sure.

With student logits s, student token t, label y and the cached logits l_r and token z_r of proxy r:

    valid_r  =  argmax l_r = y  and  CE(l_r, y) < CE(s, y)  and  CE(l_r, y) <= threshold
    S        =  the K valid proxies of smallest CE;  n = |S|
    feature  =  sum over clips of (1/n) sum over S of  w_f (1 - cos(t, z_r))                / clips with n > 0
    logit    =  sum over clips of (1/n) sum over S of  w_l KL(softmax l_r || softmax s)     / clips with n > 0

`spd_loss` computes this from all outputs of all proxies, as it is written. Training reads what depends on the cache
alone out of a `ProxyBank` (see `proxy_bank`), and asks `selected_loss` for the rest.

Shapes: B clips, R proxies, C classes, D token width, S selected slots per clip.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError
from ..models.droppath import to_device
from ..pipeline.config import SPDConfig, SPDOptions


class SPDLoss(NamedTuple):
    """What the student learns from, and how much.

    `feature_loss` and `logit_loss` are weighted and normalised, float32, 0-dim, exactly 0 when their branch is
    off or no clip has a selection. `selected` int64 [B, S] are indices of proxies; where `valid` bool [B, S] is
    False they mean nothing.
    """

    feature_loss: Tensor
    logit_loss: Tensor
    selected: Tensor
    valid: Tensor


def spd_loss(
    student_logits: Tensor,
    student_projected: Tensor,
    labels: Tensor,
    *,
    proxy_logits: Tensor,
    proxy_tokens: Tensor,
    present: Tensor,
    config: SPDConfig,
    clip_count: int | Tensor | None = None,
    selection: tuple[Tensor, Tensor | None] | None = None,
    generator: torch.Generator | None = None,
) -> SPDLoss:
    """The two distillation terms of a batch.

    Args:
        student_logits: float [B, C].
        student_projected: float [B, D], the student's projected token.
        labels: int64 [B].
        proxy_logits: float [B, R, C]; rows that are not present may hold anything, NaN included.
        proxy_tokens: float [B, R, D]; likewise.
        present: bool [B, R], whether a proxy has an output for the clip. An absent one is never selected.
        config: the options.
        clip_count: clips with a selection over the whole optimiser step; required for
            `normalise_over="global_batch"`, ignored for "micro_batch".
        selection: (indices int64 [B, S], valid bool [B, S] or None) replaces the choice; None: the rule decides
            which of the given ones are valid.
        generator: draws for `select="random"`.

    Raises:
        UsageError: shapes that do not fit, or `clip_count` missing for "global_batch".
    """
    _check(student_logits, student_projected, labels, proxy_logits, proxy_tokens, present, config)
    with torch.no_grad():
        confidence = proxy_cross_entropy(student_logits, labels, proxy_logits, present, config)  # [B,R]
        if selection is None:
            selected = choose(confidence, config, generator)  # [B,S]
            valid = confidence.gather(1, selected).isfinite()  # [B,S]
        else:
            selected, given = selection
            if given is not None:
                selected = torch.where(given, selected, 0)  # where not valid, indices may be anything
            ruled = confidence.isfinite() if given is None else present
            valid = ruled.gather(1, selected) if given is None else given & ruled.gather(1, selected)
        clips = _normaliser(valid, config, clip_count)
    feature, logit = selected_loss(
        student_logits,
        student_projected,
        tokens=gather_slots(proxy_tokens, selected, valid),
        log_probs=F.log_softmax(gather_slots(proxy_logits, selected, valid), dim=-1),
        valid=valid,
        clips=clips,
        config=config,
    )
    return SPDLoss(feature, logit, selected, valid)


def selected_loss(
    student_logits: Tensor,
    student_projected: Tensor,
    *,
    tokens: Tensor,
    log_probs: Tensor,
    valid: Tensor,
    clips: Tensor,
    config: SPDOptions,
) -> tuple[Tensor, Tensor]:
    """The feature term and the logit term of a batch whose teachers are chosen, float32, 0-dim.

    Args:
        student_logits: float [B, C].
        student_projected: float [B, D].
        tokens: float32 [B, S, D], the chosen proxies' tokens; anything, NaN included, where not valid.
        log_probs: float32 [B, S, C], log softmax of their logits; likewise. -inf is a class of probability 0.
        valid: bool [B, S], which slots teach.
        clips: float32, 0-dim, what the sums over clips are divided by.
        config: weights of the terms, and the distance of tokens.
    """
    weight = valid / (valid.sum(1, keepdim=True).clamp(min=1) * clips)  # [B,S]: 1/n per clip
    feature = logit = student_logits.new_zeros((), dtype=torch.float32)
    shown = valid.unsqueeze(-1)  # masked before any arithmetic: a gradient of 0 times NaN would be NaN
    if config.feature_weight > 0:
        tokens = torch.where(shown, tokens, 0.0)
        distance = token_distance(student_projected.float().unsqueeze(1), tokens, config.feature_distance)
        feature = config.feature_weight * (weight * distance).sum()
    if config.logit_weight > 0:
        student = F.log_softmax(student_logits.float(), dim=-1).unsqueeze(1)  # [B,1,C]
        log_probs = torch.where(shown, log_probs, -torch.inf)
        probs = log_probs.exp()
        divergence = torch.where(probs > 0, probs * (log_probs - student), 0.0).sum(-1)  # [B,S]
        logit = config.logit_weight * (weight * divergence).sum()
    return feature, logit


def proxy_cross_entropy(
    student_logits: Tensor, labels: Tensor, proxy_logits: Tensor, present: Tensor, config: SPDConfig
) -> Tensor:
    """Cross-entropy of every proxy that may teach, float32 [B, R]; +inf where it may not."""
    entropy, able = able_proxies(labels, proxy_logits, present, config)
    if config.select != "all":
        student = F.cross_entropy(student_logits.float(), labels, reduction="none").unsqueeze(1)  # [B,1]
        able = able & (entropy < student)
    return torch.where(able, entropy, torch.inf)


def able_proxies(labels: Tensor, proxy_logits: Tensor, present: Tensor, config: SPDConfig) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every proxy, float32 [B, R], and whether it may teach a student that is less sure, bool [B, R].

    Both are of the cache alone. An absent proxy, or one whose logits hold NaN, may never teach.
    """
    clean = torch.where(present.unsqueeze(-1), proxy_logits.float(), 0.0)  # [B,R,C]
    index = labels.view(-1, 1, 1).expand(-1, clean.shape[1], 1)
    entropy = clean.logsumexp(-1) - clean.gather(2, index).squeeze(-1)  # [B,R]
    if config.select == "all":
        return entropy, present & entropy.isfinite()
    able = present & (entropy <= config.threshold)  # NaN compares false
    if config.require_correct:
        able = able & (clean.argmax(-1) == labels.unsqueeze(1))
    return entropy, able


def token_distance(student: Tensor, teacher: Tensor, kind: str) -> Tensor:
    """1 - cosine, or the mean squared difference over components: [..., D] x [..., D] -> [...]."""
    if kind == "mse":
        return (student - teacher).square().mean(-1)
    return 1.0 - F.cosine_similarity(student, teacher, dim=-1, eps=1e-8)


def slots(config: SPDConfig, proxies: int) -> int:
    """Number of selected slots per clip (S) for a pool of `proxies`."""
    groups = _groups(config, proxies)
    if config.select == "all":
        return proxies
    if config.select == "random":
        return config.top_k  # drawn with replacement
    if groups is None:
        return min(config.top_k, proxies)
    return sum(min(config.top_k, len(group)) for group in groups)


def _groups(config: SPDConfig, proxies: int) -> list[list[int]] | None:
    """Positions of the exo and of the ego proxies; None when they are not told apart or of one view only."""
    views = config.group_by_view
    if views is None or len(set(views)) < 2:
        return None
    return [[r for r in range(proxies) if views[r] == view] for view in ("exo", "ego")]


def choose(confidence: Tensor, config: SPDConfig, generator: torch.Generator | None = None) -> Tensor:
    """Indices of the chosen proxies, int64 [B, S], smallest cross-entropy first, exo ones first when grouped."""
    clips, proxies = confidence.shape
    if config.select == "all":
        return torch.arange(proxies, device=confidence.device).expand(clips, -1)
    if config.select == "random":
        shape = (clips, slots(config, proxies))
        device = generator.device if generator is not None else confidence.device
        return torch.randint(proxies, shape, generator=generator, device=device).to(confidence.device)
    groups = _groups(config, proxies)
    if groups is None:
        return confidence.argsort(dim=1, stable=True)[:, : config.top_k]
    chosen = []
    for group in groups:
        members = to_device(torch.tensor(group), confidence.device)
        best = confidence[:, members].argsort(dim=1, stable=True)[:, : config.top_k]
        chosen.append(members[best])
    return torch.cat(chosen, dim=1)


def _normaliser(valid: Tensor, config: SPDConfig, clip_count: int | Tensor | None) -> Tensor:
    """The number of clips that the sums are divided by, at least 1; float32, 0-dim."""
    if config.normalise_over == "micro_batch":
        return valid.any(1).sum().clamp(min=1).float()
    if clip_count is None:
        raise UsageError(
            'normalise_over="global_batch" needs clip_count, the number of clips with a selection over the whole '
            'optimiser step; give it, or use normalise_over="micro_batch"'
        )
    return torch.as_tensor(clip_count, device=valid.device).clamp(min=1).float()


def gather_slots(values: Tensor, selected: Tensor, valid: Tensor) -> Tensor:
    """Selected rows of [B, R, X] as float32 [B, S, X]; zeros where not valid, so that NaN there stays harmless."""
    index = selected.unsqueeze(-1).expand(-1, -1, values.shape[-1])
    return torch.where(valid.unsqueeze(-1), values.gather(1, index).float(), 0.0)


def _check(
    logits: Tensor,
    projected: Tensor,
    labels: Tensor,
    proxy_logits: Tensor,
    proxy_tokens: Tensor,
    present: Tensor,
    config: SPDConfig,
) -> None:
    clips, classes = logits.shape
    proxies = proxy_logits.shape[1]
    expected = {
        "labels": (labels, (clips,)),
        "student_projected": (projected, (clips, projected.shape[-1])),
        "proxy_logits": (proxy_logits, (clips, proxies, classes)),
        "proxy_tokens": (proxy_tokens, (clips, proxies, projected.shape[-1])),
        "present": (present, (clips, proxies)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise UsageError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
    if config.group_by_view is not None and len(config.group_by_view) != proxies:
        raise UsageError(f"group_by_view names {len(config.group_by_view)} views for {proxies} proxies")
