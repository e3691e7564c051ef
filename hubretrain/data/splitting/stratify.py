"""Whole groups of images dealt out to parts so that the classes stay even: the search alone.

Groups that hold the same number of images of each class are interchangeable: one kind. The search
decides how many groups of each kind go to each part. First the largest groups go, each to where
it hurts least: with n images of class c in part p, which should hold a share w of all N of them,
the sum over c and p of (n - wN)² / w grows least, all images together being one more class. Then
groups are moved and swapped between two parts at a time while that lowers the sum of the squared
deviations in percent, then of their 8th powers, which is nearly the worst one.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Kind = tuple[tuple[int, ...], tuple[int, ...]]  # (classes, images of each)

STARTS_GROUPS = 2000  # fewer groups get more starts, up to eight
MAX_STARTS = 8
MAX_PASSES = 20
SWAP_CELLS = 5e4  # swaps x classes tried at a time: about a millisecond
SIZE_WEIGHT = 0.3  # a part 1 % too large is as bad as a class 0.3 points off
LACK = 1e12  # the cost of a class missing from a part: above that of any deviation


def place_groups(
    label_codes: Ints,
    group_codes: Ints,
    weights: Floats,
    n_images: Ints,
    n_wanted: Ints,
    seed: int,
) -> Ints:
    """Deal whole groups out to parts, stratified by class.

    Args:
        label_codes: the class of each image to place, `(n_new,)`, from 0.
        group_codes: the group of each image to place, `(n_new,)`, from 0. Of groups of one kind,
            those with low codes go to the first parts: shuffle them.
        weights: share of all images that each part should hold, `(n_parts,)`, sum 1.
        n_images: images that the parts hold already, `(n_parts, n_classes)`.
        n_wanted: images of each class in all parts in the end, `(n_classes,)`.
        seed: of the search, 0 or more.

    Returns:
        The part of each image, `(n_new,)`, 0 .. n_parts - 1. Every class is in every part where
        single-class groups allow it; where groups mix classes, nearly always where possible.
    """
    if not len(label_codes):
        return np.zeros(0, np.int64)
    rng = np.random.default_rng(seed)
    # Shuffled so that it is not always the first part that gets the odd one out.
    parts = rng.permutation(len(weights))
    kinds = _kinds(label_codes, group_codes, len(n_wanted))
    sizes = [len(groups) for groups in kinds.values()]
    results = []
    for start in range(int(np.clip(STARTS_GROUPS // sum(sizes), 1, MAX_STARTS))):
        target = np.outer(weights, n_wanted)[parts]
        search = _Search(list(kinds), n_images[parts].astype(float), target, rng)
        search.deal(sizes, rng.permutation(len(sizes)) if start else np.arange(len(sizes)))
        results.append((search.improve(), start, search.placed))
    part_of_group = np.empty(int(group_codes.max()) + 1, np.int64)
    for groups, counts in zip(kinds.values(), min(results)[2], strict=True):
        part_of_group[groups] = np.repeat(parts, counts)
    return part_of_group[group_codes]


def _kinds(label_codes: Ints, group_codes: Ints, n_classes: int) -> dict[Kind, list[int]]:
    """Groups by the images of each class that they hold, the largest kind first."""
    cells, counts = np.unique(group_codes * n_classes + label_codes, return_counts=True)
    ranks, classes = np.divmod(cells, n_classes)
    firsts = np.flatnonzero(np.diff(ranks, prepend=-1))
    kinds: dict[Kind, list[int]] = {}
    for first, last in zip(firsts, [*firsts[1:], len(cells)], strict=True):
        kind = (tuple(classes[first:last].tolist()), tuple(counts[first:last].tolist()))
        kinds.setdefault(kind, []).append(int(ranks[first]))
    return dict(sorted(kinds.items(), key=lambda item: (-sum(item[0][1]), item[0])))


class _Search:
    """How many groups of each kind go to each part, and how far the parts are from even.

    `n_images` and `target` are `(n_parts, n_classes)`, images now and images wanted;
    `placed` is `(n_kinds, n_parts)`, groups.
    """

    def __init__(
        self, kinds: list[Kind], n_images: Floats, target: Floats, rng: np.random.Generator
    ) -> None:
        self.kinds, self.n_images, self.target, self.rng = kinds, n_images, target, rng
        self.placed = np.zeros((len(kinds), len(target)), np.int64)
        self.sizes = target.sum(axis=1)
        self.shares = target.sum(axis=0) / target.sum()
        self.n_offered = int(np.clip(np.sqrt(SWAP_CELLS / len(self.shares)), 4, 64))

    def deal(self, sizes: list[int], order: Ints) -> None:
        """Give groups, in this order of their kinds, each to where the squares grow least."""
        excess = self.n_images - self.target
        excess = np.column_stack([excess, excess.sum(axis=1)])  # all images are one more class
        for kind in order:
            classes, counts = self.kinds[kind]
            columns = np.array([*classes, -1])
            images = np.array([*counts, sum(counts)], float)
            square = images @ images
            for _ in range(sizes[kind]):
                part = int(np.argmin((2 * (excess[:, columns] @ images) + square) / self.sizes))
                excess[part, columns] += images
                self.placed[kind, part] += 1
        self.n_images = excess[:, :-1] + self.target

    def improve(self) -> float:
        """Lower the squared deviations, then the worst; returns what is left of the worst."""
        self.descend(1.0, doublings=1)
        worst = max(float(abs(self.deviations(p, n)).max()) for p, n in enumerate(self.n_images))
        self.descend(worst + 1e-9, doublings=3)
        return max(
            float(abs(self.deviations(p, n)).max() + self.penalty(n))
            for p, n in enumerate(self.n_images)
        )

    def descend(self, unit: float, doublings: int) -> None:
        """Swap until nothing gets better, or long enough with every class in every part."""
        pairs = list(combinations(range(len(self.target)), 2))
        passes = 0
        while passes < MAX_PASSES or self.penalty(self.n_images).any():
            passes += 1
            if not sum([self.swap(p, q, unit, doublings) for p, q in pairs]):
                return

    def swap(self, p: int, q: int, unit: float, doublings: int) -> bool:
        """Do the move or swap of groups between two parts that lowers the cost most."""
        from_p, p_images = self.offer(p, lacking=self.n_images[q] < 0.5)
        from_q, q_images = self.offer(q, lacking=self.n_images[p] < 0.5)
        moved = p_images[:, None] - q_images
        cost = np.zeros(moved.shape[:2])
        for part, n_images in ((p, self.n_images[p] - moved), (q, self.n_images[q] + moved)):
            off = self.deviations(part, n_images) / unit
            for _ in range(doublings):
                off *= off
            cost += off.sum(axis=-1) + self.penalty(n_images)
        i, j = np.unravel_index(cost.argmin(), cost.shape)
        if not cost[i, j] < cost[0, 0] * (1 - 1e-9):
            return False
        self.n_images[p] -= moved[i, j]
        self.n_images[q] += moved[i, j]
        for kind, source, goal in ((from_p[i], p, q), (from_q[j], q, p)):
            if kind >= 0:
                self.placed[kind, [source, goal]] += (-1, 1)
        return True

    def deviations(self, part: int, n_images: Floats) -> Floats:
        """Percent by which each class and, last, the size is off, for `(..., n_classes)`."""
        n = n_images.sum(axis=-1, keepdims=True)
        off_size = (n - self.sizes[part]) * SIZE_WEIGHT
        off = np.concatenate([n_images - n * self.shares, off_size], axis=-1)
        return np.asarray(off * (100 / self.sizes[part]))

    def penalty(self, n_images: Floats) -> Floats:
        """Above any cost of uneven parts for each class that is missing: `(..., n_classes)`."""
        return np.asarray(LACK * ((n_images < 0.5) & (self.shares > 0)).sum(axis=-1))

    def offer(self, part: int, lacking: Bools) -> tuple[Ints, Floats]:
        """Kinds of groups that a part could give up, first none (-1), and their images."""
        present = np.flatnonzero(self.placed[:, part])
        if len(present) > self.n_offered:
            present = self.rng.permutation(present)
            if (lacking & (self.shares > 0)).any():
                wanted = [lacking[list(self.kinds[kind][0])].any() for kind in present]
                present = present[np.argsort(np.logical_not(wanted), kind="stable")]
            present = present[: self.n_offered]
        images = np.zeros((len(present) + 1, len(lacking)))
        for row, kind in enumerate(present, start=1):
            classes, counts = self.kinds[kind]
            images[row, list(classes)] = counts
        return np.array([-1, *present]), images
