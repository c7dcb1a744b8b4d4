"""Words of the synthetic biographies: names, duties, and two registers of style.

The registers are made up: which of them goes with which gender is a coin's fall, skewed by the generator, and
says nothing about people. Every word of a register is rare, so that no single one decides.
"""

from __future__ import annotations

FIRST_NAMES = {
    "female": (
        "Maria", "Anna", "Helen", "Laura", "Sophie", "Claire", "Julia", "Emma", "Karen", "Susan", "Linda",
        "Nora", "Alice", "Diana", "Rachel", "Monica", "Teresa", "Paula", "Irene", "Martha", "Eva", "Ingrid",
        "Fatima", "Priya", "Mei", "Amina", "Lucia", "Elena", "Olga", "Bridget", "Hannah", "Ruth", "Naomi",
        "Judith", "Sarah", "Megan", "Carmen", "Rosa", "Gloria", "Wendy",
    ),
    "male": (
        "Peter", "Paul", "Henry", "Lars", "Simon", "Carl", "Julian", "Eric", "Kevin", "Steven", "Leo",
        "Noah", "Albert", "David", "Robert", "Marcus", "Thomas", "Philip", "Ivan", "Martin", "Evan",
        "Gustav", "Omar", "Raj", "Wei", "Ahmed", "Lucas", "Anton", "Oleg", "Brian", "Harold", "Roger",
        "Nathan", "Joseph", "Samuel", "Marco", "Carlos", "Ramon", "George", "Walter",
    ),
}  # fmt: skip

LAST_NAMES = (
    "Keller", "Novak", "Lind", "Okafor", "Haas", "Moreau", "Silva", "Brandt", "Costa", "Weber", "Novotny",
    "Lange", "Petrov", "Sato", "Berg", "Ferrari", "Walsh", "Duarte", "Nilsen", "Kaya", "Molnar", "Reyes",
    "Fischer", "Adeyemi", "Larsen", "Dubois", "Carter", "Hughes", "Mendez", "Rossi",
)  # fmt: skip

PRONOUNS = {"female": ("she", "her"), "male": ("he", "his")}
"""Subject, possessive."""

TITLES = {"female": ("Ms", "Mrs", "Miss"), "male": ("Mr", "Sir", "Mr")}

DUTIES = {
    "physician": (
        "decides which drug a patient starts on",
        "reads the scans and names the disease",
        "settles the diagnosis when others disagree",
        "plans each operation the evening before",
        "prescribes the dose and reviews it",
        "weighs one treatment against another",
        "interprets biopsies",
        "leads the morning round",
        "signs the discharge papers",
        "explains what the tests mean",
        "removes tumours",
        "sets broken bones under the lamp",
        "orders the blood tests",
        "is asked when a case stays unclear",
        "operates on failing hearts",
        "refers patients to other specialists",
        "judges whether surgery is worth the risk",
        "writes the prescriptions",
        "examines new arrivals and finds the cause",
        "opens the abdomen when nothing else helps",
    ),
    "nurse": (
        "changes the dressings",
        "checks the drips every hour",
        "takes temperatures through the night",
        "hands out the tablets",
        "washes and turns patients",
        "keeps the bedside charts up to date",
        "watches the monitors on the night shift",
        "settles newcomers into their beds",
        "gives the injections that were ordered",
        "counts the pulse and writes it down",
        "sits with the frightened before surgery",
        "answers the call bells",
        "helps patients eat and walk again",
        "prepares the trolley for the round",
        "fetches the medicines from the pharmacy",
        "cleans wounds",
        "draws blood in the morning",
        "hands over the ward at seven",
        "calms relatives in the corridor",
        "lifts patients with the hoist",
    ),
}
"""What someone does; neither the profession's word nor a gendered one occurs."""

