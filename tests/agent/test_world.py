"""The built-in world: answers recomputed from the texts, no held-out content in training, and rules by hand."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from flowward.agent import world
from flowward.agent.episode import Ask, Episode, Observation, Plan, Said, Unreadable, Use
from flowward.agent.memory import Entry, Memory
from flowward.agent.system import Driver, Limits, Text
from flowward.agent.tools import Card

CARDS = [tool.card for tool in world.tools().values()]
SIGNS = {"plus": lambda a, b: a + b, "minus": lambda a, b: a - b, "times": lambda a, b: a * b}
LOOKUP, SUM = "what is the height of arlo", "what is the height of arlo plus the age of brim"


def asked_for(text: str) -> list[tuple[str, str]]:
    """(attribute, tower) in the text of a question, read without the code that made it."""
    return re.findall(r"the (\w+) of (\w+)", text)


def known() -> dict[tuple[str, str], int]:
    """The facts, read from the sentences."""
    found = [re.fullmatch(r"the (\w+) of (\w+) is (\d+)", sentence) for sentence in world.sentences()]
    return {(each[1], each[2]): int(each[3]) for each in found if each}


@pytest.mark.parametrize("given", [world.questions(), world.held_out()], ids=["training", "held out"])
def test_every_answer_follows_from_the_sentences(given) -> None:
    facts = known()
    assert len(facts) == 48 and all(2 <= value <= 12 for value in facts.values())
    for text, category, about in zip(given.texts, given.categories, given.metadata, strict=True):
        values, sign = [facts[fact] for fact in asked_for(text)], re.search(r"plus|minus|times", text)
        answer = SIGNS[sign[0]](*values) if sign else values[0]
        assert about == {"answer": str(answer)}
        assert category == {"plus": "sum", "minus": "difference", "times": "product"}[sign[0]] if sign else "lookup"


def test_nothing_of_a_held_out_question_is_asked_in_training_in_other_words() -> None:
    def contents(texts: Sequence[str]) -> set[tuple[str, ...]]:
        """A lookup's fact, or the two towers in their order."""
        found = [asked_for(text) for text in texts]
        return {each[0] if len(each) == 1 else (each[0][1], each[1][1]) for each in found}

    training, held_out = contents(world.questions().texts), contents(world.held_out().texts)
    assert not training & held_out
    assert len(training) + len(held_out) == 48 + 16 * 15
    assert len(held_out) == 16 + 48


def test_strata_are_equally_frequent_and_400_held_out_questions_are_different() -> None:
    given = world.held_out()
    places = given.spread(400)
    assert len(set(places)) == 400
    assert set(Counter(given.categories[place] for place in places).values()) == {100}
    drawn = Counter(world.questions().categories[place] for place in world.questions().draw(0, 0, 400))
    assert drawn == {"lookup": 100, "sum": 100, "difference": 100, "product": 100}
    assert (len(world.questions()), len(given)) == (5440, 1424)


def test_every_word_of_questions_answers_and_steps_is_one_of_the_vocabulary() -> None:
    vocabulary = world.vocabulary()
    assert len(set(vocabulary)) == len(vocabulary)
    said = {word for given in (world.questions(), world.held_out()) for text in given.texts for word in text.split()}
    answers = {about["answer"] for given in (world.questions(), world.held_out()) for about in given.metadata}
    assert said | answers <= set(vocabulary)
    assert {str(a - b) for a in range(2, 13) for b in range(2, 13)} <= set(vocabulary)
    assert {str(a * b) for a in range(2, 13) for b in range(2, 13)} <= set(vocabulary)
    assert {str(guess) for guess in range(world.GUESSES)} <= set(vocabulary)


@pytest.mark.parametrize(
    ("query", "result"),
    [
        ("height arlo", str(world.value(("height", "arlo")))),
        ("Arlo's height, please", str(world.value(("height", "arlo")))),
        ("age pike arlo pike", "several sentences fit equally well"),
        ("arlo", "several sentences fit equally well"),
        ("the is of", "several sentences fit equally well"),
        ("weather", "no sentence"),
        ("", "no sentence"),
    ],
)
def test_search_finds_the_sentence_with_most_words(query: str, result: str) -> None:
    assert world.Search()(query=query).startswith(result)


def test_a_guess_is_fixed_for_a_question_and_nearly_always_wrong() -> None:
    given, guess = world.questions(), world.Guess()
    guesses = [guess(question=text) for text in given.texts]
    assert guesses == [guess(question=text[:9] + text[9:]) for text in given.texts]
    assert guess(question=LOOKUP) == "36"  # in every process, on every machine
    assert len(set(guesses)) == world.GUESSES
    right = sum(found == about["answer"] for found, about in zip(guesses, given.metadata, strict=True))
    assert right / len(given) < 0.03


