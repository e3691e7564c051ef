"""A folder or a CSV becomes a checked image table.

Layouts that are recognised without options, in this order:

1. HAM10000 as published: ``HAM10000_metadata.csv`` with ``image_id``, ``dx``, ``lesion_id``.
2. Hugging Face imagefolder: ``metadata.csv`` with ``file_name`` and a label column.
3. ``train/<class>/..``, ``val/<class>/..``, ``test/<class>/..``: class folders with given splits.
4. ``<class>/..``: a folder a class.

Any other table of labels is named by options. Nothing here opens an image.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from hubretrain.errors import DataError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
)  # what images.decode reads

# Folder names and values of a split column, as people write them -> ours.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}

# Tables that need no options: file name -> (image column, label columns, group column).
KNOWN_TABLES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "HAM10000_metadata.csv": ("image_id", ("dx",), "lesion_id"),
    "HAM10000_metadata": ("image_id", ("dx",), "lesion_id"),
    "metadata.csv": ("file_name", ("label", "class", "labels"), "group"),
}
IMAGE_COLUMNS = ("path", "file_name", "image_id", "filename", "image")
LABEL_COLUMNS = ("label", "class", "dx", "labels")


@dataclass(frozen=True)
class ImageDataset:
    """A checked table of labelled images.

    Attributes:
        name: The data set's name, used for its folder in the cache.
        root: The folder that image paths are relative to.
        images: One row an image, columns ``path`` (str, relative to ``root``, with ``/``),
            ``label`` (str), ``group`` (str; images of one group never straddle splits) and
            ``split`` (``train``, ``validation``, ``test``, or empty where none was given).
        class_names: The labels in class order; class ``c`` is ``class_names[c]``.
        grouped: Whether groups were given; otherwise each image is a group of its own.
        opened_with: The options of :func:`open_dataset` that open it again.
    """

    name: str
    root: Path
    images: pd.DataFrame
    class_names: tuple[str, ...]
    grouped: bool = False
    opened_with: dict[str, str | bool] = field(default_factory=dict)

    @classmethod
    def from_folder(cls, root: str | os.PathLike[str]) -> ImageDataset:
        """Reads a folder of class-named sub-folders, with or without train/val/test above them.

        Raises:
            DataError: The folder is missing, holds no images, or has fewer than two classes.
        """
        root = _existing_folder(Path(root))
        paths = find_images(root)
        parts = [path.split("/") for path in paths]
        tops = {p[0] for p in parts if len(p) > 1}
        given = bool(tops) and all(t.lower() in SPLIT_NAMES for t in tops)
        depth = 1 if given else 0
        loose = [path for path, p in zip(paths, parts, strict=True) if len(p) < depth + 2]
        if paths and len(loose) == len(paths):
            raise DataError(
                f"{root}: {len(paths)} images but no class folders and no table of labels; "
                "put each class in a folder of its own, or name a CSV with --labels."
            )
        if loose:
            raise DataError(
                f"{root}: {len(loose)} images lie outside every class folder (first: {loose[0]}); "
                "move them into one, or out of the data set."
            )
        table = pd.DataFrame(
            {
                "path": paths,
                "label": [p[depth] for p in parts],
                "group": paths,
                "split": [SPLIT_NAMES[p[0].lower()] if given else "" for p in parts],
            },
            dtype=object,
        )
        return _checked(root, table, grouped=False)

    @classmethod
    def from_csv(
        cls,
        root: str | os.PathLike[str],
        labels: str | os.PathLike[str],
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        group_column: str | None = None,
        split_column: str | None = None,
        skip_unmatched: bool = False,
    ) -> ImageDataset:
        """Reads a folder of images and a table that labels them.

        Args:
            root: The folder that holds the images, at any depth.
            labels: A CSV (or TSV, by its suffix) with one row an image.
            image_column: Names the image: a path below ``root``, a file name, or a file stem.
                By default the first of ``path``, ``file_name``, ``image_id`` that is there.
            label_column: The class. By default the first of ``label``, ``class``, ``dx``.
            group_column: Images that belong together (a lesion, a patient). An empty cell
                makes the image a group of its own.
            split_column: A split that was given: ``train``, ``validation`` or ``test``.
            skip_unmatched: Go on without rows that have no file and files that have no row.

        Raises:
            DataError: A column is missing, a row has no file, a file has no row, a label is
                empty, one image has two labels, or there are fewer than two classes.
        """
        root, labels = _existing_folder(Path(root)), Path(labels)
        rows = _read_table(labels)
        image_column = _column(rows, labels, image_column, IMAGE_COLUMNS, "image")
        label_column = _column(rows, labels, label_column, LABEL_COLUMNS, "label")
        for column in (group_column, split_column):
            if column is not None:
                _column(rows, labels, column, (), "")
        paths = find_images(root)
        matched = _match(rows[image_column], paths, labels)
        _refuse_unmatched(root, labels, rows[image_column], paths, matched, skip_unmatched)
        group = (
            matched.copy()
            if group_column is None
            else rows[group_column].where(rows[group_column] != "", matched)
        )
        split = pd.Series("", index=rows.index, dtype=object)
        if split_column is not None:
            split = _split_names(rows[split_column], labels)
        table = pd.DataFrame(
            {"path": matched, "label": rows[label_column], "group": group, "split": split},
            dtype=object,
        )[matched != ""]
        if (unlabelled := int((table["label"] == "").sum()) if len(table) else 0) > 0:
            raise DataError(
                f"{labels}: {unlabelled} rows have an empty {label_column!r} "
                f"(first: {table.loc[table['label'] == '', 'path'].iloc[0]}); "
                "label them or remove the rows."
            )
        return _checked(root, _one_row_an_image(table, labels), grouped=group_column is not None)

    @property
    def labels(self) -> pd.Series:
        """The class index of each image, int64 in [0, n_classes)."""
        order = {name: index for index, name in enumerate(self.class_names)}
        return self.images["label"].map(order).astype("int64")


def open_dataset(
    data: str | os.PathLike[str] | None = None,
    *,
    labels: str | os.PathLike[str] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    split_column: str | None = None,
    skip_unmatched: bool = False,
) -> ImageDataset:
    """Opens a data set: the folder given, or the one in ``data/``.

    Args:
        data: A folder. None: ``data/`` itself, or the one data set in it.
        labels: A table of labels; see :meth:`ImageDataset.from_csv` for this and the columns.
        image_column: The column that names the image.
        label_column: The column that names the class.
        group_column: The column that names what must stay together.
        split_column: The column with a given split.
        skip_unmatched: Go on without rows that have no file and files that have no row.

    Raises:
        DataError: No data set, several, or one that is not as expected; the message says which.
    """
    root = _existing_folder(Path(data)) if data is not None else default_folder(Path("data"))
    columns = {
        "image_column": image_column,
        "label_column": label_column,
        "group_column": group_column,
        "split_column": split_column,
    }
    if labels is None and (known := _known_table(root)) is not None:
        columns = _known_columns(known, columns)
        labels = known
    if labels is None:
        for name, value in columns.items():
            if value is not None:
                option = name.replace("_", "-")
                raise DataError(
                    f"{root}: --{option} {value} needs a table; name it with --labels FILE."
                )
        return ImageDataset.from_folder(root)
    found = ImageDataset.from_csv(root, labels, skip_unmatched=skip_unmatched, **columns)
    given = {name: value for name, value in columns.items() if value is not None}
    opened_with: dict[str, str | bool] = {"labels": str(Path(labels).resolve()), **given}
    return replace(found, opened_with=opened_with | {"skip_unmatched": skip_unmatched})


def default_folder(data: Path) -> Path:
    """The data set to take when none is named: the one in ``data``, or ``data`` itself.

    Raises:
        DataError: There is none, or there are several (they are listed).
    """
    folders = [p for p in sorted(data.iterdir()) if p.is_dir()] if data.is_dir() else []
    found = [p for p in folders if _known_table(p) is not None or _has_class_folders(p)]
    if _known_table(data) is not None or (not found and _has_class_folders(data)):
        return data
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{data}/ holds {len(found)} data sets ({', '.join(p.name for p in found)}); "
            f"name one, such as: {found[0]}"
        )
    raise DataError(
        f"{data}/ holds no data set; put a folder of class folders or HAM10000 there, "
        "or name a folder."
    )


def find_images(root: Path) -> list[str]:
    """Every image file below ``root``, as sorted paths relative to it; hidden ones left out.

    Links to folders are followed once each, so a link that loops ends.
    """
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
        relative = os.path.relpath(folder, root)
        prefix = "" if relative == "." else relative.replace(os.sep, "/") + "/"
        found.extend(
            prefix + f
            for f in files
            if not f.startswith(".") and os.path.splitext(f)[1].lower() in IMAGE_SUFFIXES
        )
    for path in found:
        try:
            path.encode("utf-8")
        except UnicodeEncodeError:
            shown = path.encode("utf-8", "backslashreplace").decode()
            raise DataError(f"{root}: the name of {shown} is not UTF-8; rename the file.") from None
    return sorted(found)


def sorted_classes(labels: Sequence[str]) -> tuple[str, ...]:
    """The distinct labels in class order: by number where all are whole numbers, else by text."""
    distinct = set(labels)
    if all(label.isascii() and label.isdigit() for label in distinct):
        return tuple(sorted(distinct, key=lambda label: (int(label), label)))
    return tuple(sorted(distinct))


def _existing_folder(root: Path) -> Path:
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{root} {what}; expected a folder of images.")
    return root


def _known_table(root: Path) -> Path | None:
    return next((root / name for name in KNOWN_TABLES if (root / name).is_file()), None)


def _known_columns(known: Path, asked: dict[str, str | None]) -> dict[str, str | None]:
    """The columns of a table that is recognised by its name, unless others are asked for."""
    image, label_names, group = KNOWN_TABLES[known.name]
    there = _read_table(known).columns
    usual = {
        "image_column": image,
        "label_column": next((c for c in label_names if c in there), label_names[0]),
        "group_column": group if group in there else None,
        "split_column": "split" if "split" in there else None,
    }
    return {name: asked[name] or column for name, column in usual.items()}


def _has_class_folders(root: Path) -> bool:
    """Whether a sub-folder, or one below train/val/test, directly holds images."""

    def holds_images(folder: Path) -> bool:
        return any(p.suffix.lower() in IMAGE_SUFFIXES for p in folder.iterdir() if p.is_file())

    for child in root.iterdir() if root.is_dir() else ():
        if not child.is_dir() or child.name.startswith("."):
            continue
        nested = child.iterdir() if child.name.lower() in SPLIT_NAMES else ()
        if holds_images(child) or any(holds_images(p) for p in nested if p.is_dir()):
            return True
    return False


def _read_table(labels: Path) -> pd.DataFrame:
    """Reads a table as text: no cell becomes a number, and an empty cell is ''."""
    try:
        table = pd.read_csv(
            labels,
            sep="\t" if labels.suffix.lower() == ".tsv" else ",",
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
        )
    except FileNotFoundError:
        raise DataError(f"{labels} does not exist; expected a table of labels.") from None
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(
            f"{labels} cannot be read as a UTF-8 table: {error}; expected a CSV with a header."
        ) from error
    cells = {name: column.str.strip() for name, column in table.items()}
    text: pd.DataFrame = pd.DataFrame(cells, dtype=object)
    return text


def _column(
    rows: pd.DataFrame, labels: Path, asked: str | None, usual: Sequence[str], role: str
) -> str:
    names = (asked,) if asked is not None else tuple(usual)
    for name in names:
        if name in rows.columns:
            return name
    has = ", ".join(map(str, rows.columns))
    if asked is not None:
        raise DataError(f"{labels} has no column {asked!r}; its columns are: {has}.")
    raise DataError(
        f"{labels} has no {role} column (looked for {', '.join(usual)}); its columns are: {has}; "
        f"name one with --{role}-column."
    )


def _match(cells: pd.Series, paths: list[str], labels: Path) -> pd.Series:
    """The path that each cell names: by path, else by file name, else by stem; '' for none."""
    by_path = set(paths)
    by_name: dict[str, list[str]] = {}
    by_stem: dict[str, list[str]] = {}
    for path in paths:
        name = path.rsplit("/", 1)[-1]
        by_name.setdefault(name, []).append(path)
        by_stem.setdefault(os.path.splitext(name)[0], []).append(path)

    def find(cell: str) -> str:
        relative = os.path.normpath(cell).replace(os.sep, "/") if cell else ""
        if relative in by_path:
            return relative
        if relative.startswith(("../", "/")):
            raise DataError(
                f"{labels}: {cell!r} lies outside the data set's folder; "
                "use paths below it, or name the folder above as the data set."
            )
        found = (by_name.get(cell) or by_stem.get(cell) or []) if "/" not in relative else []
        if len(found) > 1:
            raise DataError(
                f"{labels}: {cell!r} could be {found[0]} or {found[1]}; write the path instead."
            )
        return found[0] if found else ""

    return cells.map(find).astype(object)


def _refuse_unmatched(
    root: Path,
    labels: Path,
    cells: pd.Series,
    paths: list[str],
    matched: pd.Series,
    skip_unmatched: bool,
) -> None:
    without_file = cells[matched == ""]
    without_row = sorted(set(paths) - set(matched))
    if len(without_file) == len(cells):
        raise DataError(
            f"{labels}: none of its {len(cells)} rows names an image below {root}; "
            "check the folder and --image-column."
        )
    advice = "mend the table, or pass --skip-unmatched to go on without them."
    if len(without_file) and not skip_unmatched:
        raise DataError(
            f"{labels}: {len(without_file)} of {len(cells)} rows have no file below {root} "
            f"(first: {without_file.iloc[0]!r}); {advice}"
        )
    if without_row and not skip_unmatched:
        raise DataError(
            f"{root}: {len(without_row)} of {len(paths)} images have no row in {labels} "
            f"(first: {without_row[0]}); {advice}"
        )


def _split_names(cells: pd.Series, labels: Path) -> pd.Series:
    known = cells.str.lower().map(SPLIT_NAMES)
    unknown = cells[known.isna() & (cells != "")]
    if len(unknown):
        raise DataError(
            f"{labels}: {unknown.iloc[0]!r} is no split; expected train, validation or test."
        )
    return known.fillna("").astype(object)


def _one_row_an_image(table: pd.DataFrame, labels: Path) -> pd.DataFrame:
    """Drops repeated rows; one image with two labels, groups or splits is an error."""
    table = table.drop_duplicates()
    twice = table[table["path"].duplicated(keep=False)]
    if len(twice):
        path = twice["path"].iloc[0]
        cells = twice[twice["path"] == path]
        column = next(c for c in ("label", "group", "split") if len(set(cells[c])) > 1)
        first, second = cells[column].unique()[:2]
        raise DataError(
            f"{labels}: {path} stands there with two {column}s ({first!r} and {second!r}); "
            "keep one row an image."
        )
    return table


def _checked(root: Path, table: pd.DataFrame, *, grouped: bool) -> ImageDataset:
    if not len(table):
        raise DataError(
            f"{root} holds no images; expected class folders or a table of labels, with images of "
            f"type {', '.join(sorted(s[1:] for s in IMAGE_SUFFIXES))}."
        )
    class_names = sorted_classes(table["label"].tolist())
    if len(class_names) < 2:
        raise DataError(
            f"{root}: all {len(table)} images have the one label {class_names[0]!r}; "
            "at least two classes are needed."
        )
    table = table.sort_values("path").reset_index(drop=True)
    return ImageDataset(_name(root), root, table, class_names, grouped)


def _name(root: Path) -> str:
    return root.resolve().name or "data"