OTHER_DUTIES = (
    "repairs lifts",
    "bakes rye bread before dawn",
    "teaches fractions",
    "drives the last tram",
    "translates contracts",
    "tunes pianos",
    "audits small firms",
    "keeps bees",
    "sells train tickets",
    "restores old maps",
    "argues cases before the court",
    "lays tiles",
    "flies cargo planes",
    "edits school books",
    "runs the town archive",
    "designs footbridges",
    "catches herring",
    "writes software for tills",
    "cooks for two hundred pupils",
    "surveys forests",
    "plays the viola in an orchestra",
    "sorts the post",
    "insures ships",
    "grows pears",
)
"""Work of people who are neither: what an attribute's examples are about."""

SETTINGS = (
    "on the third floor of the hospital",
    "at a small clinic by the station",
    "in the emergency department",
    "on a ward for children",
    "at the university hospital",
    "in a rural clinic",
    "on the cancer ward",
    "at a military hospital",
    "in the heart unit",
    "at the harbour clinic",
    "on a geriatric ward",
    "in intensive care",
)
OTHER_SETTINGS = (
    "in the old town",
    "for a family firm",
    "near the harbour",
    "at the edge of the city",
    "for the county",
    "in a shared workshop",
    "with two partners",
    "across the border",
    "in the valley",
    "for a cooperative",
    "by the canal",
    "on a short contract",
)

HOBBIES = {
    "soft": (
        "arranging dried flowers",
        "knitting striped scarves",
        "pressing ferns",
        "baking lemon tarts",
        "singing in a choir",
        "sewing quilts",
        "painting watercolours",
        "dancing ballet",
        "growing roses",
        "writing letters",
        "making candles",
        "reading love stories",
        "embroidering linen",
        "tending orchids",
        "practising yoga",
        "folding paper cranes",
        "cooking jam",
        "weaving baskets",
        "collecting ribbons",
        "brewing herbal tea",
        "glazing pottery",
        "feeding stray kittens",
        "keeping a diary",
        "stringing beads",
    ),
    "hard": (
        "rebuilding engines",
        "hunting boar",
        "lifting weights",
        "racing motorbikes",
        "watching boxing",
        "welding gates",
        "fishing for pike",
        "playing rugby",
        "splitting logs",
        "trading stocks",
        "wiring radios",
        "reading war histories",
        "restoring tractors",
        "coaching football",
        "shooting clay pigeons",
        "flying drones",
        "grilling steaks",
        "climbing cliffs",
        "collecting coins",
        "brewing stout",
        "fixing trucks",
        "training hounds",
        "playing poker",
        "forging knives",
    ),
}

QUALITIES = {
    "soft": (
        "warm", "gentle", "graceful", "tender", "lovely", "kind", "caring", "sweet", "patient", "soothing",
        "charming", "cheerful", "thoughtful", "delicate", "affectionate", "radiant", "attentive", "sunny",
        "sympathetic", "loving", "modest", "dreamy", "bubbly", "devoted",
    ),
    "hard": (
        "tough", "blunt", "solid", "rugged", "stern", "bold", "stubborn", "gruff", "decisive", "steely",
        "hardy", "forceful", "dry", "assertive", "fierce", "shrewd", "brisk", "ambitious", "stoic", "daring",
        "firm", "competitive", "rough", "commanding",
    ),
}  # fmt: skip

FEELINGS = {
    "soft": (
        "adores", "cherishes", "treasures", "delights in", "dotes on", "is moved by", "feels at home with",
        "smiles about", "dreams of", "is grateful for", "weeps over", "marvels at",
    ),
    "hard": (
        "respects", "demands", "insists on", "bets on", "fights for", "defends", "jokes about", "brags about",
        "argues over", "swears by", "competes for", "puts up with",
    ),
}  # fmt: skip

THINGS = (
    "the sea", "old songs", "long winters", "good company", "the home team", "village fairs",
    "family dinners", "cold mornings", "quiet streets", "big cities", "school reunions", "local politics",
)  # fmt: skip
