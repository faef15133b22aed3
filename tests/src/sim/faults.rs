//! What goes wrong: each seed chooses which classes of faults it has, and how often.

use std::fmt;

use super::{
    coordinator::{Coordinator, Moment, NEXT_VERSION},
    cx::{Addr, Event},
    invariants::HONEST_MS,
    rng::Rng,
    worker::Worker,
    world::World,
};

/// By so much a clock is wrong that nobody looked after, ms.
const DAYS_MS: i64 = 5 * 24 * 3_600_000;

/// A class of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    CrashNode,
    CrashAll,
    CrashAt,
    PauseNode,
    CrashWorker,
    PauseWorker,
    HangWorker,
    DrainWorker,
    FailStep,
    Fsync,
    DiskFull,
    SlowDisk,
    Isolate,
    Split,
    OneWay,
    Weather,
    Spike,
    Clock,
    Transfer,
    Members,
    Version,
}

const ALL: [Class; 21] = [
    Class::CrashNode,
    Class::CrashAll,
    Class::CrashAt,
    Class::PauseNode,
    Class::CrashWorker,
    Class::PauseWorker,
    Class::HangWorker,
    Class::DrainWorker,
    Class::FailStep,
    Class::Fsync,
    Class::DiskFull,
    Class::SlowDisk,
    Class::Isolate,
    Class::Split,
    Class::OneWay,
    Class::Weather,
    Class::Spike,
    Class::Clock,
    Class::Transfer,
    Class::Members,
    Class::Version,
];

/// What a seed does to its world.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub classes: Vec<Class>,
    pub pause_ms: u64,
}

/// Whom a fault is about.
enum Whom {
    Coordinator,
    Worker,
    /// Several, or whoever is drawn then.
    Open,
}

impl Class {
    /// As people say it, and whom it is about.
    fn words(self) -> (&'static str, Whom) {
        match self {
            Class::CrashNode => ("coordinator crash", Whom::Coordinator),
            Class::CrashAll => ("crash of one coordinator or all", Whom::Coordinator),
            Class::CrashAt => ("coordinator crash at a chosen moment", Whom::Coordinator),
            Class::PauseNode => ("coordinator pause", Whom::Coordinator),
            Class::CrashWorker => ("worker crash", Whom::Worker),
            Class::PauseWorker => ("worker pause", Whom::Worker),
            Class::HangWorker => ("engine hang", Whom::Worker),
            Class::DrainWorker => ("worker drain", Whom::Worker),
            Class::FailStep => ("engine step failure", Whom::Worker),
            Class::Fsync => ("fsync failure", Whom::Coordinator),
            Class::DiskFull => ("full disk", Whom::Coordinator),
            Class::SlowDisk => ("slow disk", Whom::Coordinator),
            Class::Isolate => ("coordinator isolated", Whom::Coordinator),
            Class::Split => ("network split", Whom::Open),
            Class::OneWay => ("one-way link loss", Whom::Coordinator),
            Class::Weather => ("other loss, order and delay of messages", Whom::Open),
            Class::Spike => ("latency spike", Whom::Open),
            Class::Clock => ("clock step", Whom::Coordinator),
            Class::Transfer => ("leadership transfer", Whom::Coordinator),
            Class::Members => ("membership change", Whom::Open),
            Class::Version => ("other program version", Whom::Coordinator),
        }
    }

