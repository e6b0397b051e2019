"""Text that the embedded model ``tiny`` is pre-trained on, made from word lists and templates.

Everything is drawn from one ``random.Random(seed)``, so a seed names one exact text.  Two sorts of
documents come out: plain text (stories, facts, worked problems, notes) and chats (small tasks in
many phrasings).  No chat answers in JSON: that skill is left for the quickstart to teach.

Templates use two marks.  ``{word}`` is replaced from a dictionary, ``[one|two]`` by one of its
alternatives (they nest).  Templates always say "a"; `expand` turns it into "an" where needed.

Usage: ``python scripts/tiny_corpus.py --seed 1 --documents 20`` prints some documents.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

# --- words -------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """The words of a list; an underscore stands for a space inside one entry."""
    return [word.replace("_", " ") for word in text.split()]


def entries(text: str) -> list[str]:
    """The lines of a text; a line that starts with spaces continues the one before."""
    return re.sub(r"\n +", " ", text).strip().splitlines()


GIRLS = words("""Anna Maria Emma Lily Sara Nina Julia Clara Ella Mia Zoe Lucy Grace Alice Rosa
Eva Hannah Laura Sophie Kate Jane Mary Ruth Nora Ivy Amy Betty Carol Diana Elena Fiona Gina
Helen Irene Jenny Karen Linda Megan Nancy Olivia Paula Rachel Susan Tina Vera Wendy Yara Zara
Aisha Fatima Mei Priya Leila Ingrid Marta Chloe Daisy Ada Bella Cora Dora Edith Flora Greta
Hilda Ida Judy Kim Lena Molly Naomi Pam Rita Stella Tess Uma Violet Wilma Yuki Ana Carmen Lucia
Natalia Claire Janet Jill Marina Thea Kylie Tanya Mandy Brenda Cindy Jasmine Monica April June
Jessica Melissa Natasha""")
BOYS = words("""Ben Tom Max Leo Sam Paul Peter David Jack Noah Adam Alex Oscar Felix Hugo Ivan
Karl Luke Mark Nick Oliver Philip Robert Simon Theo Victor Walter Yusuf Zack Ali Omar Hassan
Chen Raj Marco Pablo Diego Carlos Luis Jorge Erik Lars Finn Henry George Frank Eric Daniel
Charlie Bill Andy Tim Steve Scott Ryan Roger Ray Pete Owen Neil Mike Matt Martin Kevin Ken Joe
John James Jim Jeff Jason Harry Greg Gary Fred Ed Doug Dan Chris Brian Bob Arthur Albert Aaron
Josh Billy Jerry Tony Randy Wim James Mario Johnny Bobby Sean Kyle Wade Ralph Todd Stan Travis
Jose Rick Patrick""")
NAMES = list(dict.fromkeys(GIRLS + BOYS))
TOWNS = words("""London Paris Rome Berlin Madrid Vienna Oslo Lima Cairo Delhi Tokyo Boston
Chicago Dublin Prague Lisbon Athens Warsaw Geneva Zurich Milan Sydney Toronto Nairobi Lagos
Seoul Havana Riverton Oakville Hilltown Greenfield Westport Lakeside Millbrook Ashford Kingston
Newtown""")
COLOURS = words("""red blue green yellow orange purple pink brown black white grey golden
silver turquoise violet beige""")
FRUITS = words("""apple pear banana orange lemon peach plum cherry grape melon mango kiwi berry
strawberry raspberry apricot fig coconut pineapple lime""")
VEGETABLES = words("""carrot potato tomato onion cabbage cucumber pumpkin bean pea pepper
radish turnip beet leek mushroom""")
FOODS = words("""cake cookie sandwich pizza pie muffin pancake egg sausage burger bagel pretzel
cupcake donut candy biscuit waffle taco roll brownie""")
DRINKS = words("""water milk tea coffee juice lemonade cocoa soup""")
TOYS = words("""ball doll kite puzzle balloon marble drum robot top yo-yo block puppet whistle
toy_car toy_train teddy_bear skateboard scooter card""")
CLOTHES = words("""shirt hat coat sock shoe dress skirt jacket scarf glove sweater boot belt
cap apron mitten sandal blouse vest tie""")
TOOLS = words("""hammer saw rope nail screw ladder shovel rake bucket brush broom axe wrench
drill needle hook""")
SCHOOL = words("""pencil pen book notebook ruler eraser crayon marker sticker stamp envelope
map picture letter magazine newspaper folder bag""")
HOUSE = words("""cup plate bowl spoon fork knife bottle glass basket box lamp candle chair
table pillow blanket towel mirror clock key pot pan jar vase carpet bed sofa shelf umbrella
coin button ribbon bell tin""")
NATURE = words("""flower rose tulip leaf stone shell feather stick branch seed pebble acorn
daisy nut rock""")
VEHICLES = words("""car bus train boat bicycle truck plane ship tram wagon taxi canoe""")
INSTRUMENTS = words("violin guitar piano flute trumpet harp banjo cello")
CATEGORIES = {
    "fruit": FRUITS,
    "vegetable": VEGETABLES,
    "toy": TOYS,
    "tool": TOOLS,
    "vehicle": VEHICLES,
    "musical instrument": INSTRUMENTS,
}
THINGS = (
    FRUITS + VEGETABLES + FOODS + TOYS + CLOTHES + TOOLS + SCHOOL + HOUSE + NATURE + VEHICLES
    + INSTRUMENTS
)  # fmt: skip

# animal: home, food, sound, young one, legs
ANIMALS = {
    name: tuple(words(rest))
    for name, rest in {
        "cat": "house fish meow kitten 4",
        "dog": "house bones woof puppy 4",
        "cow": "farm grass moo calf 4",
        "horse": "stable hay neigh foal 4",
        "pig": "farm corn oink piglet 4",
        "sheep": "field grass baa lamb 4",
        "goat": "hill leaves maa kid 4",
        "duck": "pond bread quack duckling 2",
        "hen": "barn seeds cluck chick 2",
        "frog": "pond flies croak tadpole 4",
        "bear": "forest honey growl cub 4",
        "lion": "grassland meat roar cub 4",
        "wolf": "forest meat howl pup 4",
        "fox": "wood berries bark cub 4",
        "mouse": "hole cheese squeak pup 4",
        "rabbit": "burrow carrots squeak bunny 4",
        "owl": "tree mice hoot owlet 2",
        "bee": "hive nectar buzz larva 6",
        "snake": "desert mice hiss snakelet 0",
        "monkey": "jungle bananas chatter infant 4",
        "elephant": "grassland leaves trumpet calf 4",
        "parrot": "jungle seeds squawk chick 2",
        "donkey": "farm hay bray foal 4",
        "goose": "lake grass honk gosling 2",
        "squirrel": "tree nuts chatter kit 4",
        "deer": "forest grass bleat fawn 4",
        "tiger": "jungle meat roar cub 4",
        "penguin": "coast fish squawk chick 2",
        "turtle": "sea plants hiss hatchling 4",
        "camel": "desert grass grunt calf 4",
        "swan": "lake plants hiss cygnet 2",
        "crow": "tree seeds caw chick 2",
        "hamster": "cage seeds squeak pup 4",
        "pony": "stable apples neigh foal 4",
        "ant": "nest crumbs click larva 6",
        "spider": "web flies hum spiderling 8",
    }.items()
}
CATEGORIES["animal"] = list(ANIMALS)
# job: what the person does, where
JOBS = {
    "baker": ("bakes bread and cakes", "bakery"),
    "teacher": ("teaches children to read and write", "school"),
    "doctor": ("helps sick people", "hospital"),
    "nurse": ("cares for patients", "hospital"),
    "farmer": ("grows wheat and keeps animals", "farm"),
    "driver": ("drives a bus through the town", "station"),
    "pilot": ("flies a plane", "airport"),
    "cook": ("cooks tasty meals", "restaurant"),
    "waiter": ("serves food and drinks", "restaurant"),
    "painter": ("paints walls and pictures", "studio"),
    "singer": ("sings songs on a stage", "theatre"),
    "writer": ("writes stories and poems", "library"),
    "builder": ("builds houses and bridges", "building site"),
    "carpenter": ("makes tables and chairs from wood", "workshop"),
    "gardener": ("plants flowers and cuts the hedge", "garden"),
    "fisherman": ("catches fish with a net", "harbour"),
    "sailor": ("sails across the sea", "harbour"),
    "tailor": ("sews coats and dresses", "shop"),
    "plumber": ("repairs pipes and taps", "workshop"),
    "librarian": ("lends books and keeps them in order", "library"),
    "dentist": ("looks after teeth", "clinic"),
    "vet": ("heals animals", "clinic"),
    "mechanic": ("fixes engines", "garage"),
    "firefighter": ("puts out fires", "fire station"),
    "scientist": ("does experiments and studies nature", "laboratory"),
    "clown": ("makes people laugh", "circus"),
    "judge": ("decides who is right", "court"),
    "soldier": ("guards the country", "camp"),
    "hairdresser": ("cuts and washes hair", "salon"),
    "butcher": ("sells meat", "shop"),
    "shopkeeper": ("sells goods and counts money", "shop"),
    "engineer": ("plans machines and roads", "office"),
    "musician": ("plays music for people", "concert hall"),
    "coach": ("trains the team", "stadium"),
    "guide": ("shows visitors the old town", "museum"),
    "cashier": ("takes the money and gives back the change", "supermarket"),
}
# place: the preposition that goes with it
PLACES = {
    place: preposition
    for preposition, text in {
        "at": """market park school station beach shop zoo farm library bakery museum harbour lake
            airport hospital theatre fair bus_stop hotel camp supermarket river office bank circus
            playground stadium restaurant church bridge castle mall post_office""",
        "in": """kitchen garden forest attic cellar garage barn village city classroom yard street
            field tent hall bedroom bathroom living_room basement tower cave valley desert cupboard
            workshop backyard stable hallway""",
        "on": "roof balcony hill island train ship bus stage porch terrace mountain",
    }.items()
    for place in words(text)
}
FEELINGS = words("""happy sad angry tired proud afraid nervous excited bored lonely hungry
thirsty surprised calm curious worried jealous thankful cheerful sleepy confused brave shy glad
upset""")
GOOD = words("happy proud glad thankful cheerful excited calm pleased delighted relieved")
BAD = words("sad angry worried upset afraid lonely nervous disappointed tired cross")
SIZES = words("big small tiny huge little large tall short long wide narrow thin thick")
QUALITIES = words("""old new clean dirty soft hard heavy light shiny broken wooden plastic
round square beautiful ugly cheap expensive strange simple strong warm cold wet dry smooth
rough sharp empty full fresh sweet favourite lovely pretty plain useful fancy""")
PEOPLE = words("""kind clever brave funny quiet friendly polite careful patient honest lazy
strong young old gentle shy busy cheerful smart helpful""")
ADVERBS = words("""slowly quickly quietly loudly carefully happily sadly gently suddenly
politely easily bravely calmly patiently nervously proudly softly eagerly""")
WEATHER = words("sunny rainy windy cloudy snowy foggy stormy warm cold hot icy cool mild")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("""January February March April May June July August September October November
December""")
SEASONS = words("spring summer autumn winter")
FAMILY_F = words("mother sister grandmother aunt daughter niece")
FAMILY_M = words("father brother grandfather uncle son nephew")
SUBJECTS = words("maths English history science music art geography sports reading writing")
HOBBIES = words("""reading swimming painting singing dancing cooking fishing running cycling
skating drawing gardening knitting sailing hiking camping skiing climbing chess football tennis""")
BODY = words("head hand arm leg foot knee nose ear eye mouth finger toe back shoulder neck")
ABSTRACT = words("""idea answer question problem plan secret dream story game song joke reason
chance mistake choice rule lesson price number word name surprise promise trick difference
example part group half third quarter total rest amount distance speed height weight length
size age""")
UNITS = words("""dollar cent pound ounce gram kilogram mile meter foot inch yard gallon liter
hour minute second day week month year dozen pair piece slice bag box page""")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
OPPOSITES = [
    tuple(pair.split(":"))
    for pair in words("""hot:cold big:small tall:short long:short fast:slow old:young happy:sad
    light:dark heavy:light full:empty open:closed hard:soft rich:poor early:late near:far
    high:low wet:dry clean:dirty good:bad strong:weak thick:thin wide:narrow loud:quiet
    sweet:sour up:down in:out left:right day:night first:last black:white true:false begin:end
    buy:sell give:take love:hate win:lose push:pull laugh:cry come:go start:stop above:below
    inside:outside before:after always:never many:few same:different easy:difficult
    cheap:expensive safe:dangerous deep:shallow sharp:blunt beautiful:ugly brave:afraid
    clever:stupid polite:rude smooth:rough alive:dead ask:answer top:bottom front:back
    north:south east:west summer:winter morning:evening add:subtract yes:no more:less
    everything:nothing friend:enemy question:answer lazy:busy remember:forget arrive:leave
    find:lose question:answer asleep:awake save:spend left:right""")
]
OPPOSITE: dict[str, str] = {}
for _first, _second in OPPOSITES:
    OPPOSITE.setdefault(_first, _second)
    OPPOSITE.setdefault(_second, _first)
# base form, past, past participle
VERBS = [
    tuple(entry.split(":"))
    for entry in words("""buy:bought:bought find:found:found see:saw:seen lose:lost:lost
    sell:sold:sold make:made:made paint:painted:painted carry:carried:carried
    count:counted:counted pick:picked:picked pack:packed:packed draw:drew:drawn
    bring:brought:brought take:took:taken order:ordered:ordered borrow:borrowed:borrowed
    drop:dropped:dropped hide:hid:hidden wash:washed:washed leave:left:left keep:kept:kept
    collect:collected:collected get:got:got want:wanted:wanted store:stored:stored
    clean:cleaned:cleaned""")
]
MORE_VERBS = [
    tuple(entry.split(":"))
    for entry in words("""go:went eat:ate drink:drank run:ran swim:swam sing:sang write:wrote
    read:read speak:spoke sleep:slept give:gave know:knew think:thought come:came become:became
    begin:began break:broke build:built catch:caught choose:chose cut:cut do:did drive:drove
    fall:fell feel:felt fight:fought fly:flew forget:forgot grow:grew hear:heard hit:hit
    hold:held hurt:hurt lead:led learn:learned lend:lent let:let lie:lay meet:met pay:paid
    put:put ride:rode ring:rang rise:rose say:said send:sent shine:shone shoot:shot shut:shut
    sit:sat spend:spent stand:stood steal:stole teach:taught tell:told throw:threw
    understand:understood wake:woke wear:wore win:won walk:walked talk:talked play:played
    jump:jumped laugh:laughed cry:cried cook:cooked help:helped listen:listened look:looked
    love:loved move:moved open:opened close:closed plan:planned plant:planted push:pushed
    pull:pulled rain:rained save:saved share:shared smile:smiled start:started stop:stopped
    study:studied travel:travelled try:tried visit:visited wait:waited work:worked
    answer:answered ask:asked bake:baked call:called climb:climbed dance:danced divide:divided
    earn:earned enjoy:enjoyed finish:finished fix:fixed follow:followed hope:hoped
    hurry:hurried kick:kicked knock:knocked like:liked live:lived need:needed notice:noticed
    repair:repaired use:used watch:watched whisper:whispered wish:wished""")
]
IRREGULAR = dict(
    pair.split(":")
    for pair in words("""mouse:mice goose:geese foot:feet tooth:teeth child:children man:men
    woman:women leaf:leaves knife:knives shelf:shelves wolf:wolves sheep:sheep deer:deer
    fish:fish half:halves person:people potato:potatoes tomato:tomatoes mango:mangoes
    calf:calves scarf:scarves loaf:loaves fisherman:fishermen""")
)
NUMBER_WORDS = words("""zero one two three four five six seven eight nine ten eleven twelve
thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty""")
TENS = words("zero ten twenty thirty forty fifty sixty seventy eighty ninety")
KNOWN = sorted(
    {
        word
        for word in THINGS + list(ANIMALS) + list(JOBS) + list(PLACES) + COLOURS + FEELINGS + SIZES
        + QUALITIES + PEOPLE + ADVERBS + WEATHER + HOBBIES + BODY + ABSTRACT + UNITS + SUBJECTS
        + FAMILY_F + FAMILY_M + SEASONS + list(OPPOSITE) + DRINKS
        + [verb[0] for verb in VERBS + MORE_VERBS] + [verb[1] for verb in VERBS + MORE_VERBS]
        if " " not in word
    }
)  # fmt: skip

VOWEL_SOUND = re.compile(r"\b([Aa]) (?=(?:[aeioAEIO]|u(?!s|ni)|hour|honest)(?!ne\b|uro))")
ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")


def plural(noun: str) -> str:
    """English plural of a noun (the last word of it)."""
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def number_word(value: int) -> str:
    """A number from 0 to 99 in words."""
    if value <= 20:
        return NUMBER_WORDS[value]
    ten, one = divmod(value, 10)
    return TENS[ten] + (f"-{NUMBER_WORDS[one]}" if one else "")


def some(count: int, noun: str) -> str:
    """``3 apples``, ``1 apple``."""
    return f"{count} {noun if count == 1 else plural(noun)}"


def capital(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def join(items: list[str], last: str = "and") -> str:
    """``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}"


