"""Short English sentences from a small grammar; the words are this project's own lists (well over 1,000 of them)."""

import random

NAMES = """adam alice amber anna arthur ben bella carl clara daisy daniel david diana edward ella emma eric eva felix
fiona frank george grace hannah harry helen henry hugo ida isaac jack jacob james jane john julia karen kevin laura leo
lily lisa louis lucas lucy maria mark martha martin mary max mia michael nancy nina noah nora oliver oscar paul peter
rachel robert rosa ruby ryan sally sam sara simon sofia stella susan thomas tina toby tom vera victor walter william
zoe""".split()

PEOPLE = """actor artist aunt baby baker boy brother butcher captain child clown cook cousin dancer daughter dentist
doctor driver farmer father fireman fisherman friend gardener girl grandfather grandmother guard guest hunter judge king
lady lawyer man mayor mother nephew neighbor niece nurse painter pilot pirate plumber poet policeman postman prince
princess pupil queen sailor singer sister soldier son stranger student tailor teacher thief uncle visitor waiter witch
wizard woman worker writer""".split()

ANIMALS = """ant bear bee beetle bird bull butterfly camel cat chicken cow crab crocodile crow deer dog dolphin donkey
dragon duck eagle elephant fish fly fox frog goat goose hamster hawk hen horse kangaroo kitten lamb lion lizard monkey
moth mouse otter owl panda parrot penguin pig pigeon pony puppy rabbit rat raven rooster seal shark sheep snail snake
spider squirrel swan tiger turkey turtle whale wolf worm zebra""".split()

THINGS = """apple arrow bag ball balloon banana basket bell belt bicycle blanket boat book boot bottle bowl box bread
brick broom brush bucket button cake camera candle candy cap carpet carrot chair cheese cherry clock cloud coat coin
comb cookie cup curtain desk diamond doll door drawer dress drum egg engine envelope feather fence flag flower fork
glass glove guitar hammer hat helmet jacket jar jewel juice kettle key kite knife ladder lamp leaf lemon letter lock
magnet map mask melon mirror muffin mug needle newspaper nut onion orange oven pan paper peach pear pebble pen pencil
penny photo piano picture pie pillow pin pizza plant plate potato present pumpkin purse puzzle radio ribbon ring robot
rocket rope rug sandwich scarf shell shirt shoe shovel skirt soap sock sofa soup spoon stamp stick stone stool stove
suitcase sweater sword table teapot telephone tent ticket toast tomato tool tooth towel toy train treasure trumpet
umbrella vase violin wagon wallet watch wheel whistle window wire""".split()

PLACES = """airport attic bakery bank barn basement bathroom beach bedroom bridge cabin castle cave cellar church circus
city classroom closet coast corner corridor desert dock factory farm field forest fountain garage garden gate hall
harbor highway hill hospital hotel house island jungle kitchen lake library market meadow mountain museum office orchard
palace park path playground pond pool port prison restaurant river road roof room school shop stable stadium station
street supermarket swamp temple theater tower town tunnel valley village wall waterfall yard zoo""".split()

ADJECTIVES = """angry awful beautiful big black blue bold brave bright broken brown busy calm careful cheap clean clever
cold colorful crazy cruel curious dark dirty dry dull dusty easy elegant empty expensive famous fancy fast fat fierce
fine foolish free fresh friendly funny gentle giant gold golden good gray great green happy hard heavy hidden high
hollow honest huge hungry icy jolly kind large lazy light little lonely long loud lovely lucky mad magic mean merry
modern muddy narrow nasty neat new nice noisy odd old orange perfect pink plain polite poor pretty proud purple quick
quiet rare red rich rough round rude sad scary sharp shiny short shy silent silly silver simple sleepy slim slow small
smart smooth soft sour special square steep sticky strange strong sweet tall tame thick thin tidy tiny tired ugly
unusual warm weak wet white wide wild wise wonderful wooden yellow young""".split()

# Base, third person, past.
TRANSITIVE = """bring brings brought|build builds built|buy buys bought|carry carries carried|catch catches caught|
chase chases chased|choose chooses chose|clean cleans cleaned|count counts counted|cover covers covered|
draw draws drew|drop drops dropped|fill fills filled|find finds found|fix fixes fixed|follow follows followed|
forget forgets forgot|hate hates hated|hear hears heard|help helps helped|hide hides hid|hold holds held|
keep keeps kept|kick kicks kicked|leave leaves left|like likes liked|lose loses lost|love loves loved|make makes made|
meet meets met|miss misses missed|move moves moved|need needs needed|open opens opened|paint paints painted|
pass passes passed|pick picks picked|pull pulls pulled|push pushes pushed|reach reaches reached|
remember remembers remembered|save saves saved|see sees saw|sell sells sold|send sends sent|share shares shared|
shake shakes shook|show shows showed|steal steals stole|take takes took|teach teaches taught|throw throws threw|
touch touches touched|trust trusts trusted|use uses used|visit visits visited|want wants wanted|wash washes washed|
watch watches watched|wear wears wore""".replace("\n", "").split("|")

