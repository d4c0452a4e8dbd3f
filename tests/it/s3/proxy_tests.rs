//! Each fault of the proxy does what it says, and the client copes with it or says so.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use object_store::path::Path;
use object_store::{
    ClientOptions, Error, MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, UpdateVersion,
};

use super::client::{Client, builder, retries};
use super::proxy::{Fault, FaultProxy, RequestLine};
use super::server::S3Server;

/// A server, a proxy that makes `fault` of the first `times` such requests for a key, and two
/// clients: one that tries again, and one that does not.
fn started(
    method: &'static str,
    fault: Fault,
    times: usize,
) -> (S3Server, FaultProxy, Client, Client) {
    let server = S3Server::start("bucket");
    let proxy = FaultProxy::start(server.address(), move |line| {
        (line.method == method && line.nth <= times).then_some(fault)
    });
    let patient = Client::of(proxy.environment());
    let hasty = Client::without_retries(proxy.environment());
    (server, proxy, patient, hasty)
}

#[test]
fn without_a_fault_all_passes_through() {
    let server = S3Server::start("bucket");
    let proxy = FaultProxy::start(server.address(), |_| None);
    let client = Client::without_retries(proxy.environment());
    let large = vec![7; 3 << 20];
    for key in ["a/1", "a/b c", "a/3"] {
        client.put(key, &large).unwrap();
        assert!(client.get(key).unwrap() == large);
        assert_eq!(client.head(key).unwrap().size, large.len() as u64);
        assert!(client.put_as(key, &large, PutMode::Create).is_err());
    }
    let listed = client.wait(client.store.list_with_delimiter(None)).unwrap();
    assert_eq!(listed.common_prefixes, [Path::from("a")]);
    client.wait(client.store.delete(&Path::from("a/1"))).unwrap();
    assert_eq!(server.keys(""), ["a/3", "a/b c"]);
    assert!(proxy.faults().is_empty());
    let line = RequestLine {
        method: "GET".to_owned(),
        path: "/bucket/a/b%20c".to_owned(),
        query: String::new(),
        nth: 1,
        total: 6,
    };
    assert_eq!(proxy.requests()[5], line);
}

#[test]
fn a_store_that_is_busy_three_times_is_asked_a_fourth() {
    let (server, proxy, patient, hasty) = started("PUT", Fault::SlowDown, 3);
    let refused = hasty.put("key", b"bytes").unwrap_err();
    assert!(refused.to_string().contains("503"), "{refused}");
    assert!(server.requests().is_empty(), "the store heard nothing");
    patient.put("other", b"bytes").unwrap();
    assert_eq!(proxy.faults()["slow-down"], 4);
    assert_eq!(server.requests()["PutObject"], 1);
}

#[test]
fn a_created_object_whose_answer_is_an_error_exists_already() {
    let (server, proxy, patient, _) = started("PUT", Fault::ErrorAfter, 1);
    let put = patient.put_as("key", b"ours", PutMode::Create);
    assert!(matches!(put, Err(Error::AlreadyExists { .. })), "{put:?}");
    assert_eq!(server.bytes_of("key").unwrap(), "ours");
    assert_eq!((proxy.faults()["error-after"], server.requests()["PutObject"]), (1, 2));
}

#[test]
fn a_created_object_whose_answer_is_lost_exists() {
    let (server, proxy, patient, hasty) = started("PUT", Fault::LoseReply, 1);
    let put = patient.put_as("key", b"ours", PutMode::Create);
    assert!(matches!(put, Err(Error::AlreadyExists { .. })), "{put:?}");
    assert!(hasty.put_as("other", b"ours", PutMode::Create).is_err());
    assert_eq!(server.bytes_of("key").unwrap(), "ours");
    assert_eq!(server.bytes_of("other").unwrap(), "ours");
    assert_eq!(proxy.faults()["lose-reply"], 2);
}

#[test]
fn a_conflict_is_retried_for_an_update_and_given_up_for_a_creation() {
    let (server, proxy, patient, _) = started("PUT", Fault::Conflict, 1);
    let created = patient.put_as("new", b"ours", PutMode::Create);
    assert!(matches!(created, Err(Error::AlreadyExists { .. })), "{created:?}");
    assert!(server.bytes_of("new").is_none(), "the client's word is not true");
    server.put("old", "theirs");
    let e_tag = patient.head("old").unwrap().e_tag;
    let mode = PutMode::Update(UpdateVersion { e_tag, version: None });
    patient.put_as("old", b"ours", mode).unwrap();
    assert_eq!(server.bytes_of("old").unwrap(), "ours");
    assert_eq!(proxy.faults()["conflict"], 2);
}