    /// What happens to whom.
    fn line(self, node: u64, worker: u32) -> String {
        match self.words() {
            (fault, Whom::Coordinator) => format!("fault: {fault} ({})", Addr::Node(node)),
            (fault, Whom::Worker) => format!("fault: {fault} ({})", Addr::Worker(worker)),
            (fault, Whom::Open) => format!("fault: {fault}"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<&str> = self.classes.iter().map(|c| c.words().0).collect();
        let faults = if faults.is_empty() {
            "none".to_owned()
        } else {
            faults.join(", ")
        };
        write!(f, "a fault every {} ms or so: {faults}", self.pause_ms)
    }
}

impl Plan {
    pub(super) fn draw(rng: &mut Rng) -> Plan {
        let classes = ALL.into_iter().filter(|_| rng.below(2) == 0).collect();
        Plan {
            classes,
            pause_ms: rng.between(300, 4_000),
        }
    }
}

impl World {
    /// One fault, and the time of the next.
    pub(super) fn fault(&mut self) {
        if self.calm {
            return;
        }
        let pause = self.cx.rng.between(1, self.plan.pause_ms * 2);
        self.cx.after(pause, Event::Fault);
        let Some(class) = self.cx.rng.pick(&self.plan.classes) else {
            return;
        };
        let up: Vec<u64> = self.nodes.keys().copied().collect();
        let Some(node) = self.cx.rng.pick(&up) else {
            return;
        };
        let worker = self.cx.rng.below(u64::from(self.crew)) as u32;
        self.cx.tell(|| class.line(node, worker));
        match class {
            Class::CrashNode => self.crash(node, "coordinator crashed"),
            Class::CrashAll if self.cx.rng.below(4) == 0 => {
                self.cx.fault("all coordinators crashed");
                for node in up {
                    self.crash(node, "coordinator crashed");
                }
            }
            Class::CrashAll => self.crash(node, "coordinator crashed"),
            Class::CrashAt => self.arm(node),
            Class::PauseNode => self.pause(node),
            Class::CrashWorker => self.crash_worker(worker),
            Class::PauseWorker => self.pause_worker(worker),
            Class::HangWorker => self.hang_worker(worker),
            Class::DrainWorker => self.drain_worker(worker),
            Class::FailStep => self.fail_step(worker),
            Class::Fsync => {
                if let Some(node) = self.nodes.get_mut(&node) {
                    node.disk.fails = true;
                }
            }
            Class::DiskFull => self.fill_disk(node),
            Class::SlowDisk => self.slow_disk(node),
            Class::Isolate | Class::Split | Class::OneWay => self.partition(class, node),
            Class::Weather => self.weather(),
            Class::Spike => self.spike(node, worker),
            Class::Clock => self.step_clock(node),
            Class::Transfer => self.transfer(node),
            Class::Members => self.operate(true),
            Class::Version => self.change_program(node),
        }
    }

    fn pause(&mut self, node: u64) {
        let Some(running) = self.nodes.get_mut(&node).filter(|n| !n.paused) else {
            return;
        };
        running.paused = true;
        self.cx.fault("coordinator stood still");
        let long = self.cx.rng.between(200, 6_000);
        self.cx.after(long, Event::Resume(node));
    }

    fn crash_worker(&mut self, worker: u32) {
        if self.kill_worker(worker) {
            self.cx.fault("worker crashed");
            let down = self.cx.rng.between(100, 12_000);
            self.cx.after(down, Event::BootWorker(worker));
        }
    }

    fn pause_worker(&mut self, worker: u32) {
        let Some(running) = self.workers.get_mut(&worker).filter(|w| !w.paused) else {
            return;
        };
        running.paused = true;
        self.cx.fault("worker stood still");
        let long = self.cx.rng.between(200, 12_000);
        self.cx.after(long, Event::ResumeWorker(worker));
    }

    fn hang_worker(&mut self, worker: u32) {
        let Some(running) = self.workers.get_mut(&worker) else {
            return;
        };
        if running.hung {
            return;
        }
        // One without work hangs in the middle of what it gets next.
        running.hung = true;
        self.cx.fault("engine hung");
        let long = self.cx.rng.between(1_000, 30_000);
        self.cx.after(long, Event::Unhang(worker));
    }

    fn drain_worker(&mut self, worker: u32) {
        if let Some(running) = self.workers.get_mut(&worker) {
            running.drain(&mut self.cx);
            self.cx.fault("worker drained");
            let later = self.cx.rng.between(500, 5_000);
            // What drains is stopped, and started anew.
            self.cx.after(later, Event::BootWorker(worker));
        }
    }

    /// A hung worker's lease is about to run out, and its operator, who knows nothing of that, drains it: what
    /// it says then finds it gone, if it is not too late.
    pub(super) fn drain_hung(&mut self, worker: u32) {
        let drains = self.plan.classes.contains(&Class::DrainWorker) && !self.calm;
        let hung = |w: &Worker| w.hung && !w.paused && !w.draining && w.session.is_some();
        if drains && self.workers.get(&worker).is_some_and(hung) {
            self.cx.tell(|| Class::DrainWorker.line(0, worker));
            self.drain_worker(worker);
        }
    }

    fn fail_step(&mut self, worker: u32) {
        if let Some(running) = self.workers.get_mut(&worker).filter(|w| w.has_work()) {
            running.fail_step();
            self.cx.fault("engine step failed");
        }
    }

    /// Cuts one off, or the nodes in two, or one direction of one link.
    fn partition(&mut self, class: Class, node: u64) {
        let nodes: Vec<Addr> = self.nodes.keys().copied().map(Addr::Node).collect();
        let workers: Vec<Addr> = (0..self.crew).map(Addr::Worker).collect();
        let all: Vec<Addr> = nodes.iter().chain(&workers).copied().collect();
        let me = Addr::Node(node);
        let blocked = &mut self.cx.net.blocked;
        match class {
            Class::Isolate => {
                self.cx.coverage.hit("faults", "coordinator isolated");
                for other in all.iter().filter(|a| **a != me) {
                    blocked.extend([(me, *other), (*other, me)]);
                }
            }
            Class::Split => {
                self.cx.coverage.hit("faults", "network split");
                let side = |a: &Addr, rng: &mut Rng| (*a, rng.below(2) == 0);
                let sides: Vec<_> = all.iter().map(|a| side(a, &mut self.cx.rng)).collect();
                for (a, left) in &sides {
                    let others = sides.iter().filter(|(_, l)| l != left);
                    blocked.extend(others.map(|(b, _)| (*a, *b)));
                }
            }
            _ => {
                self.cx.coverage.hit("faults", "one-way link lost");
                // It hears and is not heard, or is heard and does not hear; by some or by all.
                let (speaks, some) = (self.cx.rng.below(2) == 0, self.cx.rng.below(2) == 0);
                for other in all.iter().filter(|a| **a != me) {
                    if !some || self.cx.rng.below(2) == 0 {
                        let link = if speaks { (me, *other) } else { (*other, me) };
                        blocked.insert(link);
                    }
                }
            }
        }
        let long = self.cx.rng.between(500, 12_000);
        self.cx.after(long, Event::Heal);
    }

    fn weather(&mut self) {
        let net = &mut self.cx.net;
        net.loss_ppm = [0, 1_000, 20_000, 150_000][self.cx.rng.below(4) as usize];
        net.duplicate_ppm = [0, 5_000, 50_000][self.cx.rng.below(3) as usize];
        net.reset_ppm = [0, 500, 5_000][self.cx.rng.below(3) as usize];
        net.reorder_ppm = [0, 2_000, 40_000][self.cx.rng.below(3) as usize];
        net.slowest_ms = [5, 50, 400, 2_000][self.cx.rng.below(4) as usize];
        self.cx.fault("weather changed");
    }

    /// Whatever this one says or hears is late for a while.
    fn spike(&mut self, node: u64, worker: u32) {
        let addr = if self.cx.rng.below(4) == 0 {
            Addr::Worker(worker)
        } else {
            Addr::Node(node)
        };
        let late = self.cx.rng.between(200, 3_000);
        self.cx
            .tell(|| format!("{addr}: all it says and hears is {late} ms late"));
        self.cx.net.slow.insert(addr, late);
        self.cx.fault("latency spike");
        let long = self.cx.rng.between(500, 8_000);
        self.cx.after(long, Event::Quicken(addr));
    }

    fn step_clock(&mut self, node: u64) {
        // At most one clock is off by days: most must be honest.
        let wrong = |n: &Coordinator| n.skew_ms.abs() > HONEST_MS;
        let others = self.nodes.iter().filter(|(id, _)| **id != node);
        let trusted = others.filter(|(_, n)| wrong(n)).count() == 0;
        if let Some(running) = self.nodes.get_mut(&node) {
            let several = running.node.conf_state().voters.len() > 1;
            let skew = if trusted && several && self.cx.rng.below(3) == 0 {
                self.cx.fault("clock stepped by days");
                DAYS_MS * if self.cx.rng.below(4) == 0 { -1 } else { 1 }
            } else {
                self.cx.rng.below(2 * HONEST_MS as u64) as i64 - HONEST_MS
            };
            let before = std::mem::replace(&mut running.skew_ms, skew);
            self.cx.fault(if skew < before {
                "clock stepped back"
            } else {
                "clock stepped forward"
            });
        }
    }

    /// The node will die at a moment that is seldom met by chance.
    fn arm(&mut self, node: u64) {
        let moments = [
            Moment::Written,
            Moment::Synced,
            Moment::Received,
            Moment::Installing,
            Moment::Saved,
            Moment::Compacted,
        ];
        let moment = self.cx.rng.pick(&moments);
        // Snapshots are received so seldom that whoever gets one dies of it.
        let anyone = matches!(moment, Some(Moment::Received | Moment::Installing));
        for (id, running) in &mut self.nodes {
            if anyone || *id == node {
                running.armed = moment;
            }
        }
    }

    /// Little or nothing more can be written, until somebody makes room.
    fn fill_disk(&mut self, node: u64) {
        let left = self.cx.rng.below(20_000);
        if let Some(running) = self.nodes.get_mut(&node).filter(|n| n.disk.room.is_none()) {
            running.disk.room = Some(left);
            self.cx.fault("disk filled up");
            let long = self.cx.rng.between(1_000, 15_000);
            self.cx.after(long, Event::Room(node));
        }
    }

    /// Every write takes long for a while, and is done all the same: also a process that starts
    /// anew on this disk waits for it.
    fn slow_disk(&mut self, node: u64) {
        let until = self.cx.now + self.cx.rng.between(2_000, 20_000);
        if let Some(running) = self.nodes.get_mut(&node) {
            running.disk.slow_until = until;
            self.cx.fault("disk became slow");
        }
    }

    /// The node is restarted with a program of another version.
    fn change_program(&mut self, node: u64) {
        let up = self.cx.rng.below(2) == 0;
        let known = self.speaks.entry(node).or_insert(self.program);
        let class = if *known < NEXT_VERSION && (up || *known == 1) {
            *known += 1;
            "coordinator upgraded"
        } else {
            *known -= 1;
            "coordinator downgraded"
        };
        self.crash(node, class);
    }

    fn transfer(&mut self, to: u64) {
        self.cx.fault("leadership handed over");
        self.tell_leader(super::cx::Input::Transfer(to));
    }
}
