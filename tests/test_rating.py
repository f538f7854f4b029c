import html
import json
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from supplementary.evaluation import wilson_interval
from supplementary.rating import BlindRating


def make_rows(count):
    """Give rows whose responses are apples before finetuning and pears after it."""
    return [
        {
            "instruction": f"Question {i}?",
            "input": f"Text {i}.",
            "output": f"reference {i}",
            "response_before": f"apple {i}",
            "response_after": f"pear {i}",
        }
        for i in range(count)
    ]


def shown(rating):
    """Return the number of the row that is shown, and the texts at the left and at the right."""
    number = int(re.search(r"Question (\d+)\?", rating.text.value)[1])
    left, right = re.findall(r"<td[^>]*>(.*?)</td>", rating.text.value)
    return number, html.unescape(left), html.unescape(right)


def side_of(rating, word):
    """Return where the response that begins with `word` stands."""
    _, left, right = shown(rating)
    assert left.startswith(word) != right.startswith(word)
    return "left" if left.startswith(word) else "right"


def click(rating, choice):
    buttons = {button.description: button for button in rating.buttons}
    buttons[choice].click()


def stored(path):
    return json.loads(path.read_text(encoding="utf-8"))["ratings"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ratings.json"


def rate_all(rating, prefer):
    """Rate what is left; return the numbers of the rows in the order in which they were shown."""
    numbers = []
    for _ in range(len(rating.rows) - len(rating.ratings)):
        numbers.append(shown(rating)[0])
        click(rating, prefer(rating))
    return numbers


def test_every_pair_is_shown_once_with_its_own_question_reference_and_responses(path):
    rows = make_rows(30)
    rating, numbers = BlindRating(rows, path), []
    while len(numbers) < 30:
        number, *texts = shown(rating)
        assert sorted(texts) == [f"apple {number}", f"pear {number}"]
        assert f"Question {number}?<br>Text {number}." in rating.text.value
        assert f"Reference: reference {number}<" in rating.text.value
        numbers.append(number)
        click(rating, "same")
    assert sorted(numbers) == list(range(30))
    assert numbers != sorted(numbers)


def test_order_and_sides_are_fixed_by_the_seed(tmp_path):
    def course(seed, name):
        rating, pairs = BlindRating(make_rows(20), tmp_path / name, seed=seed), []
        while len(pairs) < 20:
            pairs.append(shown(rating))
            click(rating, "left")
        return pairs

    pairs = course(5, "first")
    assert pairs == course(5, "second")
    other = course(6, "third")
    assert [number for number, *_ in pairs] != [number for number, *_ in other]
    assert set(pairs) != set(other)  # also the sides, whatever the order


def test_any_pair_may_come_first_and_after_stands_left_about_half_the_time(path):
    first, left = Counter(), Counter()
    for seed in range(240):
        rating = BlindRating(make_rows(3), path, seed)
        number = shown(rating)[0]
        first[number] += 1
        left[number] += side_of(rating, "pear") == "left"
    # Four standard deviations around 80 of each row first, and half of them left.
    assert all(51 <= first[number] <= 109 for number in range(3))
    assert 90 <= sum(left.values()) <= 150
    assert all(0.27 <= left[number] / first[number] <= 0.73 for number in range(3))


def test_after_stands_left_about_half_the_time_within_one_session(path):
    rating, sides = BlindRating(make_rows(200), path), []
    while len(sides) < 200:
        sides.append(side_of(rating, "pear"))
        rating.choose("same")
    assert 70 <= sides.count("left") <= 130
    runs = 1 + sum(a != b for a, b in pairwise(sides))
    assert 70 <= runs <= 130  # the sides do not just take turns, nor stay


def test_what_is_shown_does_not_tell_which_response_is_which(path):
    seen, sides = set(), set()
    for seed in range(40):
        rating = BlindRating(make_rows(1), path, seed)
        sides.add(side_of(rating, "pear"))
        whole = rating.text.value + rating.tally.value
        whole += "".join(f"{b.description} {b.tooltip} {b.button_style}" for b in rating.buttons)
        seen.add(re.sub("apple|pear", "response", whole))
        assert not re.search("before|after|finetuned", whole)
    assert sides == {"left", "right"}
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("word", "name"), [("pear", "after"), ("apple", "before")], ids=["after", "before"]
)
def test_a_click_counts_for_the_response_that_stands_on_that_side(path, word, name):
    rating, sides = BlindRating(make_rows(16), path), set()
    for count in range(1, 17):
        side = side_of(rating, word)
        sides.add(side)
        click(rating, side)
        assert rating.ratings == stored(path) == [name] * count
    assert sides == {"left", "right"}


def test_same_counts_for_neither(path):
    rating = BlindRating(make_rows(2), path)
    click(rating, "same")
    assert rating.ratings == stored(path) == ["same"]


def test_nothing_is_written_before_the_first_click(path):
    BlindRating(make_rows(3), path)
    assert not path.exists()


def test_a_choice_that_is_none_is_refused_and_counts_nothing(path):
    rating = BlindRating(make_rows(3), path)
    before = shown(rating)
    with pytest.raises(ValueError, match="'after' now; choices: left, same, right"):
        rating.choose("after")
    assert (shown(rating), rating.ratings, path.exists()) == (before, [], False)


