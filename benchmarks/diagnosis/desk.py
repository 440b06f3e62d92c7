"""A small made-up task for the diagnosis to be measured on: a shop's service desk notes down what a customer's message is about.

The first line of a note follows from the message by fixed rules (category, goods, priority); the reply after it is one of several at
random, as people's are. So a model can learn the task well, but never to certainty, and one that learns rows by heart gets worse.
"""

from __future__ import annotations

import random

_GOODS = (
    "lamp", "kettle", "rucksack", "bicycle pump", "desk chair", "raincoat", "coffee grinder", "tent", "headset", "wall clock",
    "blender", "bookshelf", "sleeping bag", "toaster", "keyboard", "watering can", "suitcase", "mirror", "speaker", "duvet",
)  # fmt: skip
_CITIES = ("Bergen", "Leeds", "Porto", "Graz", "Lyon", "Turku", "Gdansk", "Ghent", "Malmö", "Bari", "Brno", "Cork", "Split", "Tartu")
_NAMES = ("Ines", "Oskar", "Priya", "Tomasz", "Lena", "Hugo", "Mira", "Jonas", "Aino", "Karim", "Sofia", "Piet", "Nadia", "Emil")
_DETAILS = ("in blue", "in grey", "the large one", "the small one", "from the sale", "from last week", "as a gift", "for the office")
_NUMBERS = ("one", "two", "three", "four", "five", "six")
#: Message templates, and the category's word in a note, which is not in them.
_KINDS = {
    "TRANSIT": (
        "my {number} {goods} {detail} still have not reached {city}.",
        "where are the {number} {goods} {detail}? The parcel to {city} seems lost.",
        "tracking for {number} {goods} to {city} has not moved in days.",
    ),
    "FAULT": (
        "of the {number} {goods} {detail}, every one arrived broken.",
        "the {number} {goods} you sent to {city} do not work at all.",
        "I unpacked {number} {goods} {detail} and found cracks.",
    ),
    "LEDGER": (
        "I was charged twice for {number} {goods} {detail}.",
        "the invoice for {number} {goods} to {city} has the wrong sum.",
        "please send a receipt for {number} {goods} {detail}.",
    ),
    "AMEND": (
        "could you change my order of {number} {goods} {detail} to another address in {city}?",
        "I would rather have the {number} {goods} sent to {city}.",
        "please add a note to my order of {number} {goods} {detail}.",
    ),
    "RECALL": (
        "I want to send back {number} {goods} {detail}.",
        "the {number} {goods} are not what I hoped for, I am in {city} and want my money back.",
        "please cancel {number} {goods} {detail}, I no longer need them.",
    ),
}
_HURRY = ("It is urgent.", "I need this by tomorrow.", "Please hurry.")
_CALM = ("No rush.", "Whenever you can.", "Thanks for your help.", "")
_REPLIES = (
    "Thank you, {name}. We are {verb} the {goods} now.",
    "Dear {name}, someone is {verb} this today.",
    "Hello {name}, sorry about the {goods}; we are {verb} it.",
    "{name}, we have your message and are {verb} it.",
    "Noted, {name}. Our team in {city} is {verb} the {goods}.",
    "We are {verb} this for you, {name}. Expect news soon.",
)
_VERBS = ("checking", "looking into", "working on", "following up on", "dealing with", "sorting out")

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
    plural = goods + "s"
    said = rng.choice(_KINDS[kind]).format(number=_NUMBERS[number], goods=plural, detail=rng.choice(_DETAILS), city=city)
    ending = rng.choice(_HURRY if hurry else _CALM)
    message = f"{name} here, {said} {ending}".strip()
    # Many goods or haste make it a first priority; both make it the desk's head's.
    priority = "P0" if hurry and number >= 3 else "P1" if hurry or number >= 3 else "P2"
    reply = rng.choice(_REPLIES).format(name=name, goods=plural, city=city, verb=rng.choice(_VERBS))
    return {"prompt": f"Message: {message}\nNote:", "completion": f" {kind} / {goods} x {number + 1} / {priority}\n{reply}"}
