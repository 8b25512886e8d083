//! A server over the pipes of a child process: an id map behind `RpcServiceT`.
//!
//! jsonrpsee's own background client ends the whole connection at an empty line, a line that is no JSON, or an answer
//! with an unknown id, and real servers write all of these; here they are counted and dropped.

use std::future::{Future, ready};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use jsonrpsee::core::middleware::{Batch, Notification, RpcServiceT};
use jsonrpsee::types::{Id, Request};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::MAX_MESSAGE;
use super::child::{self, Group, LastWords, Started};
use super::error::McpError;
use super::inbox::Inbox;
use super::pending::Pending;
use super::service::{Flight, NoBatches};
use super::wire::{self, Incoming};
use crate::config::McpServerConfig;

/// Messages that wait for the pipe; who sends more waits too.
const QUEUE: usize = 64;
/// How long a child that closed its stdout may take to say why it ended.
const STATUS_GRACE: Duration = Duration::from_millis(500);

/// The transport. Its last clone kills the process group when it is dropped.
#[derive(Clone)]
pub(super) struct StdioService {
    shared: Arc<Shared>,
    group: Arc<GroupGuard>,
}

/// Kills the group with the last handle. The supervising task holds the group too, so its own drop comes later.
struct GroupGuard {
    group: Arc<Group>,
    stop: CancellationToken,
}

impl Drop for GroupGuard {
    fn drop(&mut self) {
        self.stop.cancel();
        self.group.kill();
    }
}

/// What the handles and the tasks of one child share.
struct Shared {
    inbox: Arc<Inbox>,
    outgoing: mpsc::Sender<Outgoing>,
    pending: Arc<Pending>,
    /// Asks the child to end.
    stop: CancellationToken,
    /// Fires once nothing of the child is left.
    finished: CancellationToken,
}

/// A line for the child.
struct Outgoing {
    line: String,
    /// The request it belongs to: not written if that is gone by then.
    id: Option<u64>,
}

impl StdioService {
    /// Starts the server.
    pub(super) fn spawn(program: &str, config: &McpServerConfig, inbox: Arc<Inbox>) -> Result<Self, McpError> {
        let Started { child, group, stdin, stdout, stderr } = child::start(inbox.server(), program, config)?;
        let (outgoing, queue) = mpsc::channel(QUEUE);
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            pending: Pending::new(Arc::clone(&inbox)),
            inbox,
            outgoing,
            stop: stop.clone(),
            finished: CancellationToken::new(),
        });
        let last_words = Arc::new(LastWords::default());
        let stderr =
            tokio::spawn(child::read_stderr(Arc::clone(shared.inbox.server()), stderr, Arc::clone(&last_words)));
        tokio::spawn(write(Arc::clone(&shared), stdin, queue));
        let reader = tokio::spawn(read(Arc::clone(&shared), stdout));
        let supervisor = Supervisor { shared: Arc::clone(&shared), group: Arc::clone(&group), reader, stderr };
        let config = config.clone();
        tokio::spawn(supervisor.run(child, move || last_words.line(&config)));
        Ok(Self { shared, group: Arc::new(GroupGuard { group, stop }) })
    }

    /// Closes stdin, waits, asks, kills; returns when nothing of the child is left.
    pub(super) async fn close(&self) {
        self.shared.inbox.closed().cancel();
        self.shared.stop.cancel();
        if timeout(child::END_LIMIT + STATUS_GRACE * 2, self.shared.finished.cancelled()).await.is_err() {
            tracing::warn!(mcp.server = %self.shared.inbox.server(), "process of the server could not be ended");
        }
    }

    /// Kills the process group at once.
    pub(super) fn kill(&self) {
        self.shared.stop.cancel();
        self.group.group.kill();
    }
}

impl RpcServiceT for StdioService {
    type MethodResponse = Result<Box<RawValue>, McpError>;
    type NotificationResponse = Result<(), McpError>;
    type BatchResponse = NoBatches;

