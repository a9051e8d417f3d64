"""Numbers about predictions, embeddings and segmentations. They know nothing of clips, files and runs."""

from __future__ import annotations

from .bootstrap import bootstrap
from .classification import accuracies, class_table, confusion, label_ranks
from .probes import LinearProbe, RidgeMap, neighbour_vote
from .retrieval import Ranking, rank
from .segmentation import SegmentationScores

__all__ = [
    "LinearProbe",
    "Ranking",
    "RidgeMap",
    "SegmentationScores",
    "accuracies",
    "bootstrap",
    "class_table",
    "confusion",
    "label_ranks",
    "neighbour_vote",
    "rank",
]
