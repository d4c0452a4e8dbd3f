//! The server does what S3 does, as seen by the client that the product uses.

use std::sync::Barrier;
use std::thread;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use hyper::Request;
use object_store::aws::AmazonS3ConfigKey;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{
    Error, GetOptions, GetRange, MultipartUpload, ObjectStore, ObjectStoreExt, PutMode,
    UpdateVersion,
};

use super::client::{Client, builder, retries, signed};
use super::server::S3Server;

const PART: usize = 5 << 20;

fn started() -> (S3Server, Client) {
    let server = S3Server::start("bucket");
    let client = Client::of(server.environment());
    (server, client)
}

fn update(tag: Option<String>) -> PutMode {
    PutMode::Update(UpdateVersion { e_tag: tag, version: None })
}

#[test]
fn what_was_put_is_got_under_any_key() {
    let (server, client) = started();
    for key in ["a", "a/b c/é+25%.txt", "year=2024/part-0.parquet", "x/&<>'\"?#"] {
        client.put(key, key.as_bytes()).unwrap();
        assert_eq!(client.get(key).unwrap(), key.as_bytes());
        assert_eq!(client.head(key).unwrap().size, key.len() as u64);
    }
    let listed: Vec<_> = client.wait(client.store.list(None).try_collect()).unwrap();
    let listed = listed.iter().map(|meta| meta.location.to_string());
    assert_eq!(listed.collect::<Vec<_>>(), server.keys(""));
}

#[test]
fn equal_bytes_have_equal_tags_and_others_do_not() {
    let (_server, client) = started();
    let tag = |key: &str, bytes: &[u8]| client.put(key, bytes).unwrap().e_tag.unwrap();
    let first = tag("one", b"bytes");
    assert!(first.starts_with('"') && first.ends_with('"'), "{first}");
    assert_eq!(first, tag("two", b"bytes"));
    assert_ne!(first, tag("one", b"other"));
    assert_eq!(client.head("two").unwrap().e_tag, Some(first));
}

#[test]
fn a_key_that_is_not_there_is_not_found() {
    let (server, client) = started();
    assert!(matches!(client.get("none"), Err(Error::NotFound { .. })));
    assert!(matches!(client.head("none"), Err(Error::NotFound { .. })));
    assert!(server.bytes_of("none").is_none());
    let elsewhere = Client::built(builder(server.environment()).with_bucket_name("elsewhere"));
    assert!(elsewhere.put("key", b"bytes").unwrap_err().to_string().contains("NoSuchBucket"));
}

#[test]
fn ranges_give_their_bytes() {
    let (server, client) = started();
    server.put("key", "0123456789");
    let got = |range: GetRange| client.get_as("key", GetOptions::new().with_range(Some(range)));
    assert_eq!(got(GetRange::Bounded(2..5)).unwrap(), "234");
    assert_eq!(got(GetRange::Bounded(8..50)).unwrap(), "89");
    assert_eq!(got(GetRange::Offset(7)).unwrap(), "789");
    assert_eq!(got(GetRange::Suffix(4)).unwrap(), "6789");
    assert_eq!(got(GetRange::Suffix(40)).unwrap(), "0123456789");
    assert!(got(GetRange::Offset(10)).is_err());
}

#[test]
fn reads_look_at_their_conditions() {
    let (_server, client) = started();
    let tag = client.put("key", b"bytes").unwrap().e_tag.unwrap();
    let matching = |tag: &str| GetOptions::new().with_if_match(Some(tag));
    let other_than = |tag: &str| GetOptions::new().with_if_none_match(Some(tag));
    assert_eq!(client.get_as("key", matching(&tag)).unwrap(), "bytes");
    assert_eq!(client.get_as("key", other_than("\"stale\"")).unwrap(), "bytes");
    let stale = client.get_as("key", matching("\"stale\""));
    assert!(matches!(stale, Err(Error::Precondition { .. })));
    let same = client.get_as("key", other_than(&tag));
    assert!(matches!(same, Err(Error::NotModified { .. })));
    assert_eq!(client.get("key").unwrap(), "bytes", "the connection is still good");
}

#[test]
fn a_long_listing_comes_in_pages_of_a_thousand() {
    let (server, client) = started();
    let keys: Vec<String> = (0..2_500).map(|number| format!("logs/{number:04}")).collect();
    keys.iter().for_each(|key| server.put(key, key.clone()));
    server.put("other", "not asked for");
    let prefix = Path::from("logs");
    let listed: Vec<_> = client.wait(client.store.list(Some(&prefix)).try_collect()).unwrap();
    let listed: Vec<String> = listed.iter().map(|meta| meta.location.to_string()).collect();
    assert_eq!(listed, keys);
    assert_eq!(server.requests()["ListObjectsV2"], 3);
    let offset = Path::from("logs/2497");
    let rest = client.store.list_with_offset(Some(&prefix), &offset);
    let rest: Vec<_> = client.wait(rest.try_collect()).unwrap();
    assert_eq!(rest.len(), 2);
}

