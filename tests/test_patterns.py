"""Names that braces stand for, counted before they are made."""

import pytest

from training.data.patterns import DEEPEST, MOST, expand


@pytest.mark.parametrize(
    "pattern, names",
    [
        ("a.tar", ["a.tar"]),
        ("", [""]),
        ("{0..3}", ["0", "1", "2", "3"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{3..-1}", ["3", "2", "1", "0", "-1"]),
        ("{-03..1}", ["-03", "-02", "-01", "000", "001"]),
        ("{0..9..4}", ["0", "4", "8"]),
        ("{9..0..4}", ["9", "5", "1"]),
        ("{0..2..0}", ["0", "1", "2"]),
        ("{a..c}{X..Z..2}", ["aX", "aZ", "bX", "bZ", "cX", "cZ"]),
        ("{c..a}", ["c", "b", "a"]),
        ("{a,b{1..2},}x", ["ax", "b1x", "b2x", "x"]),
        ("{c}/{0..1}", ["{c}/0", "{c}/1"]),
        ("{a..Z}", ["{a..Z}"]),
        ("{}", ["{}"]),
        ("\\{a,b\\}", ["{a,b}"]),
        ("{a\\,b,c}", ["a,b", "c"]),
        ("{00000..00999}.tar", [f"{number:05d}.tar" for number in range(1000)]),
    ],
)
def test_braces_stand_for_what_a_shell_makes_of_them(pattern, names):
    assert expand(pattern) == names


@pytest.mark.parametrize(
    "pattern, count",
    [
        ("{0..1000000000}.tar", "1,000,000,001"),
        ("{0..1000000}", "1,000,001"),
        ("{a,b}" * 40 + ".tar", "1,099,511,627,776"),
        ("{0..9" + "9" * 30 + "}.tar", "up to 10^31"),
        ("{1..5..9" + "9" * 5000 + "}", "up to 10^5001"),
        ("{0..99}" * 5000, "about 10^9999"),
        ("{x,{0..999}{0..999}{0..999}}", "1,000,000,001"),
    ],
)
def test_more_names_than_anybody_means_are_counted_and_refused(pattern, count):
    with pytest.raises(ValueError) as error:
        expand(pattern)
    assert f"stands for {count} names, more than {MOST:,}; name fewer" in str(error.value).replace("\\", "")
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("{a", "as many { as }"),
        ("a}{", "as many { as }"),
        ("{" * 100_000, "as many { as }"),
        ("{" * 100 + "}" * 100, f"at most {DEEPEST} braces"),
        ("{a," * 100 + "}" * 100, f"at most {DEEPEST} braces"),
    ],
)
def test_braces_that_do_not_match_are_refused(pattern, message):
    with pytest.raises(ValueError, match=message):
        expand(pattern)