    fn call<'a>(&self, request: Request<'a>) -> impl Future<Output = Self::MethodResponse> + Send + 'a {
        let shared = Arc::clone(&self.shared);
        async move {
            let Id::Number(id) = request.id else {
                return Err(shared.closed_error("the request has no number", false));
            };
            let flight = Flight::of(&request);
            let line = shared.line(&request)?;
            let expected = shared.pending.expect(id, &flight)?;
            if shared.stop.is_cancelled() {
                return Err(shared.closed_error("it was closed here", false));
            }
            shared.send(Outgoing { line, id: Some(id) }).await?;
            expected.answer().await
        }
    }

    fn batch<'a>(&self, _: Batch<'a>) -> impl Future<Output = Self::BatchResponse> + Send + 'a {
        ready(NoBatches)
    }

    fn notification<'a>(&self, n: Notification<'a>) -> impl Future<Output = Self::NotificationResponse> + Send + 'a {
        let shared = Arc::clone(&self.shared);
        async move {
            let line = shared.line(&n)?;
            shared.send(Outgoing { line, id: None }).await
        }
    }
}

impl Shared {
    fn line(&self, message: &impl Serialize) -> Result<String, McpError> {
        let mut line = serde_json::to_string(message).expect("messages serialise");
        if line.len() >= MAX_MESSAGE {
            let problem = format!("the request is over the limit of {MAX_MESSAGE} bytes");
            return Err(McpError::Misconfigured { server: Arc::clone(self.inbox.server()), problem });
        }
        line.push('\n');
        Ok(line)
    }

    async fn send(&self, outgoing: Outgoing) -> Result<(), McpError> {
        // The channel itself stays open as long as this value lives, so its end is watched beside it.
        tokio::select! {
            sent = self.outgoing.send(outgoing) => sent.map_err(|_| self.closed_error("", false)),
            () = self.finished.cancelled() => Err(self.closed_error("", false)),
        }
    }

    fn closed_error(&self, cause: &str, may_have_run: bool) -> McpError {
        McpError::Closed { server: Arc::clone(self.inbox.server()), cause: cause.to_owned(), may_have_run }
    }

    fn receive(&self, message: Incoming) {
        match message {
            Incoming::Answer { id, outcome } => {
                let answer = outcome.map_err(|fault| fault.to_error(Arc::clone(self.inbox.server()), None));
                if !id.is_some_and(|id| self.pending.answer(id, answer)) {
                    self.inbox.noise("answer to nothing that is pending");
                }
            }
            Incoming::Notification { method, progress } => self.inbox.notification(&method, progress),
            Incoming::Request { id, method, params } => {
                // What nobody here answers is declined at once, so only few of these ever wait.
                let (inbox, outgoing) = (Arc::clone(&self.inbox), self.outgoing.clone());
                let answer = async move {
                    let line = inbox.answer(&id, &method, &params).await + "\n";
                    if outgoing.try_send(Outgoing { line, id: None }).is_err() {
                        inbox.noise("request of the server while the pipe is full");
                    }
                };
                match self.inbox.answers() {
                    Some(_) => drop(tokio::spawn(answer)),
                    None => answer.now_or_never().unwrap_or_default(),
                }
            }
        }
    }

    /// A line over the limit: the request it answers fails, or all of them if that cannot be told.
    fn too_large(&self, head: &[u8], tail: &[u8]) {
        self.inbox.noise("line over the limit");
        let error =
            || McpError::TooLarge { server: Arc::clone(self.inbox.server()), what: "an answer", limit: MAX_MESSAGE };
        match id_in_fragments(head, tail) {
            Some(id) => drop(self.pending.answer(id, Err(error()))),
            None => self.pending.fail_all(|_| error()),
        }
    }
}

/// Writes lines to the child until it is told to stop or the pipe breaks; then stdin closes.
async fn write(shared: Arc<Shared>, mut stdin: ChildStdin, mut queue: mpsc::Receiver<Outgoing>) {
    loop {
        let outgoing = tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            outgoing = queue.recv() => outgoing,
        };
        let Some(outgoing) = outgoing else { return };
        if let Some(id) = outgoing.id {
            match shared.pending.flight(id) {
                Some(flight) => flight.leave(),
                None => continue,
            }
        }
        let written = tokio::select! {
            () = shared.stop.cancelled() => return,
            written = stdin.write_all(outgoing.line.as_bytes()) => written,
        };
        if written.is_err() {
            // Why it broke is told by the end of the process.
            return shared.stop.cancel();
        }
    }
}

