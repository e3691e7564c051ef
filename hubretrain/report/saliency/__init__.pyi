from .explain import explain_images as explain_images
from .section import saliency_section as saliency_section
