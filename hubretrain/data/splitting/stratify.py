"""The search for even parts: whole groups of images are dealt out so that classes stay stratified.

Groups that hold the same number of images of each class are interchangeable: they are of one kind.
The search decides how many groups of each kind go to each part, in two stages:

1. Deal: from the largest kind on, each group goes to the part where it does least harm. With n_pc
   images of class c in part p, which should hold a share w_p of all N_c of them, that is where
   sum over p, c of (n_pc - w_p N_c)² / w_p grows least; all images together are one more class.
2. Improve: between two parts at a time, groups are moved and swapped while that lowers the sum of
   squared deviations in percent, then the sum of their 8th powers, a smooth stand-in for the worst.

Where images may have several labels, or none, each label is a class, and all images are the last
one. Groups are then dealt from the rarest label on, as in iterative stratification (Sechidis et al.
2011, https://doi.org/10.1007/978-3-642-23808-6_10), with squares in units of N_c: otherwise large
groups and frequent labels would leave no choice for a rare one.

It is a heuristic (the problem is number partitioning, NP-hard), started several times where there
are few groups.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from hubretrain.arrays import BoolArray, FloatArray, IntArray

Kind = tuple[tuple[int, ...], tuple[int, ...]]  # (classes, images of each)

GROUPS_PER_SEARCH = 2000  # fewer groups get more starts, up to eight
MAX_STARTS = 8
MAX_PASSES = 20  # over all pairs of parts
SWAP_CELLS = 5e4  # swaps times classes that are tried at once: about a millisecond
SIZE_WEIGHT = 0.3  # a part that is 1 % too large is as bad as a class that is 0.3 points off
MISSING_COST = 1e12  # of a class missing from a part: above that of any deviation


def place_groups(
    label_codes: IntArray,
    group_codes: IntArray,
    weights: FloatArray,
    n_images: IntArray,
    n_wanted: IntArray,
    seed: int,
    *,
    last_is_every_image: bool = False,
) -> IntArray:
    """Deal whole groups out to parts, stratified by class.

    An image of several classes is given once per class.

    Args:
        label_codes: Class of each image to place, int64 of shape (n_new,), from 0.
        group_codes: Group of each image to place, int64 of shape (n_new,), from 0. Of groups of
            one kind, those with low codes go to the first parts, so codes should be shuffled.
        weights: Share of all images that each part should hold, shape (n_parts,), sum 1.
        n_images: Images that the parts hold already, shape (n_parts, n_classes).
        n_wanted: Images of each class in all parts in the end, shape (n_classes,).
        seed: Random seed of the search, 0 or more.
        last_is_every_image: Whether images may have several classes or none, and the last class is
            one that every image has; parts then need images without each other class, too.

    Returns:
        The part of each image, int64 of shape (n_new,), 0 .. n_parts - 1. Every class is in every
        part where single-class groups allow it; where groups mix classes, nearly always where
        possible.
    """
    if not len(label_codes):
        return np.zeros(0, np.int64)
    rng = np.random.default_rng(seed)
    # Shuffled so that it is not always the first part that gets the odd one out.
    parts = rng.permutation(len(weights))
    kinds = _kinds(label_codes, group_codes, len(n_wanted))
    sizes = [len(groups) for groups in kinds.values()]
    results = []
    for start in range(int(np.clip(GROUPS_PER_SEARCH // sum(sizes), 1, MAX_STARTS))):
        target = np.outer(weights, n_wanted)[parts]
        search = _Search(
            list(kinds), n_images[parts].astype(float), target, rng, last_is_every_image
        )
        order = rng.permutation(len(sizes)) if start else np.arange(len(sizes))
        if last_is_every_image:
            rarest = np.array([n_wanted[list(classes)].min() for classes, _ in kinds])
            order = order[np.argsort(rarest[order], kind="stable")]
        search.deal(sizes, order)
        results.append((search.improve(), start, search.placed))  # of equal ones the first wins
    part_of_group = np.empty(int(group_codes.max()) + 1, np.int64)
    for groups, counts in zip(kinds.values(), min(results)[2], strict=True):
        part_of_group[groups] = np.repeat(parts, counts)
    return part_of_group[group_codes]


def _kinds(label_codes: IntArray, group_codes: IntArray, n_classes: int) -> dict[Kind, list[int]]:
    """Return the groups of each kind, the kind with the most images first."""
    # np.unique sorts the cells by group, then by class, so each run of equal groups is one.
    cells, counts = np.unique(group_codes * n_classes + label_codes, return_counts=True)
    groups, classes = np.divmod(cells, n_classes)
    firsts = np.flatnonzero(np.diff(groups, prepend=-1))
    kinds: dict[Kind, list[int]] = {}
    for first, last in zip(firsts, [*firsts[1:], len(cells)], strict=True):
        kind = (tuple(classes[first:last].tolist()), tuple(counts[first:last].tolist()))
        kinds.setdefault(kind, []).append(int(groups[first]))
    return dict(sorted(kinds.items(), key=lambda item: (-sum(item[0][1]), item[0])))


class _Search:
    """One search: how many groups of each kind go to each part.

    Args:
        kinds: The kinds of groups, the one with the most images first.
        n_images: Images that the parts hold already, shape (n_parts, n_classes).
        target: Images that they should hold in the end, shape (n_parts, n_classes).
        rng: Source of randomness.
        last_is_every_image: Whether the last class is one that every image has; otherwise each
            image has one class.

    Attributes:
        n_images: Images that the parts hold now, shape (n_parts, n_classes).
        placed: Groups of each kind in each part, int64 of shape (n_kinds, n_parts).
        sizes: Images that each part should hold, shape (n_parts,).
        shares: Share of each class in all images, shape (n_classes,).
        n_offered: Kinds of groups that a part offers for a swap, at most.
    """

    def __init__(
        self,
        kinds: list[Kind],
        n_images: FloatArray,
        target: FloatArray,
        rng: np.random.Generator,
        last_is_every_image: bool = False,
    ) -> None:
        self.kinds, self.n_images, self.target, self.rng = kinds, n_images, target, rng
        self.placed = np.zeros((len(kinds), len(target)), np.int64)
        self.last_is_every_image = last_is_every_image
        self.sizes = self.all_images(target)[:, 0]
        n_all = self.sizes.sum() if last_is_every_image else target.sum()
        self.shares = target.sum(axis=0) / n_all
        self.n_offered = int(np.clip(np.sqrt(SWAP_CELLS / len(self.shares)), 4, 64))

    def deal(self, sizes: list[int], order: IntArray) -> None:
        """Give groups, in this order of their kinds, each to where the squares grow least.

        With e_pc = n_pc - w_p N_c, a group with k_c images of class c adds to part p
        sum_c ((e_pc + k_c)² - e_pc²) / w_p = (2 sum_c e_pc k_c + sum_c k_c²) / w_p,
        each term in units of N_c where images may have several classes.
        """
        excess = self.n_images - self.target
        if self.last_is_every_image:
            unit = np.maximum(self.target.sum(axis=0), 1)
        else:
            excess = np.column_stack([excess, excess.sum(axis=1)])  # all images: one more class
            unit = np.ones(excess.shape[1])
        for kind in order:
            classes, counts = self.kinds[kind]
            columns, images = np.array(classes), np.array(counts, float)
            if not self.last_is_every_image:
                columns, images = np.array([*classes, -1]), np.array([*counts, sum(counts)], float)
            scaled = images / unit[columns]
            square = scaled @ images
            for _ in range(sizes[kind]):
                part = int(np.argmin((2 * (excess[:, columns] @ scaled) + square) / self.sizes))
                excess[part, columns] += images
                self.placed[kind, part] += 1
        self.n_images = excess[:, : self.target.shape[1]] + self.target

    def improve(self) -> float:
        """Lower the squared deviations, then the worst; return what is left of the worst."""
        self.descend(1.0, doublings=1)
        # In units of the worst deviation, 8th powers neither overflow nor vanish.
        worst = max(float(abs(self.deviations(p, n)).max()) for p, n in enumerate(self.n_images))
        self.descend(worst + 1e-9, doublings=3)
        return max(
            float(abs(self.deviations(p, n)).max() + self.penalty(n))
            for p, n in enumerate(self.n_images)
        )

    def descend(self, unit: float, doublings: int) -> None:
        """Swap until nothing gets better, or long enough with every class in every part.

        Args:
            unit: Deviation in percent that counts as 1.
            doublings: How often deviations are squared: 1 for squares, 3 for 8th powers.
        """
        pairs = list(combinations(range(len(self.target)), 2))
        passes = 0
        while passes < MAX_PASSES or self.penalty(self.n_images).any():
            passes += 1
            if not sum([self.swap(p, q, unit, doublings) for p, q in pairs]):
                return

    def swap(self, p: int, q: int, unit: float, doublings: int) -> bool:
        """Make the move or swap of groups between two parts that lowers the cost most.

        Returns:
            Whether there was one.
        """
        # Row i and column j of the cost stand for the i-th offer of p and the j-th of q. The first
        # of each is no group, so cost[0, 0] is the cost as it is, and [i, 0] that of a move.
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

    def deviations(self, part: int, n_images: FloatArray) -> FloatArray:
        """Return by how many percent of a part each class and, last, its size is off.

        Args:
            part: The part.
            n_images: Images of each class in it, shape (..., n_classes).

        Returns:
            float64 of shape (..., n_classes + 1).
        """
        n = self.all_images(n_images)
        off_size = (n - self.sizes[part]) * SIZE_WEIGHT
        off = np.concatenate([n_images - n * self.shares, off_size], axis=-1)
        return np.asarray(off * (100 / self.sizes[part]))

    def all_images(self, n_images: FloatArray) -> FloatArray:
        """Return the number of all images in a part, shape (..., 1), by that of each class."""
        if self.last_is_every_image:
            return n_images[..., -1:]
        return np.asarray(n_images.sum(axis=-1, keepdims=True))

    def penalty(self, n_images: FloatArray) -> FloatArray:
        """Return a cost above that of any uneven parts for each class that is missing.

        Where images may have several, a class that all images of a part have costs as much.

        Args:
            n_images: Images of each class in a part, shape (..., n_classes).

        Returns:
            float64 of shape (...).
        """
        missing = (n_images < 0.5) & (self.shares > 0)
        if self.last_is_every_image:
            missing |= (self.all_images(n_images) - n_images < 0.5) & (self.shares < 1)
        return np.asarray(MISSING_COST * missing.sum(axis=-1))

    def offer(self, part: int, lacking: BoolArray) -> tuple[IntArray, FloatArray]:
        """Return kinds of groups that a part could give up, first none (-1), and their images.

        Args:
            part: The part.
            lacking: Whether each class is missing from the other part: such groups come first.
        """
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
