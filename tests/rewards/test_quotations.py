"""Quoted texts of prompts: inches, marks in each other, typographic and CJK marks."""

from __future__ import annotations

import pytest

from flowward.rewards.text.quotations import quotations


@pytest.mark.parametrize(
    ("prompt", "right"),
    [
        ('a sign that says "Open Daily"', ["Open Daily"]),
        ('a sign that says"GO"', ["GO"]),
        ('"A""B"', ["A", "B"]),
        ('A poster with "OPEN" and "24 h"', ["OPEN", "24 h"]),
        # inches
        ('A 12" pizza box with the word "HOT"', ["HOT"]),
        ('a 27" monitor that shows "BSOD"', ["BSOD"]),
        ('a man of 5\'10" holds a sign "STOP"', ["STOP"]),
        ('4"x6" photo with "A"', ["A"]),
        ('a ½" pipe, "B"', ["B"]),
        ("12” pizza “HOT”", ["HOT"]),
        ('a card "a 12" pizza" and "B"', ['a 12" pizza', "B"]),
        ('a card "5" x 7" photo"', ['5" x 7" photo']),
        ("“a 12” pizza”", ["a 12” pizza"]),
        # digits at the end of a text
        ('"Route 66" and "Exit"', ["Route 66", "Exit"]),
        ('"Route 66" and a 5" knob', ["Route 66"]),
        ("“Route 66” and “Exit”", ["Route 66", "Exit"]),
        ('"24/7", "No. 5"', ["24/7", "No. 5"]),
        ('title:"24"', ["24"]),
        # nested, escaped, empty
        (r'says "say \"hi\" now"', ['say "hi" now']),
        (r"a sign \"HOT\"", ["HOT"]),
        ('“say "hi" now”', ['say "hi" now']),
        ("“a “b” c”", ["a “b” c"]),
        ("«Il dit “oui”»", ["Il dit “oui”"]),
        ("『「A」B』", ["「A」B"]),
        ('the text "" and "YES"', ["YES"]),
        # other marks
        ("ein Schild mit „Heute offen“", ["Heute offen"]),
        ("»Offen«", ["Offen"]),
        ("”Öppet”", ["Öppet"]),
        ("«Ouvert» et «Fermé»", ["Ouvert", "Fermé"]),
        ("Shop 「営業中」", ["営業中"]),
        ("『本日休業』", ["本日休業"]),
        ("〝禁煙〟", ["禁煙"]),
        ("＂ＯＰＥＮ＂", ["ＯＰＥＮ"]),
        ('写着"66"和"77"', ["66", "77"]),
        ("招牌上写着“欢迎光临”", ["欢迎光临"]),
        ("a sign that says ‘Don’t Walk’", ["Don’t Walk"]),
        ('the ‘90s dogs’ sign "OPEN"', ["OPEN"]),
        # none
        ("a sign", []),
        ('a 24" monitor', []),
        ("5'10\" and 6'2\"", []),
        ('say "HOT', []),
        ('"" and " "', []),
        ("dogs' and cats' bowls", []),
    ],
)
def test_quoted_texts(prompt: str, right: list[str]) -> None:
    assert quotations(prompt) == right
