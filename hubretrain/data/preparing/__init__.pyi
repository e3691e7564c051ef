from .archives import UnpackedImages as UnpackedImages
from .archives import prepare_images as prepare_images
from .ham10000 import prepare_ham10000 as prepare_ham10000
