//! The words that synthetic titles are made of.

/// A shelf of the invented shop: its name and the nouns its titles use.
pub(super) struct Shelf {
    pub(super) genre: &'static str,
    pub(super) nouns: [&'static str; 8],
}

const fn shelf(genre: &'static str, nouns: [&'static str; 8]) -> Shelf {
    Shelf { genre, nouns }
}

/// Country of a user, the most frequent first.
pub(super) const COUNTRIES: [&str; 8] = ["US", "DE", "GB", "FR", "JP", "SE", "BR", "KE"];

/// No noun is on two shelves: with the genre left off, a title still tells where it belongs.
#[rustfmt::skip]
pub(super) const SHELVES: [Shelf; 16] = [
    shelf("mystery", ["Alibi", "Lighthouse", "Ledger", "Cellar", "Witness", "Keyhole", "Inspector", "Footprint"]),
    shelf("romance", ["Letter", "Promise", "Wedding", "Bouquet", "Serenade", "Rendezvous", "Valentine", "Dance"]),
    shelf("science fiction", ["Orbit", "Android", "Colony", "Satellite", "Nebula", "Airlock", "Signal", "Starship"]),
    shelf("fantasy", ["Dragon", "Sorcerer", "Throne", "Amulet", "Griffin", "Prophecy", "Wand", "Kingdom"]),
    shelf("history", ["Empire", "Treaty", "Parliament", "Dynasty", "Armada", "Chronicle", "Fortress", "Republic"]),
    shelf("travel", ["Harbor", "Railway", "Passport", "Caravan", "Island", "Compass", "Ferry", "Mountain Pass"]),
    shelf("cooking", ["Kitchen", "Bakery", "Spice Rack", "Orchard Pie", "Skillet", "Noodle Bar", "Teapot", "Picnic"]),
    shelf("gardening", ["Greenhouse", "Rosebush", "Hedge", "Vegetable Patch", "Beehive", "Trellis", "Seedling", "Pond"]),
    shelf("poetry", ["Sonnet", "Elegy", "Verse", "Ode", "Haiku", "Ballad", "Stanza", "Rhyme"]),
    shelf("horror", ["Crypt", "Phantom", "Scarecrow", "Asylum", "Curse", "Vampire", "Séance", "Graveyard"]),
    shelf("western", ["Saloon", "Sheriff", "Mustang", "Canyon", "Outlaw", "Stagecoach", "Ranch", "Tumbleweed"]),
    shelf("comedy", ["Butler", "Landlady", "Pancake", "Goose", "Mix-Up", "Understudy", "Umbrella", "Uncle"]),
    shelf("jazz", ["Saxophone", "Swing", "Blue Note", "Quartet", "Trumpet", "Night Club", "Syncopation", "Encore"]),
    shelf("folk", ["Fiddle", "Shanty", "Banjo", "Hearth Song", "Reel", "Wanderer", "Millstream", "Harvest"]),
    shelf("opera", ["Aria", "Overture", "Soprano", "Libretto", "Masquerade", "Duet", "Chorus", "Finale"]),
    shelf("nature", ["Otter", "Glacier", "Heron", "Meadow", "Tide Pool", "Forest", "Hummingbird", "Wolf"]),
];

/// Their number and that of a shelf's nouns are powers of two, which the title numbering relies on.
#[rustfmt::skip]
pub(super) const ADJECTIVES: [&str; 64] = [
    "Copper", "Silent", "Crooked", "Velvet", "Hidden", "Amber", "Restless", "Paper",
    "Midnight", "Golden", "Borrowed", "Winter", "Crimson", "Patient", "Hollow", "Silver",
    "Wandering", "Emerald", "Forgotten", "Gentle", "Iron", "Lonely", "Painted", "Scarlet",
    "Distant", "Glass", "Humble", "Ivory", "Lucky", "Misty", "Northern", "Quiet",
    "Reluctant", "Secret", "Tangled", "Unlikely", "Violet", "Wooden", "Ancient", "Broken",
    "Clever", "Dusty", "Endless", "Faithful", "Green", "Honest", "Indigo", "Jolly",
    "Kindly", "Last", "Marble", "Nimble", "Old", "Perfect", "Rusty", "Seventh",
    "Third", "Upside-Down", "Vanishing", "Whispering", "Young", "Brave", "Curious", "Daring",
];
