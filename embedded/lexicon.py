"""The words of the synthetic language, each one a single token of the embedded model's tokenizer."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _pairs(first: str, second: str) -> tuple[tuple[str, str], ...]:
    return tuple(zip(first.split(), second.split(), strict=True))


MALE_NAMES = _words(
    "Adam Boris Carl David Erik Felix Georg Hugo Ivan Jonas Karl Louis Marco Nico Oscar Peter"
)
FEMALE_NAMES = _words(
    "Anna Bella Clara Dora Emma Flora Greta Hanna Irene Julia Karin Laura Maria Nina Olga Paula"
)
FIRST_NAMES = MALE_NAMES + FEMALE_NAMES
LAST_NAMES = _words(
    "Archer Baker Carver Dyer Ellis Fisher Glover Hunter Ingram Jarvis Keller Lowell Mason Norris Osborn "
    "Potter Quincy Rider Sawyer Tanner Usher Vickers Walker Young Abbot Brewer Cooper Draper Easton Forster "
    "Grant Hooper"
)

TOWNS = _words(
    "Aldor Belmar Corvin Dunmor Elvast Farrow Gelden Harsk Istria Jorund Kelvar Lorien "
    "Mirov Nestor Ostara Pelham Quarn Rostov Sarnia Tolmin Umbria Varna Welden Yarrow"
)
JOBS = _words(
    "actor baker barber broker butler carter cleric cook doctor driver editor farmer "
    "guard judge lawyer mayor miner nurse pilot poet porter sailor singer tailor"
)
PETS = _words(
    "ape bat bear bee bull camel cat crab crow deer dog dove "
    "duck eagle fox frog goat hen horse lamb lion mole mouse otter"
)
PETS_PLURAL = _words(
    "apes bats bears bees bulls camels cats crabs crows deers dogs doves "
    "ducks eagles foxes frogs goats hens horses lambs lions moles mice otters"
)
FOODS = _words(
    "apples beans bread butter cakes carrots cheese corn dates eggs figs fish "
    "grapes honey leaves lemons melons milk nuts onions pears plums rice salt"
)

# (singular, plural) forms of the verbs that take one of FOODS as object, and of those that take none.
TRANSITIVE = _pairs(
    "eats hides smells sells steals carries wants buries",
    "eat hide smell sell steal carry want bury",
)
INTRANSITIVE = _pairs(
    "sleeps runs jumps sings waits falls walks swims",
    "sleep run jump sing wait fall walk swim",
)
REFLEXIVE_VERBS = _pairs(
    "sees hurts helps knows blames",
    "see hurt help know blame",
)
MEN = _pairs(
    "king boy man uncle monk",
    "kings boys men uncles monks",
)
WOMEN = _pairs(
    "queen girl woman aunt nun",
    "queens girls women aunts nuns",
)
ADJECTIVES = _words("old young big small brave quiet happy angry")
PREPOSITIONS = _words("near behind beside under")
DETERMINERS = (("this", "that", "every"), ("these", "those", "all"))

COLORS = _words("red blue green white black brown yellow pink")
THINGS = _words("box bag cup lamp chair table door coat")
OBJECTS = _words("ball book coin key ring rope sword drum")
PLACES = _words("garden kitchen cellar attic tower market harbor forest temple school bridge stable")
NUMBERS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)
RULES = _words("copy reverse rotate sort last")

FUNCTION_WORDS = _words(
    "the a that is are in with as to and lives works keeps likes where what which does live work keep like "
    "himself herself themselves fears fear has enters plus count counts Question A B C D"
)
# Pieces that may follow a line break, where no space stands before them.
LINE_STARTS = ("Question", "Answer")


def words() -> tuple[str, ...]:
    """Every word that gets a token of its own, without repeats, in a fixed order."""
    groups = [FUNCTION_WORDS, FIRST_NAMES, LAST_NAMES, TOWNS, JOBS, PETS, PETS_PLURAL, FOODS]
    groups += [forms for pairs in (TRANSITIVE, INTRANSITIVE, REFLEXIVE_VERBS, MEN, WOMEN) for forms in pairs]
    groups += [ADJECTIVES, PREPOSITIONS, *DETERMINERS, COLORS, THINGS, OBJECTS, PLACES, NUMBERS, RULES]
    return tuple(dict.fromkeys(word for group in groups for word in group))
