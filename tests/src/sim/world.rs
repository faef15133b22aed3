//! The world: nodes, workers, clients, and the loop that hands each event to whom it concerns.

use std::collections::BTreeMap;

use conclave_coordinator_core::agent::Agent;
use conclave_proto::{INLINE_LIMIT, LOG_VERSION};

use super::{
    Options, Outcome,
    client::Client,
    coordinator::{Book, Coordinator, NEXT_VERSION, TICK_MS},
    cx::{Addr, Cx, Event, Input, Told, Wire, WorkerInput},
    disk::Disk,
    faults::Plan,
    watcher::Watcher,
    words,
    worker::Worker,
};

/// Longest time to come to rest once faults have stopped, virtual ms.
const REST_MS: u64 = 400_000;
/// The queues are looked at after so many events.
const LOOK_EVERY: u64 = 64;
/// Clients begin within this, virtual ms.
const RUSH_MS: u64 = 60_000;

/// Everything there is.
pub(super) struct World {
    pub cx: Cx,
    pub nodes: Book,
    /// Folders of nodes that are down.
    pub disks: BTreeMap<u64, Disk>,
    pub workers: BTreeMap<u32, Worker>,
    pub clients: Vec<Client>,
    pub watchers: Vec<Watcher>,
    pub plan: Plan,
    /// Workers, running or not.
    pub crew: u32,
    /// Folders made so far.
    pub minted: u64,
    pub joining: Option<u64>,
    /// No more faults.
    pub calm: bool,
    /// The newest log version that each node's program knows.
    pub speaks: BTreeMap<u64, u32>,
    /// The newest log version that a new node's program knows.
    pub program: u32,
    steps: u64,
}

impl World {
    pub(super) fn new(options: &Options) -> World {
        let mut cx = Cx::new(options.seed, options.twice, options.trace);
        let plan = Plan::draw(&mut cx.rng);
        cx.tell(|| format!("seed {}: {plan}", options.seed));
        // Some worlds have everything travel apart, some next to nothing.
        cx.inline_limit = [48, 256, 600, INLINE_LIMIT][cx.rng.below(4) as usize];
        // And some have a quota, drawn from nothing so that the others stay as they are.
        cx.running_agents = (options.seed % 4 == 1).then_some(3);
        // Some have no room to wait, at coordinators or at workers.
        if options.seed % 5 == 2 {
            cx.room_to_wait = 12;
        }
        cx.short_workers = options.seed % 5 == 3;
        let crew = cx.rng.between(1, 4) as u32;
        let mut world = World {
            cx,
            nodes: Book::new(),
            disks: BTreeMap::new(),
            workers: BTreeMap::new(),
            clients: Vec::new(),
            watchers: Vec::new(),
            plan,
            crew,
            minted: 1,
            joining: None,
            calm: false,
            speaks: BTreeMap::new(),
            program: LOG_VERSION,
            steps: 0,
        };
        // Half of the worlds begin with programs of before.
        if world.cx.rng.below(2) == 0 {
            world.program = world.cx.rng.between(1, u64::from(LOG_VERSION)) as u32;
        }
        let mut disk = Disk::default();
        disk.genesis(1);
        world.start(1, disk);
        if let Some(first) = world.nodes.get_mut(&1) {
            // The only voter of a new cluster need not wait.
            let _ = first.node.campaign();
        }
        for worker in 0..crew {
            world.cx.after(1, Event::BootWorker(worker));
        }
        for number in 0..world.cx.rng.between(4, 24) as u32 {
            let client = Client::new(number, world.clients.last(), &mut world.cx.rng);
            world.clients.push(client);
            let start = world.cx.rng.below(RUSH_MS);
            world.cx.after(start, Event::Client(number));
        }
        world.cx.after(1_000, Event::Operator);
        let first = world.cx.rng.between(1_000, 6_000);
        world.cx.after(first, Event::Fault);
        world
    }

