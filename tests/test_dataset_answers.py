"""Compute again, from the question, every answer of the dataset that a program can compute.

A row gives, for the position of an entry, a function of what is found in its question (numbers,
quoted words, a list); what it returns has to be what the entry's output says.
"""

import calendar
import json
import math
import re
import statistics
from datetime import datetime
from fractions import Fraction
from itertools import count, pairwise

import pytest

from supplementary.answer_key import check_response, holds, numbers

DAYS, MONTHS = list(calendar.day_name), list(calendar.month_name)[1:]
PLANETS = "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune".split()  # noqa: SIM905


def is_prime(number):
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def clock(minutes):
    return f"{minutes // 60}:{minutes % 60:02}"


def weekday_after(day, days):
    return DAYS[(DAYS.index(day) + days) % 7]


def days_in(month):
    return calendar.monthrange(2023, MONTHS.index(month) + 1)[1]


def roman(number):
    steps = {1000: "M", 900: "CM", 500: "D", 400: "CD", 100: "C", 90: "XC", 50: "L", 40: "XL"}
    steps |= {10: "X", 9: "IX", 5: "V", 4: "IV", 1: "I"}
    text = ""
    for value, letters in steps.items():
        text += letters * (number // value)
        number %= value
    return text


ROMAN = {roman(number): number for number in range(1, 4000)}

# Given the numbers of the question, in their order (spelled-out ones, too)
OF_NUMBERS = {
    # arithmetic
    48: lambda a, b, c: a * b == c,
    121: lambda a: a**2,
    163: lambda a, b, c: (a + b) * c,
    209: lambda a, b: a * b,
    276: lambda a, b: a * b,
    305: lambda a: a / 2,
    329: math.sqrt,
    332: lambda a, b, c: a * b * c,
    361: lambda a, b: a / b,
    365: lambda a, b: a + b,
    385: lambda added, made: (made - added) / 2,
    468: lambda a, b: b - a,
    505: lambda a, b, c: a / b + c,
    643: lambda a, b: a - b,
    696: lambda pens, price, note: note - pens * price,
    704: lambda a, b: a * b,
    708: lambda friends, things: things / friends,
    986: lambda a, b: a % b,
    1000: lambda a, b, c: a - b * c,
    1051: lambda a, b: b - a,
    # number series
    4: lambda *n: n[-1] + len(n) + 1,
    13: lambda a, b, c: a + 9 * (b - a),
    22: lambda a, *rest: a - rest[0],
    143: lambda *n: n[-2] + n[-1],
    327: lambda a, b, c, d: (b + c) / 2,
    333: lambda a: next(n for n in count(a + 1) if is_prime(n)),
    382: lambda *n: (len(n) + 1) ** 2,
    422: lambda a, b, c, d: math.sqrt(b * c),
    423: lambda zero, n: max(range(zero, n, 6)),
    425: lambda _, *n: 2 * n[-1],
    454: lambda a, b: a + 2 * b,
    537: lambda *n: n[-1] / 2,
    653: lambda *n: n[1] / n[0],
    693: lambda _, *n: next(number for number in n if number % 2),
    694: lambda a, n: [a + 2 * i for i in range(n)],
    845: lambda a, n: [a - 5 * i for i in range(n)],
    850: lambda *n: sorted(n),
    1012: lambda *n: n[-1] + n[0],
    1018: lambda a, b, *rest: a % b == 0,
    1074: lambda n, *series: [series[-1] + series[0] * i for i in range(1, n + 1)],
    # comparison
    83: max,
    194: lambda km, rosa, tom: "Tom was faster" if tom < rosa else "Rosa was faster",
    202: lambda a, b, c, d: Fraction(a, b) == Fraction(c, d),
    245: lambda grams: "A kilogram of apples weighs more" if grams < 1000 else "800 grams weigh",
    288: lambda kg, g, more_kg: min(kg, g / 1000, more_kg),
    391: lambda hour: "9 a.m. is earlier" if hour < 12 else "noon is earlier",
    399: lambda a, b, c: a < b / c,
    451: lambda cm, m: "Zoe is taller" if 100 * m > cm else "Ben is taller",
    490: lambda h, minutes: "200 minutes is longer" if minutes > 60 * h else "3 hours is longer",
    518: max,
    521: lambda a, b, c, d: "40% of 50 is larger" if a * b > c * d else "30% of 60 is larger",
    575: lambda a: a < 12,
    583: lambda ml, litre: (
        "The 1-litre jug would hold more" if 1000 * litre > ml else "bottle would hold"
    ),
    723: min,
    775: lambda a, b, c, d: "<" if a * b < c * d else ">",
    888: lambda a, b, c, d: Fraction(a, b) > Fraction(c, d),
    956: lambda a, b, c, d: f"{max(Fraction(a, b), Fraction(c, d))} is larger",
    1066: lambda a, b: a - b,
    # percentage
    85: lambda percent, part: 100 * part / percent,
    94: lambda whole, part: 100 * part / whole,
    159: lambda percent, whole: percent * whole / 100,
    189: lambda a, b, c, d: f"is {Fraction(a, b) + Fraction(c, d)}",
    232: lambda a, b: "to {}:{}".format(*Fraction(a, b).as_integer_ratio()),
    280: lambda *n: statistics.median(n),
    296: lambda a, b: 100 * a / b,
    480: lambda percent, quarters: percent / 100 == quarters / 4,
    500: lambda percent: f"is {Fraction(percent, 100)}",
    539: lambda thirds, whole: whole * thirds / 3,
    576: lambda a, b: f"is {Fraction(a, b)}",
    664: lambda n, total: total / n,
    687: lambda a: 100 * a,
    707: lambda whole, a, b: whole * b / (a + b),
    757: lambda price, percent: price * (100 - percent) / 100,
    769: lambda a, b: 100 * (b - a) / a,
    836: lambda part, whole: f"{100 * part / whole:.0f} percent",
    951: lambda a, b: f"is {Fraction(a, b) / 2}",
    998: lambda rice, water, more_rice: water * more_rice / rice,
    1099: lambda bill, percent: bill * percent / 100,
    # units
    120: lambda pounds: 16 * pounds,
    182: lambda days: days / 7,
    229: lambda tonnes: 1000 * tonnes,
    271: lambda m, cm: 100 * m + cm,
    285: lambda yards: 3 * yards,
    328: lambda m: 100 * m,
    375: lambda litres: 1000 * litres,
    384: lambda seconds: seconds / 60,
    465: lambda days: 24 * days,
    469: lambda inches: inches / 12,
    509: lambda kg: 1000 * kg,
    600: lambda feet: 12 * feet,
    656: lambda cm: cm / 100,
    680: lambda kg: 1000 * kg,
    689: lambda gallons: 8 * gallons,
    755: lambda celsius: 9 * celsius / 5 + 32,
    766: lambda mile, feet: feet / mile / 2,
    955: lambda quarters: 1000 * quarters / 4,
    993: lambda cm: 10 * cm,
    1050: lambda laps, m: laps * m / 1000,
    # time
    28: lambda hour, minute, _: clock(60 * (hour + 12) + minute),
    105: lambda hour, minute, ahead: clock(60 * (hour + ahead) + minute),
    107: lambda evening, morning: 12 - evening + morning,
    186: lambda hour, minute, lasts: f"{clock(60 * hour + minute + lasts)} p.m.",
    206: lambda hours: 60 * (hours + 0.5),
    334: lambda minutes: 60 * minutes,
    435: lambda days: weekday_after("Saturday", days),
    450: lambda hour: clock(60 * hour + 30),
    588: lambda ahead, hour: f"{hour + 12 - ahead} a.m.",
    763: lambda a, b, c, d: "{} hour and {} minutes".format(*divmod(60 * (c - a) + d - b, 60)),
    859: lambda hour, minute, fast: clock(60 * hour + minute - fast),
    928: lambda days: weekday_after("Wednesday", -days),
    1023: lambda every, hour, minute: clock(60 * hour + minute + 3 * every),
    1077: calendar.isleap,
    # counting, and Roman numerals
    560: lambda ten, *n: sum(number > ten for number in n),
    867: lambda a, b: len([n for n in range(a, b + 1) if n % 2 == 0]),
    930: lambda a: len(str(a)),
    438: roman,
    562: roman,
    936: roman,
    1004: roman,
    # dates
    910: lambda h, m, s: f"{h}:{m:02}:{s:02}",
}

# Given the words in quotes, in their order
OF_QUOTED = {
    184: len,
    244: lambda phrase: len(phrase.replace(" ", "")),
    264: lambda word: len(set(word)),
    370: lambda word, letter: word.casefold().count(letter),
    427: lambda letter: ord(letter) - ord("A"),
    515: lambda letter, word: word.count(letter),
    535: lambda a, b: f"{max(a, b, key=len)}' has more letters than '{min(a, b, key=len)}",
    702: lambda a, b: len(a) == len(b),
    856: lambda word: sum(letter not in "aeiou" for letter in word),
    1056: lambda word: sum(a == b for a, b in pairwise(word)),
    788: lambda *words: sorted(words),
    786: lambda word: word.upper(),
    1072: lambda words: words.title().replace(" ", ""),
}

# Given the input
OF_INPUT = {
    47: lambda text: len(text.split()),
    75: lambda text: sum(word.casefold().startswith("b") for word in text.split()),
    634: lambda text: sum(letter in "aeiou" for letter in text),
    820: lambda text: max(map(len, text.split())),
    980: lambda text: len(text.split(", ")),
    1005: lambda text: sum(letter.isupper() for letter in text),
    31: lambda text: "".join(sorted(text)),
    19: str.upper,
    39: lambda text: f"**{text}**",
    166: lambda text: text.lower().replace(" ", "_"),
    322: lambda text: text.replace(", ", "; "),
    590: lambda text: text.lower().replace(" ", "-"),
    706: lambda text: f"{int(text):,}",
    805: lambda text: text.rpartition(":")[0],
    829: lambda text: ", ".join(reversed(text.split())),
    831: lambda text: text.replace(" ", "\n"),
    1010: lambda text: f"## {text}",
    10: lambda text: "\n".join(f"- {item}" for item in text.split(", ")),
    711: lambda text: "\n".join(f"{n}. {item}" for n, item in enumerate(text.split(", "), 1)),
    173: lambda text: json.dumps({**json.loads(text), "done": True}),
    294: lambda text: json.dumps({**json.loads(text), "count": 5}),
    330: lambda text: len(json.loads(text)["tags"]),
    595: lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "temp"}),
    683: lambda text: json.dumps({"weather": json.loads(text)["sky"]}),
    842: lambda text: json.dumps(text.split(", ")),
    969: lambda text: json.loads(text)["item"]["price"],
    1075: lambda text: json.dumps(json.loads(text + "}")),
}

