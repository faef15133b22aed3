//! `WatchJob` on a coordinator: text from the leader's feeds, events from the state, both behind the
//! watcher's cursor; another node passes the leader's stream on. In the order of the shell's
//! `api/watch.rs` and `feed.rs`, whose pure half is the core's [`Texts`].

use std::collections::BTreeMap;

use conclave_coordinator_core::{
    lead::Leader,
    view,
    watch::{Cursor, Pushed, Texts},
};
use conclave_proto::v1::{
    AttemptKey, Progress, Resend, WatchJobResponse, coordinator_message::Message as ToWorker,
    watch_job_response::Update,
};

use super::{
    coordinator::Coordinator,
    cx::{Addr, Cx, Wire},
    waiters::Wanted,
};

/// Updates on their way to one watcher.
const WINDOW: usize = 16;
/// Events sent between two looks at the text.
const PAGE: usize = 4;

/// A watcher's stream.
#[derive(Debug)]
pub(super) struct Watching {
    peer: Addr,
    job_id: String,
    cursor: Cursor,
    /// Sent and not read yet.
    unread: usize,
    /// The job was seen, by a linearizable read.
    seen: bool,
    /// Where the leader's stream comes from, if another node leads.
    upstream: Option<(u64, u64)>,
}

/// Streams by number, and the text of live jobs.
#[derive(Debug, Default)]
pub(super) struct Watches {
    streams: BTreeMap<u64, Watching>,
    /// Of a leader's stream that is passed on: whose it is.
    relays: BTreeMap<u64, u64>,
    feeds: BTreeMap<String, Texts>,
}

impl Watches {
    /// Streams, and jobs whose text is kept.
    pub(super) fn held(&self) -> (usize, usize) {
        (self.streams.len() + self.relays.len(), self.feeds.len())
    }

    /// Streams of other nodes that are passed on, and whose they are.
    pub(super) fn upstreams(&self) -> impl Iterator<Item = (u64, u64)> {
        self.streams.values().filter_map(|w| w.upstream)
    }

    pub(super) fn streams(&self) -> impl Iterator<Item = (u64, Addr)> {
        self.streams.iter().map(|(id, w)| (*id, w.peer))
    }
}

impl Coordinator {
    fn serves(&self) -> bool {
        self.leader.as_ref().is_some_and(Leader::serving)
    }

    /// A watcher opens a stream behind its cursor.
    pub(super) fn watch(
        &mut self,
        stream: u64,
        peer: Addr,
        job_id: String,
        cursor: &[u8],
        cx: &mut Cx,
    ) {
        let Ok(cursor) = Cursor::decode(cursor) else {
            return cx.send(self.addr(), peer, Wire::Close(stream));
        };
        let watching = Watching {
            peer,
            job_id: job_id.clone(),
            cursor,
            unread: 0,
            seen: false,
            upstream: None,
        };
        self.watches.streams.insert(stream, watching);
        if self.serves() {
            return self.read(Wanted::Watch(stream), cx);
        }
        let leader = self.leadership.leader_id;
        // One relay is enough: a relay that is asked by another sends it elsewhere.
        if leader == 0 || leader == self.id || matches!(peer, Addr::Node(_)) {
            return self.end_watch(stream, cx);
        }
        let upstream = cx.number();
        let ask = Wire::Watch(
            upstream,
            job_id,
            self.watches.streams[&stream].cursor.encode(),
        );
        if let Some(watching) = self.watches.streams.get_mut(&stream) {
            watching.upstream = Some((upstream, leader));
        }
        self.watches.relays.insert(upstream, stream);
        cx.coverage.hit("deeds", "a watch passed on");
        cx.send(self.addr(), Addr::Node(leader), ask);
    }

    /// A read point was confirmed for the watcher: is its job there?
    pub(super) fn watch_confirmed(&mut self, stream: u64, cx: &mut Cx) {
        let Some(watching) = self.watches.streams.get_mut(&stream) else {
            return;
        };
        watching.seen = true;
        if self.state.job(&watching.job_id).is_none() {
            let peer = watching.peer;
            cx.send(self.addr(), peer, Wire::NoJob(stream));
            return self.end_watch(stream, cx);
        }
        self.pump(stream, cx);
    }

    /// The leader's stream says something: it is passed on.
    pub(super) fn passed_on(&mut self, upstream: u64, wire: Wire, cx: &mut Cx) {
        let Some(stream) = self.watches.relays.get(&upstream).copied() else {
            return;
        };
        let Some(peer) = self.watches.streams.get(&stream).map(|w| w.peer) else {
            return;
        };
        match wire {
            Wire::Update(_, update) => {
                let done = matches!(update.update, Some(Update::Done(_)));
                cx.send(self.addr(), peer, Wire::Update(stream, update));
                if done {
                    self.end_watch(stream, cx);
                }
            }
            Wire::NoJob(_) => {
                cx.send(self.addr(), peer, Wire::NoJob(stream));
                self.end_watch(stream, cx);
            }
            _ => {}
        }
    }

    /// The watcher has read one update more.
    pub(super) fn watch_read(&mut self, stream: u64, cx: &mut Cx) {
        let Some(watching) = self.watches.streams.get_mut(&stream) else {
            return;
        };
        if let Some((upstream, leader)) = watching.upstream {
            return cx.send(self.addr(), Addr::Node(leader), Wire::Read(upstream));
        }
        watching.unread = watching.unread.saturating_sub(1);
        self.pump(stream, cx);
    }

