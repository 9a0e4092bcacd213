import hashlib

import numpy as np
import pytest

from plateau_train.data import garments

# If these differ on one machine only, an operation is not exact there, which is a defect (see the
# top of garments.py). If they differ everywhere, the images have changed. If that was intended,
# update both values and note it in CHANGELOG.md: all results on this data set are then outdated.
SHA256_OF_600_WITH_SEED_7 = "da5e42d275c5d83497e58c98c15ee2f899f1533a5e4902ac04102e246ed85ae8"
SHA256_OF_WHOLE_SET = "e3f5d973414137769b82b7d796847183edca48c57fd7f512342e19868bc98988"


@pytest.fixture(scope="module")
def whole_set():
    return (
        garments.draw(garments.TRAIN_EXAMPLES, seed=garments.TRAIN_SEED),
        garments.draw(garments.TEST_EXAMPLES, seed=garments.TEST_SEED),
    )


def sha256(*arrays):
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def test_a_small_draw_is_the_same_on_every_machine():
    assert sha256(*garments.draw(600, seed=7)) == SHA256_OF_600_WITH_SEED_7


def test_the_whole_set_is_the_same_on_every_machine(whole_set):
    train, test = whole_set
    assert sha256(*train, *test) == SHA256_OF_WHOLE_SET


def test_a_smaller_draw_is_the_beginning_of_a_larger_one():
    images, labels = garments.draw(1100, seed=3)
    for num_examples in (0, 1, 499, 500, 501, 1000):
        fewer_images, fewer_labels = garments.draw(num_examples, seed=3)
        assert np.array_equal(fewer_images, images[:num_examples]), num_examples
        assert np.array_equal(fewer_labels, labels[:num_examples]), num_examples


def test_shapes_dtypes_and_balance_are_those_of_fashion_mnist(whole_set):
    for (images, labels), num_examples in zip(whole_set, (60_000, 10_000), strict=True):
        assert (images.shape, images.dtype) == ((num_examples, 28, 28, 1), np.uint8)
        assert (labels.shape, labels.dtype) == ((num_examples,), np.int32)
        assert np.bincount(labels, minlength=10).tolist() == [num_examples // 10] * 10
    assert len(garments.CLASS_NAMES) == 10


def test_labels_are_in_random_order():
    _, labels = garments.draw(1000, seed=1)
    assert not np.array_equal(labels[:500], labels[500:])
    assert 50 < np.sum(labels[1:] == labels[:-1]) < 150  # one in ten, by chance


def test_no_image_occurs_twice_in_train_and_test_together(whole_set):
    (train_images, _), (test_images, _) = whole_set
    seen = {image.tobytes() for images in (train_images, test_images) for image in images}
    assert len(seen) == 70_000


def test_backgrounds_are_black_and_garments_are_not(whole_set):
    (_, _), (images, labels) = whole_set
    for label, name in enumerate(garments.CLASS_NAMES):
        black = np.mean(images[labels == label] == 0)
        assert 0.3 < black < 0.85, f"{name}: {black:.2f} of the pixels are black"
    assert np.all(images.max(axis=(1, 2, 3)) > 40), "an image is almost empty"


def test_nearest_class_means_are_far_better_than_chance_and_far_from_perfect(whole_set):
    (train_images, train_labels), (test_images, test_labels) = whole_set
    train, test = (
        images[:5000].reshape(5000, -1).astype(np.float32) for images in (train_images, test_images)
    )
    means = np.stack([train[train_labels[:5000] == label].mean(axis=0) for label in range(10)])
    distances = (means * means).sum(axis=1) - 2 * test @ means.T
    accuracy = np.mean(distances.argmin(axis=1) == test_labels[:5000])
    assert 0.4 < accuracy < 0.85, accuracy  # 0.68 on the real Fashion-MNIST