/// The rows of a listing by folder, read in pages of `limit`.
fn rows_in_pages(client: &Client, limit: usize) -> Vec<String> {
    let mut rows = Vec::new();
    let mut page_token = None;
    loop {
        let options = PaginatedListOptions {
            delimiter: Some("/".into()),
            max_keys: Some(limit),
            page_token,
            ..PaginatedListOptions::default()
        };
        let page = client.wait(client.store.list_paginated(Some("in/"), options)).unwrap();
        let objects = page.result.objects.iter().map(|meta| meta.location.to_string());
        let folders = page.result.common_prefixes.iter().map(|folder| format!("{folder}/"));
        let before = rows.len();
        rows.extend(objects.chain(folders));
        assert!(rows.len() - before <= limit);
        assert!(rows.len() < 100, "the pages go round in circles: {rows:?}");
        page_token = page.page_token;
        if page_token.is_none() {
            rows.sort();
            return rows;
        }
    }
}

#[test]
fn folders_are_listed_once_whatever_the_size_of_a_page() {
    let (server, client) = started();
    for key in ["in/a", "in/b/1", "in/b/2", "in/b/3", "in/b0", "in/c/1", "in/d/1/2", "out/e"] {
        server.put(key, "bytes");
    }
    let expected = ["in/a", "in/b/", "in/b0", "in/c/", "in/d/"];
    for limit in 1..=6 {
        assert_eq!(rows_in_pages(&client, limit), expected, "pages of {limit}");
    }
}

#[test]
fn three_parts_become_one_object() {
    let (server, client) = started();
    let parts: [Vec<u8>; 3] = [vec![1; PART], vec![2; PART], vec![3; 7]];
    client.wait(async {
        let mut upload = client.store.put_multipart(&Path::from("big")).await.unwrap();
        for part in &parts {
            upload.put_part(part.clone().into()).await.unwrap();
        }
        assert!(server.bytes_of("big").is_none());
        assert_eq!(server.open_uploads(), ["big"]);
        let tag = upload.complete().await.unwrap().e_tag.unwrap();
        assert!(tag.ends_with("-3\""), "{tag}");
    });
    assert!(server.bytes_of("big").unwrap() == parts.concat());
    assert!(server.open_uploads().is_empty());
}

#[test]
fn an_aborted_upload_leaves_nothing_and_a_small_part_is_refused() {
    let (server, client) = started();
    client.wait(async {
        let mut upload = client.store.put_multipart(&Path::from("key")).await.unwrap();
        upload.put_part(Bytes::from_static(b"small").into()).await.unwrap();
        upload.put_part(Bytes::from_static(b"last").into()).await.unwrap();
        let refused = upload.complete().await.unwrap_err();
        assert!(refused.to_string().contains("EntityTooSmall"), "{refused}");
        upload.abort().await.unwrap();
    });
    assert!(server.open_uploads().is_empty() && server.keys("").is_empty());
}

#[test]
fn an_upload_completes_under_a_condition_and_can_be_found() {
    let (server, client) = started();
    let path = Path::from("in/key");
    let (id, part) = client.wait(async {
        let id = client.store.create_multipart(&path).await.unwrap();
        let part = Bytes::from_static(b"part").into();
        (id.clone(), client.store.put_part(&path, &id, 0, part).await.unwrap().content_id)
    });
    let bucket = format!("{}/bucket", server.endpoint());
    let listed = |prefix: &str| {
        let uri = format!("{bucket}?prefix={prefix}&uploads=");
        signed(&client, Request::get(uri), "").1
    };
    assert!(listed("in/").contains(&format!("<UploadId>{id}</UploadId>")), "{}", listed("in/"));
    assert!(!listed("out/").contains("<UploadId>"));
    let tag = part.replace('"', "&quot;");
    let part = format!("<Part><PartNumber>1</PartNumber><ETag>{tag}</ETag></Part>");
    let xml = format!("<CompleteMultipartUpload>{part}</CompleteMultipartUpload>");
    let complete = || {
        let uri = format!("{bucket}/{path}?uploadId={id}");
        signed(&client, Request::post(uri).header("if-none-match", "*"), &xml)
    };
    server.put("in/key", "was here first");
    assert_eq!(complete().0, 412);
    client.wait(client.store.delete(&path)).unwrap();
    assert_eq!(complete().0, 200, "a refused completion leaves the upload as it was");
    assert_eq!(server.bytes_of("in/key").unwrap(), "part");
    assert_eq!(complete().0, 404);
}

#[test]
fn a_key_is_created_once() {
    let (server, client) = started();
    client.put_as("key", b"first", PutMode::Create).unwrap();
    let again = client.put_as("key", b"second", PutMode::Create);
    assert!(matches!(again, Err(Error::AlreadyExists { .. })));
    assert_eq!(server.bytes_of("key").unwrap(), "first");
}

#[test]
fn an_update_needs_the_tag_of_what_is_there() {
    let (server, client) = started();
    let first = client.put("key", b"first").unwrap().e_tag;
    let second = client.put_as("key", b"second", update(first.clone())).unwrap().e_tag;
    let stale = client.put_as("key", b"third", update(first));
    assert!(matches!(stale, Err(Error::Precondition { .. })));
    let missing = client.put_as("none", b"third", update(second.clone()));
    assert!(matches!(missing, Err(Error::Precondition { .. })));
    assert_eq!(server.bytes_of("key").unwrap(), "second");
    client.put_as("key", b"third", update(second)).unwrap();
}

