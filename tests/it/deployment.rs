//! The files that people deploy: policies that give no more than is needed, alerts on what exists.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::fixture::Sandbox;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn policies(cloud: &str) -> Vec<(String, Value)> {
    let files = fs::read_dir(folder("k8s/iam").join(cloud)).unwrap();
    let policies = files.map(|file| {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        (name, serde_json::from_slice(&fs::read(path).unwrap()).unwrap())
    });
    policies.collect()
}

/// One text or a list of them.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(values) => values.iter().flat_map(texts).collect(),
        value => vec![value.as_str().unwrap().to_owned()],
    }
}

#[test]
fn policies_of_amazon_name_every_action_and_resource() {
    let policies = policies("aws");
    assert_eq!(policies.len(), 5);
    for (name, policy) in &policies {
        assert_eq!(policy["Version"], "2012-10-17", "{name}");
        for statement in policy["Statement"].as_array().unwrap() {
            let actions = texts(&statement["Action"]);
            assert!(actions.iter().all(|action| !action.contains('*')), "{name}: {actions:?}");
            if name == "trust" {
                let conditions = statement["Condition"]["StringEquals"].as_object().unwrap();
                assert!(conditions.contains_key("OIDC_PROVIDER:sub"), "{name}");
                continue;
            }
            for resource in texts(&statement["Resource"]) {
                let is_ours = resource == "arn:aws:s3:::BUCKET"
                    || resource.starts_with("arn:aws:s3:::BUCKET/")
                    || resource.starts_with("arn:aws:kms:REGION:ACCOUNT:key/");
                assert!(is_ours && resource != "arn:aws:s3:::BUCKET/*", "{name}: {resource}");
            }
            let lists = actions.iter().any(|action| action == "s3:ListBucket");
            let denies = statement["Effect"] == "Deny";
            assert!(!lists || denies || statement["Condition"].is_object(), "{name} lists it all");
        }
    }
}

/// Resources on which a policy allows an action.
fn allowed(policies: &[(String, Value)], name: &str, action: &str) -> Vec<String> {
    let (_, policy) = policies.iter().find(|(of, _)| of == name).unwrap();
    let statements = policy["Statement"].as_array().unwrap().iter();
    let allowing = statements.filter(|statement| {
        statement["Effect"] == "Allow" && texts(&statement["Action"]).iter().any(|of| of == action)
    });
    allowing.flat_map(|statement| texts(&statement["Resource"])).collect()
}

#[test]
fn only_operators_delete_and_readers_only_read() {
    let policies = policies("aws");
    let of = |name, action| allowed(&policies, name, action);
    assert_eq!(of("publisher", "s3:DeleteObject"), ["arn:aws:s3:::BUCKET/nightly/_probe/*"]);
    for action in ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"] {
        assert!(of("reader", action).is_empty(), "readers may {action}");
    }
    let reads = of("reader", "s3:GetObject");
    assert!(reads.iter().all(|resource| !resource.contains("_report")), "{reads:?}");
    let deletes = of("operator", "s3:DeleteObject");
    assert!(!deletes.contains(&"arn:aws:s3:::BUCKET/nightly/_log/*".to_owned()), "{deletes:?}");
    // No policy lets anybody write where the input lies.
    for name in ["publisher", "operator", "reader"] {
        let writes = [of(name, "s3:PutObject"), of(name, "s3:DeleteObject")].concat();
        assert!(writes.iter().all(|place| place.starts_with("arn:aws:s3:::BUCKET/nightly/")));
    }
    for (name, role) in self::policies("azure").into_iter().chain(self::policies("gcs")) {
        assert!(!role.to_string().contains("*"), "{name} has a wildcard");
    }
}

/// Everything that a run of the quickstart writes lies where the publisher may write.
#[test]
fn the_publisher_may_write_what_a_run_writes() {
    let sandbox = Sandbox::new();
    let made = sandbox.tidemill(&["generate", "shop", "--users", "60", "--events", "2000"]);
    assert!(made.status.success());
    sandbox.spec(
        "name = \"policy\"\n[[events]]\nurl = \"shop/events.parquet\"\ncolumns = { user = \
         \"user_id\", item = \"item_id\" }\n[als]\nn_factors = 4\niterations = 1\n[top_k]\nk = 3\n[output]\nurl = \"out/\"\ndelta = true\n\
         [[output.vectors]]\nof = \"item_factors\"\ntype = \"npy\"\n",
    );
    sandbox.run(&[]);
    let policies = policies("aws");
    let places: Vec<String> = allowed(&policies, "publisher", "s3:PutObject")
        .iter()
        .map(|place| place.trim_start_matches("arn:aws:s3:::BUCKET/nightly/").replace('*', ""))
        .collect();
    let mut folders = vec![sandbox.path("out")];
    let mut n_files = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let key = path.strip_prefix(sandbox.path("out")).unwrap().to_str().unwrap().to_owned();
            // The lock of a local disk, which no object store has.
            let is_lock = key.ends_with(".lock");
            let may = places.iter().any(|place| key.starts_with(place.as_str()));
            assert!(may || is_lock, "{key} is in none of {places:?}");
            n_files += 1;
        }
    }
    assert!(n_files > 15, "{n_files} files");
}

#[test]
fn alerts_look_at_metrics_that_runs_write() {
    let sandbox = Sandbox::new();
    let made = sandbox.tidemill(&["generate", "shop", "--users", "60", "--events", "2000"]);
    assert!(made.status.success());
    sandbox.spec(
        "name = \"metrics\"\n[[events]]\nurl = \"shop/events.parquet\"\ncolumns = { user = \
         \"user_id\", item = \"item_id\" }\n[items]\nurl = \"shop/items.parquet\"\ncolumns = { item \
         = \"item_id\" }\n[item_neighbors]\n[top_k]\nk = 3\n[output]\nurl = \"out/\"\n",
    );
    let file = sandbox.path("metrics.prom").display().to_string();
    let ran = sandbox.tidemill_in(&[("TIDEMILL_PROMETHEUS_FILE", file)], &["run", "job.toml"]);
    assert!(ran.status.success());
    let written = fs::read_to_string(sandbox.path("metrics.prom")).unwrap();
    let mut n_named = 0;
    for rules in ["tidemill.yaml", "tests.yaml"] {
        let rules = fs::read_to_string(folder("k8s/alerts").join(rules)).unwrap();
        let words = rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for name in words.filter(|word| word.starts_with("tidemill_")) {
            assert!(written.contains(&format!("\n{name}{{")), "no run writes {name}");
            n_named += 1;
        }
    }
    assert!(n_named > 10, "{n_named} metrics");
}
