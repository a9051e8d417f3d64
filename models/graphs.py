"""Joint graphs of the common skeleton layouts and the adjacency stacks that ST-GCN networks start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import UsageError

Mode = Literal["stgcn_spatial", "spatial"]
Matrices = npt.NDArray[np.float64]


@dataclass(frozen=True)
class JointGraph:
    """A skeleton layout: number of `joints`, root `centre`, and `bones` as (child, parent) pairs."""

    joints: int
    centre: int
    bones: tuple[tuple[int, int], ...]


def _bones(text: str, first: int = 0) -> tuple[tuple[int, int], ...]:
    pairs = (pair.split("-") for pair in text.split())
    return tuple((int(child) - first, int(parent) - first) for child, parent in pairs)


_FINGERS = tuple(
    (joint, joint - 1 if joint > start else 0) for start in range(1, 21, 4) for joint in range(start, start + 4)
)

GRAPHS: dict[str, JointGraph] = {
    "coco": JointGraph(17, 0, _bones("15-13 13-11 16-14 14-12 11-5 12-6 9-7 7-5 10-8 8-6 5-0 6-0 1-0 3-1 2-0 4-2")),
    "openpose": JointGraph(
        18, 1, _bones("4-3 3-2 7-6 6-5 13-12 12-11 10-9 9-8 11-5 8-2 5-1 2-1 0-1 15-0 14-0 17-15 16-14")
    ),
    "nturgb+d": JointGraph(
        25,
        20,
        _bones(
            "1-2 2-21 3-21 4-3 5-21 6-5 7-6 8-7 9-21 10-9 11-10 12-11 13-1 14-13 15-14 16-15 17-1 18-17 "
            "19-18 20-19 22-8 23-8 24-12 25-12",
            first=1,
        ),
    ),
    "handmp": JointGraph(21, 0, _FINGERS),
}


# Where the bone that PYSKL computes for a joint does not lead to its parent in the graph: joint -> other end.
_BONES: dict[str, dict[int, int]] = {
    "coco": {11: 0, 12: 0},
    "openpose": {0: 0, 1: 0},
    "nturgb+d": {21: 22, 23: 24},
}


def bone_ends(graph: JointGraph, name: str | None = None) -> list[int]:
    """The joint at the other end of each joint's bone, as PYSKL pairs them: its parent, and itself for the centre.

    For the named layouts a few pairs differ from the graph's edges.
    """
    ends = list(range(graph.joints))
    for child, parent in (*graph.bones, *_BONES.get(name or "", {}).items()):
        ends[child] = parent
    return ends


def graph_from_edges(edges: Sequence[Sequence[int]]) -> JointGraph:
    """The layout whose bones are these (child, parent) pairs, counted from 0.

    Raises `UsageError` unless they form one tree over the joints 0..V-1; its root is the centre.
    """
    odd = [list(pair) for pair in edges if len(pair) != 2 or min(pair) < 0 or pair[0] == pair[1]]
    if odd or not edges:
        raise UsageError(f"a bone is a pair [child, parent] of two joints counted from 0; got {odd or 'none'}")
    parents = {pair[0]: pair[1] for pair in edges}
    joints = 1 + max(max(pair) for pair in edges)
    roots = sorted(set(range(joints)) - set(parents))
    if len(parents) != len(edges) or len(roots) != 1 or any(_loops(joint, parents) for joint in parents):
        raise UsageError(
            f"{len(edges)} bones over {joints} joints form no tree: every joint but one needs exactly one parent; "
            f"without a parent: {', '.join(map(str, roots)) or 'none'}"
        )
    return JointGraph(joints, roots[0], tuple((child, parent) for child, parent in edges))


def _loops(joint: int, parents: Mapping[int, int]) -> bool:
    seen: set[int] = set()
    while joint in parents and joint not in seen:
        seen.add(joint)
        joint = parents[joint]
    return joint in seen


def named_by(stack: Matrices, mode: Mode) -> str | None:
    """The layout of `GRAPHS` that has this adjacency stack [3, V, V] (to 1e-5), or None."""
    for name, graph in GRAPHS.items():
        if stack.shape[-1] == graph.joints and np.allclose(stack, adjacency(name, mode), rtol=0.0, atol=1e-5):
            return name
    return None


def graph_of(joints: int) -> str | None:
    """The layout that has this many joints, or None."""
    return next((name for name, graph in GRAPHS.items() if graph.joints == joints), None)


def adjacency(layout: str | JointGraph, mode: Mode = "stgcn_spatial") -> Matrices:
    """Adjacency stack [3, V, V], float64, of a layout of `GRAPHS` or of one's own.

    `spatial` (ST-GCN++, Duan et al. 2022): the identity, the edges towards the centre and the edges away from
    it, each with columns of sum 1. `stgcn_spatial` (ST-GCN, Yan et al. 2018, as PYSKL builds it with one
    hop): the normalised graph split into its diagonal, edges that do not lead nearer to the centre, and the
    others; distances beyond one hop count as infinite, so that far from the centre all edges lie in the
    second matrix.

    Raises `UsageError` for an unknown layout or mode.
    """
    if isinstance(layout, str) and layout not in GRAPHS:
        raise UsageError(f"unknown joint graph {layout!r}; known are {', '.join(GRAPHS)}")
    graph = GRAPHS[layout] if isinstance(layout, str) else layout
    if mode == "spatial":
        return _by_direction(graph)
    if mode == "stgcn_spatial":
        return _by_distance(graph)
    raise UsageError(f"unknown adjacency mode {mode!r}; known are stgcn_spatial, spatial")


def _edges(joints: int, pairs: Sequence[tuple[int, int]]) -> Matrices:
    matrix = np.zeros((joints, joints))
    for child, parent in pairs:
        matrix[parent, child] = 1.0
    return matrix


def _normalise_columns(matrix: Matrices) -> Matrices:
    total = matrix.sum(axis=0)
    result: Matrices = np.divide(matrix, total, out=np.zeros_like(matrix), where=total > 0)
    return result


def _by_direction(graph: JointGraph) -> Matrices:
    inward = _edges(graph.joints, graph.bones)
    return np.stack([np.eye(graph.joints), _normalise_columns(inward), _normalise_columns(inward.T)])


def _by_distance(graph: JointGraph) -> Matrices:
    inward = _edges(graph.joints, graph.bones)
    links = np.eye(graph.joints) + inward + inward.T
    normalised = _normalise_columns(links)
    distance = np.where(links[graph.centre] > 0, 1.0, np.inf)  # to the centre, one hop at most
    distance[graph.centre] = 0.0
    diagonal = np.diag(np.diag(normalised))
    # Entry [j, i] is the edge from joint i to joint j: it belongs to the second matrix unless j is nearer.
    not_nearer = distance[:, None] >= distance[None, :]
    outward = np.where(not_nearer, normalised - diagonal, 0.0)
    return np.stack([diagonal, outward, normalised - diagonal - outward])
