"""Retrieval on the test split: ego → ego by class, and ego → exo into the spaces of the exo teachers' features.

Ego and exo embeddings are of different networks, so their cosines mean nothing by themselves. A proxy of an exo teacher
has a projection that was trained, by cosine, to hit that teacher's features of the same moment: it maps its queries.
For everything else (the student, proxies of other teachers, an ego teacher) a ridge regression from the token to
the exo teacher's features is fitted on the train split; both sides are taken less the train features' mean.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from ...cache import FeatureStore
from ...errors import UniegoError
from ...metrics import Ranking, RidgeMap, rank
from ...models.teachers import teacher_view
from ...pipeline import files
from ...pipeline.clips import Clip
from ...pipeline.rundir import Run
from ...pipeline.signals import StopFlag
from ..compute import resolve_device
from ..fingerprints import clips_hash
from ..targets import find_index, open_teacher
from .embeddings import Embeddings
from .measure import Measure, bootstrap_words, percent, with_interval
from .subjects import Subject, features_hash, teacher_features

NAMES = ("map", "r@1", "r@5", "r@10")
NEAREST = "nearest.jsonl"


def why_not(subject: Subject) -> str | None:
    """Two clips are needed for one to be found by the other."""
    return None if len(subject.test) > 1 else "there is a single test clip: nothing to compare it with"


def settings(subject: Subject) -> dict[str, Any]:
    """The settings, and which exo features there are to search in."""
    run = subject.run
    return {
        **run.config.evaluate.retrieval.model_dump(),
        "resamples": run.config.evaluate.resamples,
        "seed": run.config.seed,
        "train_clips": clips_hash(run.table().split("train")),
        "exo": {key: features_hash(run, store, run.table().clips) for key, store in _galleries(subject)[0].items()},
    }


def compute(subject: Subject, folder: Path, flag: StopFlag) -> dict[str, Any]:
    """Metrics within the subject's view, and of every exo gallery; what is nearest to each clip in nearest.jsonl, and
    in exo/<teacher>.jsonl among that teacher's features, the clip's own partner included."""
    run, config = subject.run, subject.run.config.evaluate.retrieval
    found = subject.embeddings("test", flag)
    ranking = _within(run, found, flag)
    files.write_bytes(folder / NEAREST, _nearest(found.clips, found.clips, ranking))
    left = {"clip": "the query itself", "video": f"every clip of the query's {subject.view} video"}[config.leave_out]
    protocol = {
        "query": "every test clip",
        "gallery": "all test clips",
        "left_out": left,
        "relevant": "clips of the query's class",
        "embedding": "token, averaged over views and crops" if subject.view == "ego" else "feature",
        **subject.protocol(),
        **_shared_words(run),
    }
    results: dict[str, Any] = {
        f"{subject.view}_to_{subject.view}": {
            "protocol": protocol,
            **_metrics(ranking, run),
            "failed": len(found.failures),
        }
    }
    galleries, absent = _galleries(subject)
    flag.check()
    across = {key: _across(subject, key, store, folder, flag) for key, store in galleries.items()}
    return {**results, **({"ego_to_exo": across} if across else {}), **({"absent": absent} if absent else {})}


def _shared_words(run: Run) -> dict[str, Any]:
    return {
        "similarity": "cosine, float32; of equals the earlier in the table first",
        "r@k": "share of queries with a relevant clip among the first k",
        **bootstrap_words(run.config, "queries"),
    }


def _metrics(ranking: Ranking, run: Run) -> dict[str, Any]:
    return ranking.metrics(resamples=run.config.evaluate.resamples, seed=run.config.seed)


def _ids(values: list[Any]) -> Tensor:
    """Equal numbers for equal values, int64 [N]."""
    numbers: dict[Any, int] = {}
    return torch.tensor([numbers.setdefault(value, len(numbers)) for value in values], dtype=torch.int64)


def _within(run: Run, found: Embeddings, flag: StopFlag) -> Ranking:
    """Every clip against all others of the same kind."""
    config = run.config.evaluate.retrieval
    own = [clip.clip_id if config.leave_out == "clip" else clip.sources["ego"] for clip in found.clips]
    skip, tokens = _ids(own), found.tokens.to(resolve_device(run.config.compute))
    return rank(tokens, tokens, (found.labels, found.labels), (skip, skip), nearest=config.nearest, between=flag.check)


def _nearest(queries: Sequence[Clip], gallery: Sequence[Clip], ranking: Ranking) -> bytes:
    """A line per query: its clip, average precision (null: nothing is relevant), rank of the first hit, the nearest."""
    lines = []
    for i, clip in enumerate(queries):
        places, cosines = ranking.nearest[i].tolist(), ranking.similarity[i].tolist()
        near = [[gallery[p].clip_id, round(c, 4)] for p, c in zip(places, cosines, strict=True) if p >= 0]
        relevant = bool(ranking.relevant[i])
        precision = round(float(ranking.precision[i]), 6) if relevant else None
        entry = {
            "clip_id": clip.clip_id,
            "average_precision": precision,
            "first": int(ranking.first[i]),
            "nearest": near,
        }
        lines.append(json.dumps(entry, ensure_ascii=False))
    return ("\n".join(lines) + "\n").encode()


def _galleries(subject: Subject) -> tuple[dict[str, FeatureStore], dict[str, str]]:
    """Features of the exo teachers that test clips have, and why there are none of the others."""
    run, absent = subject.run, {}
    if subject.view != "ego":
        return {}, {}
    stores: dict[str, FeatureStore] = {}
    for key, config in run.config.teachers.items():
        if teacher_view(key, config) != "exo":
            continue
        try:
            index = find_index(run)
            if index is None:
                raise UniegoError("nothing is extracted")
            store = open_teacher(run, index, key)
            if teacher_features(run, store, subject.test)[1].any():
                stores[key] = store
            else:
                absent[key] = "no test clip has a feature"
        except UniegoError as error:
            absent[key] = str(error).splitlines()[0]
    return stores, absent


def exo_nearest(folder: Path, key: str) -> Path:
    """Where the nearest exo clips of every query lie, by one exo teacher's features."""
    return folder / "exo" / f"{key}.jsonl"


