//! The scenarios: what is done to a cluster under load.

mod clock;
mod disk;
mod network;
mod restart;
mod signals;

use std::pin::Pin;

use super::Arena;
use super::clocks::Clocks;
use super::netns::Net;
use super::small_disk::SmallDisk;
use crate::Places;

/// Size of every cluster.
const COORDINATORS: usize = 3;
const WORKERS: usize = 3;

/// What the processes stand on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// Loopback: any machine.
    Loopback,
    /// A network namespace for each process: root.
    Namespaces,
    /// Coordinator 0 on a small disk: root.
    SmallDisk,
    /// Coordinators with clocks of their own: libfaketime.
    Clocks,
}

/// The levers of a ground.
pub enum Site {
    /// None.
    Loopback,
    /// The network.
    Net(Net),
    /// The disk of coordinator 0.
    Disk(SmallDisk),
    /// The clocks.
    Clocks(Clocks),
}

type Step<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// One scenario.
pub struct Scenario {
    /// As named on the command line.
    pub name: &'static str,
    /// What is done.
    pub about: &'static str,
    /// Where.
    pub ground: Ground,
    /// Calls may fail for a while: no quorum, or nobody there at all.
    pub calls_may_fail: bool,
    /// Does it.
    pub run: for<'a> fn(&'a mut Arena) -> Step<'a>,
}

const fn scenario(
    name: &'static str,
    about: &'static str,
    ground: Ground,
    run: for<'a> fn(&'a mut Arena) -> Step<'a>,
) -> Scenario {
    Scenario {
        name,
        about,
        ground,
        calls_may_fail: false,
        run,
    }
}

impl Scenario {
    const fn without_quorum(mut self) -> Scenario {
        self.calls_may_fail = true;
        self
    }
}

/// All of them, in the order of a run.
pub static SCENARIOS: &[Scenario] = &[
    scenario(
        "kill-leader",
        "SIGKILL the leader, twice",
        Ground::Loopback,
        signals::kill_leader,
    ),
    scenario(
        "kill-follower",
        "SIGKILL a follower",
        Ground::Loopback,
        signals::kill_follower,
    ),
    scenario(
        "kill-worker",
        "SIGKILL a busy worker",
        Ground::Loopback,
        signals::kill_worker,
    ),
    scenario(
        "pause-leader",
        "SIGSTOP the leader, SIGCONT under another",
        Ground::Loopback,
        signals::pause_leader,
    ),
    scenario(
        "pause-follower",
        "SIGSTOP a follower, SIGCONT",
        Ground::Loopback,
        signals::pause_follower,
    ),
    scenario(
        "pause-worker",
        "SIGSTOP a busy worker beyond its lease, SIGCONT",
        Ground::Loopback,
        signals::pause_worker,
    ),
    scenario(
        "restart-all",
        "SIGKILL every process, start all",
        Ground::Loopback,
        restart::all,
    )
    .without_quorum(),
    scenario(
        "rolling-restart",
        "SIGTERM and start each process in turn",
        Ground::Loopback,
        restart::rolling,
    ),
    scenario(
        "isolate-leader",
        "cut the leader off, heal",
        Ground::Namespaces,
        network::isolate_leader,
    ),
    scenario(
        "isolate-follower",
        "cut a follower off, heal",
        Ground::Namespaces,
        network::isolate_follower,
    ),
    scenario(
        "no-quorum",
        "cut all coordinators from each other, heal",
        Ground::Namespaces,
        network::no_quorum,
    )
    .without_quorum(),
    scenario(
        "deaf-leader",
        "the leader hears nobody, heal",
        Ground::Namespaces,
        network::deaf_leader,
    ),
    scenario(
        "mute-leader",
        "nobody hears the leader, heal",
        Ground::Namespaces,
        network::mute_leader,
    ),
    scenario(
        "cut-worker",
        "cut a worker from the leader only, heal",
        Ground::Namespaces,
        network::cut_worker,
    ),
    scenario(
        "full-disk",
        "fill the leader's disk, free it, start again",
        Ground::SmallDisk,
        disk::full_disk,
    ),
    scenario(
        "torn-log",
        "garbage behind a log, then a torn record",
        Ground::Loopback,
        disk::torn_log,
    ),
    scenario(
        "flipped-byte",
        "a byte in the middle of a log",
        Ground::Loopback,
        disk::flipped_byte,
    ),
    scenario(
        "clock-of-one",
        "step the leader's clock by hours, both ways",
        Ground::Clocks,
        clock::of_one,
    ),
    scenario(
        "clock-of-all",
        "step every clock by hours, both ways",
        Ground::Clocks,
        clock::of_all,
    ),
];

/// Prepares a ground.
pub(super) fn prepare(ground: Ground) -> (Places, Site) {
    match ground {
        Ground::Loopback => (Places::loopback(COORDINATORS, WORKERS), Site::Loopback),
        Ground::Namespaces => {
            let (net, places) = Net::new(COORDINATORS, WORKERS);
            (places, Site::Net(net))
        }
        Ground::SmallDisk => {
            let disk = SmallDisk::mount();
            let mut places = Places::loopback(COORDINATORS, WORKERS);
            places.coordinators[0].data_dir = Some(disk.path().join("data"));
            for place in &mut places.coordinators {
                place.settings = format!("disk_reserve_bytes = {}", disk::RESERVE);
            }
            (places, Site::Disk(disk))
        }
        Ground::Clocks => {
            let (clocks, places) = Clocks::new(COORDINATORS, WORKERS);
            (places, Site::Clocks(clocks))
        }
    }
}