/// Reads lines of the child until its stdout ends.
async fn read(shared: Arc<Shared>, stdout: ChildStdout) {
    let mut stdout = BufReader::with_capacity(64 * 1024, stdout);
    let mut line = Vec::new();
    loop {
        match read_line(&mut stdout, &mut line, MAX_MESSAGE).await {
            Line::End => return,
            Line::TooLong { tail } => shared.too_large(&line, &tail),
            Line::Whole => {
                let messages = std::str::from_utf8(&line).ok().and_then(wire::parse);
                match messages {
                    Some(messages) => messages.into_iter().for_each(|message| shared.receive(message)),
                    None if line.iter().all(u8::is_ascii_whitespace) => shared.inbox.noise("empty line"),
                    None => shared.inbox.noise("line that is no message"),
                }
            }
        }
        // A large line is not held on to until the next large one comes.
        line.shrink_to(64 * 1024);
    }
}

/// Sees the child to its end, whoever ends it.
struct Supervisor {
    shared: Arc<Shared>,
    group: Arc<Group>,
    reader: JoinHandle<()>,
    stderr: JoinHandle<()>,
}

impl Supervisor {
    async fn run(mut self, mut child: Child, last_words: impl Fn() -> String) {
        let status = tokio::select! {
            status = child.wait() => {
                child::ended(&self.group);
                status.ok()
            }
            () = self.shared.stop.cancelled() => child::end(&mut child, &self.group).await,
            _ = &mut self.reader => self.deaf(&mut child).await,
        };
        // What the child wrote before it ended still counts. A pipe that somebody else holds open does not hold us.
        if !self.reader.is_finished() && timeout(STATUS_GRACE, &mut self.reader).await.is_err() {
            self.reader.abort();
        }
        if timeout(STATUS_GRACE, &mut self.stderr).await.is_err() {
            self.stderr.abort();
        }
        let last_words = if self.shared.pending.answered() { String::new() } else { last_words() };
        self.shared.pending.close(&describe(status, &last_words));
        self.shared.stop.cancel();
        self.shared.finished.cancel();
    }

    /// The child's stdout ended. Most likely the child did too; if not, it cannot answer any more and has to go.
    async fn deaf(&self, child: &mut Child) -> Option<ExitStatus> {
        if let Ok(status) = timeout(STATUS_GRACE, child.wait()).await {
            child::ended(&self.group);
            return status.ok();
        }
        self.shared.pending.close("its process closed its output");
        self.shared.stop.cancel();
        child::end(child, &self.group).await
    }
}

fn describe(status: Option<ExitStatus>, last_words: &str) -> String {
    let status =
        status.map_or_else(|| String::from("its process ended"), |status| format!("its process ended with {status}"));
    if last_words.is_empty() { status } else { format!("{status}, its last words: {last_words}") }
}

/// What was read into the line.
enum Line {
    /// A line, without its end.
    Whole,
    /// A line over the limit: its beginning is in the line, its last bytes are here.
    TooLong { tail: Vec<u8> },
    /// Nothing follows.
    End,
}

/// Bytes that are kept of the end of a line over the limit.
const TAIL: usize = 100;