def expand(rng: Random, template: str, facts: dict[str, str] | None = None) -> str:
    """Choose alternatives, fill in the facts and put "an" where it belongs."""
    while "[" in template:
        template = ALTERNATIVES.sub(lambda m: rng.choice(m[1].split("|")), template)
    if facts:
        template = template.format_map(facts)
    return VOWEL_SOUND.sub(r"\1n ", template)


def person(rng: Random, taken: tuple[str, ...] = ()) -> tuple[str, bool]:
    """A name not yet taken, and whether it is a girl's."""
    while True:
        girl = rng.random() < 0.5
        name = rng.choice(GIRLS if girl else BOYS)
        if name not in taken:
            return name, girl


def setting(rng: Random) -> dict[str, str]:
    """The facts of one story: people, pronouns, things, places and so on."""
    name, girl = person(rng)
    friend, friend_girl = person(rng, (name,))
    place, other_place = rng.sample(list(PLACES), 2)
    thing, second, third = rng.sample(THINGS, 3)
    animal = rng.choice(list(ANIMALS))
    home, fodder, sound, young, _ = ANIMALS[animal]
    job = rng.choice(list(JOBS))
    verb = rng.choice(VERBS)
    count = rng.randint(2, 12)
    pronouns = ("she", "her", "her") if girl else ("he", "him", "his")
    others = ("she", "her") if friend_girl else ("he", "his")
    return {
        "name": name, "he": pronouns[0], "him": pronouns[1], "his": pronouns[2],
        "He": capital(pronouns[0]), "His": capital(pronouns[2]),
        "friend": friend, "fhe": others[0], "fhis": others[1],
        "girl": "girl" if girl else "boy", "woman": "woman" if girl else "man",
        "place": f"{PLACES[place]} the {place}", "to_place": f"the {place}",
        "place2": f"{PLACES[other_place]} the {other_place}",
        "thing": thing, "things": plural(thing), "second": second, "seconds": plural(second),
        "third": third, "animal": animal, "animals": plural(animal),
        "home": home, "fodder": fodder, "sound": sound, "young": young, "job": job,
        "work": JOBS[job][0], "workplace": JOBS[job][1], "did": verb[1], "do": verb[0],
        "colour": rng.choice(COLOURS), "colour2": rng.choice(COLOURS),
        "food": rng.choice(FOODS), "fruit": rng.choice(FRUITS),
        "fruits": plural(rng.choice(FRUITS)),
        "vegetables": plural(rng.choice(VEGETABLES)), "drink": rng.choice(DRINKS[:-1]),
        "size": rng.choice(SIZES), "quality": rng.choice(QUALITIES), "kind": rng.choice(PEOPLE),
        "kind2": rng.choice(PEOPLE), "adverb": rng.choice(ADVERBS), "weather": rng.choice(WEATHER),
        "good": rng.choice(GOOD), "bad": rng.choice(BAD), "day": rng.choice(DAYS),
        "month": rng.choice(MONTHS), "season": rng.choice(SEASONS), "town": rng.choice(TOWNS),
        "family": rng.choice(FAMILY_F), "uncle": rng.choice(FAMILY_M), "toy": rng.choice(TOYS),
        "subject": rng.choice(SUBJECTS), "hobby": rng.choice(HOBBIES), "body": rng.choice(BODY),
        "clothes": rng.choice(CLOTHES), "tool": rng.choice(TOOLS), "n": number_word(count),
        "age": number_word(rng.randint(5, 15)), "price": str(rng.randint(2, 40)),
        "vehicle": rng.choice(VEHICLES), "instrument": rng.choice(INSTRUMENTS),
        "hour": number_word(rng.randint(1, 12)),
        # No template uses this one; without it all text after it would be drawn differently.
        "idea": rng.choice(ABSTRACT[:20]),
    }  # fmt: skip


