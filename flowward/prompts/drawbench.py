"""A small set for visual inspection, in the style of DrawBench (Saharia et al., 2022, arXiv:2205.11487).

The prompts are our own. They show by category what a model finds hard. Only the quoted texts in the category `text`
can be checked automatically.
"""

from __future__ import annotations

from functools import cache

from .prompt import PromptSet

PROMPTS: dict[str, tuple[str, ...]] = {
    "colors": (
        "a purple violin leaning on a yellow wall",
        "a white tomato between two red ones",
        "a bus painted half green and half pink",
        "a brown dog in a blue raincoat",
        "a black rose in an orange glass",
        "a turquoise typewriter with golden keys",
        "a red snowman beside a grey tree",
    ),
    "counting": (
        "one lemon on an empty plate",
        "two foxes crossing a road",
        "three umbrellas on a beach, all closed",
        "four candles, one of them burning",
        "five paper boats in a row",
        "six buttons on a green coat",
        "a clover with four leaves among clovers with three",
    ),
    "conflicting": (
        "a fish reading a newspaper under a tree",
        "a square bicycle wheel that rolls",
        "a snowstorm inside a lightbulb",
        "a cactus that grows on an iceberg",
        "a horse riding an astronaut up a hill",
        "a staircase made of water",
        "a cathedral the size of a thimble, on a fingertip",
    ),
    "positional": (
        "a kettle to the left of a sleeping cat",
        "a ladder beneath a balloon",
        "a chair on top of a piano",
        "a small key in front of a large door",
        "a lighthouse behind a row of houses",
        "a pear between a hammer and a clock",
        "a bird under a bench and a shoe on it",
    ),
    "descriptions": (
        "a small device with a needle that turns towards the north, lying open on a map",
        "a seat hung from a branch by two ropes, moving although nobody sits on it",
        "a tall glass vessel whose sand runs from the upper half to the lower, nearly empty",
        "a vehicle with two wheels, pedals and a basket full of bread, leaning on a bakery window",
        "a large grey animal with a trunk, painting a picture of a mouse",
        "a room seen from above in which every piece of furniture is pushed to one wall",
        "an instrument with black and white keys, squeezed between two hands",
    ),
    "rare words": (
        "an astrolabe on a velvet cushion",
        "a quokka under a colonnade",
        "a samovar and a zither on a windowsill",
        "a trebuchet in a meadow of edelweiss",
        "a filigree reliquary in candlelight",
        "an okapi beside a ziggurat",
        "a sextant carved from obsidian",
    ),
    "misspellings": (
        "a pengiun on a skatebord",
        "a luminus jelyfish in a teacup",
        "an old libary full of plnats",
        "a girafe in an elevater",
        "a rainbo over a factroy",
        "a nigth market in the rian",
        "a wodden robbot peeling potatos",
    ),
    "text": (
        'a mug that says "Not Before Nine"',
        'a banner behind an aeroplane with the words "Marry Me Ada"',
        'a keyboard on which only the keys "H" and "I" are lit',
        'a gravestone that reads "I Told You So"',
        'a fortune cookie with a slip that says "Ask Again"',
        'a lighthouse with "Hello" painted around it',
        'a bakery window with "Last Loaf" written in flour',
    ),
    "composition": (
        "a watchmaker's desk with a teapot, a brass lamp and no watch",
        "a bridge of books over a river of ink, with a boy fishing from it",
        "two chess players in a flooded room, one of them a heron",
        "an empty theatre in which every seat holds a sunflower",
        "a shadow of a ship on a wall, cast by a folded letter",
        "a kitchen in zero gravity, with soup in round drops",
        "a street musician whose only listener is a statue",
    ),
}


@cache
def made() -> PromptSet:
    """`drawbench-style`: 63 prompts in nine categories."""
    rows = [(text, kind) for kind, texts in PROMPTS.items() for text in texts]
    return PromptSet("drawbench-style", tuple(text for text, _ in rows), tuple(kind for _, kind in rows))
