"""The bottleneck file: one module's features of every view of every image, in HDF5."""

from hubretrain.bottlenecks.layout import CONTENT_FACTS as CONTENT_FACTS
from hubretrain.bottlenecks.layout import Fact as Fact
from hubretrain.bottlenecks.layout import RowIndex as RowIndex
from hubretrain.bottlenecks.merge import merge_files as merge_files
from hubretrain.bottlenecks.reader import Bottlenecks as Bottlenecks
from hubretrain.bottlenecks.rebuild import compare as compare
from hubretrain.bottlenecks.rebuild import shrink_file as shrink_file
from hubretrain.bottlenecks.writer import BottleneckWriter as BottleneckWriter
from hubretrain.bottlenecks.writer import seal_file as seal_file
