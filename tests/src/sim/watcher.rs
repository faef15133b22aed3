//! A watcher: follows one job from wherever its cursor says, at any node, quickly or slowly; its
//! stream may break, and it may leave and come back.

use conclave_proto::v1::{WatchJobResponse, watch_job_response::Update};

use super::cx::{Addr, Cx, Event, Wire};

/// A stream that says nothing for so long is given up, ms.
const PATIENCE_MS: u64 = 5_000;

/// One watcher of one job.
pub(super) struct Watcher {
    number: u32,
    job_id: String,
    cursor: Vec<u8>,
    stream: Option<(u64, u64)>,
    /// When it last heard something.
    heard: u64,
    /// How long it takes to read an update, ms; at most.
    slowness: u64,
    /// Updates that came, and when it will have read the last of them.
    reads_until: u64,
    over: bool,
}

impl Watcher {
    pub(super) fn new(number: u32, job_id: &str, cx: &mut Cx) -> Watcher {
        let slow = cx.rng.below(4) == 0;
        Watcher {
            number,
            job_id: job_id.to_owned(),
            cursor: Vec::new(),
            stream: None,
            heard: 0,
            slowness: if slow { 900 } else { 20 },
            reads_until: 0,
            over: false,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    pub(super) fn describe(&self) -> String {
        let Watcher {
            number,
            job_id,
            stream,
            ..
        } = self;
        let reads = match stream {
            Some((_, node)) => format!("is told by {}", Addr::Node(*node)),
            None => "has no stream".to_owned(),
        };
        format!("watcher {number} of job {job_id} {reads}")
    }

    fn addr(&self) -> Addr {
        Addr::Watcher(self.number)
    }

    /// Time passed: opens a stream, or gives a silent one up, or leaves for no reason.
    pub(super) fn wake(&mut self, nodes: &[u64], calm: bool, cx: &mut Cx) {
        if self.over {
            return;
        }
        let pause = cx.rng.between(200, 1_500);
        cx.after(pause, Event::Watcher(self.number));
        if let Some((stream, node)) = self.stream {
            let silent = cx.now >= self.heard.max(self.reads_until) + PATIENCE_MS;
            let leaves = !calm && cx.rng.below(24) == 0;
            if silent || leaves {
                if leaves {
                    cx.coverage.hit("deeds", "a watcher left and came back");
                }
                cx.cut(stream, self.addr(), Addr::Node(node));
                self.stream = None;
            }
            return;
        }
        let Some(node) = cx.rng.pick(nodes) else {
            return;
        };
        let stream = cx.number();
        self.stream = Some((stream, node));
        self.heard = cx.now;
        let ask = Wire::Watch(stream, self.job_id.clone(), self.cursor.clone());
        cx.send(self.addr(), Addr::Node(node), ask);
    }

    /// The stream ended.
    pub(super) fn lost(&mut self, stream: u64) {
        self.stream.take_if(|(open, _)| *open == stream);
    }

    /// An update came on the stream.
    pub(super) fn told(&mut self, stream: u64, update: WatchJobResponse, cx: &mut Cx) {
        let Some((_, node)) = self.stream.filter(|(open, _)| *open == stream) else {
            return;
        };
        self.heard = cx.now;
        let known = self.cursor.is_empty();
        self.cursor = update.cursor;
        if let Some(update) = update.update {
            cx.ledger.watched(self.number, &self.job_id, &update);
            self.over = matches!(update, Update::Done(_));
            if self.over {
                cx.coverage.hit("deeds", "a watch came to its job's end");
            } else if !known && matches!(update, Update::Reset(_)) {
                cx.coverage.hit("deeds", "a watcher's text begun anew");
            }
        }
        let takes = cx.rng.below(self.slowness + 1);
        self.reads_until = self.reads_until.max(cx.now) + takes;
        let read = Event::ReadUpdate(self.number, stream, node);
        cx.after(self.reads_until - cx.now, read);
    }

    /// It has read an update: the node may send one more.
    pub(super) fn read(&mut self, stream: u64, node: u64, cx: &mut Cx) {
        if self.stream == Some((stream, node)) {
            cx.send(self.addr(), Addr::Node(node), Wire::Read(stream));
        }
    }

    /// The job is not there: it has expired.
    pub(super) fn no_job(&mut self, stream: u64, cx: &mut Cx) {
        if self.stream.is_some_and(|(open, _)| open == stream) {
            cx.ledger.missing(&self.job_id);
            self.over = true;
        }
    }
}
