"""Prompts for images that contain text, with the text as metadata `text` (the task of Flow-GRPO's OCR reward).

A text is in the training set or in the held-out set, never in both. So a policy is evaluated on words for which it was
never rewarded. The six categories are the places of the text: signs, posters, labels and so on.
"""

from __future__ import annotations

from functools import cache

from .picks import number, picks
from .prompt import PromptSet

_FIRST = (
    "Amber Autumn Bright Broken Busy Calm Clever Copper Corner Cosmic Crystal Daily Distant Early Electric Emerald "
    "Fancy Fearless Fresh Friendly Gentle Giant Golden Grand Happy Harbour Hidden Honest Humble Indigo Ivory Jolly "
    "Little Lonely Lucky Magic Maple Midnight Modern Morning Noble Northern Old Open Orange Paper Pocket Polar Proud "
    "Quiet Rapid Red River Royal Rustic Sacred Secret Silent Silver Simple Sleepy Smart Solar Spring Steady Summer "
    "Sunny Swift Tiny Twin Urban Velvet Vintage Wandering Western Wild Winter Wooden Yellow Young"
)
_SECOND = (
    "Academy Adventure Anchor Archive Avenue Bakery Balloon Bazaar Bicycle Blossom Bookshop Bridge Cafe Candle Canyon "
    "Castle Cinema Circus Clinic Compass Concert Corner Dragon Engine Express Factory Festival Forest Fountain Gallery "
    "Garden Ghost Guitar Harvest Hotel Island Jacket Journey Kitchen Lantern Library Lighthouse Machine Market Meadow "
    "Mountain Museum Office Orchard Orchestra Palace Parade Pharmacy Planet Project Puzzle Radio Railway Rocket Sailor "
    "School Shadow Station Studio Sunrise Tailor Theatre Ticket Tower Valley Village Voyage Walnut Weekend Window"
)
THIRD = ("", "", "", "Club", "Company", "Guide", "House", "Night", "Number 7", "Since 1984", "Society", "Street")
_NOTICES = (
    "Back in Ten Minutes;Beware of the Goose;Closed on Mondays;Do Not Disturb;Doors Open at Eight;Exit Only;"
    "Fasten Your Seat Belt;Free Entry Today;Handle with Care;Keep Off the Grass;Keep the Gate Shut;Last Train Home;"
    "Lost and Found;Mind Your Head;Next Stop Moon;No Swimming Here;No Time Like Now;Please Ring the Bell;"
    "Please Wait Here;Push to Open;Quiet Please;Ready When You Are;Road Work Ahead;Room for Rent;Sold Out Tonight;"
    "Take One Leave One;Tea at Four;Thank You Neighbour;This Way Up;Turn Left at the Oak;Two for One;Under New Stars;"
    "Watch Your Step;We Deliver on Foot;Welcome Back Sailor;Wet Paint;What If We Try;You Are Nearly There"
)
FIRST, SECOND, NOTICES = _FIRST.split(), _SECOND.split(), _NOTICES.split(";")

PLACES = {
    "sign": (
        'a wooden sign above a shop door that says "{}"',
        'a neon sign in a dark alley with the words "{}"',
        'a street sign on a rainy corner that reads "{}"',
        'an enamel sign on a brick wall that says "{}"',
        'a hand-painted roadside sign with the text "{}"',
    ),
    "poster": (
        'a vintage travel poster with the title "{}"',
        'a concert poster on a concrete wall that says "{}"',
        'a minimalist film poster with the words "{}"',
        'a poster for a village fair with the headline "{}"',
        'a screen-printed poster in two colours that reads "{}"',
    ),
    "label": (
        'a jam jar with a paper label that says "{}"',
        'a glass bottle whose label reads "{}"',
        'a cardboard parcel with a sticker that says "{}"',
        'a tin of tea with the words "{}" on its label',
        'a luggage tag with the text "{}"',
    ),
    "cover": (
        'a hardback book on a table with the title "{}" on its cover',
        'a record sleeve that says "{}" in bold letters',
        'a magazine cover with the headline "{}"',
        'an old notebook with "{}" written on the front',
        'a comic book with the title "{}"',
    ),
    "screen": (
        'a laptop on a desk, its screen shows the words "{}"',
        'a departure board in a station that reads "{}"',
        'a phone held in one hand, with the message "{}" on it',
        'a cinema screen before the film, with the text "{}"',
        'a digital billboard at night that says "{}"',
    ),
    "writing": (
        'a chalkboard in a classroom with "{}" written on it',
        'the words "{}" drawn in wet sand on a beach',
        'a birthday cake with "{}" in icing',
        'graffiti on a train carriage that says "{}"',
        'a white T-shirt with the print "{}"',
    ),
}

TRAIN, HELD_OUT = 600, 60  # texts of each category


def _phrase(place: int) -> str:
    """The text with this number: notices first, then pairs of words, most of them with a third word.

    The third word is fixed per pair, so no text of one set is the beginning of a text of the other.
    """
    if place < len(NOTICES):
        return NOTICES[place]
    first, second = divmod(place - len(NOTICES), len(SECOND))
    pair = f"{FIRST[first]} {SECOND[second]}"
    return f"{pair} {THIRD[number(pair) % len(THIRD)]}".strip()


@cache
def made(held_out: bool) -> PromptSet:
    """`ocr` (3600 prompts) or `ocr-held-out` (360)."""
    kinds = list(PLACES)
    chosen = picks("ocr", len(NOTICES) + len(FIRST) * len(SECOND), (TRAIN + HELD_OUT) * len(kinds))
    chosen = chosen[: HELD_OUT * len(kinds)] if held_out else chosen[HELD_OUT * len(kinds) :]
    rows = []
    for turn, place in enumerate(chosen):
        kind, text = kinds[turn % len(kinds)], _phrase(place)
        ways = PLACES[kind]
        rows.append((ways[number(f"ocr wording {text}") % len(ways)].format(text), kind, {"text": text}))
    texts, categories, metadata = zip(*rows, strict=True)
    return PromptSet("ocr-held-out" if held_out else "ocr", texts, categories, metadata=metadata)
