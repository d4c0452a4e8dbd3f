//! OpenLineage events: START, then COMPLETE or FAIL, with the tables read and written.
//!
//! Version 2-0-2 of the specification, <https://openlineage.io/docs/spec/object-model>.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{post, variable, warn};
use crate::cli::clock;
use crate::job::Spec;
use crate::run::{Outcome, Report};
use crate::store::Manifest;

/// Where events go, and what all events of a run have in common.
pub(super) struct Lineage {
    url: Option<String>,
    token: Option<String>,
    file: Option<String>,
    namespace: String,
    base: PathBuf,
    spec: Spec,
    run_id: String,
    date: Option<String>,
}

const PRODUCER: &str = concat!("urn:tidemill:", env!("CARGO_PKG_VERSION"));
const EVENT: &str = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent";

/// A facet with what every facet must have; `name` is that of its schema.
fn facet(name: &str, version: &str, mut content: Value) -> Value {
    content["_producer"] = json!(PRODUCER);
    let schema = format!("https://openlineage.io/spec/facets/{version}/{name}.json#/$defs/{name}");
    content["_schemaURL"] = json!(schema);
    content
}

impl Lineage {
    /// Reads the variables that other clients of OpenLineage read; `None` where none is set.
    pub(super) fn from_environment(
        spec: &Spec,
        base: &Path,
        run_id: &str,
        date: Option<&str>,
    ) -> Option<Self> {
        let url = variable("OPENLINEAGE_URL").map(|url| {
            let endpoint = variable("OPENLINEAGE_ENDPOINT");
            let endpoint = endpoint.as_deref().unwrap_or("api/v1/lineage");
            format!("{}/{}", url.trim_end_matches('/'), endpoint.trim_start_matches('/'))
        });
        let file = variable("TIDEMILL_OPENLINEAGE_FILE");
        if url.is_none() && file.is_none() {
            return None;
        }
        Some(Self {
            url,
            token: variable("OPENLINEAGE_API_KEY"),
            file,
            namespace: variable("OPENLINEAGE_NAMESPACE").unwrap_or_else(|| "default".to_owned()),
            base: base.to_owned(),
            spec: spec.clone(),
            run_id: run_id.to_owned(),
            date: date.map(str::to_owned),
        })
    }

    pub(super) fn start(&self) {
        self.emit(&self.event("START", None, None));
    }

    pub(super) fn end(&self, report: &Report, outcome: Option<&Outcome>) {
        let kind = if report.exit_code == 0 { "COMPLETE" } else { "FAIL" };
        let manifest = match outcome {
            Some(Outcome::Published { manifest, .. } | Outcome::NotPublished { manifest }) => {
                Some(manifest.as_ref())
            }
            _ => None,
        };
        self.emit(&self.event(kind, Some(report), manifest));
    }

    fn event(&self, kind: &str, report: Option<&Report>, manifest: Option<&Manifest>) -> Value {
        let mut run_facets = json!({
            "processing_engine": facet("ProcessingEngineRunFacet", "1-1-1", json!({
                "name": "tidemill", "version": env!("CARGO_PKG_VERSION"),
            })),
        });
        let date = report.and_then(|report| report.logical_date.clone()).or(self.date.clone());
        if let Some(date) = date {
            run_facets["nominalTime"] = facet(
                "NominalTimeRunFacet",
                "1-0-1",
                json!({
                    "nominalStartTime": format!("{date}T00:00:00Z"),
                }),
            );
        }
        if let Some(error) = report.and_then(|report| report.error.as_ref()) {
            run_facets["errorMessage"] = facet(
                "ErrorMessageRunFacet",
                "1-0-1",
                json!({
                    "message": error, "programmingLanguage": "Rust",
                }),
            );
        }
        json!({
            "eventType": kind,
            "eventTime": report.map_or_else(clock::now, |report| report.finished_at.clone()),
            "producer": PRODUCER,
            "schemaURL": EVENT,
            "run": { "runId": self.run_id, "facets": run_facets },
            "job": {
                "namespace": self.namespace,
                "name": self.spec.name,
                "facets": { "jobType": facet("JobTypeJobFacet", "2-0-4", json!({
                    "processingType": "BATCH", "integration": "TIDEMILL", "jobType": "JOB",
                })) },
            },
            "inputs": self.inputs(report),
            "outputs": self.outputs(manifest),
        })
    }

    fn inputs(&self, report: Option<&Report>) -> Vec<Value> {
        let logs = self.spec.events.iter().enumerate().map(|(number, log)| {
            let mut dataset = self.dataset(&log.url, "");
            if let Some(read) = report.and_then(|report| report.input.get(number)) {
                dataset["inputFacets"] = json!({
                    "inputStatistics": facet("InputStatisticsInputDatasetFacet", "1-0-0", json!({
                        "rowCount": read.rows, "size": read.bytes, "fileCount": read.files,
                    })),
                });
            }
            dataset
        });
        let side = self.spec.items.iter().map(|items| &items.url);
        let side = side.chain(self.spec.users.iter().map(|users| &users.url));
        logs.chain(side.map(|url| self.dataset(url, ""))).collect()
    }

    fn outputs(&self, manifest: Option<&Manifest>) -> Vec<Value> {
        let mut tables: BTreeMap<&str, (u64, u64, u64)> = BTreeMap::new();
        for table in self.spec.table_names() {
            tables.insert(table, (0, 0, 0));
        }
        let files = manifest.into_iter().flat_map(|manifest| &manifest.files);
        for file in files.filter(|file| file.path.starts_with("tables/")) {
            let sum = tables.entry(&file.table).or_default();
            *sum = (sum.0 + file.rows, sum.1 + file.bytes, sum.2 + 1);
        }
        let outputs = tables.into_iter().map(|(table, (rows, bytes, files))| {
            let mut dataset = self.dataset(&self.spec.output.url, &format!("tables/{table}"));
            if let Some(manifest) = manifest {
                dataset["facets"] = json!({
                    "version": facet("DatasetVersionDatasetFacet", "1-0-1", json!({
                        "datasetVersion": manifest.run_id,
                    })),
                });
                dataset["outputFacets"] = json!({
                    "outputStatistics": facet("OutputStatisticsOutputDatasetFacet", "1-0-2", json!({
                        "rowCount": rows, "size": bytes, "fileCount": files,
                    })),
                });
            }
            dataset
        });
        outputs.collect()
    }

    /// Named as OpenLineage names files of object stores and local disks.
    fn dataset(&self, url: &str, below: &str) -> Value {
        let (namespace, path) = match url.split_once("://") {
            Some(("file", path)) => ("file".to_owned(), path.to_owned()),
            Some((scheme, rest)) => {
                let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
                (format!("{scheme}://{bucket}"), path.to_owned())
            }
            None => {
                let path = std::path::absolute(self.base.join(url));
                ("file".to_owned(), path.map_or(url.to_owned(), |path| path.display().to_string()))
            }
        };
        let path = path.trim_end_matches('/');
        let name = if below.is_empty() { path.to_owned() } else { format!("{path}/{below}") };
        let name = if name.is_empty() { "/".to_owned() } else { name };
        json!({ "namespace": namespace, "name": name })
    }

    fn emit(&self, event: &Value) {
        if let Some(path) = &self.file {
            let opened = OpenOptions::new().create(true).append(true).open(path);
            warn("OpenLineage", path, opened.and_then(|mut file| writeln!(file, "{event}")));
        }
        if let Some(url) = &self.url {
            post("OpenLineage", url, "application/json", self.token.as_deref(), event.to_string());
        }
    }
}
