//! How processes begin, end, and begin again; and what is made whole round them.

use super::{
    coordinator::{Coordinator, Moment, NEXT_VERSION, Stop},
    cx::{Addr, Event},
    disk::Disk,
    world::World,
};

impl World {
    /// A node's process begins on its folder; false if it ended at once.
    pub(super) fn start(&mut self, id: u64, disk: Disk) -> bool {
        let speaks = *self.speaks.entry(id).or_insert(self.program);
        match Coordinator::boot(id, disk, speaks, &mut self.cx) {
            Ok(node) => {
                self.cx
                    .tell(|| format!("coordinator {id}: starts, and knows log version {speaks}"));
                let mut node = node;
                // What it was about to fetch when it ended, nobody else will fetch for it.
                let named = node.state.live_blobs();
                node.fetch(named.into_keys(), &mut self.cx);
                self.nodes.insert(id, node);
                true
            }
            Err(found) => {
                let (disk, stop) = *found;
                self.disks.insert(id, disk);
                self.account(id, &stop);
                self.restart_later(id);
                false
            }
        }
    }

    pub(super) fn stopped(&mut self, id: u64, done: Result<(), Stop>) {
        if let Err(stop) = done {
            let class = self.account(id, &stop);
            self.crash(id, class);
        }
    }

    /// Why a process ended, in the ledger's and the counters' words.
    fn account(&mut self, id: u64, stop: &Stop) -> &'static str {
        match stop {
            Stop::Fsync => "fsync failed",
            Stop::Full => "coordinator stopped, disk full",
            Stop::Killed(Moment::Written | Moment::Synced) => "coordinator crashed in a write",
            Stop::Killed(Moment::Received | Moment::Installing) => {
                "coordinator crashed installing a snapshot"
            }
            Stop::Killed(Moment::Saved | Moment::Compacted) => "coordinator crashed compacting",
            Stop::TooNew(why) => {
                self.cx.ledger.too_old(id, why);
                self.cx.tell(|| format!("coordinator {id}: {why}"));
                // Whoever reads that brings the new program, sooner or later.
                if self.cx.rng.below(2) == 0 {
                    self.speaks.insert(id, NEXT_VERSION);
                }
                "coordinator stopped, program too old"
            }
            Stop::Broken(why) => {
                let broken = Err(format!("coordinator {id}: {why}"));
                self.cx.ledger.hold("what was written can be read", broken);
                "coordinator stopped, broken"
            }
        }
    }

    /// The process is gone, and comes back on what its disk kept.
    pub(super) fn crash(&mut self, id: u64, class: &'static str) {
        let Some(node) = self.nodes.remove(&id) else {
            return;
        };
        self.cx.fault(class);
        self.cx.tell(|| format!("coordinator {id}: {class}"));
        let disk = node.die(&mut self.cx);
        self.disks.insert(id, disk);
        self.restart_later(id);
    }

    fn restart_later(&mut self, id: u64) {
        let down = self.cx.rng.between(50, 6_000);
        self.cx.after(down, Event::Boot(id));
    }

    /// A process that finds its disk full ends again, until there is room.
    pub(super) fn boot(&mut self, id: u64) {
        let Some(disk) = self.disks.get(&id) else {
            return;
        };
        if disk.room.is_some() {
            self.cx
                .coverage
                .hit("deeds", "a full disk kept a coordinator down");
            return self.restart_later(id);
        }
        if let Some(disk) = self.disks.remove(&id) {
            self.start(id, disk);
        }
    }

    pub(super) fn heal(&mut self) {
        if !self.cx.net.blocked.is_empty() {
            self.cx.coverage.hit("deeds", "a partition healed");
            self.cx.tell(|| "the network is whole again".to_owned());
        }
        self.cx.net.blocked.clear();
    }

    pub(super) fn make_room(&mut self, id: u64) {
        let running = self.nodes.get_mut(&id).map(|n| &mut n.disk);
        let full = running.or_else(|| self.disks.get_mut(&id));
        if full.is_some_and(|disk| disk.room.take().is_some()) {
            self.cx
                .tell(|| format!("coordinator {id}: there is room on its disk again"));
        }
    }

    pub(super) fn kill_worker(&mut self, number: u32) -> bool {
        let Some(worker) = self.workers.remove(&number) else {
            return false;
        };
        if let Some((session, node)) = worker.session {
            self.cx.cut(session, Addr::Worker(number), Addr::Node(node));
        }
        true
    }
}
