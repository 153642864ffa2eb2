"""Who the users are, and their scores: drawn apart, marked alike, asked in constant memory."""

import math

import numpy as np
import pytest
import torch

import utils
from kit.errors import UserError
from utils import (
    UNMARKED,
    Marking,
    Users,
    draw_non_member_users,
    draw_target_users,
    mark_images,
    membership_inference,
    sample_signals,
    score_users,
    verify_provenance,
)

CPU = torch.device("cpu")
KEY = b"k" * 32

# --- Who the users are ---


def many_labels(classes=10, each=30, seed=0):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), each))


def test_target_users_are_disjoint_and_of_the_right_class():
    """Wrong: an image owned by two users, images of other classes, images outside the training set."""
    labels = many_labels()
    pool = np.sort(np.random.default_rng(1).permutation(300)[:200])
    classes = [4, 4, 7, 0, 7]
    users = draw_target_users(labels, pool, classes, 5, KEY)
    assert users.samples.shape == (5, 5)
    assert len(users) == 5
    assert users.classes.tolist() == classes
    assert len(np.unique(users.samples)) == 25
    assert np.isin(users.samples, pool).all()
    assert (labels[users.samples] == users.classes[:, None]).all()
    assert users.key == KEY


def test_target_users_take_torch_tensors_and_differ_by_key():
    """Wrong: the same images under any seed (defect 6)."""
    labels, pool = torch.from_numpy(many_labels()), torch.arange(300)
    first, again, other = (draw_target_users(labels, pool, [3, 5], 10, key) for key in (KEY, KEY, b"other"))
    assert (first.samples == again.samples).all()
    assert (np.sort(first.samples, axis=1) != np.sort(other.samples, axis=1)).any()


def test_target_users_of_a_class_do_not_depend_on_the_other_classes():
    """Wrong: one stream for all, so that naming the classes in another order changes everybody's images."""
    labels, pool = many_labels(), np.arange(300)
    rows = dict(zip([2, 9, 5], draw_target_users(labels, pool, [2, 9, 5], 6, KEY).samples, strict=True))
    for order in ([9, 2, 5], [5], [5, 9, 2, 0]):
        users = draw_target_users(labels, pool, order, 6, KEY)
        for label, samples in zip(order, users.samples, strict=True):
            if label in rows:
                assert (samples == rows[label]).all()


@pytest.mark.parametrize(("classes", "size"), [([3], 31), ([3, 3], 16), ([99], 1)])
def test_too_few_images_for_target_users_is_a_user_error(classes, size):
    """Defect 4: a short group, after which every later user's average mixes two users."""
    with pytest.raises(UserError, match=f"class {classes[0]}"):
        draw_target_users(many_labels(), np.arange(300), classes, size, KEY)
    with pytest.raises(UserError, match="class 3"):  # the class has them, but outside the pool
        draw_target_users(many_labels(), np.flatnonzero(many_labels() != 3), [3], 1, KEY)


def test_target_users_may_use_up_a_class():
    """Wrong: an off-by-one that refuses the last possible user."""
    users = draw_target_users(many_labels(), np.arange(300), [3, 3, 3], 10, KEY)
    assert set(users.samples.ravel()) == set(np.flatnonzero(many_labels() == 3))


@pytest.mark.parametrize("count", [1, 99, 100, 101, 250, 1000])
def test_non_member_users_are_exactly_as_many_as_asked_for(count):
    """Defect 5: 250 users in 100 classes became 200."""
    labels = many_labels(100, 12)
    users = draw_non_member_users(labels, np.arange(1200), count, 10, KEY)
    assert users.samples.shape == (count, 10)
    assert len(users) == count


def test_non_member_users_have_distinct_samples_of_one_class_from_the_pool():
    """Wrong: an image twice in a user (their mean has less information), members among them, mixed classes."""
    labels = many_labels()
    pool = np.random.default_rng(1).permutation(300)[:200]
    users = draw_non_member_users(labels, pool, 500, 8, KEY)
    assert np.isin(users.samples, pool).all()
    assert (labels[users.samples] == users.classes[:, None]).all()
    assert all(len(set(row)) == 8 for row in users.samples.tolist())
    assert set(users.classes) == set(range(10)), "some classes have no user"
    assert len(np.unique(users.samples)) > 190, "images of the pool are never drawn"
    assert len({tuple(sorted(row)) for row in users.samples.tolist()}) > 450, "users repeat"


