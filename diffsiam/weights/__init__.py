"""Published weights in and out: files are recognised by content, loaded strictly, written in any format."""

from diffsiam.weights.architecture import Assumed, infer_config
from diffsiam.weights.contract import ImageContract
from diffsiam.weights.errors import WeightsError
from diffsiam.weights.files import sha256_of
from diffsiam.weights.formats.native import save_unet
from diffsiam.weights.loading import build_unet, load_unet, read_parts
from diffsiam.weights.parts import Parts
from diffsiam.weights.states import first_mismatch

__all__ = [
    "Assumed",
    "ImageContract",
    "Parts",
    "WeightsError",
    "build_unet",
    "first_mismatch",
    "infer_config",
    "load_unet",
    "read_parts",
    "save_unet",
    "sha256_of",
]