#[test]
fn a_refused_write_leaves_its_connection_usable() {
    let (server, _) = started();
    let client = Client::without_retries(server.environment());
    server.put("key", "first");
    let large = vec![7; 1 << 20];
    for _ in 0..20 {
        let refused = client.put_as("key", &large, PutMode::Create);
        assert!(matches!(refused, Err(Error::AlreadyExists { .. })), "{refused:?}");
        assert_eq!(client.get("key").unwrap(), "first");
    }
    let honest = builder(server.environment());
    let stranger = Client::built(honest.with_secret_access_key("wrong").with_retry(retries(0)));
    for _ in 0..20 {
        let refused = stranger.put("key", &large);
        assert!(matches!(refused, Err(Error::PermissionDenied { .. })), "{refused:?}");
    }
}

#[test]
fn a_store_that_lies_takes_conditional_writes() {
    let (server, client) = started();
    server.ignore_preconditions(true);
    client.put_as("key", b"first", PutMode::Create).unwrap();
    client.put_as("key", b"second", PutMode::Create).unwrap();
    client.put_as("key", b"third", update(Some("\"stale\"".to_owned()))).unwrap();
    assert_eq!(server.bytes_of("key").unwrap(), "third");
    server.ignore_preconditions(false);
    assert!(client.put_as("key", b"fourth", PutMode::Create).is_err());
}

#[test]
fn requests_that_are_not_signed_well_are_refused() {
    let (server, _) = started();
    let wrong = |builder: object_store::aws::AmazonS3Builder| {
        let refused = Client::built(builder).put("key", b"bytes").unwrap_err();
        assert!(refused.to_string().contains("403"), "{refused}");
        refused.to_string()
    };
    let honest = || builder(server.environment());
    let secret = wrong(honest().with_config(AmazonS3ConfigKey::SecretAccessKey, "wrong"));
    assert!(secret.contains("SignatureDoesNotMatch"), "{secret}");
    wrong(honest().with_config(AmazonS3ConfigKey::AccessKeyId, "nobody"));
    wrong(honest().with_skip_signature(true));
    assert!(server.keys("").is_empty() && server.requests().is_empty());
}

#[test]
fn objects_are_copied_and_deleted() {
    let (server, client) = started();
    server.put("from", "bytes");
    let (from, to) = (Path::from("from"), Path::from("a folder/to"));
    client.wait(client.store.copy(&from, &to)).unwrap();
    assert_eq!(server.bytes_of("a folder/to").unwrap(), "bytes");
    client.wait(client.store.delete(&from)).unwrap();
    assert_eq!(server.keys(""), ["a folder/to"]);
    server.put("from", "bytes");
    server.put("kept", "bytes");
    let all = stream::iter([Ok(from), Ok(to)]).boxed();
    let deleted: Vec<Path> = client.wait(client.store.delete_stream(all).try_collect()).unwrap();
    assert_eq!((deleted.len(), server.keys("")), (2, vec!["kept".to_owned()]));
    assert!(server.requests()["DeleteObjects"] >= 1, "{:?}", server.requests());
}

#[test]
fn of_eight_that_create_a_key_at_once_one_wins() {
    const THREADS: usize = 8;
    const ROUNDS: usize = 50;
    let server = S3Server::start("bucket");
    let start = Barrier::new(THREADS);
    let racer = |racer: usize| {
        let client = Client::of(server.environment());
        let rounds = (0..ROUNDS).map(|round| {
            start.wait();
            let bytes = racer.to_string();
            client.put_as(&format!("round-{round}"), bytes.as_bytes(), PutMode::Create)
        });
        // Judged below: a racer that panics here would leave the others waiting for it.
        rounds.collect::<Vec<_>>()
    };
    let puts: Vec<Vec<_>> = thread::scope(|scope| {
        let racer = &racer;
        let racers = (0..THREADS).map(|number| scope.spawn(move || racer(number)));
        let racers: Vec<_> = racers.collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    });
    let lost = puts.iter().flatten().filter_map(|put| put.as_ref().err());
    lost.for_each(|error| assert!(matches!(error, Error::AlreadyExists { .. }), "{error:?}"));
    (0..ROUNDS).for_each(|round| {
        let won = |racer: &usize| puts[*racer][round].is_ok();
        let winners: Vec<usize> = (0..THREADS).filter(won).collect();
        assert_eq!(winners.len(), 1, "round {round}");
        let stored = server.bytes_of(&format!("round-{round}")).unwrap();
        assert_eq!(stored, winners[0].to_string());
    });
}

#[test]
fn a_dropped_server_answers_no_more() {
    let (server, _) = started();
    let client = Client::without_retries(server.environment());
    client.put("key", b"bytes").unwrap();
    drop(server);
    assert!(client.get("key").is_err());
}