# --- stories -----------------------------------------------------------------------------------

OPENINGS = entries("""
Once upon a time there was a {kind} {girl} named {name}.
[One|On a {weather}] [day|morning|afternoon] in {month}, {name} went to {to_place}.
{name} was a {kind} {girl} who lived in {town}.
It was a {weather} {day} in {season}, and {name} was {place}.
{name} and {friend} were [good|best|old] friends. They [lived|met|played] in {town}.
There was once a {job} called {name}, who {work} [every day|all year long].
{name} was {age} years old and [liked|loved|enjoyed] {hobby} [very much|more than anything else].
Last {season} {name} [visited|stayed with] {his} {family} in {town}.
In a [small|quiet|busy|little] village near {town} lived a {kind} {woman} named {name}.
Every {day}, {name} and {his} {uncle} walked to {to_place} together.
{name} woke up early because it was {day} and the weather was {weather}.
Long ago, a {kind} {animal} lived in a {home} near {town}. Its only friend was a {girl} named
    {name}.
Nobody in {town} knew where {name} came from, but everybody liked {him}.
After school, {name} [ran|hurried|walked] to {to_place} [with {friend}|alone|to meet {friend}].
""")

ARCS = entries("""
{He} had a {quality} {thing} and took it everywhere. One day the {thing} was gone! {name} looked
    {place}, but it was not there. Then {he} looked {place2}, and there it was. "[Here you are|I
    have found you|At last]!" said {name} and [smiled|laughed|jumped for joy].
{He} wanted to buy a {colour} {thing}, but it cost {price} dollars and {he} did not have enough
    money. So {he} helped {his} {family} [wash the dishes|clean the house|water the plants|carry the
    bags] for a week. {His} {family} paid {him}, and at the end of the week {he} bought the {thing}.
{friend} was {bad} because {fhis} {thing} was broken. "Do not [worry|cry|be {bad}]," said {name}. "I
    can [fix|repair|mend] it with my {tool}." {He} worked {adverb} for an hour. When the {thing} was
    as good as new, {friend} was very {good}.
{name} heard a strange sound. It came from a {size} {animal} that was [hiding|sitting|sleeping]
    {place}. The {animal} was hungry, so {name} gave it some {fodder}. After that, the {animal}
    followed {him} [home|everywhere|all the way back]. {name} called it {friend}.
{name} and {friend} played with a {colour} {toy}. Both of them wanted to have it first. "It is
    mine!" said {name}. "No, it is mine!" said {friend}. Then they decided to share it. First {name}
    played with it, then {friend}. In the end they were both {good}.
It began to [rain|snow], and {name} had no [coat|umbrella|hat]. {He} ran to {to_place} and waited
    there. {friend} came by with a {size} {colour} umbrella. "Come with me," said {friend}, "there
    is room for two." They walked home [together|side by side] and talked about {hobby}.
{name} planted a seed in the garden. {He} gave it water every [day|morning|evening]. After
    [two|three|four] weeks a {size} plant came out of the ground. In {month} it had {n} {colour}
    flowers. {name} picked one of them and gave it to {his} {family}.
{His} teacher asked a difficult question about {subject}. Nobody knew the answer. {name} thought
    about it {adverb} and raised {his} hand. "[I think I know|Maybe it is simple|Let me try]," {he}
    said. {His} answer was right, and the whole class was {good} for {him}.
The {weather} weather made everyone {bad}, but {name} had an idea. "Let us bake a {food}!" {he}
    said. {friend} brought flour, sugar and eggs, and {name} lit the oven. Soon the kitchen smelled
    wonderful. They ate the {food} and drank {drink}.
{name} had a dream. In the dream {he} could fly over {town} like a bird. {He} saw the roofs, the
    river and the people in the streets. They looked as small as {animals}. When {he} woke up, {he}
    was {good} and wanted to draw everything {he} had seen.
{name} [lost|could not find] {his} way {place}. {He} asked a {kind} {job} for help. "Go straight on,
    then turn [left|right] at the {colour} house," said the {job}. {name} thanked the {job} and soon
    {he} was back home, where {his} {family} was waiting.
{name} saw that {friend} carried {n} heavy [boxes|bags|baskets]. "May I help you?" asked {name}.
    "Yes, please," said {friend}. Together they carried everything to {to_place}. {friend} thanked
    {him} and gave {him} a {fruit}.
{name} took part in a [race|contest|game]. {He} was {bad} at first, because the others were
    [faster|bigger|older] than {he} was. But {he} tried {adverb} and did not give up. In the end
    {name} came [first|second|third] and won a {colour} {thing}.
{name} told a lie. {He} said that {friend} had broken the {thing}. {friend} was {bad} and did not
    speak to {him}. That night {name} could not sleep. The next day {he} told the truth and said, "I
    am sorry." {friend} forgave {him}, and they were friends again.
{name} wanted to learn to play the {instrument}. At first it sounded terrible, and even the {animal}
    ran away. But {he} practised every day after school. After a few months {he} played a song for
    {his} {family}, who clapped and said, "[Well done|Wonderful|That was beautiful]!"
One night there was a loud noise {place}. {name} was afraid, but {he} took a lamp and went to look.
    It was only a {animal} that had pushed over a {thing}. {name} laughed. "You gave me a fright,"
    {he} said and went back to bed.
{name} and {friend} went to {to_place} by {vehicle}. The trip took [one|two|three] hours. They ate
    {fruits} and looked out of the window. When they arrived, they saw a {size} {animal} and {n}
    {colour} {things}. "[What a day|How lovely|Look at that]!" said {friend}.
A {kind} {job} came to {town} and asked for a place to sleep. Nobody opened the door except {name}.
    {He} gave the {job} some {drink} and a warm blanket. In the morning the {job} was gone, but on
    the table lay {n} {things} and a letter that said thank you.
{name} found a {quality} {thing} {place}. "Whose {thing} is this?" {he} asked. It belonged to
    {friend}, who had been looking for it all day. {friend} was so {good} that {fhe} invited {name}
    to [lunch|dinner|a party].
{name} was ill and had to stay in bed. {His} {body} hurt and {he} felt {bad}. The doctor came and
    said, "Drink a lot of {drink} and rest." {friend} visited {him} and read a story about a {kind}
    {animal}. After [two|three|five] days {name} felt better.
It was {his} birthday. {name} became {age} years old. {His} {family} gave {him} a {thing}, {his}
    {uncle} gave {him} a {second}, and {friend} gave {him} a {third}. {name} liked the {second}
    best, because it was {colour}. Then they all ate cake.
{name} had to clean {his} room. There were {things} on the bed, {seconds} on the floor and a {third}
    under the table. {He} put the {things} into a box and the {seconds} on the shelf. When
    everything was clean, {he} was allowed to go out and play.
{name} and {his} {uncle} built a {size} house for the {animal}. They used wood, nails and a {tool}.
    It was hard work, and they were tired, but the {animal} liked its new home. It said "{sound}"
    and went inside.
{name} wrote a letter to {friend}, who had moved to {town}. "Dear {friend}," {he} wrote, "I miss
    you. Yesterday I {did} a {colour} {thing} {place}. When will you visit me? Your friend, {name}."
    A week later the answer came: "I will come on {day}."
The shop {name} worked in sold {things} and {seconds}. On {day} a {kind} woman came in and asked,
    "How much is the {colour} {thing}?" "It costs {price} dollars," said {name}. The woman paid, and
    {name} put the {thing} into a bag. "Goodbye and thank you," {he} said.
{name} did not like {vegetables}. "Try just one bite," said {his} {family}. {name} closed {his} eyes
    and ate a little bit. To {his} surprise it tasted good. "May I have more?" {he} asked, and
    everyone laughed.
If {name} could have one wish, {he} would wish for a {thing}. {friend} would rather have a {second}.
    They talked about it [for hours|until it was dark|all the way to {to_place}]. In the end they
    wished for the same thing: that they would always be friends.
The {animal} and the {job} did not like each other. The {animal} ate the {fodder} that the {job}
    wanted to keep. "Why do you not ask first?" said {name}. From then on the {animal} waited
    {adverb}, and the {job} gave it some {fodder} every evening.
At {hour} o'clock the {vehicle} was still not there. {name} looked at the clock again and again.
    "Maybe it is late because of the {weather} weather," said {friend}. At last it came. They got
    in, sat down near the window and fell asleep.
{name} had {n} {things}. {He} gave one to {friend}, one to {his} {family} and one to the {job}. "Why
    do you give them away?" asked {his} {uncle}. "Because it makes me {good} when others smile,"
    said {name}.
""")