# Given the items of the input, the order that they have in the output
SORTED = {
    26: lambda item: -int(item),
    44: lambda item: (int(item) % 2, int(item)),
    54: ROMAN.get,
    117: lambda item: -int(item),
    148: MONTHS.index,
    165: str,
    234: str,
    313: float,
    380: lambda item: [-ord(letter) for letter in item],
    614: DAYS.index,
    812: int,
    815: lambda item: item.split()[-1],
    852: Fraction,
    911: int,
    973: PLANETS.index,
    1028: len,
    848: ["second", "minute", "hour", "day"].index,
}

# Given the Roman numerals of the question
OF_ROMAN = {
    248: lambda a: roman(2 * a),
    341: lambda a, _: a,
    464: lambda a: a,
    499: lambda a, b: a > b,
    536: lambda a: a,
    646: lambda a: roman(a + 1),
    737: lambda a: a,
    797: lambda a, b: roman(a + b),
    808: lambda a, b: roman(b - a),
    923: lambda a: a,
}

# A date or time in the question, its format, and the format asked for ({day} has no leading zero)
DATES = {
    17: ("17 June 2012", "%d %B %Y", "%Y-%m"),
    171: ("18 October 2007", "%d %B %Y", "%d %b %Y"),
    231: ("12:40 am", "%I:%M %p", "%H:%M"),
    268: ("11/02/1999", "%m/%d/%Y", "%B {day}, %Y"),
    275: ("date 2016-05-30, time 08:15", "date %Y-%m-%d, time %H:%M", "%Y-%m-%dT%H:%M"),
    354: ("4 July 2003", "%d %B %Y", "%Y%m%d"),
    448: ("7:45 pm", "%I:%M %p", "%H:%M"),
    790: ("9:05 am", "%I:%M %p", "%H%M"),
    817: ("2001-10-08", "%Y-%m-%d", "%B {day}, %Y"),
    887: ("2014-09-21", "%Y-%m-%d", "%d/%m/%Y"),
    985: ("23:25", "%H:%M", "{hour}:%M %p"),
    1095: ("24.12.2010", "%d.%m.%Y", "%m/%d/%Y"),
}

