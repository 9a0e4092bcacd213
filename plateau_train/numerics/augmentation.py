"""Random changes of training images, on the device."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Key, UInt8

from plateau_train.config import Augmentation

Image = UInt8[Array, "height width channel"]
Images = UInt8[Array, "n height width channel"]
Change = Callable[[Key[Array, ""], Image], Image]

# Images are shifted by at most this fraction of their height and width, and by at least one pixel.
LARGEST_SHIFT = 1 / 8


def augment(augmentation: Augmentation, key: Key[Array, ""], images: Images) -> Images:
    """Change each image by itself; the same key gives the same changes."""
    for number, change in enumerate(CHANGES[augmentation]):
        keys = jax.random.split(jax.random.fold_in(key, number), len(images))
        images = jax.vmap(change)(keys, images)
    return images


def shift(key: Key[Array, ""], image: Image) -> Image:
    """Shift an image by whole pixels; what comes in from outside is 0."""
    height, width, _ = image.shape
    most = tuple(max(1, int(size * LARGEST_SHIFT)) for size in (height, width))
    padded = jnp.pad(image, (*((size, size) for size in most), (0, 0)))
    starts = jax.random.randint(key, (2,), 0, 2 * jnp.array(most) + 1)
    return lax.dynamic_slice(padded, (*starts, 0), image.shape)


def flip(key: Key[Array, ""], image: Image) -> Image:
    """Exchange left and right with probability 1/2."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


CHANGES: dict[Augmentation, tuple[Change, ...]] = {
    "none": (),
    "shift": (shift,),
    "flip,shift": (flip, shift),
}
