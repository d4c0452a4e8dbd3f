use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;

/// A folder that holds empty files of these names.
fn folder(names: &[&str]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for name in names {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name.as_bytes()).unwrap();
    }
    folder
}

fn list(url: &str, base: &Path) -> Result<Listing, ListError> {
    let runtime = IoRuntime::new().unwrap();
    list_inputs(&Location::open(&runtime, url, base)?)
}

fn keys(url: &str, base: &Path) -> Vec<String> {
    list(url, base).unwrap().files.into_iter().map(|file| file.key).collect()
}

fn message(error: &ListError) -> String {
    error.to_string()
}

#[test]
fn a_folder_is_listed_at_every_depth_and_control_files_are_passed_over() {
    let base = folder(&[
        "log/b.parquet",
        "log/a.parq",
        "log/deep/er/c.parquet",
        "log/_SUCCESS",
        "log/_delta_log/1.parquet",
        "log/deep/.c.parquet.crc",
        "log/deep/.tmp/d.parquet",
        "log/notes.txt",
        "_above/ok.parquet",
    ]);
    for url in ["log", "log/"] {
        let listing = list(url, base.path()).unwrap();
        let urls: Vec<_> = listing.files.iter().map(|file| file.url.as_str()).collect();
        assert_eq!(urls, ["log/a.parq", "log/b.parquet", "log/deep/er/c.parquet"]);
        assert_eq!((listing.n_hidden, listing.n_other_ending), (4, 1));
        assert_eq!(listing.files[0].bytes, 10);
        assert!(listing.files[0].etag.is_some() && listing.files[0].last_modified > 0);
    }
    assert_eq!(keys("_above/", base.path()), ["ok.parquet"], "only names below the url count");
}

#[test]
fn urls_may_be_absolute_or_file_urls_with_escapes() {
    let base = folder(&["my log/a b%41.parquet"]);
    let root = base.path().to_str().unwrap();
    let nowhere = Path::new("/nowhere");
    assert_eq!(keys(&format!("{root}/my log"), nowhere), ["a b%41.parquet"]);
    assert_eq!(keys(&format!("file://{root}/my%20log/"), nowhere), ["a b%41.parquet"]);
    assert_eq!(keys(&format!("file://localhost{root}/my%20log/*"), nowhere), ["a b%41.parquet"]);
    assert_eq!(keys("my log/a b%41.parquet", base.path()), ["a b%41.parquet"]);
}

#[test]
fn a_single_file_is_taken_whatever_it_is_called() {
    let base = folder(&["log/_part.data", "events.csv", "a[1].parquet"]);
    let listing = list("log/_part.data", base.path()).unwrap();
    assert_eq!(listing.files[0].url, "log/_part.data");
    assert_eq!(listing.files[0].key, "_part.data");
    assert_eq!(list("events.csv", base.path()).unwrap().files[0].url, "events.csv");
    assert_eq!(
        keys("a[1].parquet", base.path()),
        ["a[1].parquet"],
        "a path that exists is no glob"
    );
}

#[test]
fn globs_do_not_cross_folders_unless_they_say_so() {
    let base = folder(&[
        "log/dt=1/a.parquet",
        "log/dt=1/x/b.parquet",
        "log/dt=2/c.parquet",
        "log/d.parquet",
        "log/e.pq",
        "log/spark.parquet/part-0.parquet",
    ]);
    let keys = |url| keys(url, base.path());
    assert_eq!(keys("log/*.parquet"), ["d.parquet"]);
    assert_eq!(keys("log/*/*.parquet").len(), 3);
    assert_eq!(keys("log/dt=*/"), ["dt=1/a.parquet", "dt=1/x/b.parquet", "dt=2/c.parquet"]);
    assert_eq!(keys("log/dt=[2-9]/*"), ["dt=2/c.parquet"]);
    assert_eq!(keys("log/dt=?/**/*.parquet").len(), 3);
    assert_eq!(keys("log/**/b.parquet"), ["dt=1/x/b.parquet"]);
    assert_eq!(keys("log/*.pq"), ["e.pq"], "an ending that is spelled out is meant");
    assert_eq!(keys("log/*.parquet/"), ["spark.parquet/part-0.parquet"]);
    assert_eq!(list("log/dt=2/*", base.path()).unwrap().files[0].url, "log/dt=2/c.parquet");
}

#[test]
fn hive_folders_become_partitions() {
    let base = folder(&["log/dt=2026-11-22/place=S%C3%A3o%20Paulo/a=b.parquet"]);
    let partitions = |url| list(url, base.path()).unwrap().files[0].partitions.clone();
    let expected = [("dt", "2026-11-22"), ("place", "São Paulo")];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    assert_eq!(partitions("log/"), expected);
    assert_eq!(partitions("log/dt=2026-11-22/"), expected, "folders of the url count");
}

#[test]
fn no_input_names_the_url_and_what_was_skipped() {
    let base = folder(&["log/_SUCCESS", "log/a.csv", "log/dt=1/b.parquet"]);
    fs::remove_file(base.path().join("log/dt=1/b.parquet")).unwrap();
    let cases = [
        ("log/", "skipped 1 with a name or folder that starts with \"_\" or \".\" and 1 with"),
        ("gone/", "no such file or folder"),
        ("gone/*.parquet", "no folder \"gone/\""),
        ("log/a.csv/x", "no such file or folder"),
        ("log/dt=*", "a pattern that names folders ends in \"/\""),
    ];
    for (url, part) in cases {
        let error = list(url, base.path()).unwrap_err();
        assert_eq!(error.exit_code(), 66, "{error}");
        let message = message(&error);
        assert!(message.contains(&format!("{url:?}")) && message.contains(part), "{message}");
    }
}

#[test]
fn urls_without_a_store_are_refused_with_those_that_have_one() {
    for url in ["hdfs://shop/events/", "ftp://x", "http://z/a.parquet"] {
        let error = list(url, Path::new(".")).unwrap_err();
        assert_eq!(error.exit_code(), 78);
        let message = message(&error);
        assert!(message.contains(url) && message.contains("file://"), "{message}");
    }
    let base = folder(&["a.parquet"]);
    for url in ["", "file://host/a", "a***b[", "a["] {
        assert_eq!(list(url, base.path()).unwrap_err().exit_code(), 78, "{url}");
    }
}

#[cfg(unix)]
#[test]
fn odd_keys_are_refused_by_name_and_never_end_a_listing_silently() {
    use std::os::unix::ffi::OsStrExt;
    for (name, shown) in
        [(&b"odd\nname.parquet"[..], "odd\\nname.parquet"), (b"\xff.parquet", "%FF")]
    {
        let base = folder(&["a.parquet", "z.parquet"]);
        fs::write(base.path().join(std::ffi::OsStr::from_bytes(name)), "x").unwrap();
        let error = list(base.path().to_str().unwrap(), Path::new("/")).unwrap_err();
        assert_eq!(error.exit_code(), 65);
        assert!(message(&error).contains(shown), "{error}");
    }
    let base = folder(&["dt=%FF/a.parquet"]);
    let error = list(base.path().to_str().unwrap(), Path::new("/")).unwrap_err();
    assert!(message(&error).contains("dt=%FF/a.parquet"), "{error}");
}
