from .beside import labels_beside as labels_beside
from .beside import tables_beside as tables_beside
from .beside import with_groups_beside as with_groups_beside
from .labelling import is_label_table as is_label_table
from .labelling import label_images as label_images
from .reading import TABLE_SUFFIXES as TABLE_SUFFIXES
from .reading import read_table as read_table
