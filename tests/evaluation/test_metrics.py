"""Confusion matrix and boundary F against the released code's arrays, counts by hand and brute force."""

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.morphology import dilation, disk

from pipeline.evaluation.boundary import boundary_scores
from pipeline.evaluation.metrics import boundary_f, boundary_means, confusion_matrix, mean_scores, scores

REFERENCE = Path(__file__).parents[1] / "reference" / "boundary_a.npz"


@pytest.mark.parametrize("radius", [1, 2, 3])
def test_boundary_f_equals_the_released_code(radius):
    arrays = np.load(REFERENCE)
    classes = int(arrays["num_classes"])
    pairs = list(zip(arrays["prediction"], arrays["label"], strict=True))
    f_NK, present_NK = map(np.stack, zip(*(boundary_f(*pair, classes, radius) for pair in pairs), strict=True))
    np.testing.assert_allclose(f_NK, arrays[f"f_all_{radius}px"], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(present_NK, arrays["present"])
    means = boundary_means(f_NK[:, None], present_NK, [radius])[str(radius)]
    assert means["gscnn"] == pytest.approx(arrays[f"mean_f_gscnn_{radius}px"], abs=1e-12)
    assert means["present"] == pytest.approx(arrays[f"mean_f_present_{radius}px"], abs=1e-12)


def brute_force(predicted_HW, labels_HW, classes, radius, ignore):
    """Class by class and pixel by pixel, as the definition reads."""

    def outline(mask):
        H, W = mask.shape
        found = np.zeros((H, W), bool)
        for y in range(H):
            for x in range(W):
                others = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
                found[y, x] = any(mask[other] != mask[y, x] for other in others if other[0] < H and other[1] < W)
        return found

    f = []
    for k in range(classes):
        a, b = (outline((mask == k) & (labels_HW != ignore)) for mask in (predicted_HW, labels_HW))
        if not a.any() or not b.any():
            f.append(1.0 if not a.any() and not b.any() else 0.0)
            continue
        precision, recall = (a & dilation(b, disk(radius))).sum() / a.sum(), (b & dilation(a, disk(radius))).sum() / b.sum()
        f.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return np.array(f)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("classes", [1, 2, 9, 40])
def test_boundary_f_equals_brute_force(classes, seed):
    random = np.random.default_rng(seed)
    labels_HW, predicted_HW = (random.integers(0, classes, (5, 4)).repeat(4, 0).repeat(6, 1) for _ in range(2))
    predicted_HW = np.where(random.random(labels_HW.shape) < 0.8, labels_HW, predicted_HW).astype(np.uint8)
    labels_HW = np.where(random.random(labels_HW.shape) < 0.05, 255, labels_HW).astype(np.uint8)
    radii = (1, 3, 5, 9, 12)
    f_RK, present_K = boundary_scores(predicted_HW, labels_HW, classes, radii)
    for radius, f_K in zip(radii, f_RK, strict=True):
        np.testing.assert_allclose(f_K, brute_force(predicted_HW, labels_HW, classes, radius, 255), atol=1e-12)
    kept = labels_HW != 255
    np.testing.assert_array_equal(present_K, [((predicted_HW == k) & kept).any() or (labels_HW == k).any() for k in range(classes)])


def test_150_present_classes_need_more_than_one_word():
    random = np.random.default_rng(0)
    labels_HW = random.permutation(150).reshape(10, 15).repeat(3, 0).repeat(3, 1).astype(np.uint8)
    predicted_HW = np.roll(labels_HW, 1, 1)
    f_K, present_K = boundary_f(predicted_HW, labels_HW, 150, 1)
    assert present_K.all()
    np.testing.assert_allclose(f_K, brute_force(predicted_HW, labels_HW, 150, 1, 255), atol=1e-12)


def test_a_count_by_hand():
    """A 2x2 square in rows and columns 2 and 3 of a 6x6 image, predicted one pixel further right.

    A pixel is on the outline when its right, lower or lower-right neighbour is on the other side. Around the square these are
    (1,1) (1,2) (1,3) (2,1) (3,1); in it (2,3) (3,2) (3,3), but not (2,2), whose three neighbours are in it too: 8 pixels. The
    prediction's are the same, one column further right. (1,2) (1,3) (3,2) (3,3) are on both.
    """
    labels_HW = np.zeros((6, 6), np.uint8)
    labels_HW[2:4, 2:4] = 1
    predicted_HW = np.roll(labels_HW, 1, 1)
    f_K, _ = boundary_f(predicted_HW, labels_HW, 2, 0)
    assert f_K[1] == pytest.approx(4 / 8)
    # At radius 1 every pixel has its own shifted copy one step to the side.
    f_K, present_K = boundary_f(predicted_HW, labels_HW, 3, 1)
    assert f_K.tolist() == [1.0, 1.0, 1.0]  # class 2 is in neither
    assert present_K.tolist() == [True, True, False]


def test_identical_masks_score_1_and_a_missing_class_0():
    labels_HW = np.tri(9, 9, dtype=np.uint8)
    assert boundary_f(labels_HW, labels_HW, 2, 1)[0].tolist() == [1.0, 1.0]
    f_K, present_K = boundary_f(np.zeros_like(labels_HW), labels_HW, 2, 3)
    assert f_K.tolist() == [0.0, 0.0]  # class 0 fills the prediction, and so has no outline there
    assert present_K.all()


def test_void_is_nobodys_and_hides_predictions():
    labels_HW = np.full((8, 8), 255, np.uint8)
    labels_HW[:, :4] = 0
    predicted_HW = np.zeros_like(labels_HW)
    predicted_HW[:, 4:] = 2
    f_K, present_K = boundary_f(predicted_HW, labels_HW, 3, 1)
    assert f_K.tolist() == [1.0, 1.0, 1.0]
    assert present_K.tolist() == [True, False, False]


def test_tensors_and_arrays_give_the_same():
    arrays = np.load(REFERENCE)
    prediction, labels, classes = arrays["prediction"], arrays["label"], int(arrays["num_classes"])
    f_K, present_K = boundary_f(torch.tensor(prediction[0]).long(), torch.tensor(labels[0]).long(), classes, 2)
    assert isinstance(f_K, torch.Tensor)
    assert isinstance(present_K, torch.Tensor)
    np.testing.assert_array_equal(f_K, boundary_f(prediction[0], labels[0], classes, 2)[0])
    matrix = confusion_matrix(torch.tensor(prediction), torch.tensor(labels), classes)
    assert isinstance(matrix, torch.Tensor)
    np.testing.assert_array_equal(matrix, confusion_matrix(prediction, labels, classes))


@pytest.mark.parametrize(("prediction", "label"), [(2, 0), (-1, 0), (0, 2), (0, -1)])
def test_ids_outside_the_classes_are_refused(prediction, label):
    predicted, labels = torch.tensor([[0, prediction]]), torch.tensor([[0, label]])
    wrong = prediction or label
    with pytest.raises(ValueError, match=f"{'prediction' if prediction else 'label'} {wrong} is outside the 2 classes"):
        confusion_matrix(predicted[None], labels[None], 2)
    with pytest.raises(ValueError, match=f"{wrong} is outside the 2 classes"):
        boundary_f(predicted, labels, 2, 1)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="shape"):
        confusion_matrix(torch.zeros(1, 2, 3).long(), torch.zeros(1, 3, 2).long(), 2)
    with pytest.raises(ValueError, match="one size"):
        boundary_f(np.zeros((2, 3), int), np.zeros((3, 2), int), 2, 1)


