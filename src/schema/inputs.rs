//! The tables that a run reads. Their columns are mapped in the spec, so a column is known here by
//! its role, not by its name.

/// A table that a run reads.
#[derive(Debug)]
pub struct Input {
    /// Its name, also of its page in `schemas/`.
    pub name: &'static str,
    /// The section of the spec that names its files and columns.
    pub section: &'static str,
    /// What it is for, in a sentence or three.
    pub doc: &'static str,
    /// The columns that can be mapped. All others are ignored and not read.
    pub columns: &'static [InputColumn],
    /// How a spec maps it.
    pub example: &'static str,
}

/// A column that can be mapped.
#[derive(Debug)]
pub struct InputColumn {
    /// Its key in the spec: under `columns`, or `column` of a list of ids.
    pub role: &'static str,
    /// The Arrow types it may have.
    pub accepts: &'static str,
    /// Whether it must be mapped.
    pub required: bool,
    /// What a null means.
    pub null: &'static str,
    /// The unit of its values; empty where there is none.
    pub unit: &'static str,
    /// What a value means.
    pub meaning: &'static str,
}

/// Every input table, in the order in which they are documented.
pub static ALL: [&Input; 5] = [&EVENTS, &ITEMS_INPUT, &USERS_INPUT, &DENY_INPUT, &DELETE_INPUT];

const ID: &str = "Int8 to Int64, UInt8 to UInt32, Utf8, LargeUtf8, Utf8View, Binary, LargeBinary, \
    BinaryView, FixedSizeBinary, or a Dictionary of one of them";
const TEXT: &str = "Utf8, LargeUtf8, Utf8View, or a Dictionary of one of them";
const EVENT: &str = "Utf8, LargeUtf8, Utf8View, any integer type, or a Dictionary of one of them";
const NUMBER: &str = "any integer, float or decimal type, or Boolean";

/// The interaction log.
pub static EVENTS: Input = Input {
    name: "events",
    section: "[[events]]",
    doc: "The interaction log: one row per event, in any order, in any number of files. Several \
          logs may be given; their ids must be of one kind (integers, strings or bytes).",
    columns: &[
        InputColumn {
            role: "user",
            accepts: ID,
            required: true,
            null: "filtered: anonymous traffic",
            unit: "",
            meaning: "Who acted. Published in the same type.",
        },
        InputColumn {
            role: "item",
            accepts: ID,
            required: true,
            null: "rejected",
            unit: "",
            meaning: "What they acted on. Published in the same type.",
        },
        InputColumn {
            role: "time",
            accepts: "Timestamp of any unit with or without a zone, Date32, Date64, or an integer \
                      together with `time_unit`",
            required: false,
            null: "rejected",
            unit: "instant",
            meaning: "When. Without a zone: in the spec's `time_zone`. Not mapped: windows, decay \
                      and undoing cannot be used.",
        },
        InputColumn {
            role: "event",
            accepts: EVENT,
            required: false,
            null: "filtered: an event type without weight",
            unit: "",
            meaning: "The type of the event, a key of `weights`. Not mapped: every row weighs 1, \
                      or its value.",
        },
        InputColumn {
            role: "value",
            accepts: NUMBER,
            required: false,
            null: "rejected",
            unit: "as given",
            meaning: "A quantity, amount or rating that scales the weight. Zero is filtered; NaN \
                      and infinity are rejected, and so are negative values unless the event type \
                      says `negative = \"undo\"`.",
        },
        InputColumn {
            role: "basket",
            accepts: ID,
            required: false,
            null: "no basket",
            unit: "",
            meaning: "The basket, order or session that the event belongs to.",
        },
        InputColumn {
            role: "id",
            accepts: ID,
            required: false,
            null: "never a duplicate",
            unit: "",
            meaning: "Identifies the event: of rows with one id, one counts. Not mapped: every \
                      row is an event.",
        },
    ],
    example: "[[events]]\n\
              url = \"s3://shop/events/dt=*/\"\n\
              columns = { user = \"user_id\", item = \"item_id\", time = \"ts\", event = \"event\" }",
};

/// The items side table.
pub static ITEMS_INPUT: Input = Input {
    name: "items_input",
    section: "[items]",
    doc: "Optional: what is known of items. Titles for people, and columns of any name that \
          `recommend_where` filters by. Items that are not in the log are ignored; items of the log \
          that are not here have no title and pass no filter.",
    columns: &[
        InputColumn {
            role: "item",
            accepts: ID,
            required: true,
            null: "the row is ignored",
            unit: "",
            meaning: "The item, of the same kind of id as in the log.",
        },
        InputColumn {
            role: "title",
            accepts: TEXT,
            required: false,
            null: "no title",
            unit: "",
            meaning: "A name that people read: for `items.title`, summaries and `show`.",
        },
    ],
    example: "[items]\n\
              url = \"s3://shop/items/\"\n\
              columns = { item = \"sku\", title = \"name\" }\n\
              recommend_where = { in_stock = true }",
};

/// The users side table.
pub static USERS_INPUT: Input = Input {
    name: "users_input",
    section: "[users]",
    doc: "Optional: the segment of each user, for popularity and default lists by segment. Users \
          who are not in the log are ignored.",
    columns: &[
        InputColumn {
            role: "user",
            accepts: ID,
            required: true,
            null: "the row is ignored",
            unit: "",
            meaning: "The user, of the same kind of id as in the log.",
        },
        InputColumn {
            role: "segment",
            accepts: TEXT,
            required: true,
            null: "no segment",
            unit: "",
            meaning: "A country, a store, a plan: a few hundred different values at most. `*` is \
                      taken, it stands for every visitor.",
        },
    ],
    example: "[users]\n\
              url = \"s3://shop/users/\"\n\
              columns = { user = \"user_id\", segment = \"country\" }",
};

/// Deny lists.
pub static DENY_INPUT: Input = Input {
    name: "deny_input",
    section: "[deny]",
    doc: "Optional: a list of items that are never recommended, and a list of users whose events \
          are not used and who get no list. Each is one column of ids.",
    columns: &[InputColumn {
        role: "column",
        accepts: ID,
        required: true,
        null: "the row is ignored",
        unit: "",
        meaning: "The item or user, of the same kind of id as in the log.",
    }],
    example: "[deny]\n\
              items = { url = \"s3://shop/recalled.parquet\", column = \"sku\" }\n\
              users = { url = \"s3://shop/opted_out/\", column = \"user_id\" }",
};

/// Lists of what is to be gone.
pub static DELETE_INPUT: Input = Input {
    name: "delete_input",
    section: "[delete]",
    doc: "Optional: a list of users and a list of items whose events count nowhere, and who leave \
          the stored state. Each is one column of ids.",
    columns: &[InputColumn {
        role: "column",
        accepts: ID,
        required: true,
        null: "the row is ignored",
        unit: "",
        meaning: "The user or item, of the same kind of id as in the log.",
    }],
    example: "[delete]\n\
              users = { url = \"s3://shop/forget.parquet\", column = \"user_id\" }",
};