def _across(subject: Subject, key: str, store: FeatureStore, folder: Path, flag: StopFlag) -> dict[str, Any]:
    """Ego queries in the gallery of one exo teacher's features of the test clips."""
    run = subject.run
    test = subject.embeddings("test", flag, single=True)
    values, present = teacher_features(run, store, subject.test)
    clips = [clip for clip, there in zip(subject.test, present.tolist(), strict=True) if there]
    gallery = values[present]
    if key in test.projections and test.projections[key].shape[1] == gallery.shape[1]:
        queries, way = test.projections[key], "the proxy's own projection"
    else:
        mapping, count = _fit(subject, store, flag)
        if mapping is None:
            return {"left_out": "no train clip has both an embedding and a feature to fit the map on"}
        queries, gallery = mapping(test.tokens).float(), (gallery.double() - mapping.offset).float()
        way = f"ridge regression on {count} train clips, ridge {run.config.evaluate.retrieval.ridge:g}; centred"
    by_class, partner = _rankings(run, test, queries, clips, gallery, flag)
    files.write_bytes(exo_nearest(folder, key), _nearest(test.clips, clips, partner))
    return {
        "protocol": {
            "query": "every test clip's ego embedding",
            "map": way,
            "gallery": f"features of {key} of the test clips",
            "gallery_clips": len(clips),
            **({"random": True} if store.attributes.get("random") else {}),
            **subject.protocol(single=True),
            **_shared_words(run),
        },
        "class": {"relevant": "the query's class, its own partner left out", **_metrics(by_class, run)},
        "partner": {"relevant": "the query's own partner alone", **_metrics(partner, run)},
    }


def _rankings(
    run: Run, test: Embeddings, queries: Tensor, clips: list[Clip], gallery: Tensor, flag: StopFlag
) -> tuple[Ranking, Ranking]:
    """Relevant is the query's class, its own partner left out; and that partner alone, with its nearest clips."""
    device, nearest = resolve_device(run.config.compute), run.config.evaluate.retrieval.nearest
    ids = _ids([clip.clip_id for clip in (*test.clips, *clips)]).split([len(test.clips), len(clips)])  # type: ignore[no-untyped-call]
    labels = test.labels, torch.tensor([clip.label for clip in clips], dtype=torch.int64)
    by_class = rank(queries, gallery.to(device), labels, ids, between=flag.check)
    return by_class, rank(queries, gallery.to(device), ids, nearest=nearest, between=flag.check)


def _fit(subject: Subject, store: FeatureStore, flag: StopFlag) -> tuple[RidgeMap | None, int]:
    """The map from the subject's token to a teacher's features, and on how many train clips it was fitted."""
    run = subject.run
    if not run.table().split("train"):
        return None, 0
    train = subject.embeddings("train", flag, single=True)
    values, present = teacher_features(run, store, train.clips)
    count = int(present.sum())
    if not count:
        return None, 0
    device = resolve_device(run.config.compute)
    x, y = (part[present].to(device) for part in (train.tokens, values))
    mapping = RidgeMap.fit(x, y, run.config.evaluate.retrieval.ridge)
    return RidgeMap(*(part.cpu() for part in mapping)), count


def tables(model: str, results: dict[str, Any]) -> list[Table]:
    """A row per gallery and kind of relevance."""
    head = ("queries → gallery", "relevant", "queries", "mAP", "R@1", "R@5", "R@10")
    table = Table(*head, title=f"{model}: retrieval on test")
    for name, entry in results.items():
        if name.endswith("_to_exo") and name.startswith("ego"):
            for key, across in entry.items():
                for kind in ("class", "partner"):
                    if kind in across:
                        table.add_row(f"ego → {key}", kind, *_cells(across[kind]))
        elif name != "absent":
            table.add_row(name.replace("_to_", " → "), "class", *_cells(entry))
            if "interval" in entry:
                table.caption = f"{entry['protocol']['interval']}: mAP {with_interval(entry, 'map')}"
    return [table]


def _cells(entry: dict[str, Any]) -> list[str]:
    return [str(entry["queries"]), *(percent(entry[name]) for name in NAMES)]


RETRIEVAL = Measure(why_not, settings, compute, tables)