def test_the_prompt_shows_question_and_steps_in_the_words_of_the_vocabulary() -> None:
    memory = Memory(
        (
            Entry(1, "search", "", "height arlo", "5"),
            Entry(2, "search", "", "arlo", "several sentences fit equally well"),
            Entry(3, "", "", "", "error: there is no tool 'find'"),
            Entry(4, "calculator", "", "5 - 12", "-7"),
            Entry(5, "calculator", "", "5 -", "error: '5 -' cannot be calculated"),
            Entry(6, "guess", "", "some question", "12"),
        )
    )
    ((role, text),) = world.Planner().ask("What is the HEIGHT of Arlo?", "", CARDS, memory)
    assert role == "user"
    assert text == (
        "what is the height of arlo ; 1 search height arlo = 5 ; 2 search arlo = none ; 3 = error "
        "; 4 calculator 5 - 12 = -7 ; 5 calculator 5 - = error ; 6 guess = 12"
    )
    assert set(text.split()) <= set(world.vocabulary())
    dropped = replace(memory, entries=memory.entries[4:], dropped=4)
    ((_, text),) = world.Planner().ask(LOOKUP, "", CARDS, dropped)
    assert text == f"{LOOKUP} ; left out 4 ; 5 calculator 5 - = error ; 6 guess = 12"


def test_plans_are_a_tool_and_its_input() -> None:
    read = world.Planner().read
    assert read("search height arlo", CARDS) == Plan("search", context="height arlo")
    assert read(" guess ", CARDS) == Plan("guess")
    for text, trouble in (("", "empty"), ("  ", "empty"), ("height arlo", "tool"), ("5", "tool"), ("Search a", "tool")):
        with pytest.raises(Unreadable) as error:
            read(text, CARDS)
        assert error.value.trouble == trouble


@pytest.mark.parametrize(
    ("question", "tool", "result", "stop"),
    [
        (LOOKUP, "search", "5", True),
        (LOOKUP, "search", "no sentence has any of these words", False),
        (LOOKUP, "search", "error: 5", False),
        (LOOKUP, "calculator", "5", False),
        (LOOKUP, "guess", "5", True),
        (LOOKUP, "", "5", False),
        (SUM, "search", "5", False),
        (SUM, "calculator", "-5", True),
        (SUM, "calculator", "error: it cannot be calculated", False),
        (SUM, "guess", "5", True),
    ],
)
def test_the_verifier_stops_by_the_last_tool_that_found_a_number(
    question: str, tool: str, result: str, stop: bool
) -> None:
    memory = Memory((Entry(1, "search", "", "height arlo", "5"), Entry(2, tool, "", "", result)))
    assert world.verdict(question, "", CARDS, memory).stop == stop


def test_the_executor_gives_the_plan_to_the_tool_and_the_question_to_guess() -> None:
    cards = {card.name: card for card in CARDS}
    assert world.executor(SUM, Plan("search", context="age brim"), cards["search"]) == {"query": "age brim"}
    assert world.executor(SUM, Plan("calculator", context="5 + 3"), cards["calculator"]) == {"expression": "5 + 3"}
    assert world.executor(SUM, Plan("guess", context="age brim"), cards["guess"]) == {"question": SUM}
    several = Card("other", "", {"properties": {"a": {"type": "string"}, "b": {"type": "string"}}})
    assert world.executor(SUM, Plan("other", context='{"a": "1", "b": "2"}'), several) == {"a": "1", "b": "2"}


def episode(question: str, *plans: str, limits: Limits = world.LIMITS) -> Episode:
    """An episode with these answers of the planner; after them it says nothing."""
    agent, rest = world.system(Text(), limits), iter(plans)

    def planner(numbers: Sequence[int], asks: Sequence[Ask]) -> list[Said]:
        return [Said(next(rest, "")) for _ in asks]

    def tools(uses: Sequence[Use]) -> list[Observation]:
        return [Observation(agent.tools[use.tool](**use.arguments)) for use in uses]

    return Driver(planner, tools).run([agent.episode(question)])[0]


def test_whole_episodes() -> None:
    a, b = world.value(("height", "arlo")), world.value(("age", "brim"))
    found = episode(SUM, "search height arlo", "search age brim", f"calculator {a} + {b}")
    assert (found.answer, found.end, len(found.turns)) == (str(a + b), "stopped", 3)
    assert [turn.result for turn in found.turns] == [str(a), str(b), str(a + b)]
    found = episode(LOOKUP, "search height arlo")
    assert (found.answer, found.end, len(found.turns)) == (str(a), "stopped", 1)
    found = episode(SUM, "guess")
    assert (found.answer, found.end, len(found.turns)) == (world.Guess()(question=SUM), "stopped", 1)
    found = episode(LOOKUP, "find it", "calculator 3 * 3", "search height arlo")
    assert (found.answer, len(found.turns), found.turns[0].trouble) == (str(a), 3, "tool")
    found = episode(SUM, *["search height arlo"] * 9)
    assert (found.end, len(found.turns)) == ("turns", 5)
    assert episode(SUM, "search height arlo", limits=Limits(max_turns=1)).end == "turns"