    /// Runs through the faults, then to rest.
    pub(super) fn run(mut self, options: &Options) -> Outcome {
        while self.steps < options.steps && self.turn() {}
        self.end_faults();
        let until = self.cx.now + REST_MS;
        let mut rested = false;
        while !rested && self.cx.now < until && self.turn() {
            rested = self.steps.is_multiple_of(64) && self.is_at_rest();
        }
        if self.cx.ledger.violation.is_none() {
            let why = if rested { String::new() } else { self.unrest() };
            self.cx.ledger.rested(rested, || why);
            if rested {
                self.judge();
            }
        }
        for (law, count) in self.cx.ledger.asked() {
            self.cx.coverage.add("laws asked", *law, *count);
        }
        let exact = self.cx.ledger.exact().len() as u64;
        self.cx
            .coverage
            .add("deeds", "exact answers compared", exact);
        let (lines, digest) = self.cx.story.digest();
        Outcome {
            seed: options.seed,
            steps: self.steps,
            virtual_ms: self.cx.now,
            commands: self.cx.ledger.highest,
            jobs: self.cx.ledger.sealed.len() as u64,
            violation: self.cx.ledger.violation,
            coverage: self.cx.coverage,
            lines,
            digest,
        }
    }

    /// One event; false if there are no more, or a law did not hold.
    fn turn(&mut self) -> bool {
        let Some(event) = self.cx.pop() else {
            return false;
        };
        self.steps += 1;
        match event {
            Event::Node(id, boot, input) => self.give_node(id, boot, input),
            Event::Worker(number, boot, input) => self.give_worker(number, boot, input),
            Event::Arrives(from, to, stamp, wire) => {
                self.cx.arrived(from, to, stamp);
                self.arrives(from, to, wire);
            }
            Event::Noticed(Addr::Node(id), session) => {
                let boot = self.nodes.get(&id).map_or(0, |n| n.boot);
                self.give_node(id, boot, Input::Lost(session));
            }
            Event::Noticed(Addr::Worker(number), session) => {
                let boot = self.workers.get(&number).map_or(0, |w| w.boot);
                self.give_worker(number, boot, WorkerInput::Lost(session));
            }
            Event::Noticed(Addr::Watcher(number), stream) => {
                self.watchers[number as usize].lost(stream);
            }
            Event::Noticed(Addr::Client(_), _) => {}
            Event::Client(number) => {
                let nodes = self.addresses();
                self.clients[number as usize].wake(&nodes, &mut self.cx);
            }
            Event::Watcher(number) => {
                let nodes = self.addresses();
                self.watchers[number as usize].wake(&nodes, self.calm, &mut self.cx);
            }
            Event::ReadUpdate(number, stream, node) => {
                self.watchers[number as usize].read(stream, node, &mut self.cx);
            }
            Event::Fault => self.fault(),
            Event::Operator => self.operator(),
            Event::Boot(id) => self.boot(id),
            Event::Resume(id) => self.resume(id),
            Event::BootWorker(number) if number >= self.crew => {}
            Event::BootWorker(number) => {
                self.kill_worker(number);
                let worker = Worker::boot(number, &mut self.cx);
                self.workers.insert(number, worker);
            }
            Event::ResumeWorker(number) => {
                let nodes = self.addresses();
                if let Some(worker) = self.workers.get_mut(&number) {
                    worker.resume(&nodes, &mut self.cx);
                }
            }
            Event::Unhang(number) => {
                if let Some(worker) = self.workers.get_mut(&number) {
                    worker.unhang(&mut self.cx);
                }
            }
            Event::Heal => self.heal(),
            Event::Quicken(addr) => {
                self.cx.net.slow.remove(&addr);
            }
            Event::Room(id) => self.make_room(id),
            Event::LeaseEnds(number) => self.drain_hung(number),
        }
        if self.steps.is_multiple_of(LOOK_EVERY) {
            self.look_at_queues();
        }
        self.cx.ledger.violation.is_none()
    }

    /// Nodes as workers and clients know them: those that exist, up or down.
    pub(super) fn addresses(&self) -> Vec<u64> {
        let mut all: Vec<u64> = self
            .nodes
            .keys()
            .chain(self.disks.keys())
            .copied()
            .collect();
        all.sort_unstable();
        all
    }