INTERLUDES = entries("""
The sun was shining and the birds were singing.
It was a {weather} day.
{name} felt {bad}, but {he} did not say anything.
{He} wore a {colour} {clothes} and carried a {size} bag.
"[What shall we do now|Where are you going|What is that|Are you {bad}]?" asked {friend}.
There was a {quality} {thing} next to a {size} {second}.
{name} thought about it for a [moment|while|long time].
The {animal} [looked at|listened to|watched] {him} {adverb}.
{He} was [hungry|thirsty], so {he} [ate a {food}|ate a {fruit}|drank some {drink}].
In {season} it is often {weather} in {town}.
{name} [spoke|walked|waited|smiled|nodded] {adverb}.
{His} {family} was {kind2} and worked as a {job}.
The {thing} was {colour} and the {second} was {colour2}.
{friend} said that the {thing} was too {quality}.
They saw {n} {animals} on the way.
Then something unexpected happened.
It was getting [dark|late|cold], and the [moon|wind] [rose|was high above the trees].
""")

ENDINGS = entries("""
[That evening|In the evening|At night] {name} was tired but {good}.
{name} never forgot that day.
From that day on, {name} and {friend} were the best of friends.
And so {name} learned that [it is good to share|it helps to be patient|a friend is worth more than
    gold|you should tell the truth|everyone makes mistakes|hard work pays off|you can always ask for
    help].
[Then|After that|At last] they all went home.
"[Tomorrow|Next week|On {day}] we will do it again," said {name}.
{name} went to bed and slept well.
It was the best {day} of the year.
{name} told the story to {his} {family}, who [laughed|smiled|was proud of {him}].
Everyone was {good}.
The end.
""")


def story(rng: Random) -> str:
    """A short story: an opening, one or two plots, and an ending."""
    facts = setting(rng)
    parts = [rng.choice(OPENINGS)]
    for arc in rng.sample(ARCS, rng.choice((1, 1, 2))):
        if rng.random() < 0.5:
            parts.append(rng.choice(INTERLUDES))
        parts.append(arc)
    if rng.random() < 0.8:
        parts.append(rng.choice(ENDINGS))
    space = "\n" if rng.random() < 0.15 else " "
    return space.join(expand(rng, part, facts) for part in parts)


def description(rng: Random) -> str:
    """A few sentences that describe a person, a place or a scene."""
    facts = setting(rng)
    parts = rng.sample(DESCRIPTIONS, rng.randint(2, 5))
    return " ".join(expand(rng, part, facts) for part in parts)


DESCRIPTIONS = entries("""
{name} lives in {town} with {his} {family} and {his} {uncle}.
{name} works as a {job}. A {job} {work}, so {he} is often at the {workplace}.
{His} favourite colour is {colour} and {his} favourite food is {food}.
{name} has a {animal}. It is {colour}, it eats {fodder} and its name is {friend}.
When it is {weather}, {name} likes to stay {place}.
On {day}s {he} has {subject}, which {he} finds [easy|difficult|boring|interesting|hard].
{name} is {size}, {kind} and {kind2}.
If it [rains|snows], the streets get wet and {name} wears a {clothes}.
{name} can {do} a {thing}, but {he} cannot play the {instrument}.
{friend} is older than {name}, and {name} is taller than {friend}.
There are {n} {things} {place}, and one of them is {colour}.
{His} {uncle} drives a {colour} {vehicle} that makes a lot of noise.
Yesterday {name} was {bad} because {he} had lost {his} {thing}.
Tomorrow {name} will go to {to_place} and look for a {quality} {thing}.
{name} usually gets up at {hour} o'clock and eats a {food} for breakfast.
In {month} the days are [long|short|warm|cold], and people {place} wear {colour} hats.
{name} would like to travel from {town} to the sea by {vehicle}.
Although {name} was {bad}, {he} [helped|thanked|greeted] {friend}.
{name} has been {hobby} since {he} was {age} years old.
{friend} asked whether the {thing} was {quality}, and {name} said that it was not.
Some people like {hobby}, while others prefer to stay at home.
The {thing} is [under|behind|next to|in front of|between|near|on] the {second}.
{name} is the {girl} with the {colour} {clothes}.
Neither {name} nor {friend} wanted to eat the {food}.
""")

FACTS = entries("""
The opposite of hot is cold, and the opposite of big is small.
A week has seven days, a year has twelve months, and a day has 24 hours.
There are 60 minutes in an hour and 60 seconds in a minute.
A dozen means twelve. Half a dozen is six.
One dollar is 100 cents. A quarter is 25 cents and a dime is 10 cents.
A triangle has three sides, a square has four sides and a circle has none.
Water turns into ice when it gets very cold and into steam when it boils.
The sun rises in the east and sets in the west.
Plants need light, water and air to grow.
We see with our eyes, hear with our ears and smell with our nose.
If you mix blue and yellow, you get green. If you mix red and yellow, you get orange.
Twice a number means the number times two; half of it means the number divided by two.
To find the total, add the numbers. To find the difference, subtract the smaller number.
To find the average, add all the numbers and divide by how many there are.
A percent is one part of one hundred, so 50 percent is one half and 25 percent is a quarter.
The price is what you pay, and the change is what you get back.
A meter has 100 centimeters, and a kilometer has 1000 meters.
There are 12 inches in a foot and 3 feet in a yard.
People put the signs ( and ), [ and ], or { and } around words, and "quotes" around speech.
An e-mail address has the sign @ in it, like the one on the card: friend@post.example.
Symbols such as + - * / = < > % $ # & are used in sums and in computers.
The set {2, 4, 6} holds three even numbers; the list [1, 3, 5] holds odd ones.
In the café they said "voilà", in Zürich "grüezi", and in Malmö "hej då".
Spring comes after winter, and autumn comes after summer.
Leaves fall from the trees in autumn because the days get shorter and colder.
A map shows where streets, rivers and towns are.
You should wash your hands before you eat.
If a car goes 60 miles in one hour, its speed is 60 miles per hour.
When the price goes up by 10 percent, a thing that cost 100 dollars costs 110 dollars.
The profit is the money you earn minus the money you spent.
""")


def exposition(rng: Random) -> str:
    """True sentences about animals, jobs, words, days and other things."""
    parts: list[str] = []
    facts: list[str] = []  # these hold brackets and braces, so they are not templates
    for _ in range(rng.randint(1, 6)):
        draw = rng.randrange(11)
        animal = rng.choice(list(ANIMALS))
        home, fodder, sound, young, legs = ANIMALS[animal]
        job = rng.choice(list(JOBS))
        if draw == 0:
            parts.append(
                f"A {animal} is an animal. It [lives in|is often found in|sleeps in] a {home}, eats"
                f" {fodder} and says {sound}. A young {animal} is called a {young}."
            )
        elif draw == 1:
            legs_text = f"{number_word(int(legs))} legs" if legs != "0" else "no legs"
            parts.append(f"{capital(plural(animal))} have {legs_text}. They [eat|like] {fodder}.")
        elif draw == 2:
            parts.append(f"A {job} {JOBS[job][0]}. You can meet one at the {JOBS[job][1]}.")
        elif draw == 3:
            group = rng.choice(list(CATEGORIES))
            first, second, third = rng.sample(CATEGORIES[group], 3)
            parts.append(f"A {first} is a {group}, and so are a {second} and a {third}.")
        elif draw == 4:
            word = rng.choice(list(OPPOSITE))
            parts.append(f"The opposite of {word} is {OPPOSITE[word]}.")
        elif draw == 5:
            index = rng.randrange(7)
            parts.append(
                f"{DAYS[(index + 1) % 7]} comes after {DAYS[index]} and before"
                f" {DAYS[(index + 2) % 7]}."
            )
        elif draw == 6:
            index = rng.randrange(12)
            parts.append(
                f"{MONTHS[index]} is month number {index + 1}. The next one is"
                f" {MONTHS[(index + 1) % 12]}."
            )
        elif draw == 7:
            verb = rng.choice(VERBS + MORE_VERBS)
            parts.append(f"Today I {verb[0]}, yesterday I {verb[1]}.")
        elif draw == 8:
            noun = rng.choice(THINGS + list(ANIMALS))
            parts.append(f"One {noun}, [two|three|many] {plural(noun)}.")
        elif draw == 9:
            low = rng.randint(0, 98)
            parts.append(
                f"{capital(number_word(low))} is written {low}. After {low} comes {low + 1}."
            )
        else:
            facts.append(rng.choice(FACTS))
    return " ".join([expand(rng, part) for part in parts] + facts)


