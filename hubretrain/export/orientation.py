"""The EXIF orientation of a JPEG, read and undone in TensorFlow's graph, as Pillow does it.

Without it a photograph that a telephone took upright would be served lying on its side.
Formats: JPEG (ITU-T T.81, annex B), Exif 2.32 (section 4.5), TIFF 6.0 (section 2).
"""

from __future__ import annotations

from hubretrain.tensorflow import tf

_MOST_SEGMENTS = 16  # Exif comes first or second; what comes later no camera wrote
_LOOKED_AT = 2 * 65536  # bytes: room for one segment of the greatest length, and others
_APP1, _SCAN = 0xE1, 0xDA  # markers: where Exif is, and where the picture begins
_EXIF = (0x45, 0x78, 0x69, 0x66, 0, 0)  # "Exif\0\0"
_ORIENTATION, _SHORT = 0x0112, 3  # TIFF tag and type
_MOST_TAGS = 64


def exif_orientation(data: tf.Tensor) -> tf.Tensor:
    """The orientation of JPEG bytes, int32 scalar, 1 to 8; 1 where none is told.

    Args:
        data: string scalar.
    """
    head = tf.strings.substr(data, 0, _LOOKED_AT)
    codes = tf.cast(tf.io.decode_raw(head, tf.uint8), tf.int32)
    last = tf.size(codes) - 1

    def at(place: tf.Tensor) -> tf.Tensor:
        return tf.gather(codes, tf.clip_by_value(place, 0, last))

    def is_exif(place: tf.Tensor) -> tf.Tensor:
        tagged = [tf.equal(at(place + 4 + i), code) for i, code in enumerate(_EXIF)]
        return tf.reduce_all([tf.equal(at(place + 1), _APP1), *tagged])

    def is_to_pass(place: tf.Tensor, n: tf.Tensor) -> tf.Tensor:
        is_segment = (at(place) == 0xFF) & (at(place + 1) != _SCAN) & (place < last)
        return is_segment & ~is_exif(place) & (n < _MOST_SEGMENTS)

    def following(place: tf.Tensor, n: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return place + 2 + at(place + 2) * 256 + at(place + 3), n + 1

    segment, _ = tf.while_loop(is_to_pass, following, (tf.constant(2), tf.constant(0)))
    tiff = segment + 10
    is_little = at(tiff) == 0x49  # "II", else "MM"

    def short(place: tf.Tensor) -> tf.Tensor:
        first, second = at(place), at(place + 1)
        return tf.where(is_little, first + 256 * second, 256 * first + second)

    def long(place: tf.Tensor) -> tf.Tensor:
        first, second = short(place), short(place + 2)
        low, high = tf.where(is_little, first, second), tf.where(is_little, second, first)
        return low + tf.minimum(high, 0x7FFF) * 65536

    table = tiff + tf.minimum(long(tiff + 4), _LOOKED_AT)
    entries = table + 2 + 12 * tf.range(tf.minimum(short(table), _MOST_TAGS))
    found = (short(entries) == _ORIENTATION) & (short(entries + 2) == _SHORT)
    told = tf.reduce_max(tf.where(found, short(entries + 8), 0))
    is_told = is_exif(segment) & (told >= 1) & (told <= 8)
    return tf.where(is_told, told, 1)


def upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns an image (height, width, channels) by its EXIF orientation, 1 to 8."""
    turned = tf.cond(orientation >= 5, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)

    def is_one_of(*which: int) -> tf.Tensor:
        return tf.reduce_any([tf.equal(orientation, one) for one in which])

    turned = tf.cond(is_one_of(2, 3, 6, 7), lambda: turned[:, ::-1], lambda: turned)
    return tf.cond(is_one_of(3, 4, 7, 8), lambda: turned[::-1], lambda: turned)
