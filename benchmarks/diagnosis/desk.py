"""A small made-up task for the diagnosis to be measured on: a shop's service desk notes down what a customer's message is about.

The first line of a note follows from the message by fixed rules (category, goods, priority); the reply after it is one of several at
random, as people's are. So a model can learn the task well, but never to certainty, and one that learns rows by heart gets worse.
"""

from __future__ import annotations

import random

_GOODS = (
    "lamp", "kettle", "rucksack", "pump", "desk", "raincoat", "grinder", "tent", "headset", "clock",
    "blender", "bookshelf", "pillow", "toaster", "keyboard", "suitcase", "mirror", "speaker", "carpet", "chair",
)  # fmt: skip
_CITIES = ("Bergen", "Leeds", "Porto", "Graz", "Lyon", "Turku", "Ghent", "Bari", "Brno", "Cork", "Split", "Oslo")
_NAMES = ("Ines", "Oskar", "Lena", "Hugo", "Mira", "Jonas", "Sofia", "Nadia", "Emil", "Anna", "Paul", "Ruth")
_AGENTS = ("Alex", "Kim", "Sam", "Robin", "Toni", "Chris", "Maria", "Frank", "Laura", "David", "Peter", "Helen")
_NUMBERS = ("one", "two", "three", "four", "five", "six")
#: Message templates, and the category's word in a note, which is not in them.
_KINDS = {
    "TRANSIT": ("my {number} {goods} have not reached {city}.", "where are the {number} {goods}? {city} has no trace of them."),
    "FAULT": ("the {number} {goods} arrived in {city} broken.", "the {number} {goods} you sent to {city} do not work."),
    "LEDGER": ("I paid twice for {number} {goods} to {city}.", "the bill for {number} {goods} to {city} is wrong."),
    "AMEND": ("please send the {number} {goods} to {city} instead.", "add {city} to the label of my {number} {goods}."),
    "RECALL": ("I will return {number} {goods} from {city}.", "please cancel the {number} {goods} for {city}."),
}
_HURRY = ("It is urgent.", "Please hurry.")
_CALM = ("No rush.", "Thanks.", "")
_REPLIES = (
    "Thank you, {name}, {verb} it {day}.",
    "Dear {name}, {agent} is {verb} it {day}.",
    "Hello {name}, sorry; {verb} it {day}.",
    "{name}, {agent} has it, {verb} {day}.",
    "Noted, {name}. {agent} will be {verb} it {day}.",
    "Expect news {day}, {name}; {agent} is {verb}.",
)
_VERBS = ("checking", "looking into", "working on", "following up", "dealing with", "sorting out")
_DAYS = ("today", "tomorrow", "on Monday", "on Friday", "this week", "soon")

Row = dict[str, str]


def rows(count: int, seed: int) -> list[Row]:
    """Return `count` rows with different messages."""
    rng = random.Random(seed)
    made: dict[str, Row] = {}
    while len(made) < count:
        row = _row(rng)
        made.setdefault(row["prompt"], row)
    return list(made.values())


def shuffled_answers(given: list[Row], share: float, seed: int) -> list[Row]:
    """Return the rows with that share of them having each other's answers."""
    rng = random.Random(seed)
    chosen = rng.sample(range(len(given)), round(share * len(given)))
    answers = {to: given[frm]["completion"] for to, frm in zip(chosen, chosen[1:] + chosen[:1], strict=True)}
    return [row | {"completion": answers.get(number, row["completion"])} for number, row in enumerate(given)]


def all_in_the_answer(given: list[Row]) -> list[Row]:
    """Return the rows with the prompt moved into what the loss is taken over."""
    return [{"prompt": "", "completion": row["prompt"] + row["completion"]} for row in given]


def _row(rng: random.Random) -> Row:
    kind = rng.choice(list(_KINDS))
    number, goods, city, name = rng.randrange(1, 6), rng.choice(_GOODS), rng.choice(_CITIES), rng.choice(_NAMES)
    hurry = rng.random() < 0.4
    said = rng.choice(_KINDS[kind]).format(number=_NUMBERS[number], goods=goods + "s", city=city)
    message = f"{name} here, {said} {rng.choice(_HURRY if hurry else _CALM)}".strip()
    # Many goods or haste make it a first priority; both make it the desk's head's.
    priority = "P0" if hurry and number >= 3 else "P1" if hurry or number >= 3 else "P2"
    reply = rng.choice(_REPLIES).format(name=name, agent=rng.choice(_AGENTS), verb=rng.choice(_VERBS), day=rng.choice(_DAYS))
    return {"prompt": f"Message: {message}\nNote:", "completion": f" {kind} / {goods} x {number + 1} / {priority}\n{reply}"}
