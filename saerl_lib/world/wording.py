"""Wording of the embedded world: twelve topics on three levels, general words that all share, and the habits of three sources.

A prompt is an opener, a start, one clause an operation, sentences that do not matter, and a question. Each word is the topic's
own or a general one, and the idle sentences speak of any topic's things, so that no single word settles the topic.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from saerl_lib.world.problems import OPERATIONS, Problem

TABLE = """
Nature -> Gardens -> Orchard      | An orchard has, The trees bear | apples, pears | ripens, grows | drops, feeds birds
 | blooms times, yields times | is basketed by, is rowed by | sends off, picks
Nature -> Gardens -> Greenhouse   | A greenhouse has, The beds hold | seedlings, tulips | sows, plants | wilts, repots
 | sprouts times, seeds times | is potted by, is bedded by | waters, blossoms
Nature -> Animals -> Apiary       | An apiary has, The hives keep | bees, combs | hatches, swarms in | swarms off, freezes
 | breeds times, buzzes times | is hived by, is framed by | feeds, shelters
Trade -> Shops -> Bakery          | A bakery has, The oven holds | rolls, cakes | bakes, kneads | burns, eats up
 | doughs times, serves times | is trayed by, is sliced by | ices, glazes
Trade -> Shops -> Bookshop        | A bookshop has, The shelves show | novels, maps | orders, reprints | lends, sells off
 | prints times, copies times | is shelved by, is bundled by | stamps, reviews
Trade -> Freight -> Harbour       | A harbour has, The ship carries | crates, barrels | loads, lands | unloads, sinks
 | hauls times, ferries times | is decked by, is docked by | ships, moors
Leisure -> Games -> Marbles       | A player has, The ring holds | marbles, points | wins, scores | forfeits, misses
 | stakes times, raises times | is dealt by, is teamed by | banks, pockets
Leisure -> Games -> Stamps        | An album has, The pages show | stamps, coins | collects, swaps in | swaps out, tears
 | doubles up times, reissues times | is paged by, is sorted by | mounts, frames
Leisure -> Stage -> Theatre       | A theatre has, The rows seat | tickets, guests | books, invites | refunds, cancels
 | tours times, plays times | is rowed up by, is boxed by | claps, admits
Works -> Materials -> Quarry      | A quarry has, The pit gives | stones, slabs | digs, blasts | crushes, rejects
 | drills times, quarries times | is carted by, is piled by | polishes, cuts
Works -> Materials -> Sawmill     | A sawmill has, The yard stacks | planks, logs | saws, fells | warps, splinters
 | planes times, mills times | is stacked by, is strapped by | sands, dries
Works -> Energy -> Depot          | A depot has, The tank stores | litres, cans | pumps in, fills | leaks, pumps out
 | refines times, heats times | is tanked by, is piped by | seals, meters
"""
"""Path | starts | nouns | one column of verbs an operation, in the order of `OPERATIONS`; two of each."""


@dataclass(frozen=True)
class Words:
    """The words of one topic, or the general ones."""

    starts: tuple[str, ...]
    nouns: tuple[str, ...]
    verbs: dict[str, tuple[str, ...]]
    """Operation -> phrases that stand before its operand."""


def _words(cells: str) -> Words:
    starts, nouns, *verbs = (tuple(word.strip() for word in cell.split(",")) for cell in cells.split("|"))
    return Words(starts, nouns, dict(zip(OPERATIONS, verbs, strict=True)))


TOPICS: dict[str, Words] = {
    row.partition("|")[0].strip(): _words(row.partition("|")[2]) for row in TABLE.replace("\n |", " |").strip().split("\n")
}
"""Topic 'A -> B -> C', as DeepMath writes it -> its words, in a fixed order."""
GENERAL = _words(
    "There are, A store has, We count | pieces, items, things | adds, gains, gets | loses, gives away, drops out"
    " | is taken times, multiplies by, is scaled by | is divided by, is split by, is shared by | keeps, is cut to, holds on to"
)
OWN = 0.4
"""Chance that a word is the topic's own."""
NAMED = 0.3
"""Chance that the noun is named behind an operand."""
IDLE = ("The {} look fine", "Nobody counts the {}", "It rains on the {}", "Last year the {} were late", "A child draws the {}",
        "The {} are old")  # fmt: skip
"""Sentences that do not matter."""


@dataclass(frozen=True)
class Habits:
    """Wording habits of a source."""

    openers: tuple[str, ...]
    joints: tuple[str, ...]
    """Between two clauses."""
    questions: tuple[str, ...]
    idle: tuple[int, ...]
    """Numbers of idle sentences, equally likely."""


HABITS = {
    "target": Habits(
        ("", "", "", "Question: "), (", ", ", ", ", then "), ("How many are there now?", "How many is that?", "What is left?"),
        (0, 0, 1, 2),
    ),
    "parent": Habits(
        ("", "", "Question: ", "Problem: "), (", ", ", then ", " and "),
        ("How many are there now?", "Find the total.", "Work out the rest.", "What is left?"), (0, 1, 1, 2),
    ),
    "contest": Habits(
        ("", "Round: ", "Task: "), (", ", "; "), ("Give the exact number.", "State the total.", "What is left?"), (0, 1)
    ),
}  # fmt: skip
"""Sources share most phrases: none settles the source alone."""


def word(problem: Problem, topic: str, source: str, rng: random.Random) -> str:
    """The prompt of a problem in the words of a topic and with the habits of a source."""
    habits, own = HABITS[source], TOPICS[topic]

    def pick() -> Words:
        return own if rng.random() < OWN else GENERAL

    joint = rng.choice(habits.joints)
    clauses = [f"{rng.choice(pick().starts)} {problem.start} {rng.choice(pick().nouns)}"]
    for step in problem.steps:
        operand = f"{step.part}/{step.amount}" if step.part else str(step.amount)
        named = f" {rng.choice(pick().nouns)}" if rng.random() < NAMED else ""
        clauses.append(f"{rng.choice(pick().verbs[step.operation])} {operand}{named}")
    told = joint.join(clauses) + "."
    every = list(TOPICS.values())
    for _ in range(rng.choice(habits.idle)):
        idle = rng.choice(IDLE).format(rng.choice(rng.choice(every).nouns)) + "."
        told = f"{idle} {told}" if rng.random() < 0.5 else f"{told} {idle}"
    return f"{rng.choice(habits.openers)}{told} {rng.choice(habits.questions)}"
