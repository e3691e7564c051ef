from .explain import explain_images as explain_images
from .section import SaliencyRow as SaliencyRow
from .section import saliency_rows as saliency_rows