    fn give_node(&mut self, id: u64, boot: u64, input: Input) {
        let Some(node) = self.nodes.get_mut(&id).filter(|n| n.boot == boot) else {
            return;
        };
        if matches!(input, Input::Tick) {
            self.cx.after(TICK_MS, Event::Node(id, boot, Input::Tick));
        }
        let done = node.take(input, &mut self.cx);
        self.stopped(id, done);
    }

    fn resume(&mut self, id: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.paused = false;
            let done = node.catch_up(&mut self.cx);
            self.stopped(id, done);
        }
    }

    /// What every process holds, against its bounds.
    fn look_at_queues(&mut self) {
        for node in self.nodes.values() {
            let who = node.addr().to_string();
            self.cx.ledger.held(&who, &node.held(self.cx.room_to_wait));
        }
        for worker in self.workers.values() {
            self.cx.ledger.held(&worker.worker_id(), &worker.held());
        }
    }

    fn give_worker(&mut self, number: u32, boot: u64, input: WorkerInput) {
        let nodes = self.addresses();
        if let Some(worker) = self.workers.get_mut(&number).filter(|w| w.boot == boot) {
            worker.take(input, &nodes, &mut self.cx);
        }
    }

    fn arrives(&mut self, from: Addr, to: Addr, wire: Wire) {
        let session = wire.session();
        if self.cx.net.blocked.contains(&(from, to)) {
            // A stream loses nothing and goes on: it breaks.
            if let Some(session) = session {
                self.cx.cut(session, from, to);
            }
            return self.cx.coverage.hit("network", "blocked on its way");
        }
        if session.is_some_and(|id| self.cx.is_cut(id)) {
            return;
        }
        self.cx.coverage.hit("network", "delivered");
        let there = match to {
            Addr::Node(id) => self.nodes.get(&id).map(|n| n.boot),
            Addr::Worker(number) => self.workers.get(&number).map(|w| w.boot),
            Addr::Client(_) | Addr::Watcher(_) => Some(0),
        };
        let Some(boot) = there else {
            if let Some(session) = session {
                self.cx.cut(session, from, to);
            }
            return;
        };
        match to {
            Addr::Node(id) => self.give_node(id, boot, Input::Wire(from, wire)),
            Addr::Worker(number) => self.give_worker(number, boot, WorkerInput::Wire(wire)),
            Addr::Client(number) => self.answer(from, number, wire),
            Addr::Watcher(number) => self.show(number, wire),
        }
    }

    fn answer(&mut self, from: Addr, number: u32, wire: Wire) {
        if let (Addr::Node(node), Wire::Told(call, told)) = (from, wire) {
            let told: Told = *told;
            let client = &mut self.clients[number as usize];
            client.told(node, call, told, &mut self.cx);
            if let Some(job_id) = client.begins_to_watch() {
                let watcher = self.watchers.len() as u32;
                self.watchers
                    .push(Watcher::new(watcher, &job_id, &mut self.cx));
                self.cx.after(1, Event::Watcher(watcher));
            }
        }
    }

    fn show(&mut self, number: u32, wire: Wire) {
        let watcher = &mut self.watchers[number as usize];
        match wire {
            Wire::Update(stream, update) => watcher.told(stream, *update, &mut self.cx),
            Wire::NoJob(stream) => watcher.no_job(stream, &mut self.cx),
            Wire::Close(stream) => watcher.lost(stream),
            _ => {}
        }
    }

    /// No more faults: everything is up, and the network is good.
    fn end_faults(&mut self) {
        self.calm = true;
        self.cx.tell(|| "faults end".to_owned());
        self.cx.net.clear_up();
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            if let Some(node) = self.nodes.get_mut(&id) {
                node.disk.fails = false;
                node.disk.slow_until = 0;
                node.armed = None;
            }
            self.make_room(id);
            self.resume(id);
        }
        for (id, mut disk) in std::mem::take(&mut self.disks) {
            (disk.room, disk.slow_until) = (None, 0);
            if !self.start(id, disk) {
                // Too old for its log: it is upgraded now.
                self.speaks.insert(id, NEXT_VERSION);
            }
        }
        let nodes = self.addresses();
        for number in 0..self.crew {
            match self.workers.get_mut(&number) {
                Some(worker) => {
                    worker.unhang(&mut self.cx);
                    worker.resume(&nodes, &mut self.cx);
                }
                None => self.cx.after(1, Event::BootWorker(number)),
            }
        }
    }

    /// Every client is done, no job is open, every member has applied all there is, nothing waits anywhere.
    fn is_at_rest(&self) -> bool {
        let Some(leader) = self.leader() else {
            return false;
        };
        let last = leader.node.last_index();
        let conf = leader.node.conf_state();
        let mut members = conf.voters.iter().chain(&conf.learners);
        self.clients.iter().all(Client::is_over)
            && self.watchers.iter().all(Watcher::is_over)
            && leader.state.active_jobs().next().is_none()
            && self.workers.values().all(Worker::is_quiet)
            && self.nodes.values().all(Coordinator::is_quiet)
            && members.all(|id| {
                let node = self.nodes.get(id);
                node.is_some_and(|n| {
                    n.state.applied_index() == last
                        && self.cx.ledger.lacks(n.id, &n.state).is_none()
                })
            })
    }

    fn judge(&mut self) {
        let Some(leader) = self.leader().map(|l| l.id) else {
            return;
        };
        for node in self.nodes.values() {
            if node.state.applied_index() == self.cx.ledger.highest {
                self.cx.ledger.installed(node.id, &node.state);
            }
            self.cx.ledger.derived(node.id, &node.state);
        }
        if let Some(leader) = self.nodes.get(&leader) {
            self.cx.ledger.at_rest(&leader.state);
        }
    }

    /// Why the world is not at rest, for people.
    fn unrest(&self) -> String {
        let waiting = self.clients.iter().filter(|c| !c.is_over());
        let clients: Vec<String> = waiting.map(Client::describe).collect();
        let watchers = self.watchers.iter().filter(|w| !w.is_over());
        let watchers: Vec<String> = watchers.map(Watcher::describe).collect();
        let lack = |n: &Coordinator| self.cx.ledger.lacks(n.id, &n.state);
        let lacking: Vec<String> = self.nodes.values().filter_map(lack).collect();
        let room = self.cx.room_to_wait;
        let busy = self.nodes.values().filter(|n| !n.is_quiet());
        let busy = busy.map(|n| format!("{} holds {:?}", n.addr(), n.held(room)));
        let working = self.workers.values().filter(|w| !w.is_quiet());
        let working = working.map(|w| format!("{} holds {:?}", w.worker_id(), w.held()));
        let busy: Vec<String> = busy.chain(working).collect();
        let nodes: String = self.nodes.values().map(open_jobs).collect();
        let waiting = [clients, watchers, lacking, busy].concat().join("; ");
        format!("not at rest after {REST_MS} ms: {waiting}{nodes}")
    }
}

/// A node, and the jobs that are open as it sees them.
fn open_jobs(node: &Coordinator) -> String {
    let (id, state) = (node.id, &node.state);
    let (term, leader) = (node.leadership.term, node.leadership.leader_id);
    let (applied, last) = (state.applied_index(), node.node.last_index());
    let leases: Vec<&str> = state.workers().map(|w| w.incarnation.as_str()).collect();
    let leases = leases.join(", ");
    let mut lines = format!(
        "\n  coordinator {id} (term {term}, led by {leader}) applied {applied} of {last}, leases: {leases}"
    );
    for job in state.active_jobs() {
        let agent = |a: &Agent| {
            let on = a.placement.as_ref().map_or("", |p| &p.incarnation);
            let stops = if a.stopping { " stops" } else { "" };
            format!("{} {} {on}{stops}", words::agent(a.state), a.attempt)
        };
        let agents: Vec<String> = job.agents.iter().map(agent).collect();
        let state = words::state(job.state);
        lines += &format!("\n    {} {state}: {}", job.id, agents.join(", "));
    }
    lines
}
