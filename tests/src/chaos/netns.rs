//! Each process in a network namespace of its own, joined by a bridge; cuts
//! are firewall rules at the receiver, so one direction can be cut alone.

use super::machine::command;
use crate::{Launch, Place, Places};

/// The bridge, and the clients' address on it.
const HUB: (&str, &str) = ("hub", "10.87.0.1");

/// One end of a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// A coordinator, by index.
    Coordinator(usize),
    /// A worker, by index.
    Worker(usize),
}

impl End {
    fn name(self) -> String {
        match self {
            End::Coordinator(index) => format!("coordinator{index}"),
            End::Worker(index) => format!("worker{index}"),
        }
    }

    fn address(self) -> String {
        match self {
            End::Coordinator(index) => format!("10.87.0.{}", 11 + index),
            End::Worker(index) => format!("10.87.0.{}", 101 + index),
        }
    }
}

/// The namespaces; gone with it.
pub struct Net {
    ends: Vec<End>,
}

impl Net {
    /// Namespaces and links of so many processes, and their places.
    ///
    /// # Panics
    /// With the command that failed.
    pub fn new(coordinators: usize, workers: usize) -> (Net, Places) {
        let ends = (0..coordinators).map(End::Coordinator);
        let ends: Vec<End> = ends.chain((0..workers).map(End::Worker)).collect();
        let (hub, address) = HUB;
        must(&format!("ip link add {hub} type bridge"));
        must(&format!("ip addr add {address}/24 dev {hub}"));
        must(&format!("ip link set {hub} up"));
        for (index, end) in ends.iter().enumerate() {
            let (name, address) = (end.name(), end.address());
            must(&format!("ip netns add {name}"));
            must(&format!(
                "ip link add v{index} type veth peer name eth0 netns {name}"
            ));
            must(&format!("ip link set v{index} master {hub} up"));
            must(&format!("ip -n {name} addr add {address}/24 dev eth0"));
            must(&format!("ip -n {name} link set eth0 up"));
            must(&format!("ip -n {name} link set lo up"));
        }
        let place = |end: &End| Place {
            host: end.address(),
            launch: Launch {
                wrap: ["ip", "netns", "exec", &end.name()]
                    .map(str::to_owned)
                    .to_vec(),
                ..Launch::default()
            },
            ..Place::default()
        };
        let places = Places {
            coordinators: ends[..coordinators].iter().map(place).collect(),
            workers: ends[coordinators..].iter().map(place).collect(),
            tokens: None,
        };
        (Net { ends }, places)
    }

    /// Drops what `from` sends to `to`; the other direction goes on.
    pub fn cut_one_way(&self, from: End, to: End) {
        let (name, address) = (to.name(), from.address());
        must(&format!(
            "ip netns exec {name} iptables -A INPUT -s {address} -j DROP"
        ));
    }

    /// Cuts both directions.
    pub fn cut(&self, one: End, other: End) {
        self.cut_one_way(one, other);
        self.cut_one_way(other, one);
    }

    /// Cuts `end` off from every other process; clients still reach it.
    pub fn isolate(&self, end: End) {
        for other in self.ends.iter().filter(|other| **other != end) {
            self.cut(end, *other);
        }
    }

    /// Undoes every cut.
    pub fn heal(&self) {
        for end in &self.ends {
            must(&format!("ip netns exec {} iptables -F INPUT", end.name()));
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // What cannot be deleted goes with the runner's own namespaces.
        for (index, end) in self.ends.iter().enumerate() {
            // The link first: a namespace takes its time to let go of one.
            let _ = command(&format!("ip link del v{index}"));
            let _ = command(&format!("ip netns del {}", end.name()));
        }
        let _ = command(&format!("ip link del {}", HUB.0));
    }
}

fn must(line: &str) {
    command(line).unwrap_or_else(|why| panic!("{why}"));
}