# Months, by the calendar
CALENDAR = {
    197: [month for month in MONTHS if days_in(month) == 30],
    603: "February is shorter" if days_in("February") < days_in("July") else "July is shorter",
    617: days_in("October"),
    903: MONTHS[8 - 1],
    952: MONTHS[5:7],
    125: f"{MONTHS.index('February') + 1:02}",
}

# Python, run in its own process: what to evaluate after the code, and what comes out
PYTHON = {
    190: ("", "17 // 5", 3),
    221: ("", '{"x": 1, "y": 9}["y"]', 9),
    243: ("", '"a" in "cat"', True),
    388: ("x = 5\nx += 2\nprint(x)", "shown.getvalue()", "7\n"),
    409: ("", "'red-tan-gold'.split('-')", ["red", "tan", "gold"]),
    489: ("for i in range(3):\n    print(i, end='')", "shown.getvalue()", "012"),
    519: ("", "2 ** 5", 32),
    628: ("", "list(range(4))", [0, 1, 2, 3]),
    904: ('print("ab" * 3)', "shown.getvalue()", "ababab\n"),
    927: ("", "bool('')", False),
    932: ("print(3 + 4 * 2)", "shown.getvalue()", "11\n"),
}
CAPTURE = (
    "import functools, io\nshown = io.StringIO()\nprint = functools.partial(print, file=shown)\n"
)