# --- sums and problems -------------------------------------------------------------------------


def sums(rng: Random) -> str:
    """Some lines of arithmetic."""
    lines = []
    for _ in range(rng.randint(4, 14)):
        sign = rng.choice("++++----*/")
        if sign == "+":
            left, right = two_numbers(rng)
            lines.append(f"{left} + {right} = {left + right}")
        elif sign == "-":
            left, right = two_numbers(rng)
            lines.append(f"{left + right} - {right} = {left}")
        elif sign == "*":
            left, right = rng.randint(0, 12), rng.randint(0, 12)
            lines.append(f"{left} * {right} = {left * right}")
        else:
            left, right = rng.randint(1, 12), rng.randint(1, 12)
            lines.append(f"{left * right} / {right} = {left}")
    return rng.choice(("\n", ", ", "; ")).join(lines)


def two_numbers(rng: Random) -> tuple[int, int]:
    """Two numbers to add: one digit, two digits, or one of each."""
    size = rng.random()
    if size < 0.35:
        return rng.randint(0, 9), rng.randint(0, 9)
    if size < 0.6:
        pair = rng.randint(10, 99), rng.randint(0, 9)
        return pair if rng.random() < 0.7 else pair[::-1]
    return rng.randint(10, 99), rng.randint(10, 99)


def problem(rng: Random) -> tuple[str, str]:
    """A word problem and its worked solution."""
    facts = setting(rng)
    a, b, c = rng.randint(3, 30), rng.randint(2, 12), rng.randint(2, 9)
    name, he, things, friend = facts["name"], facts["he"], facts["things"], facts["friend"]
    He, thing = capital(he), facts["thing"]
    draw = rng.randrange(16)
    if draw == 0:
        total = a + b
        text = (
            f"{name} has {a} {things}. {friend} gives {facts['him']} {b} more. How many {things}"
            f" does {name} have [now|in total|altogether]?"
        )
        work = f"{name} has {a} + {b} = {total} {things}."
    elif draw == 1:
        total = a
        text = (
            f"{name} had {a + b} {things}. {He} [gave {b} of them to {friend}|lost {b} of them|sold"
            f" {b} of them]. How many {things} are left?"
        )
        work = f"{name} has {a + b} - {b} = {total} {things} left."
    elif draw == 2:
        total = b * c
        text = (
            f"One {thing} costs ${b}. {name} buys {c} {things}. How much does {he} [pay|spend|have"
            f" to pay]?"
        )
        work = f"{c} {things} cost {c} * {b} = ${total}."
    elif draw == 3:
        total = c
        text = (
            f"{name} shares {b * c} {things} equally among {b} [friends|children|students]. How"
            f" many {things} does each of them get?"
        )
        work = f"Each one gets {b * c} / {b} = {total} {things}."
    elif draw == 4:
        total = b * c + a
        text = (
            f"There are {b} [boxes|bags|baskets] with {c} {things} in each, and {a} {things} on the"
            f" [table|floor]. How many {things} are there in all?"
        )
        work = (
            f"In the containers there are {b} * {c} = {b * c} {things}. Together with the others"
            f" there are {b * c} + {a} = {total} {things}."
        )
    elif draw == 5:
        total = a * 2 + a
        text = (
            f"{name} {facts['did']} {a} {things} on Monday and twice as many on Tuesday. How many"
            f" {things} was that in the two days?"
        )
        work = f"On Tuesday it was {a} * 2 = {a * 2} {things}. In total: {a} + {a * 2} = {total}."
    elif draw == 6:
        total = a
        text = (
            f"{name} is {a + c} years old. {friend} is {c} years younger than {name}. How old is"
            f" {friend}?"
        )
        work = f"{friend} is {a + c} - {c} = {total} years old."
    elif draw == 7:
        total = b * c
        text = (
            f"{name} earns ${b} per hour and works {c} hours a day. How much money does {he} earn"
            f" each day?"
        )
        work = f"{name} earns {b} * {c} = ${total} a day."
    elif draw == 8:
        paid = (b * c // 10 + 1) * 10
        total = paid - b * c
        text = (
            f"A {thing} costs ${b}. {name} buys {c} of them and pays with ${paid}. How much change"
            f" does {he} get?"
        )
        work = f"The {things} cost {b} * {c} = ${b * c}. The change is {paid} - {b * c} = ${total}."
    elif draw == 9:
        total = a
        text = (
            f"Half of the {a * 2} {things} [in the shop|on the shelf|in the garden] are"
            f" {facts['colour']}. How many {things} are {facts['colour']}?"
        )
        work = f"Half of {a * 2} is {a * 2} / 2 = {total}."
    elif draw == 10:
        b = min(a, b)
        total = a + c - b
        text = (
            f"There were {a} people on the bus. At the next stop {c} people got on and {b} got off."
            f" How many people are on the bus now?"
        )
        work = (
            f"First there were {a} + {c} = {a + c} people. Then {a + c} - {b} = {total} are left."
        )
    elif draw == 11:
        total = b * 7
        text = f"{name} reads {b} pages every day. How many pages does {he} read in a week?"
        work = f"A week has 7 days, so {name} reads {b} * 7 = {total} pages."
    elif draw == 12:
        total = a * c
        text = (
            f"A {facts['vehicle']} travels at {a} miles per hour for {c} hours. How many miles does"
            f" it go?"
        )
        work = f"It goes {a} * {c} = {total} miles."
    elif draw == 13:
        total = a + a + b
        text = (
            f"{name} has {a} {things}, and {friend} has {b} more than {name}. How many {things} do"
            f" they have together?"
        )
        work = (
            f"{friend} has {a} + {b} = {a + b} {things}. Together they have {a} + {a + b} ="
            f" {total}."
        )
    elif draw == 14:
        total = a * 5
        text = (
            f"{a * 10} students are in the school. 50 percent of them like {facts['subject']}. How"
            f" many students like {facts['subject']}?"
        )
        work = f"50 percent is one half, so {a * 10} / 2 = {total} students like it."
    else:
        total = (a * 2 + b * 2) // 2
        text = (
            f"{name} walked {a * 2} minutes on {facts['day']} and {b * 2} minutes the day after."
            f" What is the average time per day?"
        )
        work = (
            f"The total is {a * 2} + {b * 2} = {a * 2 + b * 2}. The average is {a * 2 + b * 2} / 2"
            f" = {total} minutes."
        )
    return expand(rng, text), expand(rng, f"{work} [The answer is|So the answer is] {total}.")


def problem_text(rng: Random) -> str:
    """A worked problem as plain text."""
    text, work = problem(rng)
    return rng.choice(("{}\n{}", "{} {}", "Question: {}\nAnswer: {}", "Problem: {}\nSolution: {}")
                      ).format(text, work)  # fmt: skip


# --- passages with known facts -----------------------------------------------------------------


@dataclass
class Event:
    """Who did what with how many of which things, where and when."""

    who: str
    verb: tuple[str, ...]
    count: int
    colour: str
    thing: str
    place: str
    day: str

    @property
    def things(self) -> str:
        return plural(self.thing)

    @property
    def where(self) -> str:
        return f"{PLACES[self.place]} the {self.place}"


def events(rng: Random, count: int) -> list[Event]:
    """Events that share no person, thing, place or colour: every question has one answer."""
    rows = zip(
        rng.sample(NAMES, count),
        rng.sample(VERBS, count),
        rng.sample(COLOURS, count),
        rng.sample(THINGS, count),
        rng.sample(list(PLACES), count),
        rng.sample(DAYS, count),
        strict=True,
    )
    # Three quarters of the counts are small; the others teach copying longer numbers.
    return [
        Event(
            who,
            verb,
            rng.choice(
                (rng.randint(2, 20), rng.randint(2, 20), rng.randint(2, 99), rng.randint(2, 999))
            ),
            colour,
            thing,
            place,
            day,
        )
        for who, verb, colour, thing, place, day in rows
    ]


EVENT_SENTENCES = entries("""
{who} {past} {n} {colour} {things} {where}.
{Where}, {who} {past} {n} {colour} {things}.
On {day} {who} {past} {n} {colour} {things} {where}.
{who} {past} {n} {colour} {things} {where} on {day}.
{N} {colour} {things} were {done} by {who} {where}.
It was {who} who {past} {n} {colour} {things} {where}.
{who} was {where} and {past} {n} {colour} {things} there.
{who} went to the {place}. There {who} {past} {n} {things}. They were all {colour}.
The {things} that {who} {past} {where} were {colour}. There were {n} of them.
{who} says: "I {past} {n} {colour} {things} {where}."
""")


def event_sentence(rng: Random, event: Event) -> str:
    """One of many ways to tell the event; the day is told only by some of them."""
    number = str(event.count)
    if event.count < 13 and rng.random() < 0.25:
        number = number_word(event.count)
    return rng.choice(EVENT_SENTENCES).format(
        who=event.who,
        past=event.verb[1],
        done=event.verb[2],
        n=number,
        N=capital(number),
        colour=event.colour,
        things=event.things,
        where=event.where,
        Where=capital(event.where),
        place=event.place,
        day=event.day,
    )


def event_question(rng: Random, event: Event) -> tuple[str, str, str]:
    """A question about the event, its short answer and its answer as a sentence."""
    who, base, past, things = event.who, event.verb[0], event.verb[1], event.things
    draw = rng.randrange(6)
    if draw == 0:
        question = (
            f"[Who {past} the {things}?|Who {past} {things}?|Name the person who {past} {things}.]"
        )
        return question, who, f"{who} {past} the {things}."
    if draw == 1:
        question = f"[What did {who} {base}?|What kind of things did {who} {base}?]"
        return question, things, f"{who} {past} {things}."
    if draw == 2:
        question = (
            f"[Where did {who} {base} the {things}?|Where was {who}?|Where were the {things}?]"
        )
        return question, event.where, f"{who} was {event.where}."
    if draw == 3:
        question = (
            f"[How many {things} did {who} {base}?|How many {things} were there?|Tell me how many"
            f" {things} {who} {past}.]"
        )
        return question, str(event.count), f"{who} {past} {event.count} {things}."
    if draw == 4:
        question = f"[What colour were the {things}?|Which colour did the {things} have?]"
        return question, event.colour, f"The {things} were {event.colour}."
    question = f"[Who was {event.where}?|Which person was {event.where}?]"
    return question, who, f"{who} was {event.where}."


def passage_questions(rng: Random) -> list[tuple[str, str]]:
    """A passage, then one to four questions whose answers stand in it."""
    rows = events(rng, rng.choice((1, 1, 2, 2, 3, 4, 5)))
    told = [event_sentence(rng, row) for row in rows]
    facts = setting(rng)
    for _ in range(rng.choice((0, 0, 1, 2))):
        told.insert(rng.randint(0, len(told)), expand(rng, rng.choice(INTERLUDES[:2]), facts))
    passage = " ".join(told)
    full = rng.random() < 0.2
    turns = []
    for turn in range(rng.choice((1, 2, 3, 4))):
        question, short, sentence = event_question(rng, rng.choice(rows))
        question = expand(rng, question)
        # Written-out numbers are answered in digits, as the word and the digits mean the same.
        if turn == 0:
            note = (
                rng.choice((" Answer in a full sentence.", " Use a full sentence.")) if full else ""
            )
            question = rng.choice(
                (
                    f"{passage} {question}{note}",
                    f"{passage}\n{question}{note}",
                    f"Read the text: {passage}\nQuestion: {question}{note}",
                    f"{question}{note}\n{passage}",
                    f"Text: {passage}\n\n{question}{note}",
                )
            )
        turns.append((question, sentence if full else short))
    return turns


def key_values(rng: Random) -> list[tuple[str, str]]:
    """List chosen facts of a sentence as ``who: Anna, where: market``."""
    event = events(rng, 1)[0]
    values = {
        "who": event.who,
        "what": event.things,
        "count": str(event.count),
        "colour": event.colour,
        "place": event.place,
        "where": event.where,
    }
    keys = rng.sample(list(values), rng.randint(1, 4))
    line = event_sentence(rng, event)
    ask = rng.choice(
        (
            "Give the {} of this sentence: {}",
            "Write down the {}: {}",
            "List the {}. {}",
            "Find the {} in the text.\n{}",
        )
    )
    pairs = [f"{key}: {values[key]}" for key in keys]
    style = rng.random()
    answer = "\n".join(pairs) if style < 0.5 else ", ".join(pairs)
    ask += " Use one line for each." if style < 0.5 else ""
    return [(ask.format(join(keys), line), answer)]


# --- random things to copy ---------------------------------------------------------------------


def rare_word(rng: Random) -> str:
    """Something nobody can guess: a made-up word, a code, a number."""
    draw = rng.random()
    if draw < 0.4:
        return "".join(
            rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(2, 4))
        )
    if draw < 0.55:
        return "".join(rng.choice(LETTERS) for _ in range(rng.randint(2, 7)))
    if draw < 0.75:
        return str(rng.randrange(10 ** rng.randint(1, 6)))
    if draw < 0.85:
        return f"{rng.choice(LETTERS).upper()}{rng.randint(0, 99)}-{rng.randint(100, 999)}"
    if draw < 0.95:
        return capital("".join(rng.choice(LETTERS) for _ in range(rng.randint(3, 6))))
    if draw < 0.98:
        return "".join(chr(rng.randint(33, 126)) for _ in range(rng.randint(1, 6)))
    # Latin with accents, Greek, Cyrillic, Japanese and emoji: so that their bytes are not unseen.
    start, end = rng.choice(
        (
            (0xC0, 0x17F),
            (0x391, 0x3C9),
            (0x410, 0x44F),
            (0x3042, 0x30F3),
            (0x4E00, 0x4FFF),
            (0x1F600, 0x1F640),
        )
    )
    return "".join(chr(rng.randint(start, end)) for _ in range(rng.randint(1, 3)))


