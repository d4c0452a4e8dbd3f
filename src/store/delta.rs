//! A Delta log per table, for readers that know Delta Lake: `tables/<table>/_delta_log/`.
//!
//! Written by hand after the protocol's PROTOCOL.md, reader version 1 and writer version 2. Each
//! version holds the whole table: it removes the files of the version before and adds those of the
//! run that readers see. It follows our log, which stays the authority.

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use bytes::Bytes;
use serde_json::{Value, json};

use super::error::PublishError;
use super::log::Log;
use super::manifest::{Manifest, PublishedFile};
use super::output::Output;
use super::publish::Created;
use super::reader;
use super::table_writer::sha256_hex;

/// What the newest version of a table's log says.
#[derive(Debug, Default)]
struct Version {
    /// The number that the next one has.
    next: u64,
    /// The run that the table holds.
    run_id: Option<String>,
    /// Its files, relative to the table.
    paths: Vec<String>,
}

impl Output {
    /// Brings the Delta logs of all tables up to our log. `run` is what readers saw a moment ago.
    pub(super) fn follow_with_delta(&self, run: Option<&Manifest>) -> Result<(), PublishError> {
        let mut tables: Vec<String> = self
            .list("tables")?
            .iter()
            .filter_map(|object| {
                let (table, rest) =
                    object.location.as_ref().strip_prefix("tables/")?.split_once('/')?;
                rest.starts_with("_delta_log/").then(|| table.to_owned())
            })
            .collect();
        tables.extend(run.iter().flat_map(|run| run.tables().into_keys().map(str::to_owned)));
        tables.sort_unstable();
        tables.dedup();
        tables.iter().try_for_each(|table| self.follow_with_delta_of(table))
    }

    fn follow_with_delta_of(&self, table: &str) -> Result<(), PublishError> {
        loop {
            // The version first, then the log: whoever wrote a version knew no more than we do.
            let newest = self.newest_version(table)?;
            let log = self.read_log()?;
            let run = log.current().map(|run| self.read_manifest(run)).transpose()?;
            let files = run.as_ref().and_then(|run| run.tables().remove(table)).unwrap_or_default();
            let run_id = run.as_ref().filter(|_| !files.is_empty()).map(|run| run.run_id.clone());
            if newest.run_id == run_id {
                return Ok(());
            }
            let bytes = self.version_bytes(table, &log, &newest, run_id, &files)?;
            let path = format!("tables/{table}/_delta_log/{:020}.json", newest.next);
            if let Created::Ours = self.create_object(&path, &bytes)? {
                return Ok(());
            }
        }
    }

