//! An HTTP/1.1 proxy on loopback that makes the faults of a network and of a busy store.
//!
//! Bytes pass through as they are, the `Host` header too, so that signatures stay valid.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::server::environment;

/// What happens to a request instead of being passed on and answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// The store does it, and the connection drops before the answer.
    LoseReply,
    /// The store does it, and the answer is 500.
    ErrorAfter,
    /// 503, and the store hears nothing.
    SlowDown,
    /// 409, and the store hears nothing.
    Conflict,
    /// 400 as for a token that has expired, and the store hears nothing.
    Expired,
    /// 403, and the store hears nothing.
    Denied,
    /// Nothing for so long, then the connection drops; the store hears nothing.
    Hang(Duration),
    /// The answer stops in the middle of its body, and the connection drops.
    CutBody,
    /// 200 with an error inside, as CompleteMultipartUpload may do; the store hears nothing.
    OkWithError,
    /// Passed on, so much later.
    Delay(Duration),
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::LoseReply => "lose-reply",
            Self::ErrorAfter => "error-after",
            Self::SlowDown => "slow-down",
            Self::Conflict => "conflict",
            Self::Expired => "expired",
            Self::Denied => "denied",
            Self::Hang(_) => "hang",
            Self::CutBody => "cut-body",
            Self::OkWithError => "ok-with-error",
            Self::Delay(_) => "delay",
        }
    }
}

/// What a rule knows of a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RequestLine {
    pub(crate) method: String,
    /// As it was sent, with its percent signs.
    pub(crate) path: String,
    /// What follows the question mark, empty when there is none.
    pub(crate) query: String,
    /// Which request of this method and path it is, from 1.
    pub(crate) nth: usize,
    /// Which request of all it is, from 1.
    pub(crate) total: usize,
}

type Rule = Box<dyn Fn(&RequestLine) -> Option<Fault> + Send + Sync>;

struct Shared {
    upstream: SocketAddr,
    rule: Rule,
    requests: Mutex<Vec<RequestLine>>,
    faults: Mutex<BTreeMap<&'static str, u64>>,
    connections: Mutex<Vec<TcpStream>>,
    stopped: AtomicBool,
}

/// A proxy that runs on threads of its own until it is dropped.
pub(crate) struct FaultProxy {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl FaultProxy {
    /// Starts a proxy on a free port; `rule` says for each request which fault it meets, if any.
    pub(crate) fn start(
        upstream: SocketAddr,
        rule: impl Fn(&RequestLine) -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            upstream,
            rule: Box::new(rule),
            requests: Mutex::default(),
            faults: Mutex::default(),
            connections: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = shared.clone();
        thread::spawn(move || accept(&listener, &accepting));
        Self { shared, address }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The variables with which a client comes to this proxy; [`environment`] says which.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        environment(&self.endpoint())
    }

    /// How many faults were made, by the name of the kind, as `lose-reply`.
    pub(crate) fn faults(&self) -> BTreeMap<&'static str, u64> {
        self.shared.faults.lock().unwrap().clone()
    }

    /// All requests so far, in the order in which they came.
    pub(crate) fn requests(&self) -> Vec<RequestLine> {
        self.shared.requests.lock().unwrap().clone()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts, so that it sees the word to stop.
        TcpStream::connect(self.address).ok();
        for connection in self.shared.connections.lock().unwrap().iter() {
            connection.shutdown(Shutdown::Both).ok();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stopped.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let Ok(kept) = stream.try_clone() else { continue };
        shared.connections.lock().unwrap().push(kept);
        let shared = shared.clone();
        thread::spawn(move || {
            // A client that hangs up is no failure of the proxy.
            serve(&stream, &shared).ok();
            // The clone kept for stopping would hold the connection open.
            stream.shutdown(Shutdown::Both).ok();
        });
    }
}

/// The head of a request or an answer: all bytes up to the empty line, and that line too.
struct Head(Vec<u8>);

impl Head {
    /// The next head, or `None` when the other side is done.
    fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut bytes = Vec::new();
        loop {
            if from.read_until(b'\n', &mut bytes)? == 0 {
                return Ok(None);
            }
            if bytes.ends_with(b"\r\n\r\n") {
                return Ok(Some(Self(bytes)));
            }
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }

    fn header(&self, name: &str) -> Option<String> {
        let text = self.text();
        let mut headers = text.lines().skip(1).filter_map(|line| line.split_once(':'));
        let found = headers.find(|(header, _)| header.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim().to_owned())
    }

    fn is_chunked(&self) -> bool {
        self.header("transfer-encoding").is_some_and(|coding| coding.contains("chunked"))
    }

    fn content_length(&self) -> Option<u64> {
        self.header("content-length").and_then(|length| length.parse().ok())
    }

