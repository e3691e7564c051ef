"""The summary of a data set, as `data_check.json` holds it: what is in it, before any judgement.

`summarizing` computes it from the image table, `findings` says what it means.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

SMALL_SIDE = 32  # pixels: below, a backbone sees mostly interpolation


@dataclass(frozen=True)
class ClassSummary:
    """One class.

    Attributes:
        name: Class name.
        n_images: Image files, those that cannot be decoded included.
        share: Share of all image files, [0, 1].
        n_bytes: Size of its files.
        n_unreadable: Files that cannot be decoded.
        n_groups: Groups of its decodable images.
        n_clusters: Groups, those that duplicates join counted as one.
        random_split_leak: Share of its images, [0, 1], that a random 80/20 split would leak if
            drawn for validation; None without decodable images.
    """

    name: str
    n_images: int
    share: float
    n_bytes: int
    n_unreadable: int
    n_groups: int
    n_clusters: int
    random_split_leak: float | None


@dataclass(frozen=True)
class ImbalanceSummary:
    """The largest and the smallest class, counted in decodable images.

    Attributes:
        largest: Name of the class with the most images.
        smallest: Name of the class with the fewest images.
        ratio: Images of the largest per image of the smallest; None where that has none.
        majority_share: Share of all images that are of the largest class, [0, 1].
    """

    largest: str
    smallest: str
    ratio: float | None
    majority_share: float


@dataclass(frozen=True)
class LabelPair:
    """Two labels and how many images have both."""

    labels: tuple[str, str]
    n_images: int


@dataclass(frozen=True)
class LabelSummary:
    """How labels go together where an image may have several, of the decodable images.

    Attributes:
        n_without: Images without any label.
        per_image: Labels of an image; None without images.
        n_sets: Number of different sets of labels.
        pairs: The pairs that the most images have, ten at most.
        equal: Labels that are on the same images.
        implied: (a, b) where every image with `a` has `b`, too, and that is hardly chance.
    """

    n_without: int
    per_image: Spread | None
    n_sets: int
    pairs: tuple[LabelPair, ...]
    equal: tuple[tuple[str, ...], ...]
    implied: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Spread:
    """Range and median of a whole number, such as a width in pixels."""

    least: int
    median: int
    most: int


@dataclass(frozen=True)
class ImageSize:
    """How many images have one width and height, both in pixels."""

    width: int
    height: int
    n_images: int


@dataclass(frozen=True)
class SizeSummary:
    """Formats, colour modes and sizes of the decodable images.

    Attributes:
        formats: Images per format, as Pillow names it, the most frequent first.
        modes: Images per colour mode, as Pillow names it, the most frequent first.
        n_sizes: Number of different sizes.
        width: Widths in pixels; None without images.
        height: Heights in pixels; None without images.
        common_sizes: The most frequent sizes, five at most.
        small: Paths of images with a side below `SMALL_SIDE`.
        other_format_than_named: Paths of files whose extension belongs to another format.
    """

    formats: dict[str, int]
    modes: dict[str, int]
    n_sizes: int
    width: Spread | None
    height: Spread | None
    common_sizes: tuple[ImageSize, ...]
    small: tuple[str, ...]
    other_format_than_named: tuple[str, ...]


@dataclass(frozen=True)
class FaultyImage:
    """An image that cannot be decoded, or that can be and looks cut, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class DeepSummary:
    """The images with 16 bits per channel.

    Attributes:
        n_images: How many there are.
        highest: The highest level in all of them, 0 to 65535.
        brightest: The image that has it.
        bits: Bits that they are read with, 8 to 16.
    """

    n_images: int
    highest: int
    brightest: str
    bits: int


@dataclass(frozen=True)
class EmptyFolder:
    """A folder beside the classes without an image that is read.

    Attributes:
        name: Its path.
        endings: Pictures and videos in it that are not read, per ending.
    """

    name: str
    endings: dict[str, int]


@dataclass(frozen=True)
class LeftOut:
    """What lies in the folders of a data set and is not looked at.

    Attributes:
        endings: Files per ending, the most frequent first.
        folders: Pictures and videos that are not read, per folder of a class and ending.
        empty_folders: Folders beside the classes without an image that is read.
    """

    endings: dict[str, int]
    folders: dict[str, dict[str, int]]
    empty_folders: tuple[EmptyFolder, ...]


@dataclass(frozen=True)
class GroupSize:
    """One group and its number of images."""

    group: str
    n_images: int


@dataclass(frozen=True)
class MixedGroup:
    """A group with images of several classes, or sets of labels, and how many of each."""

    group: str
    classes: dict[str, int]