/// Reads one line, of which at most `limit` bytes are held.
async fn read_line(reader: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>, limit: usize) -> Line {
    line.clear();
    let mut tail = Vec::new();
    let mut too_long = false;
    loop {
        let Ok(bytes) = reader.fill_buf().await else { return Line::End };
        if bytes.is_empty() {
            // A last line without its end was cut off.
            return Line::End;
        }
        let end = memchr::memchr(b'\n', bytes);
        let part = &bytes[..end.unwrap_or(bytes.len())];
        if line.len() + part.len() <= limit && !too_long {
            line.extend_from_slice(part);
        } else {
            if !too_long {
                // The beginning is enough to find an id; the rest of a huge line is not held for it.
                tail.extend_from_slice(&line[line.len().saturating_sub(TAIL)..]);
                line.truncate(TAIL);
                line.shrink_to(TAIL);
            }
            too_long = true;
            tail.extend_from_slice(&part[part.len().saturating_sub(TAIL)..]);
            let surplus = tail.len().saturating_sub(TAIL);
            tail.drain(..surplus);
        }
        let used = part.len() + usize::from(end.is_some());
        reader.consume(used);
        if end.is_some() {
            return if too_long { Line::TooLong { tail } } else { Line::Whole };
        }
    }
}

/// The id of an answer of which only the first and the last bytes are known: SDKs write it first or last.
fn id_in_fragments(head: &[u8], tail: &[u8]) -> Option<u64> {
    let compact = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        text.chars().filter(|c| !c.is_ascii_whitespace()).collect::<String>()
    };
    let (head, tail) = (compact(head), compact(tail));
    let first = head.strip_prefix(r#"{"jsonrpc":"2.0","id":"#).or_else(|| head.strip_prefix(r#"{"id":"#));
    if let Some((id, _)) = first.and_then(|rest| rest.split_once(',')) {
        return id.parse().ok();
    }
    let tail = tail.strip_suffix(r#","jsonrpc":"2.0"}"#).or_else(|| tail.strip_suffix('}'))?;
    tail.rsplit_once(r#","id":"#)?.1.parse().ok()
}

/// Reads output as a child writes it; no line that is held is longer than the limit.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    const LIMIT: usize = 300;
    let mut reader = BufReader::with_capacity(7, bytes);
    let mut line = Vec::new();
    loop {
        match read_line(&mut reader, &mut line, LIMIT).now_or_never().expect("all of it is there") {
            Line::Whole => {
                assert!(line.len() <= LIMIT);
                let _ = std::str::from_utf8(&line).ok().and_then(wire::parse);
            }
            Line::TooLong { tail } => {
                assert!(line.len() <= TAIL && tail.len() <= TAIL);
                let _ = id_in_fragments(&line, &tail);
            }
            Line::End => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(text: &[u8], limit: usize) -> Vec<String> {
        // A small buffer, so that every line comes in pieces.
        let mut reader = BufReader::with_capacity(3, text);
        let mut line = Vec::new();
        let mut lines = Vec::new();
        loop {
            match read_line(&mut reader, &mut line, limit).await {
                Line::Whole => lines.push(String::from_utf8_lossy(&line).into_owned()),
                Line::TooLong { tail } => {
                    lines.push(format!("…{}", String::from_utf8_lossy(&tail)));
                }
                Line::End => return lines,
            }
        }
    }

    #[tokio::test]
    async fn a_line_over_the_limit_costs_only_itself() {
        let text = [b"one\n\n".as_slice(), &[b'x'; 500], b"end\n", b"two\ncut off"].concat();
        let expected = format!("…{}end", "x".repeat(97));
        assert_eq!(lines(&text, 200).await, ["one", "", &expected, "two"]);
        assert_eq!(lines(b"123\n1234\n", 3).await, ["123", "…1234"]);
    }

    #[test]
    fn the_id_of_a_huge_answer_is_found_at_its_beginning_or_its_end() {
        let found = |head: &str, tail: &str| id_in_fragments(head.as_bytes(), tail.as_bytes());
        assert_eq!(found(r#"{"jsonrpc": "2.0", "id": 12, "result":{"#, "xxx"), Some(12));
        assert_eq!(found(r#"{"result":{"content":["#, r#"aaa"}]},"jsonrpc":"2.0","id":7}"#), Some(7));
        assert_eq!(found(r#"{"result":{"content":["#, r#"aaa"}]},"id":7,"jsonrpc":"2.0"}"#), Some(7));
        assert_eq!(found(r#"{"result":{"content":["#, r#"{"a":1,"id":5}}"#), None, "an id inside of the result");
        assert_eq!(found("garbage", "garbage"), None);
    }
}
