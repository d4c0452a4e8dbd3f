//! The files in `schemas/`, generated from the declarations; a test holds them equal.
//!
//! `TIDEMILL_BLESS=1 cargo test --release` rewrites them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;

use super::inputs::{self, Input};
use super::{Column, IdTypes, Kind, Table, tables};
use crate::types::IdType;

/// The ids of the generated DDL.
const IDS: IdTypes = IdTypes { user: IdType::Int64, item: IdType::Int64 };

/// A warehouse that can load the tables.
struct Dialect {
    /// Its name.
    name: &'static str,
    /// The middle of its files' names.
    suffix: &'static str,
    /// Its types for Int64, Int32, Float32, Float64, Boolean, Utf8, Binary and instants.
    types: [&'static str; 8],
    list: fn(&str) -> String,
    comments: Comments,
    /// What follows a primary key.
    primary_key_suffix: &'static str,
    /// The versions that know MERGE; empty where all do.
    merge_since: &'static str,
    /// What begins and ends a transaction.
    transaction: [&'static str; 2],
}

/// How a dialect attaches comments to columns and tables.
enum Comments {
    /// `COMMENT ON ... IS '...'`, after the table.
    Statements,
    /// `COMMENT '...'` behind each column, `COMMENT = '...'` behind the table.
    Inline,
    /// `OPTIONS(description = "...")` behind each.
    Options,
}

const DUCKDB: Dialect = Dialect {
    name: "DuckDB",
    suffix: "duckdb",
    types: ["BIGINT", "INTEGER", "FLOAT", "DOUBLE", "BOOLEAN", "VARCHAR", "BLOB", "TIMESTAMPTZ"],
    list: |of| format!("{of}[]"),
    comments: Comments::Statements,
    primary_key_suffix: "",
    merge_since: "1.4",
    transaction: ["BEGIN", "COMMIT"],
};

const BIGQUERY: Dialect = Dialect {
    name: "BigQuery",
    suffix: "bigquery",
    types: ["INT64", "INT64", "FLOAT64", "FLOAT64", "BOOL", "STRING", "BYTES", "TIMESTAMP"],
    list: |of| format!("ARRAY<{of}>"),
    comments: Comments::Options,
    primary_key_suffix: " NOT ENFORCED",
    merge_since: "",
    transaction: ["BEGIN TRANSACTION", "COMMIT TRANSACTION"],
};

const SNOWFLAKE: Dialect = Dialect {
    name: "Snowflake",
    suffix: "snowflake",
    types: ["BIGINT", "INTEGER", "FLOAT", "FLOAT", "BOOLEAN", "VARCHAR", "BINARY", "TIMESTAMP_LTZ"],
    list: |_| "ARRAY".to_owned(),
    comments: Comments::Inline,
    primary_key_suffix: "",
    merge_since: "",
    transaction: ["BEGIN", "COMMIT"],
};

const POSTGRESQL: Dialect = Dialect {
    name: "PostgreSQL",
    suffix: "postgresql",
    types: [
        "BIGINT",
        "INTEGER",
        "REAL",
        "DOUBLE PRECISION",
        "BOOLEAN",
        "TEXT",
        "BYTEA",
        "TIMESTAMPTZ",
    ],
    list: |of| format!("{of}[]"),
    comments: Comments::Statements,
    primary_key_suffix: "",
    merge_since: "15",
    transaction: ["BEGIN", "COMMIT"],
};

const DIALECTS: [Dialect; 4] = [DUCKDB, BIGQUERY, SNOWFLAKE, POSTGRESQL];

impl Dialect {
    fn data_type(&self, kind: Kind) -> String {
        let [int64, int32, float32, float64, boolean, utf8, _, instant] = self.types;
        match kind {
            Kind::UserId | Kind::ItemId | Kind::Int64 => int64.to_owned(),
            Kind::Int32 => int32.to_owned(),
            Kind::Float32 => float32.to_owned(),
            Kind::Float64 => float64.to_owned(),
            Kind::Bool => boolean.to_owned(),
            Kind::Utf8 => utf8.to_owned(),
            Kind::TimestampUs => instant.to_owned(),
            Kind::ListOf(of) | Kind::ListOfNullable(of) => (self.list)(&self.data_type(*of)),
            Kind::Embedding => (self.list)(float32),
        }
    }

    /// A string literal.
    fn quoted(&self, text: &str) -> String {
        match self.comments {
            Comments::Options => {
                format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
            }
            _ => format!("'{}'", text.replace('\'', "''")),
        }
    }

    /// BigQuery's arrays are never null, and say so by themselves.
    fn not_null(&self, column: &Column) -> &'static str {
        let is_list =
            matches!(column.kind, Kind::ListOf(_) | Kind::ListOfNullable(_) | Kind::Embedding);
        let implied = is_list && matches!(self.comments, Comments::Options);
        if column.nullable || implied { "" } else { " NOT NULL" }
    }

    fn column(&self, column: &Column) -> String {
        let Column { name, kind, .. } = column;
        let data_type = self.data_type(*kind);
        let not_null = self.not_null(column);
        let meaning = self.quoted(&described(column));
        let comment = match self.comments {
            Comments::Statements => String::new(),
            Comments::Inline => format!(" COMMENT {meaning}"),
            Comments::Options => format!(" OPTIONS(description = {meaning})"),
        };
        format!("    {name} {data_type}{not_null}{comment},\n")
    }

    fn ddl(&self, table: &Table) -> String {
        let mut sql = self.header(table);
        writeln!(sql, "CREATE TABLE {} (", table.name).unwrap();
        table.columns.iter().for_each(|column| sql += &self.column(column));
        writeln!(sql, "    PRIMARY KEY ({}){}", table.key.join(", "), self.primary_key_suffix)
            .unwrap();
        let doc = self.quoted(table.doc);
        match self.comments {
            Comments::Inline => writeln!(sql, ")\nCOMMENT = {doc};").unwrap(),
            Comments::Options => writeln!(sql, ")\nOPTIONS(description = {doc});").unwrap(),
            Comments::Statements => sql += &self.comment_statements(table),
        }
        sql
    }

    fn header(&self, table: &Table) -> String {
        let ids: Vec<&str> = id_columns(table).map(|column| column.name).collect();
        let mut header = format!("-- {} for {}; the rows of one run.\n", table.name, self.name);
        if !ids.is_empty() {
            header += &self.about_ids(&ids);
        }
        header
    }

    fn about_ids(&self, ids: &[&str]) -> String {
        let [int64, int32, .., utf8, bytes, _] = self.types;
        let int32 = if int32 == int64 { "" } else { &format!("{int32} for int32, ") };
        let others = format!("{int32}{utf8} for strings, {bytes} for bytes");
        format!(
            "-- Ids have the type they have in the log: here {int64}.\n\
             -- Otherwise write {others} in: {}.\n",
            ids.join(", ")
        )
    }

    /// What brings a copy of each table from one generation to the next.
    fn changes(&self) -> String {
        let version = match self.merge_since {
            "" => String::new(),
            version => format!(" {version} or later"),
        };
        let mut sql = format!(
            "-- The changes of each table for {}{version}: they bring a copy of it from the generation \
             that\n-- changes_since in the manifest names to that of the manifest, and no other copy. \
             See README.md.\n",
            self.name
        );
        let told = tables::ALL.into_iter().filter(|table| tables::has_changes(table));
        let ids: BTreeSet<&str> =
            told.clone().flat_map(id_columns).map(|column| column.name).collect();
        sql += &self.about_ids(&ids.into_iter().collect::<Vec<_>>());
        sql += "-- forget_users and forget_items are the lists that you gave to [delete]: what they name \
                is in no\n-- file, so it is deleted by them. Without such a list, leave the \
                statement out.\n";
        told.for_each(|table| sql += &self.changes_of(table));
        sql
    }

    fn changes_of(&self, table: &Table) -> String {
        let (name, changes, utf8) = (table.name, table.changes_name(), self.types[5]);
        let mut sql = format!("\n-- {name}\nDROP TABLE IF EXISTS {changes};\n");
        let columns = table.columns.iter().map(|column| {
            let not_null = if table.key.contains(&column.name) { " NOT NULL" } else { "" };
            format!(",\n    {} {}{not_null}", column.name, self.data_type(column.kind))
        });
        let columns: String = columns.collect();
        writeln!(sql, "CREATE TABLE {changes} (\n    change {utf8} NOT NULL{columns}\n);").unwrap();
        writeln!(sql, "-- Here load the files of {changes}.").unwrap();
        let [begin, commit] = self.transaction;
        writeln!(sql, "{begin};\n{}{}{commit};", merge(table), forget(table)).unwrap();
        sql
    }

    fn comment_statements(&self, table: &Table) -> String {
        let doc = self.quoted(table.doc);
        let mut sql = format!(");\nCOMMENT ON TABLE {} IS {doc};\n", table.name);
        for column in table.columns {
            let meaning = self.quoted(&described(column));
            writeln!(sql, "COMMENT ON COLUMN {}.{} IS {meaning};", table.name, column.name)
                .unwrap();
        }
        sql
    }
}

/// Puts the changes of a table to it: the same in all dialects.
fn merge(table: &Table) -> String {
    let (name, changes) = (table.name, table.changes_name());
    let names: Vec<&str> = table.columns.iter().map(|column| column.name).collect();
    let joined = |names: &[&str], one: &dyn Fn(&str) -> String, by: &str| {
        names.iter().map(|name| one(name)).collect::<Vec<_>>().join(by)
    };
    let same = joined(table.key, &|key| format!("{name}.{key} = c.{key}"), " AND ");
    let set = joined(&names[table.key.len()..], &|column| format!("{column} = c.{column}"), ", ");
    let values = joined(&names, &|column| format!("c.{column}"), ", ");
    format!(
        "MERGE INTO {name} USING {changes} AS c ON {same}\n\
         WHEN MATCHED AND c.change = 'delete' THEN DELETE\n\
         WHEN MATCHED THEN UPDATE SET {set}\n\
         WHEN NOT MATCHED AND c.change = 'upsert' THEN INSERT ({})\n    VALUES ({values});\n",
        names.join(", ")
    )
}

/// Takes out of a table what `[delete]` lists; empty where its key holds no id.
fn forget(table: &Table) -> String {
    let of_key = table.columns.iter().filter(|column| table.key.contains(&column.name));
    let list = |column: &Column| match column.kind {
        Kind::UserId => Some("forget_users"),
        Kind::ItemId => Some("forget_items"),
        _ => None,
    };
    let lists = of_key.filter_map(|column| Some((column.name, list(column)?)));
    let statement = |(id, list): (&str, &str)| {
        format!("DELETE FROM {} WHERE {id} IN (SELECT {id} FROM {list});\n", table.name)
    };
    lists.map(statement).collect()
}

fn described(column: &Column) -> String {
    match column.unit {
        "" => column.meaning.to_owned(),
        unit => format!("{} Unit: {unit}.", column.meaning),
    }
}

fn id_columns(table: &Table) -> impl Iterator<Item = &Column> {
    let is_id = |kind| matches!(kind, Kind::UserId | Kind::ItemId);
    table.columns.iter().filter(move |column| match column.kind {
        Kind::ListOf(of) | Kind::ListOfNullable(of) => is_id(*of),
        kind => is_id(kind),
    })
}

fn arrow_name(kind: Kind) -> String {
    match kind {
        Kind::UserId => "user id type".to_owned(),
        Kind::ItemId => "item id type".to_owned(),
        Kind::ListOf(of) => format!("List of {}, elements not null", arrow_name(*of)),
        Kind::ListOfNullable(of) => format!("List of {}, elements nullable", arrow_name(*of)),
        Kind::TimestampUs => "Timestamp(us, UTC)".to_owned(),
        Kind::Embedding => "FixedSizeList or List of Float32, elements not null".to_owned(),
        kind => kind.data_type(IDS).to_string(),
    }
}

fn parquet_name(kind: Kind) -> String {
    let name = match kind {
        Kind::UserId | Kind::ItemId => "id type",
        Kind::Int64 => "INT64",
        Kind::Int32 => "INT32",
        Kind::Float32 => "FLOAT",
        Kind::Float64 => "DOUBLE",
        Kind::Bool => "BOOLEAN",
        Kind::Utf8 => "BYTE_ARRAY (STRING)",
        Kind::TimestampUs => "INT64 (TIMESTAMP, us, UTC)",
        Kind::Embedding => "LIST of FLOAT",
        Kind::ListOf(of) | Kind::ListOfNullable(of) => {
            return format!("LIST of {}", parquet_name(*of));
        }
    };
    name.to_owned()
}

fn table_page(table: &Table) -> String {
    let keys: Vec<String> = table.key.iter().map(|name| format!("`{name}`")).collect();
    let mut page = format!("# `{}`\n\n{}\n\n", table.name, table.doc);
    writeln!(page, "**Key and sort order**: {}, ascending within a file.\n", keys.join(", "))
        .unwrap();
    page +=
        "| column | Arrow type | Parquet type | SQL type (DuckDB) | unit | nullable | meaning |\n";
    page += "|---|---|---|---|---|---|---|\n";
    for column in table.columns {
        let Column { name, kind, nullable, unit, meaning } = column;
        let (arrow, parquet) = (arrow_name(*kind), parquet_name(*kind));
        let (sql, nullable) = (DUCKDB.data_type(*kind), if *nullable { "yes" } else { "no" });
        writeln!(
            page,
            "| `{name}` | {arrow} | {parquet} | {sql} | {unit} | {nullable} | {meaning} |"
        )
        .unwrap();
    }
    if id_columns(table).next().is_some() {
        page += "\nIds have the type they have in the log: see [ids](README.md#ids).\n";
    }
    writeln!(page, "\n```sql\n{}\n```\n", table.example).unwrap();
    let links = DIALECTS.iter().map(|d| format!("[{}]({}.{}.sql)", d.name, table.name, d.suffix));
    writeln!(page, "DDL: {}.", links.collect::<Vec<_>>().join(", ")).unwrap();
    if tables::has_changes(table) {
        let name = table.changes_name();
        writeln!(page, "Changes: `{name}`, see [changes](README.md#changes).").unwrap();
    }
    page
}

fn input_page(input: &Input) -> String {
    let mut page = format!("# `{}`\n\n{}\n\n", input.name, input.doc);
    writeln!(
        page,
        "Mapped in `{}` of the spec; see [the spec's reference](../jobs/README.md). Columns that \
         are not mapped are not read. Every type below may be nullable.\n",
        input.section
    )
    .unwrap();
    page += "| key in the spec | Arrow types | required | unit | a null is | meaning |\n";
    page += "|---|---|---|---|---|---|\n";
    for column in input.columns {
        writeln!(
            page,
            "| `{}` | {} | {} | {} | {} | {} |",
            column.role,
            column.accepts,
            if column.required { "yes" } else { "no" },
            column.unit,
            column.null,
            column.meaning
        )
        .unwrap();
    }
    writeln!(page, "\n```toml\n{}\n```", input.example).unwrap();
    page
}

fn readme() -> String {
    let mut list = String::from("| table | key | what it holds |\n|---|---|---|\n");
    for table in tables::ALL {
        let (name, key) = (table.name, table.key.join(", "));
        writeln!(list, "| [`{name}`]({name}.md) | {key} | {} |", table.doc).unwrap();
    }
    let mut input_list =
        String::from("| table | section of the spec | what it is |\n|---|---|---|\n");
    for input in inputs::ALL {
        let (name, section) = (input.name, input.section);
        writeln!(input_list, "| [`{name}`]({name}.md) | `{section}` | {} |", input.doc).unwrap();
    }
    include_str!("reference_readme.md")
        .replace("{{tables}}", list.trim_end())
        .replace("{{inputs}}", input_list.trim_end())
        .replace("{{types}}", type_map().trim_end())
}

fn type_map() -> String {
    let names = DIALECTS.map(|dialect| dialect.name).join(" | ");
    let mut map = format!("| Arrow | Parquet | {names} |\n|---|---|---|---|---|---|\n");
    let rows = [
        ("Int64", "INT64"),
        ("Int32", "INT32"),
        ("Float32", "FLOAT"),
        ("Float64", "DOUBLE"),
        ("Boolean", "BOOLEAN"),
        ("Utf8, LargeUtf8", "BYTE_ARRAY (STRING)"),
        ("Binary, LargeBinary", "BYTE_ARRAY"),
        ("Timestamp(us, UTC)", "INT64 (TIMESTAMP, us, UTC)"),
    ];
    for (position, (arrow, parquet)) in rows.into_iter().enumerate() {
        let types = DIALECTS.map(|dialect| dialect.types[position]).join(" | ");
        writeln!(map, "| {arrow} | {parquet} | {types} |").unwrap();
    }
    let lists = DIALECTS.map(|dialect| format!("`{}`", (dialect.list)("T"))).join(" | ");
    writeln!(map, "| List of T, FixedSizeList of T | LIST of T | {lists} |").unwrap();
    map
}

/// Every file of the folder by name.
fn files() -> BTreeMap<String, String> {
    let mut files = BTreeMap::from([("README.md".to_owned(), readme())]);
    for table in tables::ALL {
        files.insert(format!("{}.md", table.name), table_page(table));
        for dialect in &DIALECTS {
            files.insert(format!("{}.{}.sql", table.name, dialect.suffix), dialect.ddl(table));
        }
    }
    let changes = DIALECTS
        .iter()
        .map(|dialect| (format!("changes.{}.sql", dialect.suffix), dialect.changes()));
    files.extend(changes);
    files.extend(inputs::ALL.map(|input| (format!("{}.md", input.name), input_page(input))));
    files
}

#[test]
fn schemas_folder_equals_the_code() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("schemas");
    let files = files();
    if std::env::var_os("TIDEMILL_BLESS").is_some() {
        std::fs::create_dir_all(&folder).unwrap();
        files.iter().for_each(|(name, text)| std::fs::write(folder.join(name), text).unwrap());
    }
    for (name, text) in &files {
        let found = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        assert!(
            found == *text,
            "\"schemas/{name}\" differs from the code; run TIDEMILL_BLESS=1 cargo test --release"
        );
    }
    for entry in std::fs::read_dir(&folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(files.contains_key(&name), "\"schemas/{name}\" is of no table; delete it");
    }
}

#[test]
fn declarations_are_sound() {
    for table in tables::ALL {
        assert_eq!(tables::by_name(table.name).unwrap().name, table.name);
        // A sort column of Parquet is a leaf: it equals the column's position only up front.
        assert_eq!(table.key_positions(), (0..table.key.len()).collect::<Vec<_>>());
        assert!(table.columns.len() > table.key.len(), "{} can only grow and shrink", table.name);
        assert!(!table.name.ends_with(super::CHANGES_SUFFIX));
        assert_eq!(table.position(super::CHANGE), None);
        for (position, column) in table.columns.iter().enumerate() {
            assert_eq!(table.position(column.name), Some(position), "{} is twice", column.name);
            assert!(column.meaning.ends_with('.'), "{}.{}", table.name, column.name);
            assert!(!column.nullable || !table.key.contains(&column.name));
            assert!(!column.nullable || column.meaning.to_lowercase().contains("null"));
            assert!(!column.meaning.contains('|'), "it would end a cell");
        }
        assert!(table.arrow_schema(IDS).metadata().is_empty());
        assert!(table.changes_schema(IDS).metadata().is_empty());
    }
}