INTRANSITIVE = """arrive arrives arrived|bark barks barked|climb climbs climbed|cough coughs coughed|cry cries cried|
dance dances danced|dig digs dug|dream dreams dreamed|eat eats ate|fall falls fell|fight fights fought|
float floats floated|grow grows grew|hurry hurries hurried|jump jumps jumped|kneel kneels knelt|laugh laughs laughed|
listen listens listened|march marches marched|nod nods nodded|play plays played|pray prays prayed|read reads read|
rest rests rested|ride rides rode|roll rolls rolled|run runs ran|sail sails sailed|scream screams screamed|
shout shouts shouted|sing sings sang|sit sits sat|skate skates skated|sleep sleeps slept|smile smiles smiled|
sneeze sneezes sneezed|speak speaks spoke|stand stands stood|stay stays stayed|stop stops stopped|
study studies studied|swim swims swam|talk talks talked|think thinks thought|travel travels traveled|
wait waits waited|wake wakes woke|walk walks walked|wander wanders wandered|whisper whispers whispered|
win wins won|work works worked|yawn yawns yawned""".replace("\n", "").split("|")

ADVERBS = """again alone always badly bravely calmly carefully closely daily early easily everywhere finally gently
gladly happily here hourly kindly late later loudly neatly never nicely now often once outside patiently politely
proudly quickly quietly rarely sadly safely silently slowly softly sometimes soon still suddenly sweetly there today
together tomorrow tonight twice upstairs usually weekly well yesterday""".split()

NUMBERS = """two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety""".split()

PREPOSITIONS = (
    "above across against around behind below beside beyond from inside into near over past through under".split()
)
TIMES = """monday tuesday wednesday thursday friday saturday sunday january february march april may june july august
september october november december""".split()
DETERMINERS = "a the my your his her our their this that every another".split()
PRONOUNS = "he she it".split()


IRREGULAR_PLURALS = """child children|deer deer|fireman firemen|fish fish|fisherman fishermen|goose geese|
kangaroo kangaroos|knife knives|leaf leaves|man men|mouse mice|photo photos|piano pianos|policeman policemen|
postman postmen|radio radios|sheep sheep|thief thieves|tooth teeth|wolf wolves|woman women|
zoo zoos""".replace("\n", "").split("|")


def _plural(noun: str) -> str:
    irregular = dict(pair.split() for pair in IRREGULAR_PLURALS)
    if noun in irregular:
        return irregular[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh", "o")) else "s")


def _noun_phrase(rng: random.Random, nouns: list[str], adjective_chance: float = 0.5) -> str:
    noun = rng.choice(nouns)
    adjective = [rng.choice(ADJECTIVES)] if rng.random() < adjective_chance else []
    if rng.random() < 0.15:
        return " ".join([rng.choice(NUMBERS), *adjective, _plural(noun)])
    determiner = rng.choice(DETERMINERS)
    following = (adjective or [noun])[0]
    if determiner == "a" and (following[0] in "aeiou" or following == "honest"):
        determiner = "an"
    return " ".join([determiner, *adjective, noun])


def sentence(rng: random.Random) -> str:
    """Return a random lower-case sentence of 3 to 9 words without punctuation."""
    beings = rng.choice([PEOPLE, ANIMALS])
    subject = rng.choice(NAMES) if rng.random() < 0.35 else rng.choice(PRONOUNS) if rng.random() < 0.15 else None
    subject = subject or "the " + rng.choice(beings)
    _, present, past = rng.choice(TRANSITIVE).split()
    acts, _, acted = rng.choice(INTRANSITIVE).split()
    verb = rng.choice([present, past])
    match rng.randrange(8):
        case 0:
            return f"{subject} {verb} {_noun_phrase(rng, THINGS)}"
        case 1:
            return f"{subject} {acted} {rng.choice(PREPOSITIONS)} the {rng.choice(PLACES)}"
        case 2:
            return f"{_noun_phrase(rng, beings, 0.7)} {acted} {rng.choice(ADVERBS)}"
        case 3:
            return f"{subject} {verb} the {rng.choice(THINGS)} {rng.choice(PREPOSITIONS)} the {rng.choice(PLACES)}"
        case 4:
            return f"can {rng.choice(NAMES)} {acts} in the {rng.choice(ADJECTIVES)} {rng.choice(PLACES)}"
        case 5:
            return f"{subject} {acted} on {rng.choice(TIMES)} with {rng.choice(NAMES)}"
        case 6:
            return f"there are {rng.choice(NUMBERS)} {_plural(rng.choice(THINGS))} in {_noun_phrase(rng, PLACES, 0.3)}"
        case _:
            return f"{rng.choice(NAMES)} and {rng.choice(NAMES)} {past} {_noun_phrase(rng, ANIMALS)}"


def vocabulary() -> set[str]:
    """Return every word that `sentence` can produce."""
    nouns = PEOPLE + ANIMALS + THINGS + PLACES
    verbs = [form for verb in TRANSITIVE + INTRANSITIVE for form in verb.split()]
    fixed = "an and are can in on the there with".split()
    words = [NAMES, nouns, [_plural(noun) for noun in nouns], ADJECTIVES, verbs, ADVERBS, NUMBERS, PREPOSITIONS]
    return {word for group in [*words, TIMES, DETERMINERS, PRONOUNS, fixed] for word in group}