@dataclass(frozen=True)
class GroupSummary:
    """The groups of the decodable images.

    Attributes:
        given: Whether the data set has groups; otherwise each image is its own.
        n_groups: Number of groups.
        n_with_several_images: Groups of two images or more.
        n_images_in_those: Images in groups of two or more.
        n_groups_of_size: Groups per number of images; its keys are numbers as text, as in JSON.
        largest: The largest groups of two images or more, five at most.
        mixed_classes: Groups with images of several classes.
        n_folders: Folders between classes and images, which may be groups; 0 where groups are given
            or declined.
        first_folder: One of them.
        repeated_folders: Names of folders below the classes that may be the classes themselves.
    """

    given: bool
    n_groups: int
    n_with_several_images: int
    n_images_in_those: int
    n_groups_of_size: dict[str, int]
    largest: tuple[GroupSize, ...]
    mixed_classes: tuple[MixedGroup, ...]
    n_folders: int = 0
    first_folder: str = ""
    repeated_folders: tuple[str, ...] = ()


@dataclass(frozen=True)
class DuplicateSet:
    """Images that are duplicates of each other.

    Attributes:
        kind: `exact`: all files with the same bytes; `near`: one pair.
        paths: The image files.
        labels: Class of each, or its labels joined by a bar; of a near duplicate whose exact
            duplicates have other labels joined by ` / `.
        one_group: Whether all are of one group.
        similarity: Correlation of their details, up to 1.
    """

    kind: Literal["exact", "near"]
    paths: tuple[str, ...]
    labels: tuple[str, ...]
    one_group: bool
    similarity: float


@dataclass(frozen=True)
class DuplicateSummary:
    """Exact and near duplicates among the decodable images.

    Attributes:
        n_exact_copies: Files whose bytes an earlier file has already.
        n_near_pairs: Pairs of near duplicates.
        exact: Sets of files with the same bytes.
        near: Pairs of near duplicates, by their first paths, the most similar first.
        conflicting: Those of either kind with several labels.
    """

    n_exact_copies: int
    n_near_pairs: int
    exact: tuple[DuplicateSet, ...]
    near: tuple[DuplicateSet, ...]
    conflicting: tuple[DuplicateSet, ...]


@dataclass(frozen=True)
class GivenSplitSummary:
    """The split that the data set came with, of its decodable images.

    Attributes:
        n_without_split: Images, decodable or not, that were given none.
        counts: Images per class, per split.
        missing: (split, class) without an image.
        n_leaked: Validation and test images whose cluster is in another split too.
        n_leaked_by_group: Those whose group is.
        n_leaked_by_exact_copies: Those whose bytes are.
        leaks: `path (split)` of the images of each cluster that is in several splits.
    """

    n_without_split: int
    counts: dict[str, dict[str, int]]
    missing: tuple[tuple[str, str], ...]
    n_leaked: int
    n_leaked_by_group: int
    n_leaked_by_exact_copies: int
    leaks: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class FoldsSummary:
    """Whether a test split and folds can be cut, and how even they are.

    Attributes:
        n_folds: Number of folds requested.
        test_fraction: Requested share of the images in the test split.
        error: Why they cannot be cut; None if they can.
        worst_deviation_points: Largest gap between the share of a class in one part and in all
            images, percentage points; None if they cannot be cut.
    """

    n_folds: int
    test_fraction: float
    error: str | None = None
    worst_deviation_points: float | None = None


@dataclass(frozen=True)
class Summary:
    """What a data set holds.

    Attributes:
        name: Name of the data set.
        folders: Its folders, absolute.
        n_images: Image files.
        n_bytes: Size of all image files.
        n_classes: Number of classes.
        classes: Each class, in class order.
        imbalance: The largest and the smallest class.
        sizes: Formats, colour modes and sizes.
        unreadable: Files that cannot be decoded.
        cut: Files that can be decoded and look cut.
        deep: The images with 16 bits per channel; None without any.
        left_out: What is not looked at.
        groups: What must not straddle splits.
        duplicates: Exact and near duplicates.
        given_splits: The split that the data set came with; None without one.
        random_split_leak: Share of validation images, [0, 1], that a random 80/20 split would
            leak; None without decodable images.
        folds: Whether a test split and folds can be cut.
        labels: How labels go together; None where each image has one.
    """

    name: str
    folders: tuple[str, ...]
    n_images: int
    n_bytes: int
    n_classes: int
    classes: tuple[ClassSummary, ...]
    imbalance: ImbalanceSummary
    sizes: SizeSummary
    unreadable: tuple[FaultyImage, ...]
    cut: tuple[FaultyImage, ...]
    deep: DeepSummary | None
    left_out: LeftOut
    groups: GroupSummary
    duplicates: DuplicateSummary
    given_splits: GivenSplitSummary | None
    random_split_leak: float | None
    folds: FoldsSummary
    labels: LabelSummary | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the summary as `data_check.json` holds it."""
        values = asdict(self)
        values["folds"] = {k: v for k, v in values["folds"].items() if v is not None}
        if self.labels is None:
            del values["labels"]
        return values