def items(rng: Random, low: int, high: int, rare: float = 0.3) -> list[str]:
    """Different words: of the language, or (with probability ``rare`` each) made up."""
    count = rng.randint(low, high)
    chosen: dict[str, None] = {}
    while len(chosen) < count:
        word = rare_word(rng) if rng.random() < rare else rng.choice(rng.choice((KNOWN, NAMES)))
        chosen[word] = None
    return list(chosen)


def notes(rng: Random) -> str:
    """Plain text with facts that come back word by word."""
    count = rng.randint(2, 7)
    names = rng.sample(NAMES, count)
    values = [rare_word(rng) for _ in names]
    what = rng.choice(("number", "code", "word", "password", "room", "score", "ticket"))
    lines = [f"The {what} of {name} is {value}." for name, value in zip(names, values, strict=True)]
    pairs = list(zip(names, values, strict=True))
    rng.shuffle(pairs)
    again = [f"{name} has the {what} {value}." for name, value in pairs]
    return " ".join([*lines, "Once more:", *again])


# --- chat tasks --------------------------------------------------------------------------------

Turns = list[tuple[str, str]]


def ask(rng: Random, instructions: str, given: str) -> str:
    """An instruction (one of several, split at ``|``) with the text it is about."""
    instruction = rng.choice(instructions.split("|"))
    return rng.choice(("{0}: {1}", "{0}: {1}", "{0}:\n{1}", "{0}. {1}", "Please {2}: {1}")).format(
        instruction, given, instruction[0].lower() + instruction[1:]
    )


def copy(rng: Random) -> Turns:
    draw = rng.random()
    if draw < 0.4:
        text = rng.choice((" ", ", ")).join(items(rng, 1, 8, 0.6))
    elif draw < 0.8:
        text = event_sentence(rng, events(rng, 1)[0])
    else:
        text = expand(rng, rng.choice(DESCRIPTIONS + INTERLUDES), setting(rng))
    question = ask(
        rng, "Repeat|Copy|Say this again|Write the same|Repeat after me|Copy this text", text
    )
    return [(question, text)]


def reverse(rng: Random) -> Turns:
    given = items(rng, 2, 6, 0.2)
    sep = rng.choice((" ", ", "))
    question = ask(
        rng,
        "Reverse the list|Reverse the order of the words|"
        "Write these words backwards|Turn the order around",
        sep.join(given),
    )
    return [(question, sep.join(given[::-1]))]


def position(rng: Random) -> Turns:
    given = items(rng, 2, 7)
    names = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh"]
    which = rng.choice(["first", "last", rng.choice(names[: len(given)])])
    answer = given[-1] if which == "last" else given[names.index(which)]
    text = rng.choice((" ", ", ")).join(given)
    question = rng.choice(
        (
            f"What is the {which} word? {text}",
            f"Which word comes {which}: {text}?",
            f"Give me the {which} word of this list: {text}",
            f"{text}\nWhat is the {which} word?",
        )
    )
    return [(question, answer)]


def after(rng: Random) -> Turns:
    given = items(rng, 3, 8)
    index = rng.randrange(len(given) - 1)
    text = rng.choice((" ", ", ")).join(given)
    if rng.random() < 0.6:
        return [(f"{text}\nWhich word comes after {given[index]}?", given[index + 1])]
    return [(f"{text}\nWhich word comes before {given[index + 1]}?", given[index])]


def sort_numbers(rng: Random) -> Turns:
    high = rng.choice((9, 20, 99, 99))
    given = rng.sample(range(high + 1), rng.randint(2, 6))
    down = rng.random() < 0.3
    text = ", ".join(map(str, given))
    question = ask(
        rng,
        "Sort from large to small|Put the largest number first"
        if down
        else "Sort the numbers|Sort from small to large|Put these numbers in order",
        text,
    )
    return [(question, ", ".join(map(str, sorted(given, reverse=down))))]


def sort_words(rng: Random) -> Turns:
    given = rng.sample(KNOWN, rng.randint(2, 5))
    question = ask(
        rng,
        "Sort the words|Sort by the alphabet|Put these words in order of the alphabet",
        ", ".join(given),
    )
    return [(question, ", ".join(sorted(given)))]


def count_items(rng: Random) -> Turns:
    given = items(rng, 1, 9, 0.1)
    text = ", ".join(given)
    question = rng.choice(
        (
            f"How many words are in this list: {text}?",
            f"Count the words: {text}",
            f"How many things are named here? {text}",
            f"Count: {text}",
        )
    )
    return [(question, str(len(given)))]


