//! What a scenario works with: the cluster, the clients, the site's levers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::Dice;
use super::load::Shared;
use super::scenarios::Site;
use crate::Cluster;

/// Longest wait for what a scenario waits for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Period of looking at processes from outside, which send no events.
const LOOK: Duration = Duration::from_millis(20);

/// A running scenario.
pub struct Arena {
    /// The processes.
    pub cluster: Cluster,
    /// Networks, disks and clocks of their own.
    pub site: Site,
    /// Chance.
    pub dice: Dice,
    load: Arc<Shared>,
    began: Instant,
    faults: usize,
    last_fault: Instant,
    slowest: Option<(Duration, Duration)>,
    wrong: Vec<String>,
}

impl Arena {
    /// Nothing has happened yet.
    pub fn new(cluster: Cluster, site: Site, load: Arc<Shared>, dice: Dice) -> Arena {
        Arena {
            cluster,
            site,
            dice,
            load,
            began: Instant::now(),
            faults: 0,
            last_fault: Instant::now(),
            slowest: None,
            wrong: Vec::new(),
        }
    }

    /// Faults so far.
    pub fn faults(&self) -> usize {
        self.faults
    }

    /// The longest recovery: submissions acknowledged, answered.
    pub fn slowest(&self) -> Option<(Duration, Duration)> {
        self.slowest
    }

    /// What the scenario itself found.
    pub fn wrong(&self) -> Vec<String> {
        self.wrong.clone()
    }

    /// Notes what must not be.
    pub fn accuse(&mut self, what: impl Into<String>) {
        self.wrong.push(what.into());
    }

    /// Says what happens.
    pub fn say(&self, what: &str) {
        super::machine::note(&format!(
            "    {:6.2} s  {what}",
            self.began.elapsed().as_secs_f64()
        ));
    }

    /// A fault is injected now; recovery is measured from here.
    pub fn fault(&mut self, what: &str) {
        self.faults += 1;
        self.last_fault = Instant::now();
        self.say(what);
    }

    /// Waits until a job that was submitted after the last fault is answered.
    pub async fn recovered(&mut self) {
        let fault = self.last_fault;
        loop {
            let after = |sent: Instant| sent > fault;
            let jobs = self.load.accepted();
            let new = || jobs.iter().filter(|job| after(job.sent));
            let acknowledged = new().map(|job| job.acknowledged).min();
            let answered = new().filter_map(|job| Some(job.answered.as_ref()?.0)).min();
            if let (Some(acknowledged), Some(answered)) = (acknowledged, answered) {
                let (ack, answer) = (acknowledged - fault, answered - fault);
                let worst = self.slowest.unwrap_or_default();
                self.slowest = Some((worst.0.max(ack), worst.1.max(answer)));
                let (ack, answer) = (ack.as_secs_f64(), answer.as_secs_f64());
                self.say(&format!(
                    "accepted after {ack:.2} s, answered after {answer:.2} s"
                ));
                return;
            }
            if fault.elapsed() > PATIENCE {
                self.accuse(format!(
                    "no job was answered for {PATIENCE:?} after a fault"
                ));
                return;
            }
            sleep(LOOK).await;
        }
    }

    /// Lets the load run for a while.
    pub async fn run_for(&self, time: Duration) {
        sleep(time).await;
    }

    /// Waits until another coordinator than `old` leads.
    pub async fn another_leader(&mut self, old: usize) -> usize {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            for index in 0..self.cluster.coordinators.len() {
                if index != old
                    && let Some(status) = self.cluster.status(index).await
                    && status.role == "leader"
                {
                    self.say(&format!(
                        "coordinator {index} leads in term {}",
                        status.term
                    ));
                    return index;
                }
            }
            sleep(LOOK).await;
        }
        self.accuse(format!(
            "nobody but coordinator {old} leads after {PATIENCE:?}"
        ));
        old
    }

    /// A coordinator that does not lead.
    pub async fn follower(&mut self) -> usize {
        let leader = self.cluster.leader().await;
        let count = self.cluster.coordinators.len();
        (leader + 1 + self.dice.below(count - 1)) % count
    }

    /// A worker that runs agents now, or any.
    pub async fn busy_worker(&mut self) -> usize {
        let workers = self.cluster.worker_status().await;
        let busy = workers.iter().max_by_key(|worker| worker.agents);
        let index = busy.and_then(|worker| worker.worker_id.strip_prefix("worker-")?.parse().ok());
        index.unwrap_or(0)
    }

    /// Waits until a coordinator says that it is ready.
    pub async fn until_ready(&mut self, index: usize) {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            let http = self.cluster.coordinators[index]
                .as_ref()
                .map(|p| p.http.clone());
            if let Some(http) = http
                && is_ready(&http).await
            {
                return;
            }
            sleep(LOOK).await;
        }
        self.accuse(format!(
            "coordinator {index} is not ready after {PATIENCE:?}"
        ));
    }

    /// SIGKILL, unless the coordinator has ended by itself, which is said.
    pub async fn kill_or_find_dead(&mut self, index: usize) {
        let process = self.cluster.coordinators[index].as_mut();
        match process.and_then(crate::Process::ended) {
            Some(status) => {
                self.say(&format!("coordinator {index} has ended: {status}"));
                self.cluster.coordinators[index] = None;
            }
            None => self.cluster.kill_coordinator(index).await,
        }
    }

    /// Accuses every process that ended although nobody asked it to.
    pub fn look_for_the_dead(&mut self) {
        let cluster = &mut self.cluster;
        let coordinators = cluster.coordinators.iter_mut().enumerate();
        let named = coordinators.map(|(index, process)| (format!("coordinator {index}"), process));
        let workers = cluster.workers.iter_mut().enumerate();
        let named = named.chain(workers.map(|(i, process)| (format!("worker {i}"), process)));
        let dead = named.filter_map(|(name, process)| {
            let status = process.as_mut()?.ended()?;
            Some(format!("{name} ended by itself: {status}"))
        });
        self.wrong.extend(dead.collect::<Vec<_>>());
    }

    /// Waits until every worker holds a lease.
    pub async fn until_workers(&self) {
        self.cluster.until_workers(self.cluster.workers.len()).await;
    }
}

/// Whether `/readyz` says that it has caught up with a leader; without one, a member may be ready too.
async fn is_ready(http: &str) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(http).await?;
        let request = format!("GET /readyz HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(2), ask).await;
    let caught_up =
        |text: String| text.starts_with("HTTP/1.1 200") && text.ends_with("\r\n\r\nready\n");
    answer.is_ok_and(|answer| answer.is_ok_and(caught_up))
}