    /// The second word of the first line: a target, or a status.
    fn second_word(&self) -> String {
        self.text().split_whitespace().nth(1).unwrap_or_default().to_owned()
    }
}

/// Reads so many bytes, all of them or an error.
fn read_exactly(from: &mut impl Read, length: u64, into: &mut Vec<u8>) -> io::Result<()> {
    let read = from.take(length).read_to_end(into)?;
    if read as u64 == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Reads a chunked body with its framing, which is passed on as it is.
fn read_chunks(from: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut raw = Vec::new();
    loop {
        let start = raw.len();
        from.read_until(b'\n', &mut raw)?;
        let line = String::from_utf8_lossy(&raw[start..]).into_owned();
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(size, 16).map_err(io::Error::other)?;
        if size == 0 {
            break;
        }
        read_exactly(from, size + 2, &mut raw)?;
    }
    // Trailers, if any, up to an empty line.
    loop {
        let start = raw.len();
        from.read_until(b'\n', &mut raw)?;
        if raw[start..].len() <= 2 {
            return Ok(raw);
        }
    }
}

fn request_body(head: &Head, from: &mut impl BufRead) -> io::Result<Vec<u8>> {
    if head.is_chunked() {
        return read_chunks(from);
    }
    let mut body = Vec::new();
    read_exactly(from, head.content_length().unwrap_or(0), &mut body)?;
    Ok(body)
}

fn answer_body(method: &str, head: &Head, from: &mut impl BufRead) -> io::Result<Vec<u8>> {
    if method == "HEAD" || ["204", "304"].contains(&head.second_word().as_str()) {
        return Ok(Vec::new());
    }
    if head.is_chunked() {
        return read_chunks(from);
    }
    let mut body = Vec::new();
    match head.content_length() {
        Some(length) => read_exactly(from, length, &mut body)?,
        None => drop(from.read_to_end(&mut body)?),
    }
    Ok(body)
}

/// One whole request, as bytes and as a rule sees it.
struct Exchange {
    line: RequestLine,
    head: Head,
    body: Vec<u8>,
}

impl Exchange {
    /// Asks the store over a connection of its own, which no earlier fault can have spoiled.
    fn forward(&self, shared: &Shared) -> io::Result<(Head, Vec<u8>)> {
        let mut store = TcpStream::connect(shared.upstream)?;
        store.set_nodelay(true)?;
        store.write_all(&self.head.0)?;
        store.write_all(&self.body)?;
        let mut store = BufReader::new(store);
        let head = Head::read(&mut store)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let body = answer_body(&self.line.method, &head, &mut store)?;
        Ok((head, body))
    }

    /// An answer with an error in XML as its body, which HEAD goes without.
    fn refusal(&self, status: &str, code: &str) -> Vec<u8> {
        let xml = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>");
        let length = xml.len();
        let xml = if self.line.method == "HEAD" { "" } else { xml.as_str() };
        let kind = "Content-Type: application/xml";
        let head = format!("HTTP/1.1 {status}\r\n{kind}\r\nContent-Length: {length}\r\n\r\n");
        format!("{head}{xml}").into_bytes()
    }
}

/// Notes a request and names it for the rule.
fn note(shared: &Shared, head: &Head) -> RequestLine {
    let method = head.text().split_whitespace().next().unwrap_or_default().to_owned();
    let target = head.second_word();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut requests = shared.requests.lock().unwrap();
    let same = requests.iter().filter(|line| line.method == method && line.path == path).count();
    let line = RequestLine {
        path: path.to_owned(),
        query: query.to_owned(),
        nth: same + 1,
        total: requests.len() + 1,
        method,
    };
    requests.push(line.clone());
    line
}

/// Serves the requests of one connection, until the client or a fault ends it.
fn serve(client: &TcpStream, shared: &Shared) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut reader = BufReader::new(client);
    while let Some(head) = Head::read(&mut reader)? {
        let body = request_body(&head, &mut reader)?;
        let exchange = Exchange { line: note(shared, &head), head, body };
        let fault = (shared.rule)(&exchange.line);
        if let Some(fault) = fault {
            *shared.faults.lock().unwrap().entry(fault.name()).or_default() += 1;
        }
        match answer(&exchange, fault, shared)? {
            Reply::Whole(bytes) => (&mut &*client).write_all(&bytes)?,
            Reply::Last(bytes) => return (&mut &*client).write_all(&bytes),
        }
    }
    Ok(())
}

/// What the client gets: an answer, or so many bytes and the end of the connection.
enum Reply {
    Whole(Vec<u8>),
    Last(Vec<u8>),
}

/// What a fault answers without a word to the store; `None` when the store is to be asked.
fn without_the_store(exchange: &Exchange, fault: Fault) -> Option<Reply> {
    let (status, code) = match fault {
        Fault::SlowDown => ("503 Slow Down", "SlowDown"),
        Fault::Conflict => ("409 Conflict", "ConditionalRequestConflict"),
        Fault::Expired => ("400 Bad Request", "ExpiredToken"),
        Fault::Denied => ("403 Forbidden", "AccessDenied"),
        Fault::OkWithError => ("200 OK", "InternalError"),
        Fault::Hang(pause) => {
            thread::sleep(pause);
            return Some(Reply::Last(Vec::new()));
        }
        Fault::Delay(pause) => {
            thread::sleep(pause);
            return None;
        }
        Fault::LoseReply | Fault::ErrorAfter | Fault::CutBody => return None,
    };
    Some(Reply::Whole(exchange.refusal(status, code)))
}

fn answer(exchange: &Exchange, fault: Option<Fault>, shared: &Shared) -> io::Result<Reply> {
    if let Some(reply) = fault.and_then(|fault| without_the_store(exchange, fault)) {
        return Ok(reply);
    }
    let (head, body) = exchange.forward(shared)?;
    let has_no_end = !head.is_chunked() && head.content_length().is_none();
    let whole = || [head.0.as_slice(), &body].concat();
    Ok(match fault {
        Some(Fault::LoseReply) => Reply::Last(Vec::new()),
        Some(Fault::ErrorAfter) => {
            Reply::Whole(exchange.refusal("500 Internal Server Error", "InternalError"))
        }
        Some(Fault::CutBody) => Reply::Last([&head.0, &body[..body.len() / 2]].concat()),
        _ if has_no_end && !body.is_empty() => Reply::Last(whole()),
        _ => Reply::Whole(whole()),
    })
}