def opposite(rng: Random) -> Turns:
    word = rng.choice(list(OPPOSITE))
    question = rng.choice(
        (
            f"What is the opposite of {word}?",
            f"Give the opposite of {word}.",
            f"Opposite: {word}",
            f"Which word means the opposite of {word}?",
            f"Tell me the opposite of the word {word}.",
        )
    )
    return [(question, OPPOSITE[word])]


def plurals(rng: Random) -> Turns:
    noun = rng.choice([*THINGS, *ANIMALS, *JOBS, "child", "man", "woman", "tooth", "person"])
    question = rng.choice(
        (
            f"What is the plural of {noun}?",
            f"Plural: {noun}",
            f"One {noun}, two ...?",
            f"Write the plural of the word {noun}.",
        )
    )
    return [(question, plural(noun))]


def past_tense(rng: Random) -> Turns:
    verb = rng.choice(VERBS + MORE_VERBS)
    question = rng.choice(
        (
            f"What is the past tense of {verb[0]}?",
            f"Past tense: {verb[0]}",
            f"Put the verb {verb[0]} into the past.",
            f"Today I {verb[0]}. Yesterday I ...?",
        )
    )
    return [(question, verb[1])]


def category(rng: Random) -> Turns:
    group = rng.choice(list(CATEGORIES))
    word = rng.choice(CATEGORIES[group])
    if rng.random() < 0.35:
        return [
            (
                expand(rng, f"[What is a {word}?|What kind of thing is a {word}?]"),
                expand(rng, f"a {group}"),
            )
        ]
    other = rng.choice(list(CATEGORIES))
    text = expand(rng, f"[Is a {word} a {other}?|Yes or no: is a {word} a {other}?]")
    return [(text, "Yes" if group == other else "No")]


def odd_one_out(rng: Random) -> Turns:
    group, other = rng.sample(list(CATEGORIES), 2)
    given = rng.sample(CATEGORIES[group], 3)
    odd = rng.choice(CATEGORIES[other])
    given.insert(rng.randint(0, 3), odd)
    text = ", ".join(given)
    question = rng.choice(
        (
            f"Which word does not belong: {text}?",
            f"Find the odd one out: {text}",
            f"Odd one out? {text}",
        )
    )
    return [(question, odd)]


def calendar(rng: Random) -> Turns:
    if rng.random() < 0.1:
        series, unit = SEASONS, "season"
    else:
        series, unit = rng.choice(((DAYS, "day"), (MONTHS, "month")))
    index = rng.randrange(len(series))
    step, word = rng.choice(((1, "after"), (-1, "before")))
    question = rng.choice(
        (
            f"Which {unit} comes {word} {series[index]}?",
            f"What {unit} is {word} {series[index]}?",
            f"Name the {unit} {word} {series[index]}.",
        )
    )
    return [(question, series[(index + step) % len(series)])]


def add(rng: Random) -> Turns:
    left, right = two_numbers(rng)
    question = rng.choice(
        (
            f"What is {left} + {right}?",
            f"{left} + {right} = ?",
            f"Add {left} and {right}.",
            f"{left} plus {right}",
            f"How much is {left} plus {right}?",
            f"Calculate {left} + {right}.",
        )
    )
    return [(question, str(left + right))]


def subtract(rng: Random) -> Turns:
    left, right = two_numbers(rng)
    left += right
    question = rng.choice(
        (
            f"What is {left} - {right}?",
            f"{left} - {right} = ?",
            f"Subtract {right} from {left}.",
            f"{left} minus {right}",
            f"How much is {left} minus {right}?",
            f"Calculate {left} - {right}.",
        )
    )
    return [(question, str(left - right))]


def multiply(rng: Random) -> Turns:
    left, right = rng.randint(0, 12), rng.randint(0, 12)
    question = rng.choice(
        (f"What is {left} * {right}?", f"{left} times {right}", f"Multiply {left} by {right}.")
    )
    return [(question, str(left * right))]


def compare(rng: Random) -> Turns:
    left, right = rng.sample(range(100 if rng.random() < 0.7 else 1000), 2)
    more = rng.random() < 0.5
    word = rng.choice(("larger", "bigger", "greater") if more else ("smaller", "less"))
    if rng.random() < 0.4:
        question = f"Is {left} {word} than {right}?"
        return [(question, "Yes" if (left > right) == more else "No")]
    question = rng.choice(
        (f"Which number is {word}: {left} or {right}?", f"Which is {word}, {left} or {right}?")
    )
    return [(question, str(max(left, right) if more else min(left, right)))]


def upper(rng: Random) -> Turns:
    text = " ".join(rng.choice(KNOWN) for _ in range(rng.randint(1, 4)))
    if rng.random() < 0.3:
        return [(ask(rng, "Write in small letters|Lower case", text.upper()), text)]
    return [(ask(rng, "Write in capital letters|Upper case|Write in capitals", text), text.upper())]


def spell(rng: Random) -> Turns:
    word = rng.choice(KNOWN)
    dashed = "-".join(word)
    if rng.random() < 0.25:
        return [(f"Which word is this: {dashed}?", word)]
    question = rng.choice(
        (
            f"Spell the word {word}.",
            f"Spell {word} with dashes.",
            f"Spell: {word}",
            f"How do you spell {word}?",
        )
    )
    return [(question, dashed)]


def sequence(rng: Random) -> Turns:
    draw = rng.random()
    if draw < 0.6:
        step = rng.choice((1, 1, 2, 3, 5, 10, -1, -2))
        start = rng.randint(1, 20) if step > 0 else rng.randint(12, 40)
        given = [start + step * index for index in range(5)]
        text, answer = ", ".join(map(str, given[:4])), str(given[4])
    elif draw < 0.8:
        start = rng.randrange(20)
        text, answer = ", ".join(LETTERS[start : start + 4]), LETTERS[start + 4]
    else:
        first, second = rng.sample(KNOWN, 2)
        text, answer = ", ".join((first, second, first, second)), first
    question = rng.choice(
        (
            f"Continue: {text}",
            f"What comes next? {text}",
            f"{text}, ...?",
            f"What comes next: {text}?",
        )
    )
    return [(question, answer)]


def write_sentence(rng: Random) -> Turns:
    facts = setting(rng)
    draw = rng.randrange(4)
    if draw == 0:
        word = facts["thing"]
        answer = "{name} {did} a {colour} {thing} {place}."
    elif draw == 1:
        word = facts["animal"]
        answer = "The {animal} eats {fodder} and says {sound}."
    elif draw == 2:
        word = facts["job"]
        answer = "The {job} {work}."
    else:
        word = facts["good"]
        answer = "{name} was {good} because it was {weather}."
    question = rng.choice(
        (
            f"Write a sentence with the word {word}.",
            f"Use the word {word} in a sentence.",
            f"Make a sentence with {word}.",
            f"Write one sentence about the word {word}.",
        )
    )
    return [(question, expand(rng, answer, facts))]


def tell_story(rng: Random) -> Turns:
    facts = setting(rng)
    question = rng.choice(
        (
            "Tell me a short story about {name}.",
            "Write a story with {name} and {friend}.",
            "Can you tell a story about a {girl} named {name}?",
            "Write a short story about {name}.",
        )
    )
    arc = expand(rng, rng.choice(ARCS), facts)
    first = expand(rng, rng.choice((OPENINGS[0], OPENINGS[2])), facts)
    return [(question.format_map(facts), f"{first} {arc}")]


def yes_no(rng: Random) -> Turns:
    given = items(rng, 2, 6)
    text = ", ".join(given)
    inside = rng.random() < 0.5
    word = rng.choice(given) if inside else rng.choice([w for w in KNOWN if w not in given])
    question = rng.choice(
        (
            f"Is the word {word} in this list? {text}",
            f"Does the list contain {word}? {text}",
            f"List: {text}\nIs {word} in the list?",
        )
    )
    return [(question, "Yes" if inside else "No")]


def lookup(rng: Random) -> Turns:
    keys = items(rng, 2, 6, 0.2)
    values = [rare_word(rng) if rng.random() < 0.6 else rng.choice(KNOWN) for _ in keys]
    link, sep = rng.choice(((" = ", ", "), (": ", ", "), (" -> ", "\n"), (" is ", ". ")))
    text = sep.join(f"{key}{link}{value}" for key, value in zip(keys, values, strict=True))
    turns: Turns = []
    for _ in range(rng.choice((1, 2, 3))):
        index = rng.randrange(len(keys))
        question = rng.choice(
            (
                f"What is {keys[index]}?",
                f"What is the value of {keys[index]}?",
                f"Look up {keys[index]}.",
            )
        )
        turns.append((question if turns else f"{text}\n{question}", values[index]))
    return turns


def replace(rng: Random) -> Turns:
    given = items(rng, 3, 7, 0.1)
    old, new = rng.choice(given), rng.choice(KNOWN)
    text = " ".join(given)
    question = rng.choice((f"Replace {old} with {new}: {text}", f"Change {old} to {new}: {text}"))
    return [(question, " ".join(new if word == old else word for word in given))]


def animal_facts(rng: Random) -> Turns:
    animal = rng.choice(list(ANIMALS))
    home, fodder, sound, young, legs = ANIMALS[animal]
    question, answer = rng.choice(
        (
            (f"What does a {animal} eat?", fodder),
            (f"Where does a {animal} live?", f"in a {home}"),
            (f"What sound does a {animal} make?", sound),
            (f"How many legs does a {animal} have?", legs),
            (f"What is a young {animal} called?", f"a {young}"),
        )
    )
    return [(expand(rng, question), expand(rng, answer))]