def test_classes_and_images_of_non_member_users_are_drawn_evenly():
    """Wrong: the first images of a class preferred, or classes in blocks cut off at the end."""
    labels = many_labels(5, 20)
    users = draw_non_member_users(labels, np.arange(100), 4000, 5, KEY)
    share = np.bincount(users.classes, minlength=5) / 4000
    assert np.abs(share - 0.2).max() < 0.03
    assert np.abs(np.bincount(users.samples.ravel(), minlength=100) / 20000 - 0.01).max() < 0.002
    first = np.bincount(users.classes[:50], minlength=5)
    assert first.min() >= 3, "users come in blocks of a class"


def test_a_short_class_is_replaced_and_never_makes_a_short_group():
    """Defect 4. Class 1 has 3 images, and users need 5."""
    labels = np.array([0] * 6 + [1] * 3 + [2] * 5)
    wished = np.array([0, 1, 2, 1, 1, 0, 2] * 20)
    users = draw_non_member_users(labels, np.arange(14), 140, 5, KEY, wished)
    assert users.samples.shape == (140, 5)
    assert 1 not in users.classes
    assert (users.classes[wished != 1] == wished[wished != 1]).all()
    assert set(users.classes[wished == 1]) == {0, 2}
    assert (labels[users.samples] == users.classes[:, None]).all()
    free = draw_non_member_users(labels, np.arange(14), 60, 5, KEY)
    assert set(free.classes) == {0, 2}


def test_a_wished_class_that_is_not_in_the_pool_is_replaced():
    """All images of the class were trained on: another class, never members."""
    labels = np.array([0] * 6 + [1] * 6)
    users = draw_non_member_users(labels, np.arange(6), 4, 5, KEY, np.array([1, 1, 0, 1]))
    assert users.classes.tolist() == [0] * 4
    assert users.samples.max() < 6


def test_no_class_with_enough_images_is_a_user_error():
    """Wrong: a traceback, or users with fewer samples."""
    with pytest.raises(UserError, match="7 images"):
        draw_non_member_users(many_labels(4, 6), np.arange(24), 10, 7, KEY)
    with pytest.raises(UserError):
        draw_non_member_users(many_labels(4, 6), np.arange(0), 10, 2, KEY)


def test_seeds_reach_the_non_member_draw_and_global_generators_do_not():
    """Defects 5 and 6: a cache keyed by tag, and --seed that did not reach the non-member draw."""
    labels = many_labels()
    draws = []
    for key, state in ((KEY, 1), (KEY, 2), (b"other", 1)):
        np.random.seed(state), torch.manual_seed(state)
        before = np.random.get_state()[1].copy()
        draws.append(draw_non_member_users(labels, np.arange(300), 50, 6, key))
        assert (np.random.get_state()[1] == before).all()
    assert (draws[0].samples == draws[1].samples).all()
    assert (draws[0].samples != draws[2].samples).any()
    assert len(set(map(tuple, draws[0].samples.tolist())) & set(map(tuple, draws[2].samples.tolist()))) == 0
    fewer = draw_non_member_users(labels, np.arange(300), 50, 4, KEY)
    assert fewer.samples.shape == (50, 4), "another K reuses stored users"


def test_users_check_their_shapes():
    """DESIGN: users are explicit. Wrong: a class list that is shorter than the users."""
    with pytest.raises(ValueError, match="fit"):
        Users(np.zeros((3, 2), int), np.zeros(2, int), KEY)
    with pytest.raises(ValueError, match="fit"):
        Users(np.zeros(3, int), np.zeros(3, int), KEY)


# --- Scoring users ---