def test_confusion_matrix_counts_every_pixel_once():
    random = np.random.default_rng(0)
    predicted, labels = random.integers(0, 7, (2, 2, 13, 17))
    labels[random.random(labels.shape) < 0.1] = 9
    expected = [[((labels == k) & (predicted == l)).sum() for l in range(7)] for k in range(7)]  # noqa: E741
    made = confusion_matrix(torch.tensor(predicted), torch.tensor(labels), 7, ignore_index=9)
    assert made.dtype == torch.int64
    assert made.tolist() == expected


def test_rows_are_labels():
    assert confusion_matrix(np.array([[[1, 1, 0]]]), np.array([[[0, 1, 255]]]), 2).tolist() == [[0, 1], [0, 1]]


def test_arrays_that_run_backwards_are_counted():
    mask = np.array([[[1, 1, 0]]])
    for flipped in (mask[::-1], mask[:, ::-1], mask[..., ::-1]):
        assert confusion_matrix(flipped, flipped, 2).tolist() == [[1, 0], [0, 2]]


def test_scores_leave_out_classes_that_are_nowhere():
    # Labels: 6 of a, 4 of b, none of c and d; d is predicted twice.
    counts = np.array([[5, 0, 0, 1], [1, 2, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    made = scores(counts, ["a", "b", "c", "d"])
    assert made["iou"] == {"a": pytest.approx(5 / 7), "b": pytest.approx(2 / 4), "c": None, "d": 0.0}
    assert made["miou"] == pytest.approx((5 / 7 + 2 / 4 + 0) / 3)
    assert made["pixel_accuracy"] == pytest.approx(7 / 10)
    assert made["mean_accuracy"] == pytest.approx((5 / 6 + 2 / 4) / 2)


def test_scores_of_nothing_are_none():
    made = scores(np.zeros((2, 2)), ["a", "b"])
    assert made == {"miou": None, "pixel_accuracy": None, "mean_accuracy": None, "iou": {"a": None, "b": None}}


def test_both_conventions_of_the_mean():
    f_NRK = np.array([[[0.5, 1.0, 1.0]], [[0.7, 0.2, 1.0]]])
    present_NK = np.array([[True, False, False], [True, True, False]])
    made = boundary_means(f_NRK, present_NK, [3])
    assert made["3"]["present"] == pytest.approx((0.6 + 0.2) / 2)
    assert made["3"]["gscnn"] == pytest.approx((0.6 + 0.6 + 1.0) / 3)


def test_means_over_seeds_skip_none():
    assert mean_scores([{"iou": {"a": 0.25, "b": None, "c": None}}, {"iou": {"a": 0.75, "b": 0.5, "c": None}}]) == {
        "iou": {"a": 0.5, "b": 0.5, "c": None}
    }
