"""Word lists of the generated tasks."""

NAMES = """Anna Ben Clara David Emma Frank Grace Henry Ida Jack Kate Leo Mary Noah Olive Peter Rosa Sam
Tom Una Victor Will Alice Bella Charles Dora Edward Flora George Hannah Isaac Jane Karl Lucy Martin Nora
Oscar Paul Ruth Simon Thomas Vera Walter Agnes Albert Betty Daniel Ellen Fanny Gerda Harry Helen James
Julia Laura Louis Mabel Maria Max Nell Otto Pip Robert Sally Sara Stella Susan Toby Tilly Wendy""".split()

CITIES = """Paris London Rome Madrid Berlin Vienna Oslo Dublin Lisbon Athens Warsaw Prague Cairo Delhi
Tokyo Boston Chicago Denver Geneva Hamburg Helsinki Istanbul Jerusalem Kyoto Lima Lyon Milan Moscow Munich
Naples Nice Venice York Zurich Bergen Bristol Cambridge Oxford Quebec Sydney Toronto""".split()

COUNTRIES = """France Spain Italy Norway Sweden Greece Egypt India Japan China Brazil Peru Canada Mexico
Poland Turkey Ireland Scotland Wales Iceland Portugal Kenya Chile Cuba""".split()

LANGUAGES = """French Spanish Italian German Greek Latin Russian Danish Dutch Swedish Polish Arabic""".split()

COLOURS = """red blue green yellow white black brown grey purple pink orange golden silver""".split()

ANIMALS = """cat dog fox horse rabbit goat hen duck goose mouse parrot pony donkey hare frog owl sheep
pig crow turtle squirrel hedgehog""".split()

PET_NAMES = """Rusty Biscuit Shadow Pepper Snowball Ginger Patch Star Bramble Button Clover Dusty Ember
Fern Honey Jasper Misty Moss Nutmeg Poppy Smoky Sunny Tansy Willow""".split()

OBJECTS = """key lamp book ring map letter coin box mirror spoon cup hat coat basket rope candle knife
drum flute doll ball clock pen purse shawl lantern bottle bell brush shell feather stone""".split()

ADJECTIVES = """old new small big broken bright heavy light wooden brass silver golden glass paper red
blue green white black painted plain round""".split()

PLACES = """attic barn cellar kitchen garden stable church tower mill forest cave bridge well library
school bakery market harbour castle meadow orchard boathouse workshop hall nursery""".split()

CONTAINERS = """drawer chest basket cupboard trunk sack jar tin pocket barrel""".split()

FOODS = """apples pears plums eggs cakes loaves cherries nuts carrots onions potatoes berries lemons
oranges beans figs""".split()

JOBS = """baker miller tailor smith farmer sailor teacher doctor painter cook fisherman gardener weaver
shepherd hunter carpenter""".split()

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

ROOMS = """kitchen bedroom hall library bathroom attic cellar garage study nursery""".split()

TITLES = """The Silver Fox|The Lost Key|The Old Mill|A Winter Tale|The Blue Lamp|The Brave Tailor|The
Green Island|The Last Giant|The Golden Goose|The Night Garden|The Red Boat|The Quiet Sea|The Clever
Hare|The Stone Bridge|The Paper Crown|The Long Road""".replace("\n", " ").split("|")

AUTHORS = """Mary Wood|John Hill|Ellen Stone|Peter Marsh|Clara Reed|Thomas Lake|Rosa Field|Henry
Brook|Ida North|George Rivers""".replace("\n", " ").split("|")

ERRANDS = """buy milk|feed the cat|call the doctor|water the roses|bake a cake|post the letter|fetch the
wood|clean the boots|mend the gate|wash the cups|meet Anna at noon|bring the red umbrella|come home
early|the soup is ready|the boat leaves at nine|lock the door|bring two loaves of bread|the party is on
Sunday|sweep the stairs|light the lamp""".replace("\n", " ").split("|")

# What tales are about: asked for when a passage holds the word.
TALE_WORDS = frozenset("""king queen prince princess fox wolf bear lion cat dog mouse rabbit hare bird crow
eagle owl horse donkey goat sheep pig hen cock goose duck frog toad snake fish dragon giant dwarf witch
fairy wizard ogre sailor soldier tailor miller farmer shepherd hunter merchant thief robber beggar
castle palace forest garden cottage river sea island mountain tower well mill ship boat ring crown sword
treasure gold lamp mirror apple tree rose flower star moon sun storm snow winter summer mother father
brother sister son daughter boy girl child doll clock train school pirate tiger monkey elephant
crocodile squirrel beaver detective murder candle machine""".split())


def with_article(word: str) -> str:
    """`a` or `an` before the word."""
    return ("an " if word[0] in "aeiou" else "a ") + word