NEEDS_KNOWLEDGE = {
    477,  # how the number 12 is spelled
    158,  # the usual order of steps
    1093,  # the order of ages
    987,  # how many sides a pentagon has
}


def question(entry):
    return f"{entry['instruction']} {entry['input']}"


def says(output, result):
    """Tell whether an output gives a result: yes or no, a number, a list in order, or a phrase."""
    if isinstance(result, bool):
        return holds(output, [["no", "false"], ["yes", "true"]][result])
    if isinstance(result, int | float):
        return check_response({"type": "number", "value": result}, output)
    if isinstance(result, list):
        items = [str(item) for item in result]
        return check_response({"type": "list", "items": items, "ordered": True}, output)
    return result in output or holds(output, result)


def quoted(text):
    return re.findall(r"(?<!\w)'([^']+)'(?!\w)", text)


def whole(number):
    return int(number) if number == int(number) else number


@pytest.mark.parametrize("position", OF_NUMBERS)
def test_output_follows_from_the_numbers_in_the_question(entries, position):
    entry = entries[position]
    given = [whole(number) for number in numbers(question(entry))]
    assert says(entry["output"], OF_NUMBERS[position](*given))


@pytest.mark.parametrize("position", OF_QUOTED)
def test_output_follows_from_the_quoted_words(entries, position):
    entry = entries[position]
    assert says(entry["output"], OF_QUOTED[position](*quoted(question(entry))))


@pytest.mark.parametrize("position", OF_INPUT)
def test_output_follows_from_the_input(entries, position):
    entry = entries[position]
    assert says(entry["output"], OF_INPUT[position](entry["input"]))


@pytest.mark.parametrize("position", SORTED)
def test_output_is_sorted_as_asked(entries, position):
    entry = entries[position]
    assert says(entry["output"], sorted(entry["input"].split(", "), key=SORTED[position]))


@pytest.mark.parametrize("position", OF_ROMAN)
def test_output_follows_from_the_roman_numerals(entries, position):
    entry = entries[position]
    given = [ROMAN[word] for word in re.findall(r"\b[IVXLCDM]+\b", question(entry))]
    assert says(entry["output"], OF_ROMAN[position](*given))


@pytest.mark.parametrize("position", DATES)
def test_output_is_the_date_in_the_format_asked_for(entries, position):
    written, given_format, wanted_format = DATES[position]
    moment = datetime.strptime(written, given_format)
    wanted = moment.strftime(wanted_format).format(day=moment.day, hour=moment.hour % 12 or 12)
    assert written in question(entries[position])
    assert wanted in entries[position]["output"]


@pytest.mark.parametrize("position", CALENDAR)
def test_output_agrees_with_the_calendar(entries, position):
    assert says(entries[position]["output"], CALENDAR[position])


@pytest.mark.parametrize("position", PYTHON)
def test_output_is_what_python_gives(entries, position):
    code, expression, result = PYTHON[position]
    assert (code or expression) in question(entries[position])
    check = {"type": "python", "examples": [[expression, result]]}
    assert check_response(check, CAPTURE + code)
    shown = result.strip() if isinstance(result, str) else str(result)
    assert shown in entries[position]["output"]


def test_a_wrong_output_would_be_noticed():
    assert not says("14 multiplied by 6 is 86.", 84)
    assert not says("5, 3, 7", [3, 5, 7])
    assert not says("Yes, they are.", False)
    assert not says("The letter is V.", "X")


def test_every_entry_of_the_computable_kinds_is_computed(answer_key):
    computable = "arithmetic units percentage comparison counting sorting".split()  # noqa: SIM905
    tables = (OF_NUMBERS, OF_QUOTED, OF_INPUT, SORTED, OF_ROMAN, DATES, CALENDAR, PYTHON)
    computed = {position for table in tables for position in table}
    wanted = {
        position
        for position, row in enumerate(answer_key)
        if row["kind"] in (*computable, "number series")
    }
    assert wanted - computed == NEEDS_KNOWLEDGE