def test_a_session_that_was_left_goes_on_where_it_stopped(tmp_path):
    rows, prefer = make_rows(12), lambda rating: "left"
    whole = BlindRating(rows, tmp_path / "whole.json", seed=3)
    numbers = rate_all(whole, prefer)
    cut = BlindRating(rows, tmp_path / "cut.json", seed=3)
    for _ in range(5):
        click(cut, "left")
    again = BlindRating(rows, str(tmp_path / "cut.json"), seed=3)
    assert shown(again) == shown(cut)
    assert again.tally.value == cut.tally.value
    assert "5 of 12 rated" in again.tally.value
    assert rate_all(again, prefer) == numbers[5:]
    assert again.ratings == whole.ratings
    assert set(whole.ratings) == {"before", "after"}
    assert (tmp_path / "cut.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_ratings_of_another_number_of_rows_or_another_seed_are_refused(path):
    click(BlindRating(make_rows(3), path, seed=1), "left")
    before = path.read_bytes()
    for rows, seed in ((make_rows(4), 1), (make_rows(2), 1), (make_rows(3), 2)):
        with pytest.raises(ValueError, match=r"ratings\.json holds ratings of other pairs"):
            BlindRating(rows, path, seed)
    assert path.read_bytes() == before
    assert len(BlindRating(make_rows(3), path, seed=1).ratings) == 1


@pytest.mark.parametrize("key", ["instruction", "response_before", "response_after"])
def test_ratings_of_as_many_other_rows_are_refused(path, key):
    rows = make_rows(3)
    click(BlindRating(rows, path), "left")
    other = [{**row, key: "something else"} for row in rows]
    with pytest.raises(ValueError, match="other pairs"):
        BlindRating(other, path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '[{"response_before": "a"}]', '"text"'])
def test_a_file_that_holds_no_ratings_is_refused_and_stays(path, text):
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"ratings\.json"):
        BlindRating(make_rows(3), path)
    assert path.read_text(encoding="utf-8") == text


class Page(HTMLParser):
    """Collect the elements and the text of a page, as a browser would."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = Counter(), ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.text += "\n" if tag == "br" else ""

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize(
    "key", ["instruction", "input", "output", "response_before", "response_after"]
)
def test_html_is_shown_as_text_wherever_it_stands(path, key):
    text = "</td><script>alert('x')</script>\n<b>bold</b> &amp; &lt; <!-- \"a\" > b"
    (row,) = make_rows(1)
    plain = Page(BlindRating([row], path).text.value)
    page = Page(BlindRating([{**row, key: text}], path).text.value)
    assert text in page.text
    assert page.tags == plain.tags + Counter({"br": 1})


def test_an_entry_without_input_and_an_empty_response_can_be_rated(path):
    (row,) = make_rows(1)
    rating = BlindRating([{**row, "input": "", "response_before": ""}], path)
    assert "Question 0?</b>" in rating.text.value
    side = side_of(rating, "pear")
    assert set(shown(rating)[1:]) == {"", "pear 0"}
    click(rating, side)
    assert rating.ratings == ["after"]


def test_all_pairs_rated_end_the_session_also_when_it_is_made_anew(path):
    rating = BlindRating(make_rows(2), path)
    click(rating, "left")
    assert not any(button.disabled for button in rating.buttons)
    click(rating, "right")
    for ended in (rating, BlindRating(make_rows(2), path)):
        assert "All pairs are rated" in ended.text.value
        assert "<td" not in ended.text.value
        assert all(button.disabled for button in ended.buttons)
        assert "2 of 2 rated" in ended.tally.value
        with pytest.raises(ValueError, match="no choice 'left' now"):
            ended.choose("left")
        assert ended.ratings == stored(path)
        assert len(ended.ratings) == 2


def test_no_rows_are_rated_at_once(path):
    rating = BlindRating([], path)
    assert "All pairs are rated" in rating.text.value
    assert rating.win_rate() is None


def test_win_rate_is_that_of_the_pairs_that_were_not_the_same(path):
    rating = BlindRating(make_rows(6), path)
    assert rating.win_rate() is None
    assert "0 of 6 rated; no winner yet" in rating.tally.value
    click(rating, "same")
    assert rating.win_rate() is None
    assert "1 of 6 rated; no winner yet" in rating.tally.value
    for word in ("pear", "apple", "pear", "pear"):
        click(rating, side_of(rating, word))
    assert rating.win_rate() == (3 / 4, wilson_interval(3, 4))
    low, high = wilson_interval(3, 4)
    assert (f"{low:.0%}", f"{high:.0%}") == ("30%", "95%")
    wins = "finetuned model wins 75% (95 % interval 30% to 95%)"
    assert rating.tally.value == f"<p>5 of 6 rated; {wins}</p>"


def test_win_rate_of_only_losses_is_0(path):
    rating = BlindRating(make_rows(3), path)
    rate_all(rating, lambda rating: side_of(rating, "apple"))
    assert rating.win_rate() == (0, wilson_interval(0, 3))
    assert "wins 0%" in rating.tally.value


def test_a_rating_that_cannot_be_written_does_not_count_and_the_file_stays_whole(path):
    resource = pytest.importorskip("resource", reason="the system has no limits to set")
    rating = BlindRating(make_rows(4), path)
    click(rating, "left")
    before, pair, tally = path.read_bytes(), shown(rating), rating.tally.value
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))  # bytes a file: a full disk
    try:
        with pytest.raises(OSError):
            rating.choose("right")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["ratings.json"]
    assert (shown(rating), rating.tally.value, len(rating.ratings)) == (pair, tally, 1)
    rating.choose("right")
    assert len(rating.ratings) == len(stored(path)) == 2


def test_the_widget_shows_text_buttons_and_tally(path):
    rating = BlindRating(make_rows(2), path)
    text, buttons, tally = rating.widget.children
    assert (text, tally) == (rating.text, rating.tally)
    assert [button.description for button in buttons.children] == ["left", "same", "right"]