#[test]
fn a_request_that_hangs_runs_into_the_timeout() {
    let (server, proxy, ..) = started("GET", Fault::Hang(Duration::from_secs(10)), 1);
    let options = ClientOptions::new().with_allow_http(true).with_timeout(Duration::from_secs(1));
    let builder = || builder(proxy.environment()).with_client_options(options.clone());
    let hasty = Client::built(builder().with_retry(retries(0)));
    server.put("key", "bytes");
    server.put("other", "bytes");
    let start = Instant::now();
    assert!(hasty.get("key").is_err());
    assert!(start.elapsed() < Duration::from_secs(9), "the client did not wait for the proxy");
    assert_eq!(Client::built(builder()).get("other").unwrap(), "bytes");
    assert_eq!((proxy.faults()["hang"], server.requests()["GetObject"]), (2, 1));
}

#[test]
fn a_request_that_hangs_is_hung_up_on_in_the_end() {
    let pause = Duration::from_millis(50);
    let (server, _proxy, patient, _) = started("GET", Fault::Hang(pause), 1);
    server.put("key", "bytes");
    let start = Instant::now();
    assert_eq!(patient.get("key").unwrap(), "bytes");
    assert!(start.elapsed() >= pause);
}

#[test]
fn a_body_that_is_cut_is_never_taken_for_the_whole() {
    let (server, proxy, patient, hasty) = started("GET", Fault::CutBody, 1);
    let bytes: Vec<u8> = (0..1 << 20).map(|at: u32| at.to_le_bytes()[1]).collect();
    server.put("key", bytes.clone());
    server.put("other", bytes.clone());
    assert!(hasty.get("key").is_err());
    assert!(patient.get("other").unwrap() == bytes);
    assert_eq!((proxy.faults()["cut-body"], server.requests()["GetObject"]), (2, 3));
}

#[test]
fn an_error_inside_of_a_good_answer_is_an_error() {
    let server = S3Server::start("bucket");
    let proxy = FaultProxy::start(server.address(), |line| {
        let completes = line.method == "POST" && line.query.starts_with("uploadId=");
        (completes && line.nth == 2).then_some(Fault::OkWithError)
    });
    let upload = async |client: &Client, key: &str| {
        let mut upload = client.store.put_multipart(&Path::from(key)).await?;
        upload.put_part("bytes".into()).await?;
        upload.complete().await
    };
    let hasty = Client::without_retries(proxy.environment());
    assert!(hasty.wait(upload(&hasty, "key")).is_err());
    assert!(server.keys("").is_empty(), "the store heard nothing");
    let patient = Client::of(proxy.environment());
    patient.wait(upload(&patient, "other")).unwrap();
    assert_eq!(server.bytes_of("other").unwrap(), "bytes");
    assert_eq!(proxy.faults()["ok-with-error"], 2);
}

#[test]
fn a_delay_is_no_more_than_a_delay() {
    let pause = Duration::from_millis(100);
    let (server, proxy, _, hasty) = started("PUT", Fault::Delay(pause), 1);
    let start = Instant::now();
    hasty.put("key", b"bytes").unwrap();
    assert!(start.elapsed() >= pause);
    assert_eq!(server.bytes_of("key").unwrap(), "bytes");
    assert_eq!(proxy.faults()["delay"], 1);
}

/// Sends `request` through a proxy to a peer that gives `answer`; returns what each of them got.
fn through(request: &[u8], answer: &'static [u8]) -> (Vec<u8>, Vec<u8>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let proxy = FaultProxy::start(listener.local_addr().unwrap(), |_| None);
    let length = request.len();
    let peer = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut heard = vec![0; length];
        stream.read_exact(&mut heard).unwrap();
        stream.write_all(answer).unwrap();
        heard
    });
    let mut client = TcpStream::connect(proxy.endpoint().trim_start_matches("http://")).unwrap();
    client.write_all(request).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    (peer.join().unwrap(), got)
}

#[test]
fn chunks_pass_with_their_framing_and_the_host_unchanged() {
    let request = b"PUT /bucket/key?partNumber=1 HTTP/1.1\r\nHost: elsewhere:80\r\n\
        Transfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nTrailer: yes\r\n\r\n";
    let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nyes\r\n0\r\n\r\n";
    assert_eq!(through(request, answer), (request.to_vec(), answer.to_vec()));
    let endless = b"HTTP/1.0 200 OK\r\n\r\nuntil the end";
    let request = b"GET /bucket/key HTTP/1.1\r\nHost: elsewhere:80\r\n\r\n";
    assert_eq!(through(request, endless), (request.to_vec(), endless.to_vec()));
}