def job_facts(rng: Random) -> Turns:
    job = rng.choice(list(JOBS))
    if rng.random() < 0.5:
        return [(expand(rng, f"What does a {job} do?"), expand(rng, f"A {job} {JOBS[job][0]}."))]
    return [(f"Who {JOBS[job][0]}?", expand(rng, f"a {job}"))]


def make_list(rng: Random) -> Turns:
    group = rng.choice([*CATEGORIES, "colour", "name", "food"])
    pool = {**CATEGORIES, "colour": COLOURS, "name": NAMES, "food": FOODS}[group]
    count = rng.randint(2, 6)
    chosen = rng.sample(pool, count)
    number = rng.choice((str(count), number_word(count)))
    question = rng.choice(
        (
            f"Name {number} {plural(group)}.",
            f"List {number} {plural(group)}.",
            f"Give me {number} {plural(group)}.",
        )
    )
    if rng.random() < 0.3:
        lines = "\n".join(f"{index}. {word}" for index, word in enumerate(chosen, 1))
        return [(f"{question} Number them.", lines)]
    return [(question, ", ".join(chosen))]


def word_problem(rng: Random) -> Turns:
    return [problem(rng)]


TALK = entries("""
Hello!|[Hello|Hi]! How can I help you?
Hi|[Hello|Hi]! How can I help you?
Good morning.|Good morning! What can I do for you?
Good evening!|Good evening! What can I do for you?
How are you?|I am fine, thank you. How are you?
How are you today?|I am well, thank you. What can I do for you?
I am {bad} today.|I am sorry to hear that. What happened?
I am {good} today.|I am glad to hear that!
I lost my {thing}.|I am sorry. Where did you see your {thing} last?
I bought a {thing} today.|How nice! What colour is your {thing}?
My name is {name}.|Nice to meet you, {name}!
I am {name} and I live in {town}.|Nice to meet you, {name}! How is the weather in {town}?
I like {hobby}.|{hobby_capital} is fun. How often do you do it?
It is {weather} today.|Then I hope you have the right clothes on.
Thank you!|You are welcome!
Thanks for your help.|You are welcome! Have a nice day.
Goodbye!|Goodbye! See you soon.
Bye|Goodbye! See you soon.
Good night.|Good night! Sleep well.
Who are you?|I am a small language model. I can do simple tasks with words and numbers.
What can you do?|I can answer simple questions, copy and sort words, and do small sums.
Are you a human?|No, I am a small language model.
Can you help me?|Yes, of course. What do you need?
I have a question.|Please ask me.
What is your favourite colour?|I have no eyes, but I like the word {colour}.
I am hungry.|Then you should eat something, for example a {food}.
I am thirsty.|Then you should drink some {drink}.
I am tired.|Then you should rest a little.
""")


def small_talk(rng: Random) -> Turns:
    facts = setting(rng)
    facts["hobby_capital"] = capital(facts["hobby"])
    turns = []
    for line in rng.sample(TALK, rng.choice((1, 1, 2, 3))):
        question, answer = line.split("|", 1)
        turns.append((question.format_map(facts), expand(rng, answer, facts)))
    if rng.random() < 0.25:
        # What was said before: the name is to be found again.
        turns = [
            (f"Hello, I am {facts['name']}.", f"Nice to meet you, {facts['name']}!"),
            *turns,
            ("What is my name?", f"Your name is {facts['name']}."),
        ]
    return turns


# name: (function, share of the tasks, whether the answer is the only right one)
TASKS: dict[str, tuple[Callable[[Random], Turns], float, bool]] = {
    "extract": (passage_questions, 24, True),
    "key_values": (key_values, 6, True),
    "lookup": (lookup, 6, True),
    "copy": (copy, 9, True),
    "reverse": (reverse, 4, True),
    "position": (position, 4, True),
    "after": (after, 4, True),
    "replace": (replace, 3, True),
    "sort_numbers": (sort_numbers, 2.5, True),
    "sort_words": (sort_words, 2, True),
    "count": (count_items, 2, True),
    "contains": (yes_no, 2, True),
    "opposite": (opposite, 1.5, True),
    "plural": (plurals, 1.5, True),
    "past": (past_tense, 1.5, True),
    "category": (category, 2, True),
    "odd_one_out": (odd_one_out, 2, True),
    "calendar": (calendar, 1.5, True),
    "add": (add, 6, True),
    "subtract": (subtract, 5, True),
    "multiply": (multiply, 2, True),
    "compare": (compare, 2.5, True),
    "upper": (upper, 2, True),
    "spell": (spell, 2, True),
    "sequence": (sequence, 2, True),
    "animal": (animal_facts, 1.5, True),
    "job": (job_facts, 1, True),
    "word_problem": (word_problem, 4, True),
    "sentence": (write_sentence, 2, False),
    "list": (make_list, 1.5, False),
    "story": (tell_story, 2.5, False),
    "talk": (small_talk, 3, False),
}
TASK_NAMES = list(TASKS)
TASK_SHARES = [share for _, share, _ in TASKS.values()]
Messages = tuple[tuple[str, str], ...]  # (role, content) in order


def with_system(rng: Random, turns: Turns) -> Messages:
    """The turns under a system prompt that changes the answers, or says who answers."""
    draw = rng.randrange(6)
    if draw == 0:
        system = rng.choice(("Answer in capital letters.", "Write everything in capital letters."))
        turns = [(question, answer.upper()) for question, answer in turns]
    elif draw == 1:
        word = rng.choice(("Sure", "Well", "Of course", "Yes, sir", rng.choice(KNOWN)))
        system = rng.choice(
            (f'Begin every answer with "{word}:".', f'Start each answer with "{word}:".')
        )
        turns = [(question, f"{word}: {answer}") for question, answer in turns]
    elif draw == 2:
        word = rng.choice(("Thank you", "Goodbye", "Bye", "That is all", rng.choice(KNOWN)))
        system = f'End every answer with "({word})".'
        turns = [(question, f"{answer} ({word})") for question, answer in turns]
    elif draw == 3:
        job = rng.choice(list(JOBS))
        name = rng.choice(NAMES)
        system = expand(rng, f"You are a {job}. Your name is {name}.")
        who = [
            ("Who are you?", f"I am {name}, a {job}."),
            ("What is your name?", f"My name is {name}."),
            ("What is your job?", f"I am a {job}."),
            ("Where do you work?", f"I work at the {JOBS[job][1]}."),
        ]
        turns = [(q, expand(rng, a)) for q, a in rng.sample(who, rng.randint(1, 3))]
    elif draw == 4:
        system = rng.choice(("Answer in one word.", "Answer with one word only.", "Be brief."))
        question, answer = rng.choice((opposite, plurals, past_tense, calendar, add))(rng)[0]
        turns = [(question, answer)]
    else:
        system = rng.choice(
            (
                "You are a helpful assistant.",
                "Answer the question.",
                "Be helpful.",
                "You are tiny, a small language model.",
            )
        )
    messages = [("system", system)]
    for question, answer in turns:
        messages += [("user", question), ("assistant", answer)]
    return tuple(messages)


def chat(rng: Random) -> tuple[str, Messages]:
    """The name of the (first) task and a conversation of one or more tasks."""
    task = rng.choices(TASK_NAMES, TASK_SHARES)[0]
    turns = TASKS[task][0](rng)
    while rng.random() < 0.25 and len(turns) < 5:
        turns = turns + TASKS[rng.choices(TASK_NAMES, TASK_SHARES)[0]][0](rng)
    if rng.random() < 0.12:
        return task, with_system(rng, turns)
    return task, tuple(
        message
        for question, answer in turns
        for message in (("user", question), ("assistant", answer))
    )


# --- documents ---------------------------------------------------------------------------------


@dataclass
class Document:
    """One document: plain text, or a conversation (then ``messages`` is not empty)."""

    kind: str
    text: str
    messages: Messages = ()


# kind: (function, share of the documents); a story has about 95 tokens, a chat about 60
PLAIN: dict[str, tuple[Callable[[Random], str], float]] = {
    "story": (story, 10),
    "description": (description, 4),
    "exposition": (exposition, 5),
    "sums": (sums, 6),
    "problem": (problem_text, 8),
    "notes": (notes, 3),
}
CHAT_SHARE = 64.0
KINDS = [*PLAIN, "chat"]
SHARES = [*(share for _, share in PLAIN.values()), CHAT_SHARE]


def render(messages: Messages) -> str:
    """A conversation as the chat template writes it."""
    return "".join(f"<|{role}|>\n{content}<|end|>\n" for role, content in messages)


def document(rng: Random, kind: str) -> Document:
    """One document of a kind."""
    if kind == "chat":
        _, messages = chat(rng)
        return Document(kind, render(messages), messages)
    return Document(kind, PLAIN[kind][0](rng) + "<|end|>")


def documents(seed: int, count: int) -> Iterator[Document]:
    """``count`` documents, of all kinds by their shares."""
    rng = Random(seed)
    for _ in range(count):
        yield document(rng, rng.choices(KINDS, SHARES)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--documents", type=int, default=20)
    args = parser.parse_args()
    for row in documents(args.seed, args.documents):
        print(f"--- {row.kind}\n{row.text}")


if __name__ == "__main__":
    main()