    fn newest_version(&self, table: &str) -> Result<Version, PublishError> {
        let folder = format!("tables/{table}/_delta_log");
        let number = |path: &str| -> Option<u64> {
            let name = path.strip_prefix(&folder)?.strip_prefix('/')?.strip_suffix(".json")?;
            let number: i64 = name.parse().ok().filter(|_| name.len() == 20)?;
            // Delta has no version after the last of these.
            number.try_into().ok().filter(|number| *number < i64::MAX as u64)
        };
        let listed = self.list(&folder)?;
        let newest = listed.iter().filter_map(|object| number(object.location.as_ref())).max();
        let Some(newest) = newest else { return Ok(Version::default()) };
        let path = format!("{folder}/{newest:020}.json");
        let bytes = self.get(&path)?.unwrap_or_default();
        let mut version = Version { next: newest + 1, ..Version::default() };
        for line in bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            let action: Value = serde_json::from_slice(line).map_err(|error| {
                PublishError::Corrupt { path: self.url_of(&path), source: error.into() }
            })?;
            if let Some(path) = action["add"]["path"].as_str() {
                version.paths.push(path.to_owned());
            }
            if let Some(run_id) = action["commitInfo"]["tidemillRunId"].as_str() {
                version.run_id = Some(run_id.to_owned());
            }
        }
        Ok(version)
    }

    fn version_bytes(
        &self,
        table: &str,
        log: &Log,
        newest: &Version,
        run_id: Option<String>,
        files: &[&PublishedFile],
    ) -> Result<Bytes, PublishError> {
        let entry = log.entries().last().expect("something was published");
        let instant: Option<jiff::Timestamp> = entry.run.published_at.parse().ok();
        let time = instant.map_or(0, jiff::Timestamp::as_millisecond);
        let folder = format!("tables/{table}/");
        let relative = |path: &str| path.strip_prefix(&folder).unwrap_or(path).to_owned();
        let mut actions = vec![json!({ "commitInfo": {
            "timestamp": time,
            "operation": "WRITE",
            "operationParameters": { "mode": "Overwrite" },
            "engineInfo": concat!("tidemill/", env!("CARGO_PKG_VERSION")),
            "tidemillRunId": run_id,
        }})];
        actions.push(json!({ "txn": {
            "appId": "tidemill", "version": log.generation(), "lastUpdated": time
        }}));
        if newest.next == 0 {
            actions.push(json!({ "protocol": { "minReaderVersion": 1, "minWriterVersion": 2 } }));
        }
        if let Some(file) = files.first() {
            actions.push(self.table_metadata(table, log, file)?);
        }
        // A file that is as it was is added again, which replaces its entry, and not removed.
        let stays = |path: &&String| files.iter().any(|file| relative(&file.path) == **path);
        actions.extend(newest.paths.iter().filter(|path| !stays(path)).map(|path| {
            json!({ "remove": { "path": path, "deletionTimestamp": time, "dataChange": true } })
        }));
        actions.extend(files.iter().map(|file| {
            json!({ "add": {
                "path": relative(&file.path), "partitionValues": {}, "size": file.bytes,
                "modificationTime": time, "dataChange": true,
                "stats": json!({ "numRecords": file.rows }).to_string(),
            }})
        }));
        Ok(actions.iter().map(|action| format!("{action}\n")).collect::<String>().into())
    }

    /// The schema of the table as its files have it, under an id that never changes.
    fn table_metadata(
        &self,
        table: &str,
        log: &Log,
        file: &PublishedFile,
    ) -> Result<Value, PublishError> {
        let footer = reader::footer(&self.location(), &self.input_file(file));
        let footer = footer.map_err(|source| PublishError::Unreadable {
            path: self.url_of(&file.path),
            source: Box::new(source),
        })?;
        let first = &log.entries()[0];
        let digest = sha256_hex(format!("{table} of {}", first.run.nonce).as_bytes());
        let created: Option<jiff::Timestamp> = first.run.published_at.parse().ok();
        let parts =
            [&digest[..8], &digest[8..12], &digest[12..16], &digest[16..20], &digest[20..32]];
        Ok(json!({ "metaData": {
            "id": parts.join("-"),
            "name": table,
            "format": { "provider": "parquet", "options": {} },
            "schemaString": delta_schema(footer.schema()).to_string(),
            "partitionColumns": [],
            "configuration": {},
            "createdTime": created.map_or(0, jiff::Timestamp::as_millisecond),
        }}))
    }
}

/// A schema in the JSON that Delta took from Spark.
fn delta_schema(schema: &Schema) -> Value {
    let fields: Vec<Value> = schema
        .fields()
        .iter()
        .map(|field| {
            json!({
                "name": field.name(), "type": delta_type(field), "nullable": field.is_nullable(),
                "metadata": {},
            })
        })
        .collect();
    json!({ "type": "struct", "fields": fields })
}

fn delta_type(field: &Field) -> Value {
    let name = match field.data_type() {
        DataType::Int8 => "byte",
        DataType::Int16 => "short",
        DataType::Int32 => "integer",
        DataType::Int64 => "long",
        DataType::Float32 => "float",
        DataType::Float64 => "double",
        DataType::Boolean => "boolean",
        DataType::Date32 => "date",
        DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => "timestamp",
        DataType::Binary | DataType::FixedSizeBinary(_) => "binary",
        DataType::List(item) | DataType::FixedSizeList(item, _) => {
            return json!({
                "type": "array", "elementType": delta_type(item),
                "containsNull": item.is_nullable(),
            });
        }
        _ => "string",
    };
    json!(name)
}
