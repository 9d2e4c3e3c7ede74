"""Interactions: every form of a file, whom a core keeps, what is held out, and what is refused."""

import gzip

import numpy as np
import pytest

from research.arguments import InputError
from research.data import interactions

COLUMNS = ("user", "item", "rating", "time")


def lines(seed=0, users=12, items=9, count=150):
    """(user, item, rating, time), in no order; some times are equal."""
    random = np.random.default_rng(seed)
    draw = lambda high: random.integers(high, size=count)  # noqa: E731
    columns = (draw(users) + 1, draw(items) * 10 + 7, draw(5), draw(60))
    return [tuple(map(str, row)) for row in zip(*map(np.ndarray.tolist, columns), strict=True)]


def write(path, rows, separator="\t", header=False):
    rows = [COLUMNS, *rows] if header else rows
    path.write_text("".join(separator.join(row) + "\n" for row in rows))
    return str(path)


def make(path, split="train", **options):
    options = dict(columns=COLUMNS, core=1, context=32) | options
    return interactions.make(path, **options, split=split, seed=0, batch=4)


def rows(source):
    """All rows of one pass, without the padding."""
    found = [batch for batch in source.batches(one_pass=True)]
    joined = {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}
    real = joined["segments"].any(1)
    return {name: value[real] for name, value in joined.items()}


def histories(rows):
    """By hand: the items of each user, in the order of time, then of the file."""
    found = {}
    for user, item, _, _ in sorted(rows, key=lambda row: int(row[3])):  # a stable sort
        found.setdefault(user, []).append(item)
    return found


def test_every_form_of_a_file_gives_the_same_rows(tmp_path):
    data = lines()
    plain = write(tmp_path / "u.data", data)
    forms = [
        make(plain),
        make(write(tmp_path / "ratings.dat", data, "::")),
        make(write(tmp_path / "ratings.csv", data, ",", header=True), columns=None),
        make(write(tmp_path / "named.tsv", data, header=True), columns=None),
    ]
    (tmp_path / "u.data.gz").write_bytes(gzip.compress((tmp_path / "u.data").read_bytes()))
    forms.append(make(str(tmp_path / "u.data.gz")))
    for source in forms[1:]:
        assert source.info == forms[0].info
        for name, value in rows(forms[0]).items():
            np.testing.assert_array_equal(value, rows(source)[name])


@pytest.mark.parametrize("context", [4, 32])
def test_the_last_item_is_the_test_the_one_before_the_validation_and_the_rest_is_learned(
    context, tmp_path
):
    data = lines()
    path = write(tmp_path / "u.data", data)
    wanted = histories(data)
    for split, left in (("train", 2), ("validation", 1), ("test", 0)):
        source = make(path, split, context=context)
        name = np.array(source.info["items"])
        found, seen = rows(source), 0
        for user, tokens in zip(sorted(wanted), found["tokens"], strict=True):
            row = {name: value[seen] for name, value in found.items()}
            items = wanted[user][: len(wanted[user]) - left]
            count = min(context, len(items) - 1)
            real = row["segments"] == 1
            assert real.sum() == count and real[:count].all()
            assert name[tokens[real]].tolist() == items[-1 - count : -1]
            assert name[row["targets"][real]].tolist() == items[-count:]
            # Everything is learned from; one item is judged by.
            judged = [1] * count if split == "train" else [0] * (count - 1) + [1]
            assert row["weight"].tolist() == judged + [0] * (context - count)
            assert row["positions"][real].tolist() == list(range(context - count, context))
            seen += 1


def test_what_is_held_out_is_not_in_what_is_learned_from(tmp_path):
    """Other last items make the same rows of the splits before them, to the bit."""
    data = lines()
    ends, counts = {}, {user: len(items) for user, items in histories(data).items()}
    order = sorted(range(len(data)), key=lambda i: int(data[i][3]))
    for index in order:
        ends.setdefault(data[index][0], []).append(index)
    paths = [write(tmp_path / "whole", data)]
    for last in (1, 2):  # the test item, then the validation item too
        changed = list(data)
        for index in (i for indices in ends.values() for i in indices[-last:]):
            user, _, rating, time = data[index]
            changed[index] = (user, "7", rating, time)
        paths.append(write(tmp_path / f"without{last}", changed))
    assert min(counts.values()) > 3
    for split, same in (("train", paths), ("validation", paths[:2])):
        one, *others = (rows(make(path, split)) for path in same)
        for other in others:
            for name, value in one.items():
                np.testing.assert_array_equal(value, other[name])
    assert not np.array_equal(
        rows(make(paths[0], "test"))["targets"], rows(make(paths[1], "test"))["targets"]
    )


@pytest.mark.parametrize("core", [3, 8, 12])
def test_a_core_keeps_users_and_items_with_so_many_interactions_among_themselves(core):
    data = lines(count=200, users=20, items=20)
    kept = list(data)
    while True:  # by hand, one user or item at a time
        few = None
        for column in (0, 1):
            for name in sorted({row[column] for row in kept}):
                if sum(row[column] == name for row in kept) < core:
                    few = (column, name)
        if few is None:
            break
        kept = [row for row in kept if row[few[0]] != few[1]]
    users, items, _, times = (np.array(column) for column in zip(*data, strict=True))
    found = interactions.sequences(users, items, times.astype(float), core)
    wanted = histories(kept)
    assert found.names == sorted({row[1] for row in kept})
    assert len(found.starts) == len(wanted) + 1
    for index, user in enumerate(sorted(wanted)):
        ids = found.ids[found.starts[index] : found.starts[index + 1]]
        assert [found.names[i] for i in ids] == wanted[user]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("1\t2\t3\n", {}, "u.data:1 has 3 columns, expected user, item, rating, time"),
        ("1\t2\t3\tx\n", {}, "column 'time' holds what is no number"),
        ("1\t2\t3\tnan\n", {}, "column 'time' holds what is no number .'nan'"),
        ("1\t2\t3\t4\n", dict(columns=None), "has no column 'user'; it has 1, 2, 3, 4: name them"),
        ("1\t2\t3\t4\n", dict(core=5), "with core=5 no user is left for split train"),
        ("", {}, "no user is left"),
        ("1\t2\t3\t\udcff\n", {}, "is not UTF-8"),
    ],
)
def test_what_does_not_fit_is_named(content, options, message, tmp_path):
    (tmp_path / "u.data").write_text(content, errors="surrogateescape")
    with pytest.raises(InputError, match=message):
        make(str(tmp_path / "u.data"), **options)
    with pytest.raises(InputError, match="is not a file"):
        make(str(tmp_path))


def test_a_user_of_two_items_is_learned_from_and_not_judged_by(tmp_path):
    data = [("a", item, "1", str(time)) for time, item in enumerate("xyzx")]
    data += [("b", item, "1", str(time)) for time, item in enumerate("zy")]
    path = write(tmp_path / "u.data", data)
    assert rows(make(path))["targets"].max(1).tolist() == [1, 1]  # a: x, y; b: z, y
    assert len(rows(make(path, "validation"))["tokens"]) == 1


def test_synthetic_walks_are_the_same_every_time_and_follow_their_chain():
    source = interactions.make("synthetic", context=20, split="train", seed=0, batch=8)
    again = interactions.make("synthetic", context=20, split="train", seed=1, batch=8)
    assert source.info == again.info and source.info["vocab_size"] == 60
    found = rows(source)
    name = np.array(source.info["items"]).astype(int)
    real = found["weight"] > 0
    before, after = name[found["tokens"][real]], name[found["targets"][real]]
    assert 0.65 < np.mean((7 * before + 1) % 60 == after) < 0.78