    /// A stream is gone, or is to go.
    pub(super) fn end_watch(&mut self, stream: u64, cx: &mut Cx) {
        if let Some(below) = self.watches.relays.remove(&stream) {
            return self.end_watch(below, cx);
        }
        let Some(watching) = self.watches.streams.remove(&stream) else {
            return;
        };
        cx.send(self.addr(), watching.peer, Wire::Close(stream));
        if let Some((upstream, leader)) = watching.upstream {
            self.watches.relays.remove(&upstream);
            cx.send(self.addr(), Addr::Node(leader), Wire::Close(upstream));
        }
    }

    /// This node no longer leads: watchers go on elsewhere, text is forgotten.
    pub(super) fn close_feeds(&mut self, cx: &mut Cx) {
        self.watches.feeds.clear();
        let direct = |(id, w): (&u64, &Watching)| w.upstream.is_none().then_some(*id);
        let streams: Vec<u64> = self.watches.streams.iter().filter_map(direct).collect();
        for stream in streams {
            self.end_watch(stream, cx);
        }
    }

    pub(super) fn attempt_begins(&mut self, key: &AttemptKey, cx: &mut Cx) {
        let feed = self.watches.feeds.entry(key.job_id.clone()).or_default();
        feed.begin(key.agent, key.attempt);
        self.ring(&key.job_id, cx);
    }

    pub(super) fn job_ended(&mut self, job_id: &str, cx: &mut Cx) {
        self.watches.feeds.remove(job_id);
        self.ring(job_id, cx);
    }

    /// A worker's text: to the feed, or back where pieces are missing.
    pub(super) fn progress(&mut self, session: u64, progress: Progress, cx: &mut Cx) {
        let (Some(key), Some(mut delta)) = (progress.key, progress.delta) else {
            return;
        };
        let Some(feed) = self.watches.feeds.get_mut(&key.job_id) else {
            return;
        };
        (delta.agent, delta.attempt) = (key.agent, key.attempt);
        match feed.push(delta) {
            Pushed::Taken => self.ring(&key.job_id, cx),
            Pushed::Dropped => cx
                .coverage
                .hit("deeds", "text that was known or old dropped"),
            Pushed::Missing(offset) => {
                cx.coverage.hit("deeds", "missing text asked for");
                let key = Some(key);
                self.send_in(session, ToWorker::Resend(Resend { key, offset }), cx);
            }
        }
    }

    /// Wakes a job's watchers.
    pub(super) fn ring(&mut self, job_id: &str, cx: &mut Cx) {
        let of = |(id, w): (&u64, &Watching)| (w.job_id == job_id).then_some(*id);
        let streams: Vec<u64> = self.watches.streams.iter().filter_map(of).collect();
        for stream in streams {
            self.pump(stream, cx);
        }
    }

    /// Sends a watcher what lies behind its cursor, as far as it reads.
    fn pump(&mut self, stream: u64, cx: &mut Cx) {
        let Some(mut watching) = self.watches.streams.remove(&stream) else {
            return;
        };
        let mut over = false;
        if watching.seen && watching.upstream.is_none() {
            let before = watching.unread;
            over = self.pump_into(stream, &mut watching, cx);
            if before < WINDOW && watching.unread >= WINDOW {
                cx.coverage.hit("deeds", "a slow watcher waited for");
            }
        }
        if !over {
            self.watches.streams.insert(stream, watching);
        }
    }

    /// True once the end was sent.
    fn pump_into(&mut self, stream: u64, watching: &mut Watching, cx: &mut Cx) -> bool {
        loop {
            let mut updates = Vec::new();
            if let Some(feed) = self.watches.feeds.get(&watching.job_id) {
                updates = feed.read(&mut watching.cursor.positions.clone(), usize::MAX);
            }
            let ended = match self.events(watching, &mut updates, cx) {
                Some(ended) => ended,
                None => return false,
            };
            if updates.is_empty() && ended {
                let job = self.state.job(&watching.job_id).cloned();
                if let Some(job) = job
                    && let Ok(shown) = view::job(&job, &self.disk.blobs, None)
                {
                    self.send_update(stream, watching, Update::Done(shown), cx);
                    return true;
                }
                return false;
            }
            if updates.is_empty() {
                return false;
            }
            for update in updates {
                if watching.unread >= WINDOW {
                    return false;
                }
                self.send_update(stream, watching, update, cx);
            }
        }
    }

    /// Adds a page of the events behind the cursor; says if there are no more and the job has ended.
    fn events(
        &mut self,
        watching: &Watching,
        updates: &mut Vec<Update>,
        cx: &mut Cx,
    ) -> Option<bool> {
        let job = self.state.job(&watching.job_id)?;
        let first = (watching.cursor.event as usize).min(job.events.len());
        let behind = &job.events[first..];
        let mut missing = None;
        for event in behind.iter().take(PAGE) {
            match view::event(job, event, &self.disk.blobs) {
                Ok(event) => updates.push(Update::Event(event)),
                Err(absent) => {
                    missing = Some(absent);
                    break;
                }
            }
        }
        let ended = behind.len() <= PAGE && job.is_final();
        if let Some(conclave_coordinator_core::MissingBlob::Absent { hash }) = missing {
            self.fetch(<[u8; 32]>::try_from(hash), cx);
            return (!updates.is_empty()).then_some(false);
        }
        Some(ended)
    }

    fn send_update(&self, stream: u64, watching: &mut Watching, update: Update, cx: &mut Cx) {
        watching.cursor.pass(&update);
        watching.unread += 1;
        let response = WatchJobResponse {
            update: Some(update),
            cursor: watching.cursor.encode(),
        };
        let wire = Wire::Update(stream, Box::new(response));
        cx.send(self.addr(), watching.peer, wire);
    }
}