class LazyStore:
    """Images made when they are asked for; remembers the largest request and how many are alive."""

    def __init__(self, count, size=8):
        self.count, self.size, self.largest, self.asked = count, size, 0, []

    def __len__(self):
        return self.count

    def __getitem__(self, rows):
        rows = torch.as_tensor(rows)
        assert rows.ndim == 1
        self.largest = max(self.largest, len(rows))
        self.asked += rows.tolist()
        grid = torch.arange(self.size * self.size).reshape(self.size, self.size)
        return ((rows[:, None, None, None] * 37 + grid * 11 + torch.arange(3)[:, None, None] * 5) % 256).to(torch.uint8)


def linear_query(classes=10, size=8, seed=0):
    """A fixed random linear classifier of pixels, as `make_query` would return it."""
    weight = torch.randn(3 * size * size, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    @torch.inference_mode()
    def query(images):
        assert images.dtype == torch.uint8
        logits = images.flatten(1).double() / 255 @ weight / 4
        assert logits.abs().max() < 8, "see LOSS_ROUNDING"
        return logits.float()

    return query


# linear_query sums in float64 and rounds once, so in a batch of another size a logit may become the next float32. Both
# losses are a logsumexp minus a logit: their derivatives by the logits are at most 1 + 1 in sum. Logits stay below 8.
LOSS_ROUNDING = 2 * np.spacing(np.float32(4))  # as far apart as all numbers from 4 to 8


def some_users(count=30, size=5, store=200, seed=0, key=KEY):
    draws = np.random.default_rng(seed)
    samples = np.stack([draws.permutation(store)[:size] for _ in range(count)])
    return Users(samples, draws.integers(0, 10, count), key)


@pytest.mark.parametrize("marking", [Marking(), UNMARKED, Marking(0.5, "uniform")])
def test_scores_equal_a_loop_over_users(marking):
    """Wrong: losses that belong to another user or sample, labels of the image's neighbour, marks of another index."""
    users, store, query = some_users(), LazyStore(200), linear_query()
    signals = score_users(query, store, users, marking, CPU, batch_size=7)
    assert {name: values.shape for name, values in signals.items()} == dict.fromkeys(
        ("cross_entropy", "scaled_loss", "correct"), (30, 5)
    )
    assert {values.dtype for values in signals.values()} == {np.dtype("float64")}
    for user in range(30):
        images = store[torch.from_numpy(users.samples[user])]
        marked = mark_images(images, KEY, [user] * 5, range(5), marking)
        expected = sample_signals(query(marked), torch.full((5,), users.classes[user]))
        for name, values in expected.items():
            np.testing.assert_allclose(signals[name][user], values, rtol=0, atol=LOSS_ROUNDING)


def test_unequal_batches_give_the_same_result():
    """Wrong: a last partial batch dropped or filled up (defect 5)."""
    users, query = some_users(), linear_query()
    reference = score_users(query, LazyStore(200), users, Marking(), CPU, batch_size=1000)
    for size in (1, 4, 150, 149):
        signals = score_users(query, LazyStore(200), users, Marking(), CPU, batch_size=size)
        for name in signals:
            np.testing.assert_allclose(signals[name], reference[name], rtol=0, atol=LOSS_ROUNDING)


def test_the_order_of_users_permutes_rows_and_nothing_else():
    """Defect 4: a user was implied by the order of the rows. Unmarked, so that a user's number gives no mark."""
    users, query, order = some_users(), linear_query(), np.random.default_rng(5).permutation(30)
    shuffled = Users(users.samples[order], users.classes[order], users.key)
    first = score_users(query, LazyStore(200), users, UNMARKED, CPU, 13)
    second = score_users(query, LazyStore(200), shuffled, UNMARKED, CPU, 13)
    for name in first:
        np.testing.assert_allclose(second[name], first[name][order], rtol=0, atol=LOSS_ROUNDING)


def test_a_users_key_and_number_decide_the_mark():
    """A control user and a target user of the same images are marked differently; the same Users give the same."""
    users, query = some_users(), linear_query()
    first = score_users(query, LazyStore(200), users, Marking(), CPU)["cross_entropy"]
    again = score_users(query, LazyStore(200), users, Marking(), CPU)["cross_entropy"]
    other = score_users(query, LazyStore(200), some_users(key=b"x" * 32), Marking(), CPU)["cross_entropy"]
    assert (first == again).all()
    assert (np.abs(first - other) > 1e-6).mean() > 0.9


def test_images_are_requested_batch_by_batch_in_constant_memory():
    """Defect 14: 5,000 users x 25 images at 224 px. Wrong: all images loaded, marked or queried at once."""
    store, seen = LazyStore(400), []
    inner = linear_query()

    def query(images):
        seen.append(len(images))
        return inner(images)

    users = Users(np.arange(400).reshape(80, 5), np.zeros(80, int), KEY)
    score_users(query, store, users, Marking(), CPU, batch_size=32)
    assert store.largest <= 32
    assert max(seen) <= 32
    assert sum(seen) == 400
    assert sorted(store.asked) == list(range(400)), "an image is read twice or not at all"


def test_peak_memory_does_not_grow_with_the_number_of_users():
    """Defect 14 measured: tensors of images alive at any time, for 10 and for 100 users."""

    class Counting(LazyStore):
        alive = peak = 0

        def __getitem__(self, rows):
            images = super().__getitem__(rows)
            Counting.alive += len(images)
            Counting.peak = max(Counting.peak, Counting.alive)
            import weakref

            weakref.finalize(images, lambda count: setattr(Counting, "alive", Counting.alive - count), len(images))
            return images

    peaks = []
    for count in (10, 100):
        Counting.alive = Counting.peak = 0
        score_users(linear_query(), Counting(200), some_users(count), Marking(), CPU, batch_size=16)
        peaks.append(Counting.peak)
    assert max(peaks) <= 2 * 16


def test_members_and_non_members_get_the_same_signal():
    """Defect 2: the scaled loss on one side and the raw loss on the other. Both sides come out of one function, and a
    model that knows nobody tells nobody apart under either signal."""
    store, query = LazyStore(2000), linear_query()
    groups = [
        Users(
            np.random.default_rng(seed).integers(0, 2000, (200, 4)),
            np.random.default_rng(seed + 9).integers(0, 10, 200),
            bytes([seed]) * 32,
        )
        for seed in (0, 1)
    ]
    member, other = (score_users(query, store, users, Marking(), CPU) for users in groups)
    for signal in utils.SIGNALS:
        assert membership_inference(member[signal], other[signal])["auc"] == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", [0, 149])
def test_logits_that_are_not_finite_are_a_user_error(bad, where):
    """Wrong: NaN losses that sort to one end and give a rate."""
    inner, seen = linear_query(), [0]

    def query(images):
        logits = inner(images).clone()
        if seen[0] <= where < seen[0] + len(images):
            logits[where - seen[0]] = bad
        seen[0] += len(images)
        return logits

    with pytest.raises(UserError, match="finite"):
        score_users(query, LazyStore(200), some_users(), UNMARKED, CPU, batch_size=64)


def test_scoring_touches_no_global_generator():
    """Defect 6."""
    torch.manual_seed(0), np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    score_users(linear_query(), LazyStore(200), some_users(), Marking(), CPU)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_scores_separate_a_model_that_memorised_its_users():
    """End to end on a model made by hand: it is sure of the marked images that it saw, and of nothing else."""
    store, users, others = LazyStore(2000), some_users(5, 5, 200), some_users(300, 5, 2000, seed=4, key=b"o" * 32)
    known = {
        image.numpy().tobytes()
        for user in range(5)
        for image in mark_images(store[torch.from_numpy(users.samples[user])], users.key, [user] * 5, range(5))
    }
    labels = {image: int(label) for label in users.classes[:1] for image in known}

    def query(images):
        logits = torch.zeros(len(images), 10)
        for row, image in enumerate(images):
            if image.numpy().tobytes() in labels:
                logits[row] = 9.0
                logits[row, users.classes] = 10.0
        return logits

    member, other = (score_users(query, store, group, Marking(), CPU)["cross_entropy"] for group in (users, others))
    found = membership_inference(member, other)
    assert found["fpr_at_100_tpr"] == 0
    assert found["auc"] == 1
    used, _ = verify_provenance(member, other, 0.0)
    assert used.all()
